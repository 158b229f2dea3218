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
        self._next = self._helping = 0  # next chunk; helpers that are inside one
        self._changed = threading.Condition(threading.Lock())
        self.error: BaseException | None = None

    def run(self) -> None:
        """The caller's part: chunks until none is left."""
        while (chunk := self._draw(0)) is not None:
            self._work(chunk)

    def help(self) -> None:
        """A helper's part. An exception ends the job; the caller raises it."""
        while (chunk := self._draw(1)) is not None:
            try:
                self._work(chunk)
            except BaseException as e:
                self.error = self.error or e
                self.drop_rest()
            with self._changed:
                self._helping -= 1
                self._changed.notify()

    def _draw(self, helping: int) -> int | None:
        with self._changed:
            if self._next >= self._n_chunks:
                return None
            self._next += 1
            self._helping += helping
            return self._next - 1

    def drop_rest(self) -> None:
        """Nobody starts another chunk."""
        with self._changed:
            self._n_chunks = 0

    def wait(self) -> None:
        """Until no helper is inside a chunk. No chunk may be left to draw."""
        with self._changed:
            while self._helping:
                self._changed.wait()


class _Helpers:
    """Daemon threads that wait for jobs; they use no processor time while they wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queues: list[SimpleQueue[_Job]] = []

    def forget(self) -> None:
        """In the child of a fork the threads are gone, and whoever has taken the lock."""
        self._lock, self._queues = threading.Lock(), []

    def call(self, job: _Job, n: int) -> None:
        """Asks n helpers to join in."""
        with self._lock:
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
            job.help()
            del job  # its arrays must not live until the next one comes


_helpers = _Helpers()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_helpers.forget)


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
    stopped: BaseException | None = None
    try:
        job.run()
    except BaseException as e:
        stopped = e
        job.drop_rest()
    while True:
        try:
            job.wait()
            break
        except BaseException as e:  # Ctrl-C again: a helper still writes, it has to end first
            stopped = e
    if stopped or job.error:
        raise stopped or job.error  # type: ignore[misc]
