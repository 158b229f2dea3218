"""Faults of mapped files: what native/guard.c does about them, for Python. docs/safety.md tells the whole of it."""

from __future__ import annotations

from typing import Any

from . import clib
from .errors import BackendError


class FaultGuard:
    """Watches the range of a mapped file: where its pages cannot be read any more, readers get zeros (native/guard.c).

    Raises BackendError where that is not possible: not compiled, Windows, too many files.
    """

    def __init__(self, buffer: Any) -> None:
        module = clib.compiled()
        if module is None:
            raise BackendError("the compiled library was not built")
        self._lib, slot = module.lib, module.ffi.new("int32_t *")
        with module.ffi.from_buffer(buffer) as start:  # gives the buffer free again: nothing of it is kept
            rc = self._lib.el_guard_add(start, len(start), slot)
        clib.check(rc, "watching a mapped file")
        self._slot = slot[0]

    @property
    def faulted(self) -> bool:
        """Whether zeros were read in place of the file."""
        return self._slot >= 0 and bool(self._lib.el_guard_faulted(self._slot))

    def close(self) -> None:
        """Watch no longer, which must happen before the range is unmapped. Calling it again does nothing."""
        slot, self._slot = self._slot, -1
        self._lib.el_guard_remove(slot)


def arm_guard() -> None:
    """Faults of mapped files are looked after on this thread, also where the program has changed its signals."""
    module = clib.compiled()
    if module is not None:
        module.lib.el_guard_arm()
