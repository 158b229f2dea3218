"""Slow work on a thread of its own: whoever waits for it can be told how far it is, and can leave at any time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")
_SLICE = 0.04  # seconds between looks
_PATIENCE = 0.04  # seconds that a stopped piece of work has to end tidily; it may be waiting for the network


class Background(Generic[_T]):
    """`work(stop)` on a thread; it ends early when the event `stop` is set."""

    def __init__(self, work: Callable[[threading.Event], _T]) -> None:
        self._work, self._stop = work, threading.Event()
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="edgellm-pull", daemon=True)

    def _run(self) -> None:
        try:
            self._value = self._work(self._stop)
        except BaseException as error:  # raised where the result is wanted
            self._error = error

    def result(self, waiting: Callable[[], Any]) -> _T:
        """What the work returns, or its error. Calls `waiting` now and then; what that raises stops the work."""
        self._thread.start()
        try:
            while self._thread.is_alive():
                waiting()
                self._thread.join(_SLICE)
        except BaseException:
            self._stop.set()
            self._thread.join(_PATIENCE)
            raise
        if self._error is not None:
            raise self._error
        waiting()
        return self._value  # type: ignore[no-any-return]
