"""A checked, mapped, read-only file. All checks are made on the opened descriptor: nobody can swap the file between.

A file that another program cuts short while it is mapped gives zeros from there on instead of a dead process
(native/guard.c). So whoever reads a map does it inside `reading()`, or asks `check_faults` or `check_unchanged` before
it believes what it has read.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

from ..errors import (
    BackendError,
    Cancelled,
    InvalidArgumentError,
    ModelClosedError,
    ModelFileChanged,
    ModelFileNotFoundError,
    ModelFormatError,
    NotEnoughMemoryError,
)
from ..faults import FaultGuard

_KINDS = (
    (stat.S_ISDIR, "is a folder, not a file"),
    (stat.S_ISFIFO, "is a named pipe; a model must be a regular file"),
    (stat.S_ISCHR, "is a device; a model must be a regular file"),
    (stat.S_ISBLK, "is a device; a model must be a regular file"),
    (stat.S_ISSOCK, "is a socket; a model must be a regular file"),
)

_READ = 16 << 20  # bytes that are read at once
_POPULATE_READ = 22  # MADV_POPULATE_READ of Linux, which `mmap` has no name for
_CAN_POPULATE = sys.platform.startswith("linux") and hasattr(mmap.mmap, "madvise")


def _refuse_kind(path: str, mode: int) -> None:
    for test, message in _KINDS:
        if test(mode):
            raise ModelFormatError(message, path=path, rule="F1")


def _open(path: str) -> int:
    """A read descriptor, or the typed error that says why not (rules F1 to F3)."""
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    flags |= getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)  # a pipe must not block, a terminal not attach
    try:
        return os.open(path, flags)
    except ValueError as error:  # NUL or lone surrogates in the path
        raise InvalidArgumentError(f"{path!r} cannot be a file name: {error}") from None
    except OSError as error:
        with contextlib.suppress(OSError):  # Windows cannot open a folder, nobody can open a socket
            _refuse_kind(path, os.stat(path).st_mode)
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise ModelFileNotFoundError(path) from None
        if error.errno in (errno.EACCES, errno.EPERM):
            raise ModelFormatError("no permission to read this file", path=path, rule="F2") from None
        if error.errno == errno.ELOOP:
            raise ModelFormatError("the symbolic link points to itself", path=path, rule="F3") from None
        raise ModelFormatError(f"cannot be opened: {error.strerror}", path=path, rule="F1") from None


class _Map(mmap.mmap):
    """A map that is watched for faults, as long as it is there: views may keep it alive."""

    guard: FaultGuard | None = None

    def watch(self) -> None:
        with contextlib.suppress(BackendError):  # not here: `check_unchanged` is what remains
            self.guard = FaultGuard(self)

    def _leave(self) -> None:
        guard, self.guard = self.guard, None
        if guard is not None:
            guard.close()

    def close(self) -> None:
        """Raises BufferError while there are views."""
        self._leave()
        try:
            super().close()
        except BufferError:
            self.watch()
            raise

    def __del__(self) -> None:  # mmap has no other hook before it unmaps
        self._leave()


class Reading:
    """A context manager: what is read inside is what the file holds, or ModelFileChanged is raised at its end.

    `check` raises it. It also takes the place of an error inside: what zeros do to a parser says nothing.
    """

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is None or (isinstance(error, Exception) and not isinstance(error, _SAY_WHAT_IS)):
            self._check()


_SAY_WHAT_IS = (ModelFileChanged, ModelClosedError, Cancelled)


class MappedFile:
    """A regular file mapped read-only. `buffer` is the map, `size` its bytes; `close()` ends the use of both."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        if isinstance(self.path, bytes):
            self.path = os.fsdecode(self.path)
        self._fd = _open(self.path)
        try:
            info = os.fstat(self._fd)
            _refuse_kind(self.path, info.st_mode)
            if info.st_size == 0:
                raise ModelFormatError(
                    "the file is empty; copy or download it again", path=self.path, offset=0, field="size", value=0,
                    limit="at least 24 bytes", rule="F4",
                )  # fmt: skip
            self.size = info.st_size
            self._stamp = (info.st_size, info.st_mtime_ns)
            self.in_memory = False  # a copy, which no longer needs the file
            self._map: _Map | None = _Map(self._fd, self.size, access=mmap.ACCESS_READ)
        except (OSError, ValueError, OverflowError) as error:
            os.close(self._fd)
            raise ModelFormatError(f"cannot be mapped into memory: {error}", path=self.path, rule="F1") from None
        except BaseException:
            os.close(self._fd)
            raise
        self._map.watch()

    @property
    def closed(self) -> bool:
        return self._map is None

    @property
    def buffer(self) -> mmap.mmap:
        if self._map is None:
            raise ModelClosedError(f"{self.path}: the file is closed; open it again")
        return self._map

    def check_unchanged(self) -> None:
        """Raises ModelFileChanged when the mapped file was cut, grown or written to since it was opened.

        A file that was replaced by renaming another over it is no problem: the map still shows the old one.
        """
        self.check_faults()
        if self.in_memory:
            return
        info = os.fstat(self._fd)
        if (info.st_size, info.st_mtime_ns) != self._stamp:
            raise ModelFileChanged(self.path)

    def check_faults(self) -> None:
        """Raises ModelFileChanged when a page of the map could not be read: a quick look, no call of the system."""
        if self._map is None:
            raise ModelClosedError(f"{self.path}: the file is closed; open it again")
        if self._map.guard is not None and self._map.guard.faulted:
            raise ModelFileChanged(self.path)

    def read_in(self, told: Callable[[int], Any]) -> None:
        """Read the file into memory of the process, in place of the map; then the file is not needed any more.

        `told` is called with the number of bytes after each stretch; what it raises leaves everything as it was. Raises
        ModelFileChanged, NotEnoughMemoryError.
        """
        old = self.buffer
        try:
            copy = _Map(-1, self.size)
        except (OSError, OverflowError):
            raise NotEnoughMemoryError(self.size, 0, ["mmap=True"], what="the file in memory") from None
        with contextlib.suppress(OSError, AttributeError):  # advice only
            copy.madvise(mmap.MADV_HUGEPAGE)
        with open(self._fd, "rb", buffering=0, closefd=False) as file, memoryview(copy) as view:
            file.seek(0)
            at = 0
            while at < self.size:
                n = file.readinto(view[at : at + _READ])
                if not n:
                    raise ModelFileChanged(self.path)
                at += n
                told(n)
        self.check_unchanged()
        self._map, self.in_memory = copy, True
        with contextlib.suppress(BufferError):  # a view is still alive; the map goes with it
            old.close()
        os.close(self._fd)

    def read_all(self) -> bytes:
        """The whole file, for small ones. Raises ModelFileChanged."""
        with self.reading():
            return self.buffer[:]

    def reading(self) -> Reading:
        """`with file.reading():` around code that reads the map; see `Reading`."""
        return Reading(self.check_unchanged)

    def advise_dont_need(self, offset: int, n: int) -> None:
        """Give the mapped pages of `n` bytes from `offset` back to the system; they stay readable."""
        advice = getattr(mmap, "MADV_DONTNEED", None)
        if advice is None or n <= 0 or self._map is None or self.in_memory:  # a copy would be lost
            return
        start = offset // mmap.PAGESIZE * mmap.PAGESIZE
        with contextlib.suppress(OSError, ValueError):  # advice only
            self._map.madvise(advice, start, min(offset + n, self.size) - start)

    def populate(self, offset: int, n: int) -> None:
        """Map the pages of `n` bytes from `offset` in one go, where the system can: cheaper than one by one later."""
        if not _CAN_POPULATE or n <= 0 or self._map is None:
            return
        start = offset // mmap.PAGESIZE * mmap.PAGESIZE
        with contextlib.suppress(OSError, ValueError):  # advice only; kernels before 5.14 do not know it
            self._map.madvise(_POPULATE_READ, start, min(offset + n, self.size) - start)

    def close(self) -> None:
        """Unmap and close. Views that are still in use keep the map alive until they are gone. Safe to call twice."""
        if self._map is None:
            return
        with contextlib.suppress(BufferError):  # a view is still alive; the map goes with it
            self._map.close()
        self._map = None
        if not self.in_memory:
            os.close(self._fd)
