"""One thread per model that does all of its work, one job after the other.

The thread that calls waits on a queue and never inside the C library, so Ctrl-C, a GUI's stop button and a time limit
work in the middle of a long prompt. A job carries the cancel flag: an int32 that the backend polls.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np

from edgellm.errors import Cancelled, InvalidArgumentError, ModelClosedError

StopReason = Literal["cancelled", "timeout"]
# A wait without a limit cannot be interrupted on Windows, so waits are cut into slices of this many seconds.
_SLICE = 0.05


class Job:
    """One piece of work: `run(job)` is called on the worker thread; items and the outcome come back through a queue.

    `flag` is an int32 array of one element, not zero once the job shall end. `keep` then says whether what was done so
    far is kept (stop) or dropped (cancel), `why` what ended it.
    """

    def __init__(self, run: Callable[[Job], Any]) -> None:
        self.flag = np.zeros(1, dtype=np.int32)
        self.keep = True
        self.why: StopReason = "cancelled"
        self._heard: Callable[[], Any] | None = None
        self.outcome: Any = None
        self.error: BaseException | None = None
        self._run = run
        self._items: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._ended = False

    @property
    def stopped(self) -> bool:
        return bool(self.flag[0])

    @property
    def ended(self) -> bool:
        """Whether it has run, or was refused."""
        return self._ended

    def stop(self, keep: bool = True, why: StopReason = "cancelled") -> None:
        """Ask the job to end. Returns at once; a later `stop(keep=False)` still drops what was kept."""
        self.keep = self.keep and keep
        if not self.stopped:
            self.why = why
        self.flag[0] = 1

    # ---- worker side

    def put(self, item: Any) -> None:
        self._items.put(item)
        if self._heard is not None:
            self._heard()

    def execute(self) -> None:
        """Run it; whatever is raised reaches the caller."""
        try:
            if self.stopped and not self.keep:
                raise Cancelled()
            self.outcome = self._run(self)
        except BaseException as error:
            self.error = error
        self._end()

    def refuse(self, error: BaseException) -> None:
        self.error = error
        self._end()

    def _end(self) -> None:
        self._run = _nothing  # its closure may hold the engine
        self._ended = True
        self.put(_END)

    # ---- caller side

    def listen(self, heard: Callable[[], Any]) -> None:
        """Have `heard` called whenever there may be something new: now, after each item and at the end.

        It runs on the thread that works, so it must return at once and never raise.
        """
        self._heard = heard
        heard()

    def ready(self) -> Iterator[Any]:
        """The items that are there now; does not wait."""
        while True:
            try:
                item = self._items.get_nowait()
            except queue.Empty:
                return
            if item is not _END:
                yield item

    def items(self) -> Iterator[Any]:
        """Items as they come, until the job has ended; then `outcome` or `error` is set. Never raises the job's error.

        May be called again after an interruption (Ctrl-C), and by several threads, which then share the items.
        """
        while True:
            ended = self._ended  # read first: all items of an ended job are in the queue
            try:
                item = self._items.get(timeout=0 if ended else _SLICE)
            except queue.Empty:
                if ended:
                    return
                continue
            if item is not _END:
                yield item

    def wait(self) -> Any:
        """Wait for the end and return what `run` returned, or raise what it raised.

        Ctrl-C cancels the job, waits until the worker has let go of it, and goes on to the caller.
        """
        try:
            for _ in self.items():
                pass
        except BaseException:
            self.stop(keep=False)
            for _ in self.items():
                pass
            raise
        if self.error is not None:
            raise self.error
        return self.outcome


_END = object()  # wakes a waiting caller when there is no further item


def _nothing(job: Job) -> None:
    return None


class Worker:
    """The thread and its queue. The thread starts with the first job and is a daemon; `close()` ends it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._closed = False
        self._after: Callable[[], None] | None = None
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._current: Job | None = None

    def submit(self, run: Callable[[Job], Any]) -> Job:
        """Queue `run`. Raises ModelClosedError after `close()`."""
        job = Job(run)
        if self._pid != os.getpid():
            self._reset()  # after a fork the thread exists in the parent only
        with self._lock:
            if self._closed:
                raise ModelClosedError()
            if self._thread is threading.current_thread():
                raise InvalidArgumentError("a callback cannot call the same model: it would wait for itself")
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, args=(self._jobs,), name=self._name, daemon=True)
                self._thread.start()
            self._jobs.put(job)
        return job

    def call(self, run: Callable[[Job], Any]) -> Any:
        """Run on the worker thread and wait; see `Job.wait`."""
        return self.submit(run).wait()

    def _loop(self, jobs: queue.SimpleQueue[Job | None]) -> None:
        while (job := jobs.get()) is not None:
            self._current = job
            if self._closed:
                job.refuse(ModelClosedError())
            else:
                job.execute()
            self._current = job = None  # an idle thread must not keep results alive
        if self._after is not None:
            self._after()

    def close(self, after: Callable[[], None] | None = None) -> None:
        """Cancel the running job, refuse the waiting ones, end the thread, then call `after`. Once is enough.

        The garbage collector may call this on the worker's own thread, in the middle of a job: then `after`, which
        frees what the job works on, is called when the thread ends.
        """
        if self._pid != os.getpid():
            self._reset()
        with self._lock:
            if self._closed:
                return
            self._closed = True
            thread, current = self._thread, self._current
            own = thread is threading.current_thread()
            if own:
                self._after = after
            self._jobs.put(None)
        if current is not None:
            current.stop(keep=False)
        if own:
            return
        if thread is not None:
            thread.join()
        if after is not None:
            after()
