"""What a caller wants to hear of a running answer, and how it ends one from outside."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from edgellm.results import Event, Progress, Result
from edgellm.worker import Job, StopReason

Dispatch = Callable[[Callable[[], Any]], Any]
_SLICE = 0.02  # seconds between looks at what may have happened


class Hooks:
    """Callbacks of one call: on the worker thread, or handed to `dispatch` as functions without arguments."""

    def __init__(
        self,
        on_token: Callable[[Event], Any] | None,
        on_prefill: Callable[[Progress], Any] | None,
        on_done: Callable[[Result | BaseException], Any] | None,
        dispatch: Dispatch | None,
    ) -> None:
        self._on_token, self._on_prefill, self._on_done, self._dispatch = on_token, on_prefill, on_done, dispatch

    @property
    def prefill(self) -> Callable[[int, int], Any] | None:
        """For `Request.on_prefill`."""
        if self._on_prefill is None:
            return None
        return lambda done, total: self._call(self._on_prefill, Progress("prefill", done, total, "tokens"))

    def token(self, event: Event) -> bool:
        """Tell of a piece of text; False when the answer shall end."""
        return self._on_token is None or self._call(self._on_token, event) is not False

    def done(self, end: Result | BaseException) -> None:
        """Tell of the end: the result, or what was raised."""
        if self._on_done is not None:
            self._call(self._on_done, end)

    def _call(self, callback: Any, value: Any) -> Any:
        if self._dispatch is None:
            return callback(value)
        self._dispatch(lambda: callback(value))
        return None


class TappedJob:
    """A job whose events pass by the hooks. `whole`: until something was said there is nothing to keep."""

    def __init__(self, job: Job, hooks: Hooks, whole: bool = False) -> None:
        self.job, self.flag, self._hooks = job, job.flag, hooks
        self.on_prefill = hooks.prefill
        self.spoken = not whole

    @property
    def stopped(self) -> bool:
        return self.job.stopped

    @property
    def keep(self) -> bool:
        return self.job.keep and self.spoken

    @property
    def why(self) -> StopReason:
        return self.job.why

    def put(self, item: Any) -> None:
        self.job.put(item)
        self.spoken = True
        if not self._hooks.token(item):
            self.job.stop(keep=True)


class Watch:
    """Ends a job when the event `cancel` is set (dropping it) or after `timeout` seconds (keeping what was said)."""

    def __init__(self, cancel: threading.Event | None, timeout: float | None) -> None:
        self._cancel, self._timeout = cancel, timeout
        self._ended = threading.Event()

    def start(self, job: Job) -> None:
        """Begin to look, on a thread of its own, where there is something to look for."""
        if self._cancel is not None and self._cancel.is_set():
            job.stop(keep=False)
        elif self._cancel is not None or self._timeout is not None:
            end = None if self._timeout is None else time.monotonic() + self._timeout
            threading.Thread(target=self._look, args=(job, end), name="edgellm-watch", daemon=True).start()

    def _look(self, job: Job, end: float | None) -> None:
        while not self._ended.is_set() and not job.ended:  # one that is refused never comes to its own end
            left = _SLICE if end is None else min(_SLICE, end - time.monotonic())
            if left <= 0:
                job.stop(keep=True, why="timeout")
                end = None
            elif self._cancel is None:
                self._ended.wait(left)
            elif self._cancel.wait(left):
                job.stop(keep=False)
                return

    def end(self) -> None:
        """The job is over."""
        self._ended.set()
