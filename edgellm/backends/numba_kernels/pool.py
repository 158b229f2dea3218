"""Threads for kernels: one pool per process, started at first use, shared by all models.

A job is a list of chunks; the caller and the helpers draw them from one counter and call the kernel for each, which
releases the GIL. A helper that is late finds nothing left to do and nobody waits for it. Any number of Python threads
may run jobs at once. (Numba's own thread layers are not used: the one that is always there aborts the process when two
Python threads use it at once.)
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue


class _Job:
    """Calls work(0) .. work(n_chunks - 1), each once, on whichever thread draws it."""

    def __init__(self, work: Callable[[int], None], n_chunks: int) -> None:
        self._work, self._n_chunks = work, n_chunks
        self._next = self._done = 0
        self._lock = threading.Lock()
        self._finished = threading.Lock()  # held until all chunks that were drawn are done and none is left
        self._finished.acquire()
        self.error: BaseException | None = None

    def _draw(self) -> int:
        with self._lock:
            chunk = self._next
            self._next += chunk < self._n_chunks
            return chunk

    def _count(self) -> None:
        with self._lock:
            self._done += 1
            if self._done == self._n_chunks:
                self._finished.release()

    def drop_rest(self) -> None:
        """Nobody starts another chunk."""
        with self._lock:
            if self._next < self._n_chunks:
                self._n_chunks = self._next
                if self._done == self._n_chunks:
                    self._finished.release()

    def run(self) -> None:
        """Draws and runs chunks until none is left; an exception of one drops the rest."""
        while (chunk := self._draw()) < self._n_chunks:
            try:
                self._work(chunk)
            except BaseException as e:
                self.error = self.error or e
                self.drop_rest()
            self._count()

    def wait(self) -> None:
        self._finished.acquire()


class _Helpers:
    """Daemon threads that wait for jobs; they use no processor time while they wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queues: list[SimpleQueue[_Job]] = []
        self._process = os.getpid()

    def call(self, job: _Job, n: int) -> None:
        """Asks n helpers to join in."""
        with self._lock:
            if self._process != os.getpid():  # after a fork the threads are gone
                self._queues, self._process = [], os.getpid()
            while len(self._queues) < n:
                queue: SimpleQueue[_Job] = SimpleQueue()
                name = f"edgellm-numba-{len(self._queues) + 1}"
                threading.Thread(target=self._serve, args=(queue,), name=name, daemon=True).start()
                self._queues.append(queue)
            queues = self._queues[:n]
        for queue in queues:
            queue.put(job)

    @staticmethod
    def _serve(queue: SimpleQueue[_Job]) -> None:
        while True:
            job = queue.get()
            job.run()
            del job  # its arrays must not live until the next one comes


_helpers = _Helpers()


def run(work: Callable[[int], None], n_chunks: int, n_threads: int) -> None:
    """work(chunk) for every chunk below n_chunks, on the caller and up to n_threads - 1 helpers.

    Returns when all are done. An exception from `work` (or Ctrl-C in the caller) is raised here after the chunks that
    are running have ended, so no kernel writes to a buffer later.
    """
    n_helpers = min(n_threads, n_chunks) - 1
    if n_helpers < 1:
        for chunk in range(n_chunks):
            work(chunk)
        return
    job = _Job(work, n_chunks)
    _helpers.call(job, n_helpers)
    interrupted: BaseException | None = None
    job.run()
    while True:
        try:
            job.wait()
            break
        except BaseException as e:  # Ctrl-C: let the running chunks end first
            interrupted = e
            job.drop_rest()
    if interrupted or job.error:
        raise interrupted or job.error  # type: ignore[misc]
