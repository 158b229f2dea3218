"""One thread per model that does all of its work, one job after the other, in the order in which they came.

The thread that calls waits on a queue and never inside the C library, so Ctrl-C, a GUI's stop button and a time limit
work in the middle of a long prompt. A job carries the cancel flag: an int32 that the backend polls.
"""

from __future__ import annotations

import os
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, TypeVar

import numpy as np

from edgellm.errors import BackendError, Cancelled, EdgeLLMError, InvalidArgumentError, ModelClosedError, QueueFullError
from edgellm.faults import arm_guard

T = TypeVar("T")
StopReason = Literal["cancelled", "timeout"]
# A wait without a limit cannot be interrupted on Windows, so waits are cut into slices of this many seconds.
_SLICE = 0.05
# A fork waits so long for a worker that is changing the state of its model. It takes microseconds, unless a session of
# gigabytes is being read.
_FORK_WAIT = 10.0


class Job:
    """One piece of work: `run(job)` is called on the worker thread; items and the outcome come back through a queue.

    `flag` is an int32 array of one element, not zero once the job shall end. `keep` then says whether what was done so
    far is kept (stop) or dropped (cancel), `why` what ended it. `on_end` gets the outcome or the error, once, before
    anybody who waits does, on the thread that ends the job; what it raises becomes the error where there is none.
    """

    def __init__(self, run: Callable[[Job], Any], on_end: Callable[[Any], Any] | None = None) -> None:
        self.flag = np.zeros(1, dtype=np.int32)
        self.keep = True
        self.why: StopReason = "cancelled"
        self.unbegun: Callable[[StopReason], Any] | None = None  # the outcome when it is stopped before its turn
        self.on_end = on_end
        self._teller: int | None = None  # the thread that `on_end` runs on
        self._heard: Callable[[], Any] | None = None
        self.outcome: Any = None
        self.error: BaseException | None = None
        self._reason: EdgeLLMError | None = None
        self._run = run
        self._items: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._ended = False
        # Taken once and never given back, by whoever ends the job. It is never waited for, so that the garbage
        # collector may call `stop` anywhere.
        self._claim = threading.Lock()

    @property
    def stopped(self) -> bool:
        return bool(self.flag[0])

    @property
    def ended(self) -> bool:
        """Whether it has run, or was refused."""
        return self._ended

    @property
    def waiting(self) -> bool:
        """Whether its turn has not come yet."""
        return not self._claim.locked()

    def stop(self, keep: bool = True, why: StopReason = "cancelled", error: EdgeLLMError | None = None) -> None:
        """Ask the job to end. Returns at once; a later `stop(keep=False)` still drops what was kept.

        A job that waits for its turn ends here, where it shall be dropped, or where `unbegun` makes an outcome of it.
        `error`: what the caller gets, if not `Cancelled`.
        """
        self.keep = self.keep and keep
        if not self.stopped:
            self.why = why
        self._reason = self._reason or error
        self.flag[0] = 1
        if not self.keep:
            self.refuse(error or Cancelled())
        elif self.unbegun is not None and self._claim.acquire(blocking=False):
            self.outcome = self.unbegun(self.why)
            self._end()

    def refuse(self, error: BaseException) -> None:
        """End a job that has not begun."""
        if self._claim.acquire(blocking=False):
            self.error = error
            self._end()

    # ---- worker side

    def put(self, item: Any) -> None:
        self._items.put(item)
        if self._heard is not None:
            self._heard()

    def execute(self) -> None:
        """Run it, unless it was refused; whatever is raised reaches the caller."""
        if not self._claim.acquire(blocking=False):
            return
        try:
            self.outcome = self._run(self)
        except BaseException as error:
            self.error = self._reason if self._reason is not None and isinstance(error, Cancelled) else error
        self._end()

    def leave_to_parent(self) -> None:
        """In the child of a fork: whatever becomes of the job, this process does not hear of it."""
        self._claim = threading.Lock()
        self._items = queue.SimpleQueue()  # its lock may be held by a thread that is not here
        self._heard = self.on_end = None  # an event loop of the parent, and what it does at the end
        self.flag[0], self.keep = 1, False
        if not self._ended:
            self.refuse(Cancelled("cancelled: the call goes on in the process that has forked, not in its child"))

    def _end(self) -> None:
        self._run, self.unbegun = _nothing, None  # their closures may hold the engine
        if self.on_end is not None:
            self._teller = threading.get_ident()
            try:
                self.on_end(self.outcome if self.error is None else self.error)
            except BaseException as error:
                self.error = self.error or error
            self.on_end = None
        self._ended = True
        self.put(_END)

    # ---- caller side

    def listen(self, heard: Callable[[], Any]) -> None:
        """Have `heard` called whenever there may be something new: now, after each item and at the end.

        It runs on the thread that works, or that stops the job, so it must return at once and never raise.
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
            # Read first: all items of an ended job are in the queue. `on_end` must not wait for its own end.
            ended = self._ended or self._teller == threading.get_ident()
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


def drop_forgotten(job: weakref.ref[Job]) -> None:
    """Nobody waits for a job any more, unless its `on_end` does. A weak reference: finalizers are held for ever by a
    list of Python's, and a job that has failed leads, through its error's traceback, to whatever waited for it."""
    found = job()
    if found is not None and found.on_end is None:
        found.stop(keep=False)


class Gate:
    """Closed while a job changes the state of its model: a child that is forked then would inherit half of a change.

    A worker closes it for each job; `with gate:` opens it inside, around a pass or a callback: there the state is whole
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def close(self) -> None:
        self._lock.acquire()

    def open(self) -> None:
        self._lock.release()

    def hold(self, seconds: float) -> bool:
        """Close it from another thread; False when it did not open in time."""
        return self._lock.acquire(timeout=seconds)

    def renew(self, closed: bool) -> None:
        """In the child of a fork: whoever has closed it may not be here."""
        self._lock = threading.Lock()
        if closed:
            self._lock.acquire()

    def __enter__(self) -> None:
        self._lock.release()

    def __exit__(self, *exc: object) -> None:
        self._lock.acquire()


class Worker:
    """The thread and its queue. The thread starts with the first job and is a daemon; `close()` ends it.

    `max_queue`: how many jobs may wait behind the one that runs; None: any number. `on_fork` is called in the child of
    a fork where a job was running in the parent, to take back what it has done so far.
    """

    def __init__(self, name: str, max_queue: int | None = None) -> None:
        if max_queue is not None and (not isinstance(max_queue, int) or isinstance(max_queue, bool) or max_queue < 0):
            raise InvalidArgumentError(f"max_queue is {max_queue!r}; choose 0 or more, or None for no limit")
        self.gate, self.max_queue = Gate(), max_queue
        self.on_fork: Callable[[], None] | None = None
        self._name = name
        self._closed = False
        self._torn = False  # a fork did not wait until the state of the model was whole
        self._after: Callable[[], None] | None = None
        self._reset()
        _forks.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._line: deque[Job] = deque()  # the jobs in the queue
        self._thread: threading.Thread | None = None
        self._current: Job | None = None

    def submit(
        self, run: Callable[[Job], Any], always: bool = False, on_end: Callable[[Any], Any] | None = None
    ) -> Job:
        """Queue `run`. Raises ModelClosedError after `close()`, QueueFullError unless `always`."""
        job = Job(run, on_end)
        with self._lock:
            self._check()
            if not always and self.max_queue is not None:
                self._check_room(self.max_queue)
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, args=(self._jobs,), name=self._name, daemon=True)
                self._thread.start()
            self._line.append(job)
            self._jobs.put(job)
        return job

    def _check(self) -> None:
        if self._closed:
            raise ModelClosedError()
        if self._torn:
            raise BackendError("this process was forked while the model was changing; load the model again")
        if self._thread is threading.current_thread():
            raise InvalidArgumentError("a callback cannot call the same model: it would wait for itself")

    def _check_room(self, limit: int) -> None:
        n_waiting, busy = sum(job.waiting for job in self._line), self._current is not None
        if n_waiting + busy > limit:
            raise QueueFullError(n_waiting, limit)

    def outside(self) -> AbstractContextManager[None]:
        """The gate is open inside, whichever thread this is: for callbacks at the end of a job."""
        return self.gate if self._thread is threading.current_thread() else nullcontext()

    def call(self, run: Callable[[Job], T], always: bool = False) -> T:
        """Run on the worker thread and wait; see `submit` and `Job.wait`."""
        outcome: T = self.submit(run, always).wait()
        return outcome

    def _loop(self, jobs: queue.SimpleQueue[Job | None]) -> None:
        while (job := jobs.get()) is not None:
            with self._lock:
                self._line.popleft()
                self._current = job
            arm_guard()
            self.gate.close()
            try:
                if self._closed:
                    job.refuse(ModelClosedError())
                else:
                    job.execute()
            finally:
                self.gate.open()
            self._current = job = None  # an idle thread must not keep results alive
        if self._after is not None:
            self._after()

    def close(self, after: Callable[[], None] | None = None) -> None:
        """Cancel the running job, refuse the waiting ones, end the thread, then call `after`. Once is enough.

        The garbage collector may call this on the worker's own thread, in the middle of a job: then `after`, which
        frees what the job works on, is called when the thread ends.
        """
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
            current.stop(keep=False, error=ModelClosedError("the model was closed during the call"))
        if own:
            return
        if thread is not None:
            thread.join()
        if after is not None:
            after()

    # ---- fork

    def _hold(self) -> tuple[bool, bool]:
        """Before a fork: (whether the gate is held, whether the state of the model is whole)."""
        if self._thread is threading.current_thread():  # a callback forks: what it interrupts goes on in the child
            return self.gate.hold(0), True
        held = self.gate.hold(_FORK_WAIT)
        return held, held

    def _in_child(self, held: bool, whole: bool) -> None:
        """The thread is gone, its jobs are the parent's."""
        current = self._current
        own = self._thread is not None and self._thread is threading.current_thread()
        self.gate.renew(closed=own and not held)
        if not whole:
            self._torn = self._torn or current is not None
        elif current is not None and self.on_fork is not None and not own:
            self.on_fork()
        jobs = [*self._line, *([current] if current is not None else [])]
        self._reset()
        for job in jobs:
            job.leave_to_parent()


class _Forks:
    """What happens to all workers when the process forks."""

    def __init__(self) -> None:
        self._workers: weakref.WeakSet[Worker] = weakref.WeakSet()
        self._lock = threading.Lock()  # for the set
        self._held: dict[int, list[tuple[Worker, bool, bool]]] = {}  # by the thread that forks
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=self._before, after_in_parent=self._parent, after_in_child=self._child)

    def add(self, worker: Worker) -> None:
        with self._lock:
            self._workers.add(worker)

    def _before(self) -> None:
        with self._lock:
            workers = sorted(self._workers, key=id)  # one order: two threads that fork must not wait for each other
        self._held[threading.get_ident()] = [(worker, *worker._hold()) for worker in workers]

    def _parent(self) -> None:
        for worker, held, _ in self._held.pop(threading.get_ident(), ()):
            if held:
                worker.gate.open()

    def _child(self) -> None:
        self._lock = threading.Lock()
        for worker, held, whole in self._held.pop(threading.get_ident(), ()):
            worker._in_child(held, whole)
        self._held.clear()


_forks = _Forks()
