"""`Stream`: an answer while it is being made."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from edgellm.errors import Cancelled
from edgellm.results import Event, Result
from edgellm.worker import Job, drop_forgotten

if TYPE_CHECKING:
    from types import TracebackType


class Stream:
    """A running answer: iterate over it for `Event`s, then read `result`.

    `stop()` ends the answer and keeps what was said (`result.finish_reason` is "cancelled"); `cancel()` ends it and
    drops it (`result` raises `Cancelled`). Both may be called from any thread and take effect within 100 ms, while the
    prompt is worked on too. An answer that nobody waits for any more (`on_done` does, too) is cancelled.
    """

    def __init__(self, owner: Any, job: Job) -> None:
        self._owner = owner  # the model, or the session, lives as long as its stream
        self._job = job
        self._forget = weakref.finalize(self, drop_forgotten, weakref.ref(job))
        self._forget.atexit = False

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        event: Event
        for event in self._job.items():
            return event
        if self._job.error is not None and not isinstance(self._job.error, Cancelled):
            raise self._job.error
        raise StopIteration

    @property
    def result(self) -> Result:
        """The finished answer; waits for the end. Raises what stopped the call, `Cancelled` after `cancel()`."""
        result: Result = self._job.wait()
        return result

    def stop(self) -> None:
        """End the answer and keep it."""
        self._job.stop(keep=True)

    def cancel(self) -> None:
        """End the answer and drop it: the cache goes back to where it was."""
        self._job.stop(keep=False)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if not self._job.stopped:
            self.cancel()
