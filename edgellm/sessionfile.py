"""Session files: a checked container of a description, token ids and KV pages (formats/session.md has the rules).

It knows sizes and checksums only. What a description says is checked by `edgellm.session_state`.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
from collections.abc import Iterable
from typing import Any, BinaryIO, NoReturn

import numpy as np

from .convert.strict_json import StrictJSONError, parse
from .errors import InvalidArgumentError, ModelFileNotFoundError, SessionFileError, one_line
from .gguf.output import AtomicFile

MAGIC = b"EDGESES\n"
VERSION = 1
MAX_TEXT = 64 << 20  # bytes of the description
MAX_IDS = 2**31 - 1
MAX_PAGES = 2**31 - 1
ALIGNMENT = 4096  # of the first page
# magic, version, n_text, n_ids, n_pages, page_bytes, size of the file, zeros; the checksum of the header follows
_FIXED = struct.Struct("<8sIIQQQQ16x")
_DIGEST = 32
_TEXT_AT = _FIXED.size + _DIGEST


def _up(n: int, alignment: int) -> int:
    return -(-n // alignment) * alignment


class _Layout:
    """Where the parts lie: offsets in bytes from the start of the file."""

    def __init__(self, n_text: int, n_ids: int, n_pages: int, page_bytes: int) -> None:
        self.n_text, self.n_ids, self.n_pages, self.page_bytes = n_text, n_ids, n_pages, page_bytes
        self.ids = _up(_TEXT_AT + n_text, 8)
        self.places = _up(self.ids + 4 * n_ids, 8)
        self.digests = self.places + 8 * n_pages
        self.start = _up(self.digests + _DIGEST * n_pages, ALIGNMENT)
        self.size = self.start + n_pages * page_bytes


# ---- writing -------------------------------------------------------------------------------------------------------


def write_session(
    path: str | os.PathLike[str],
    description: dict[str, Any],
    ids: Iterable[int],
    places: Iterable[tuple[int, int]],
    pages: list[np.ndarray],
) -> None:
    """Write a session file, or leave the old one as it was.

    `places`: (layer, block) of each page, ascending. `pages`: their bytes, uint8 (page_bytes,) each, which may be views
    of the cache. Raises OutputError, InvalidArgumentError for a description that is no JSON or too large.
    """
    text = _encode(description)
    id_bytes = np.asarray(list(ids), dtype="<u4")
    place_bytes = np.asarray(list(places), dtype="<u4").reshape(-1, 2)
    page_bytes = len(pages[0]) if pages else 0
    at = _Layout(len(text), len(id_bytes), len(pages), page_bytes)
    header = bytearray(at.start)
    header[: _FIXED.size] = _FIXED.pack(MAGIC, VERSION, len(text), len(id_bytes), len(pages), page_bytes, at.size)
    header[_TEXT_AT : _TEXT_AT + len(text)] = text
    header[at.ids : at.ids + id_bytes.nbytes] = id_bytes.tobytes()
    header[at.places : at.digests] = place_bytes.tobytes()
    digests = b"".join(hashlib.sha256(page.data).digest() for page in pages)
    header[at.digests : at.digests + len(digests)] = digests
    header[_FIXED.size : _TEXT_AT] = header_digest(header)
    out = AtomicFile(path)
    try:
        out.open(at.size)
        out.write(header)
        for page in pages:
            out.write(page)
        out.commit()
    finally:
        out.abort()  # does nothing after a commit


def header_digest(header: bytes | bytearray) -> bytes:
    """SHA-256 of everything before the pages but the digest's own place."""
    sha = hashlib.sha256(header[: _FIXED.size])
    sha.update(header[_TEXT_AT:])
    return sha.digest()


def _encode(description: dict[str, Any]) -> bytes:
    try:
        text = json.dumps(description, ensure_ascii=False, allow_nan=False, sort_keys=True).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"this session cannot be saved: {one_line(str(error))}") from None
    if len(text) > MAX_TEXT:
        raise InvalidArgumentError(
            f"this session cannot be saved: its messages take {len(text)} bytes, a session file holds {MAX_TEXT}"
        )
    return text


# ---- reading -------------------------------------------------------------------------------------------------------


class SessionFile:
    """An open session file; a context manager. Header, description, ids and places are checked when it is opened.

    `path`; `description`: a dict of plain types; `ids`: uint32 (n_ids,); `places`: uint32 (n_pages, 2), the layer and
    block of each page; `page_bytes`. Pages are read and checked one by one, with `read_page`.

    Raises ModelFileNotFoundError, SessionFileError (rules D1 to D5).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fsdecode(path)
        self._file, self.size = _open(self.path)
        try:
            self._read()
        except BaseException:
            self._file.close()
            raise

    def _read(self) -> None:
        fixed = self._bytes(_TEXT_AT, "header")
        magic, version, n_text, n_ids, n_pages, page_bytes, size = _FIXED.unpack_from(fixed)
        if magic != MAGIC:
            self.fail("D1", "this is no session file", "magic", magic, MAGIC, 0)
        if version != VERSION:
            self.fail("D2", "another version of edgellm wrote this session", "version", version, VERSION, 8)
        for field, value, limit, offset in (
            ("n_text", n_text, MAX_TEXT, 12), ("n_ids", n_ids, MAX_IDS, 16), ("n_pages", n_pages, MAX_PAGES, 24),
            ("page_bytes", page_bytes, self.size, 32),
        ):  # fmt: skip
            if value > limit:
                self.fail("D3", "a size in the session file is too large", field, value, limit, offset)
        at = _Layout(n_text, n_ids, n_pages, page_bytes)
        if not at.size == size == self.size or (n_pages == 0) != (page_bytes == 0):
            message = "the session file was cut or added to"
            self.fail("D3", message, "size", self.size, f"{size}, from its parts {at.size}", 40)
        self.page_bytes, self._start = page_bytes, at.start
        header = fixed + self._bytes(at.start - _TEXT_AT, "header")
        if header_digest(header) != header[_FIXED.size : _TEXT_AT]:
            self.fail("D4", "the session file is damaged: its header does not have its checksum", "header", at=64)
        self.description = self._parse(header[_TEXT_AT : _TEXT_AT + n_text])
        self.ids = np.frombuffer(header, "<u4", n_ids, at.ids)
        self.places = np.frombuffer(header, "<u4", 2 * n_pages, at.places).reshape(-1, 2)
        self._digests = header[at.digests : at.digests + _DIGEST * n_pages]

    def _parse(self, text: bytes) -> dict[str, Any]:
        try:
            found: dict[str, Any] = parse(text)
            return found
        except StrictJSONError as error:
            self.fail("D5", f"the description is not valid JSON: {error}", "description", at=_TEXT_AT)

    def _bytes(self, n: int, field: str) -> bytes:
        data = self._file.read(n)
        if len(data) != n:
            self.fail("D1", "the session file ends too early", field, len(data), f"{n} bytes", self._file.tell())
        return data

    def read_page(self, i: int, into: np.ndarray) -> None:
        """Read page `i` into uint8 (page_bytes,). Raises SessionFileError (rule D9); `into` then holds anything."""
        offset = self._start + i * self.page_bytes
        self._file.seek(offset)
        n = self._file.readinto(into.data)  # type: ignore[attr-defined]
        if n != self.page_bytes or hashlib.sha256(into.data).digest() != self._digests[_DIGEST * i : _DIGEST * (i + 1)]:
            self.fail("D9", "the session file is damaged: a page does not have its checksum", f"page {i}", at=offset)

    def fail(
        self, rule: str, message: str, field: str, value: Any = None, limit: Any = None, at: int | None = None
    ) -> NoReturn:
        """Raise SessionFileError."""
        raise SessionFileError(message, path=self.path, offset=at, field=field, value=value, limit=limit, rule=rule)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> SessionFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _open(path: str) -> tuple[BinaryIO, int]:
    """(file, size in bytes) of an ordinary file; a pipe or a device is refused before it is opened."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise SessionFileError("this is no ordinary file", path=path, field="path", rule="D1")
        file = open(path, "rb")  # noqa: SIM115 (SessionFile closes it)
    except FileNotFoundError:
        raise ModelFileNotFoundError(path) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise SessionFileError(f"the session file cannot be opened: {reason}", path=path, rule="D1") from None
    return file, os.fstat(file.fileno()).st_size
