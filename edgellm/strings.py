"""Hundreds of thousands of strings, as a vocabulary has them, without an object for each.

`StringTable` keeps them as one run of bytes and decodes one when it is asked for; `StringIndex` finds one by its text.
The loops are native/strings.c; where the library is not there, and in the tests, their twins in Python serve.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np

from . import clib

_LENGTH = struct.Struct("<Q")
_FEW = 2048  # strings that Python steps over sooner than it finds the library


class StringTable(Sequence[str]):
    """Strings, one after the other: string i is `text[offsets[i]:offsets[i + 1]]`, UTF-8.

    `text` is bytes, `offsets` int64 (n + 1,). Bytes that are no UTF-8 come as lone surrogates ("surrogateescape"), so
    that different strings stay different.
    """

    def __init__(self, text: bytes, offsets: np.ndarray) -> None:
        self.text, self.offsets = text, offsets

    @classmethod
    def of(cls, strings: Iterable[str]) -> StringTable:
        """A table of these strings. Raises UnicodeEncodeError for those that no bytes stand for."""
        encoded = [s.encode("utf-8", "surrogateescape") for s in strings]
        offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
        np.cumsum([len(data) for data in encoded], out=offsets[1:])
        return cls(b"".join(encoded), offsets)

    @classmethod
    def from_gguf(cls, data: Any, count: int, native: bool | None = None) -> StringTable:
        """`count` strings from the bytes of a GGUF array, which have a length of 8 bytes before each.

        Raises ValueError where they end after `data`. `native` False takes the twin, None the library if it is there.
        """
        if not _library(count, native):
            return cls(*_read(data, count))
        ffi, lib = clib.library()
        source, n_read = ffi.from_buffer("uint8_t[]", data), ffi.new("int64_t *")
        if 8 * count > len(source):
            raise ValueError("the strings end after their bytes")
        text, offsets = np.empty(len(source) - 8 * count, np.uint8), np.empty(count + 1, np.int64)
        into = ffi.from_buffer("uint8_t[]", text) if text.size else ffi.new("uint8_t[1]")
        rc = lib.el_gguf_strings(source, len(source), count, into, ffi.from_buffer("int64_t[]", offsets), n_read)
        if rc == clib.EL_E_ARGUMENT:
            raise ValueError("the strings end after their bytes")
        clib.check(rc, "reading strings")
        return cls(text[: offsets[-1]].tobytes(), offsets)

    def bytes_of(self, i: int) -> bytes:
        """The bytes of string i, 0 <= i < n."""
        return self.text[self.offsets[i] : self.offsets[i + 1]]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...

    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(f"string {i} of {len(self)}")
        return self.bytes_of(i % len(self)).decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        text, start = self.text, 0
        for end in self.offsets[1:].tolist():
            yield text[start:end].decode("utf-8", "surrogateescape")
            start = end


def as_table(strings: Sequence[str]) -> StringTable:
    """The strings as a table; one is given back as it is."""
    return strings if isinstance(strings, StringTable) else StringTable.of(strings)


def length_of_strings(data: Any, start: int, end: int, count: int, native: bool | None = None) -> int | None:
    """Bytes that `count` strings of a GGUF array take in `data` from `start` on; None: one of them ends after `end`."""
    if not _library(count, native):
        return _walk(data, start, end, count)
    ffi, lib = clib.library()
    n_read = ffi.new("int64_t *")
    with ffi.from_buffer("uint8_t[]", data) as source:  # a map can be closed again only when nothing points into it
        rc = lib.el_gguf_strings(source + start, end - start, count, ffi.NULL, ffi.NULL, n_read)
    return n_read[0] if rc == clib.EL_OK else None


def _walk(data: Any, start: int, end: int, count: int) -> int | None:
    """The twin of el_gguf_strings without a place for the text."""
    pos, last, unpack = start, end - 8, _LENGTH.unpack_from
    for _ in range(count):
        if pos > last:
            return None
        pos += 8 + unpack(data, pos)[0]
    return pos - start if pos <= end else None


def _read(data: Any, count: int) -> tuple[bytes, np.ndarray]:
    """The twin of el_gguf_strings: (text, offsets)."""
    parts, pos, n_bytes, unpack = [], 0, len(data), _LENGTH.unpack_from
    for _ in range(count):
        start = pos + 8
        pos = start + unpack(data, pos)[0] if start <= n_bytes else start
        if pos > n_bytes:
            raise ValueError("the strings end after their bytes")
        parts.append(bytes(data[start:pos]))
    offsets = np.zeros(count + 1, dtype=np.int64)
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    return b"".join(parts), offsets


def _library(count: int, native: bool | None) -> bool:
    return native is True or (native is None and count >= _FEW and clib.available())


# ---- finding ---------------------------------------------------------------------------------------------------------


class StringIndex(Mapping[str, int]):
    """Text -> number, of a table without empty strings, equal ones, or bytes that are no UTF-8.

    Raises ValueError for any other table. Works in C; `handle` is the el_strings.
    """

    def __init__(self, table: StringTable) -> None:
        self._ffi, self._lib = clib.library()
        self._table = table  # C points into it
        self._kept = table_arguments(self._ffi, table)
        out = self._ffi.new("el_strings **")
        rc = self._lib.el_strings_new(out, *self._kept, len(table))
        if rc == clib.EL_E_UNSUPPORTED:
            raise ValueError("a string is empty, there twice, or no UTF-8")
        clib.check(rc, "reading strings")
        self.handle = self._ffi.gc(out[0], self._lib.el_strings_free)

    def find(self, data: bytes) -> int:
        """The number of the string of these bytes, or -1."""
        text = self._ffi.from_buffer("uint8_t[]", data or b"\0")
        found: int = self._lib.el_strings_find(self.handle, text, len(data))
        return found

    def __getitem__(self, text: str) -> int:
        found = -1
        if isinstance(text, str):
            try:
                found = self.find(text.encode())
            except UnicodeEncodeError:  # lone surrogates are in no table
                found = -1
        if found < 0:
            raise KeyError(text)
        return found

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)


def table_arguments(ffi: Any, table: StringTable) -> tuple[Any, int, Any]:
    """(text, bytes of it, offsets) for C; they must be kept as long as C uses them."""
    text = ffi.from_buffer("uint8_t[]", table.text or b"\0")
    return text, len(table.text), ffi.from_buffer("int64_t[]", np.ascontiguousarray(table.offsets, dtype=np.int64))
