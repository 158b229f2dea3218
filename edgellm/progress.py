"""Telling how far a long piece of work is: one kind of callback everywhere, called at most ten times a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from edgellm.errors import Cancelled
from edgellm.results import Progress

# Gets a `Progress`; returning False ends the work with `Cancelled`, and what it raises ends it too.
ProgressCallback = Callable[[Progress], Any]
INTERVAL = 0.1  # seconds between two calls of the same meter


def tell(progress: ProgressCallback | None, value: Progress, left: str = "") -> None:
    """Call back now. Raises Cancelled where it returns False; `left` says what became of the work."""
    if progress is not None and progress(value) is False:
        raise Cancelled(f"{value.stage} was stopped by its progress callback" + (f"; {left}" if left else ""))


class Meter:
    """Counts the units of one piece of work and tells a callback: of the beginning, of the end, and in between no more
    often than every `INTERVAL` seconds.

    Raises Cancelled when the callback returns False; `left` says what is left of the work then.
    """

    def __init__(
        self, progress: ProgressCallback | None, stage: str, total: int, unit: str = "bytes", left: str = ""
    ) -> None:
        self._progress, self._stage, self._total, self._unit, self._left = progress, stage, total, unit, left
        self._done, self._next = 0, 0.0
        self.advance(0)

    def advance(self, n: int) -> None:
        """`n` units more are done."""
        self.reach(self._done + n)

    def reach(self, done: int) -> None:
        """`done` units are done in all."""
        self._done = done
        if self._progress is None:
            return
        now = time.monotonic()
        if now >= self._next or done >= self._total:
            self._next = now + INTERVAL
            tell(self._progress, Progress(self._stage, done, self._total, self._unit), self._left)
