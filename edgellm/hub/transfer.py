"""One file's bytes: fetched in as many attempts as it takes, kept between them, and held to their checksum."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from ..errors import Cancelled, DownloadError, OutputError
from .client import Body, Transient

WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before each new attempt; bytes that arrive begin the list anew
MAX_WAIT = 60.0  # seconds that a hub may ask for
_PIECE = 1 << 20
_log = logging.getLogger("edgellm")
_T = TypeVar("_T")


class Meter:
    """How far a piece of work is, written by the thread that does it, read by the one that shows it."""

    def __init__(self) -> None:
        self.stage, self.done, self.total = "downloading", 0, 0


def attempts(run: Callable[[], _T], stop: threading.Event, progressed: Callable[[], bool] = lambda: False) -> _T:
    """What `run` returns, called again when it raises Transient. `progressed()`: whether the last call got anywhere.

    Raises Cancelled once `stop` is set; the error of the last attempt when all have failed.
    """
    failed = 0
    while True:
        try:
            return run()
        except Transient as problem:
            failed = 1 if progressed() else failed + 1
            if failed > len(WAITS):
                raise problem.error from None
            wait = WAITS[failed - 1] if problem.wait is None else min(problem.wait, MAX_WAIT)
            if wait >= 1:
                _log.warning("%s; trying again in %.0f s", problem, wait)
            if stop.wait(wait):
                raise Cancelled("the download was stopped") from None


class Transfer:
    """Bytes from `open_at(offset)` into the file `part`, until it has `size` of them and their digest is `digest`.

    `reference` is what errors name. What a stopped transfer leaves in `part` is where the next one goes on.
    """

    def __init__(
        self,
        open_at: Callable[[int], AbstractContextManager[Body]],
        part: Path,
        size: int,
        digest: str,
        meter: Meter,
        stop: threading.Event,
        reference: object,
    ) -> None:
        self._open_at, self._part, self._size, self._digest = open_at, part, size, digest
        self._meter, self._stop, self._reference = meter, stop, reference
        self._hash: Any = None
        self._have = 0  # bytes in the part, all of them hashed
        self._base = meter.done  # of the meter, before this file

    def run(self) -> None:
        """Raises DownloadError, OutputError (disk), Cancelled. `part` stays, unless its bytes are wrong."""
        try:
            self._part.parent.mkdir(parents=True, exist_ok=True)
            with open(self._part, "ab+", buffering=0) as out:
                kept = self._take_up(out)
                self._check_room()
                self._fill(out)
                if not self._is_right() and kept:  # perhaps what was kept was wrong: once more, from the beginning
                    self._restart(out)
                    self._fill(out)
                if self._is_right():
                    os.fsync(out.fileno())
                    return
            self._part.unlink(missing_ok=True)
        except OSError as error:
            self._raise_output_error(error)
        kind = "SHA-256" if len(self._digest) == 64 else "SHA-1"
        raise DownloadError(
            f"the bytes that came are not those that the hub states ({kind} {self._hash.hexdigest()}, not "
            f"{self._digest}); they were thrown away, so try again",
            reference=self._reference,
        )

    def check(self) -> bool:
        """Whether `part` has all the bytes, and the right ones; nothing is fetched or changed. Raises OutputError."""
        try:
            with open(self._part, "rb", buffering=0) as file:
                return self._read(file) == self._size and self._is_right()
        except OSError as error:
            raise OutputError(f"the file cannot be read: {error.strerror}", path=self._part) from None

    def _take_up(self, out: BinaryIO) -> int:
        """Read what an earlier transfer left; returns how much that is."""
        if os.fstat(out.fileno()).st_size > self._size:
            self._restart(out)
            return 0
        return self._read(out)

    def _read(self, file: BinaryIO) -> int:
        """Hash what a file holds; returns its size."""
        self._begin_hash()
        file.seek(0)
        while piece := file.read(_PIECE):
            self._meter.stage = "checking"
            self._count(piece)
        self._meter.stage = "downloading"
        return self._have

    def _fill(self, out: BinaryIO) -> None:
        """Fetch until nothing is missing."""
        seen = self._have

        def progressed() -> bool:
            nonlocal seen
            before, seen = seen, self._have
            return self._have > before

        while self._have < self._size:
            try:
                attempts(lambda: self._fetch(out), self._stop, progressed)
            except DownloadError as error:
                again = DownloadError(error.message, reference=error.reference, status=error.status, kept=self._have)
                raise again from None

    def _fetch(self, out: BinaryIO) -> None:
        """One request. Raises Transient when it ends too early."""
        with self._open_at(self._have) as body:
            if body.start != self._have:  # the server knows no ranges
                self._restart(out)
            for piece in body.pieces:
                room = self._size - self._have
                _write_all(out, piece[:room])
                self._count(piece[:room])
                if len(piece) > room:
                    return
        if self._have < self._size:
            raise Transient(DownloadError("the connection to the hub was cut", reference=self._reference))

    def _count(self, piece: bytes) -> None:
        if self._stop.is_set():
            raise Cancelled("the download was stopped")
        self._hash.update(piece)
        self._have += len(piece)
        self._meter.done = self._base + self._have

    def _begin_hash(self) -> None:
        self._have, self._meter.done = 0, self._base
        if len(self._digest) == 64:
            self._hash = hashlib.sha256()
        else:  # git's name of a blob
            self._hash = hashlib.sha1(b"blob %d\0" % self._size, usedforsecurity=False)

    def _restart(self, out: BinaryIO) -> None:
        out.truncate(0)
        out.seek(0)
        self._begin_hash()

    def _is_right(self) -> bool:
        return bool(self._have == self._size and self._hash.hexdigest() == self._digest)

    def _check_room(self) -> None:
        """Before anything is fetched: is there room for the rest?"""
        if shutil.disk_usage(self._part.parent).free < self._size - self._have:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _raise_output_error(self, error: OSError) -> None:
        if error.errno in (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)):
            free = None
            with contextlib.suppress(OSError):
                free = shutil.disk_usage(self._part.parent).free
            needed = self._size - self._have
            raise OutputError(
                "there is not enough room on the disk for the model; free some, and pull again: it goes on from here",
                path=self._part, needed=needed, free=free,
            ) from None  # fmt: skip
        raise OutputError(f"the model cannot be written: {error.strerror or error}", path=self._part) from None


def _write_all(out: BinaryIO, piece: bytes) -> None:
    rest = memoryview(piece)
    while rest:
        rest = rest[out.write(rest) :]


@contextlib.contextmanager
def local_bytes(path: Path, start: int) -> Iterator[Body]:
    """A file of this machine as `Transfer` reads one of the hub."""
    with open(path, "rb") as file:
        file.seek(start)
        yield Body(start, iter(lambda: file.read(_PIECE), b""))
