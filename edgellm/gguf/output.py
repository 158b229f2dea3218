"""An output file that is either the old one or the whole new one, never half of it.

It grows without a name where the system can do that (Linux, most file systems: even a killed process leaves nothing
behind), else under a temporary name in the same folder. `commit` flushes it to disk and renames it over the output.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import Any, BinaryIO

from ..errors import OutputError

_FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))


class AtomicFile:
    """`open`, `write` any number of times, then `commit` or `abort`. Every failure aborts and raises OutputError."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fsdecode(path)
        if "\0" in self.path:
            raise OutputError("a file name cannot hold a NUL character", path=self.path, exit_code=2)
        self._target = os.path.realpath(self.path)  # through a symbolic link, not over it
        self._folder = os.path.dirname(self._target)
        self._out: BinaryIO | None = None
        self._temporary: str | None = None  # the name that must go when this fails; None: there is none yet
        self._needed = 0
        _check_target(self.path, self._target)

    @property
    def is_open(self) -> bool:
        return self._out is not None

    def open(self, needed: int) -> None:
        """Make the file, if there is room for `needed` bytes."""
        self._needed = needed
        try:
            free = _free_bytes(self._folder)
            if free is not None and free < needed:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._out = os.fdopen(self._create(), "wb", buffering=1 << 20)
        except OSError as error:
            self._fail(error)

    def _create(self) -> int:
        flags = os.O_WRONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        if hasattr(os, "O_TMPFILE") and os.path.isdir("/proc/self/fd"):  # the link below goes through /proc
            with contextlib.suppress(OSError):  # not every file system can
                return os.open(self._folder, flags | os.O_TMPFILE, 0o666)
        name = self._temporary_name()
        fd = os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o666)
        self._temporary = name
        return fd

    def _temporary_name(self) -> str:
        base = os.path.basename(self._target)
        return os.path.join(self._folder, f".{base[:60]}.{os.urandom(6).hex()}.partial")

    def write(self, data: Any) -> None:
        """Append bytes."""
        if self._out is None:
            raise OutputError("nothing can be written, because an earlier write failed", path=self.path)
        try:
            self._out.write(data)
        except OSError as error:
            self._fail(error)

    def rewrite(self, data: bytes) -> None:
        """Put `data` over the first bytes, which were written before; go on at the end."""
        if self._out is None:
            raise OutputError("nothing can be written, because an earlier write failed", path=self.path)
        try:
            self._out.seek(0)
            self._out.write(data)
            self._out.seek(0, os.SEEK_END)
        except OSError as error:
            self._fail(error)

    def commit(self) -> None:
        """Flush to disk and take the place of the output."""
        if self._out is None:
            raise OutputError("the output is not complete, because an earlier write failed", path=self.path)
        try:
            self._out.flush()
            os.fsync(self._out.fileno())
            if self._temporary is None:
                self._temporary = self._give_name(self._out.fileno())
            self._out.close()
            os.replace(self._temporary, self._target)
        except OSError as error:
            self._fail(error)
        self._out, self._temporary = None, None
        _sync_folder(self._folder)

    def _give_name(self, fd: int) -> str:
        """Link a file without a name into the folder; linkat needs the folder's descriptor to follow /proc's link."""
        name = self._temporary_name()
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.link(f"/proc/self/fd/{fd}", os.path.basename(name), dst_dir_fd=folder, follow_symlinks=True)
        finally:
            os.close(folder)
        return name

    def abort(self) -> None:
        """Give up; an old output stays as it was. Safe to call at any time."""
        out, self._out = self._out, None
        name, self._temporary = self._temporary, None
        if out is not None:
            with contextlib.suppress(OSError):  # closing flushes, which may fail again
                out.close()
        if name is not None:
            with contextlib.suppress(OSError):
                os.unlink(name)

    def _fail(self, error: OSError) -> Any:
        """Clean up and raise OutputError; a full disk says how much is needed and how much is there."""
        self.abort()
        if error.errno in _FULL:
            message = "there is not enough room on the disk for the output; free some or write elsewhere"
            free = _free_bytes(self._folder)
            raise OutputError(message, path=self.path, needed=self._needed, free=free) from None
        raise OutputError(f"the output cannot be written: {error.strerror}", path=self.path) from None


def _check_target(path: str, target: str) -> None:
    """The output must be a new file or an ordinary one, in a folder that exists."""
    if not os.path.isdir(os.path.dirname(target)):
        raise OutputError("the folder of the output does not exist; make it first", path=path, exit_code=2)
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"the output cannot be written: {error}", path=path) from None
    if not stat.S_ISREG(mode):
        raise OutputError("the output is a folder or a device; give the name of a file", path=path, exit_code=2)


def _free_bytes(folder: str) -> int | None:
    """Free bytes on the disk of `folder`; None where the system does not say (some network folders report 0 of 0)."""
    import shutil  # here, because it imports every compression module

    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return None
    return usage.free if usage.total else None


def _sync_folder(folder: str) -> None:
    """Make the rename last through a power cut. Systems that cannot open a folder do this on their own."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
