"""`AsyncStream`: an answer while it is being made, for programs that run on asyncio."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from edgellm.errors import Cancelled, InvalidArgumentError
from edgellm.results import Event, Result
from edgellm.worker import Job, drop_forgotten

if TYPE_CHECKING:
    from types import TracebackType


class AsyncStream:
    """A running answer: iterate over it with `async for`, or await it for the `Result`.

        async for event in model.achat(messages):
            print(event.text, end="")
        result = await model.achat(messages)

    It is queued when it is made. When the task that waits for it is cancelled, the answer is dropped, as by `cancel()`;
    so is one that nobody waits for any more (`break`). `stop()` ends the answer and keeps what was said. Both may be
    called from any thread. The event loop never waits: the worker thread wakes it when there is something new.

    One stream belongs to one event loop, that which waits for it first; another raises InvalidArgumentError.
    """

    def __init__(self, owner: Any, job: Job) -> None:
        self._owner = owner  # the model, or the session, lives as long as its stream
        self._job = job
        self._events: deque[Event] = deque()
        self._waiters: set[asyncio.Future[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._scheduled = False  # the loop is going to look
        self._over = False  # there are no further events, and the outcome is known
        self._forget = weakref.finalize(self, drop_forgotten, weakref.ref(job))
        self._forget.atexit = False

    # ---- reading

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> Event:
        await self._until(lambda: bool(self._events))
        if self._events:
            return self._events.popleft()
        error = self._job.error
        if error is not None and not isinstance(error, Cancelled):
            raise error
        raise StopAsyncIteration

    def __await__(self) -> Generator[Any, None, Result]:
        return self.result().__await__()

    async def result(self) -> Result:
        """The finished answer; waits for the end. Raises what stopped the call, `Cancelled` after `cancel()`."""
        await self._until(lambda: False)
        if self._job.error is not None:
            raise self._job.error
        result: Result = self._job.outcome
        return result

    # ---- ending

    def stop(self) -> None:
        """End the answer and keep it."""
        self._job.stop(keep=True)

    def cancel(self) -> None:
        """End the answer and drop it: the cache goes back to where it was."""
        self._job.stop(keep=False)

    async def aclose(self) -> None:
        """End the answer, drop it if it has not ended by itself, and wait until the model has let go of it."""
        if not self._job.stopped:
            self.cancel()
        await self._until(lambda: False)

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    # ---- between the worker thread and the loop

    async def _until(self, happened: Any) -> None:
        """Wait until `happened()`, or the end of the answer. A cancelled wait cancels the answer."""
        loop = self._bind()
        while not (happened() or self._over):
            waiter: asyncio.Future[None] = loop.create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                self.cancel()
                raise
            finally:
                self._waiters.discard(waiter)

    def _bind(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
            ref = weakref.ref(self)  # the job must not keep alive what nobody waits for
            self._job.listen(lambda: _heard(ref))
            self._look()
        elif self._loop is not loop:
            raise InvalidArgumentError("this stream belongs to another event loop; make one call per loop")
        return loop

    def _wake(self) -> None:
        """On the worker thread: something is new."""
        assert self._loop is not None
        if self._scheduled:
            return
        self._scheduled = True
        try:
            self._loop.call_soon_threadsafe(self._look)
        except RuntimeError:  # the loop is closed: nobody waits any more
            self.cancel()

    def _look(self) -> None:
        """On the loop: fetch what is there."""
        self._scheduled = False  # first: what comes from here on is told of again
        ended = self._job.ended  # before the events: all events of an ended job are there
        self._events.extend(self._job.ready())
        self._over = ended
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)


def _heard(ref: weakref.ref[AsyncStream]) -> None:
    stream = ref()
    if stream is not None:
        stream._wake()
