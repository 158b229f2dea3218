"""The key/value part of a GGUF file: checked whole, decoded where it is asked for."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn

import numpy as np

from ..errors import MissingKeyError, ModelFormatError, WrongKeyTypeError, one_line
from ..strings import StringTable, length_of_strings
from .constants import (
    FLOATS,
    HEADER_BYTES,
    INTEGERS,
    MAX_ALL_KEYS_BYTES,
    MAX_ARRAY_ITEMS,
    MAX_EAGER_BYTES,
    MAX_EAGER_STRING,
    MAX_KEY_BYTES,
    MAX_KEYS,
    MAX_TENSORS,
    MAX_WALKED_ITEMS,
    MIN_KEY_ENTRY,
    MIN_TENSOR_ENTRY,
    SCALARS,
    ValueType,
)
from .source import MappedFile

REQUIRED: Any = object()
_U64 = struct.Struct("<Q")
_UNPACK = {kind: struct.Struct("<" + dtype.char) for kind, dtype in SCALARS.items()}
_UNPACK[ValueType.UINT64] = _U64
_UNPACK[ValueType.INT64] = struct.Struct("<q")


class Cursor:
    """Reads fields one after the other and never past the end of the file."""

    def __init__(self, file: MappedFile) -> None:
        self.buf = file.buffer
        self.end = file.size
        self.path = file.path
        self.pos = 0

    def fail(
        self, rule: str, message: str, field: str, value: Any = None, limit: Any = None, back: int = 0
    ) -> NoReturn:
        """Raise ModelFormatError for the field that starts `back` bytes before the current position."""
        raise ModelFormatError(
            message, path=self.path, offset=self.pos - back, field=field, value=value, limit=limit, rule=rule
        )

    def scalar(self, kind: ValueType, field: str) -> Any:
        """One number of `kind` as int or float; a bool is still 0..255."""
        unpack = _UNPACK[kind]
        if self.end - self.pos < unpack.size:
            self.fail("H6", "the file ends inside its metadata", field, self.end - self.pos, f"{unpack.size} bytes")
        (value,) = unpack.unpack_from(self.buf, self.pos)
        self.pos += unpack.size
        return value

    def u32(self, field: str) -> int:
        return int(self.scalar(ValueType.UINT32, field))

    def u64(self, field: str) -> int:
        return int(self.scalar(ValueType.UINT64, field))

    def name(self, rule: str, limit: int, field: str) -> str:
        """A key or tensor name: 1 to `limit` bytes of UTF-8 without NUL."""
        n = self.u64(f"length of {field}")
        if not 0 < n <= limit:
            self.fail(rule, f"the {field} has a bad length", f"length of {field}", n, f"1 to {limit}", back=8)
        if n > self.end - self.pos:
            self.fail(rule, f"the {field} ends after the file", f"length of {field}", n, self.end - self.pos, back=8)
        raw = self.buf[self.pos : self.pos + n]
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            self.fail("K2" if rule == "K1" else rule, f"the {field} is not UTF-8", field, one_line(raw))
        if "\0" in text:
            self.fail("K10", f"the {field} holds a NUL character", field, text)
        self.pos += n
        return text


class _Lazy:
    """Where a checked value lies: `start` is its first byte (of an array: the first item)."""

    __slots__ = ("count", "end", "item", "kind", "start")

    def __init__(self, kind: ValueType, item: ValueType | None, start: int, end: int, count: int) -> None:
        self.kind, self.item, self.start, self.end, self.count = kind, item, start, end, count


class Metadata(Mapping[str, Any]):
    """Read-only mapping of key -> value.

    Numbers and bools are Python's int, float and bool; strings are str; arrays of numbers are read-only NumPy arrays
    (bool arrays of dtype bool); arrays of strings are list[str]. Arrays and very long strings are decoded at first
    access and kept; after the file was closed, those not read before raise ModelClosedError.

    Bytes that are not UTF-8: in single strings they become U+FFFD and a warning is noted; in arrays of strings
    (tokenizer pieces) they are kept as lone surrogates ("surrogateescape"), so that different pieces stay different.
    """

    def __init__(self, file: MappedFile) -> None:
        self._file = file
        self._values: dict[str, Any] = {}
        self.types: dict[str, tuple[ValueType, ValueType | None]] = {}  # (type, element type of an array)
        self.offsets: dict[str, int] = {}  # byte offset of each value (of an array: of its item type)
        self.ends: dict[str, int] = {}  # byte offset behind each value
        self.warnings: list[str] = []
        self._walk_budget, self._eager_budget = MAX_WALKED_ITEMS, MAX_EAGER_BYTES

    def __getitem__(self, key: str) -> Any:
        value = self._values[key]
        if isinstance(value, _Lazy):
            with self._file.reading():
                decoded = self._decode(key, value)
            value = self._values[key] = decoded
        return value

    def __contains__(self, key: object) -> bool:
        return key in self._values  # Mapping's own would decode the value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def drop(self, keys: Iterable[str]) -> None:
        """Forget keys that say nothing about the model."""
        for key in keys:
            for table in (self._values, self.types, self.offsets, self.ends):
                table.pop(key, None)

    def raw(self, key: str) -> bytes:
        """The bytes of a value as they are in the file, its type code first."""
        with self._file.reading():
            return self._file.buffer[self.offsets[key] - 4 : self.ends[key]]

    def strings(self, key: str) -> StringTable:
        """An array of strings without a Python object for each; keeps nothing. Raises KeyError for any other value."""
        value, kinds = self._values[key], self.types[key]
        if kinds != (ValueType.ARRAY, ValueType.STRING):
            raise KeyError(f"{key} is no array of strings")
        if isinstance(value, _Lazy):
            with self._file.reading():
                return StringTable.from_gguf(self._file.buffer[value.start : value.end], value.count)
        return StringTable.of(value)

    def length(self, key: str) -> int:
        """Number of items of an array, without decoding it."""
        value = self._values[key]
        return value.count if isinstance(value, _Lazy) else len(value)

    def get_typed(self, key: str, kind: Any, default: Any = REQUIRED) -> Any:
        """See `GGUFFile.get`."""
        if key not in self._values:
            if default is REQUIRED:
                raise MissingKeyError(
                    "a metadata key that is needed is missing", path=self._file.path, field=key, rule="K11"
                )
            return default
        self.check_type(key, kind)
        return self[key]

    def check_type(self, key: str, kind: Any) -> None:
        """Raises WrongKeyTypeError unless the value of `key` is of `kind` (see `GGUFFile.get`); decodes nothing."""
        wanted = kind if isinstance(kind, tuple) else (kind,)
        have, item = self.types[key]
        if not any(_matches(have, item, w) for w in wanted):
            found = f"array of {item.name.lower()}" if item is not None else have.name.lower()
            raise WrongKeyTypeError(
                "a metadata key has the wrong type", path=self._file.path, offset=self.offsets[key], field=key,
                value=found, limit=" or ".join(_kind_name(w) for w in wanted), rule="K12",
            )  # fmt: skip

    def _decode(self, key: str, lazy: _Lazy) -> Any:
        buf = self._file.buffer
        if lazy.kind == ValueType.STRING:
            return self._text(key, buf[lazy.start : lazy.end])
        if lazy.item == ValueType.STRING:
            return list(StringTable.from_gguf(buf[lazy.start : lazy.end], lazy.count))
        assert lazy.item is not None  # an array has items of some type
        array = np.frombuffer(buf[lazy.start : lazy.end], dtype=SCALARS[lazy.item])  # bytes: read-only, owns its copy
        return array.view(np.bool_) if lazy.item == ValueType.BOOL else array

    def _text(self, key: str, raw: bytes) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.warnings.append(f"metadata {one_line(key)}: not UTF-8, bad bytes are shown as U+FFFD")
            return raw.decode("utf-8", "replace")

    # ---- reading -------------------------------------------------------------------------------------------------

    def read(self, cursor: Cursor, n_keys: int) -> None:
        """Check `n_keys` entries from the cursor on (rules K1 to K8, K10)."""
        key_bytes = 0
        for _ in range(n_keys):
            start = cursor.pos
            key = cursor.name("K1", MAX_KEY_BYTES, "key")
            key_bytes += cursor.pos - start
            if key_bytes > MAX_ALL_KEYS_BYTES:
                cursor.fail("K1", "the keys are too long together", "key", key_bytes, MAX_ALL_KEYS_BYTES)
            if key in self._values:
                cursor.pos = start
                cursor.fail("K3", "the same metadata key appears twice", key)
            kind = _value_type(cursor, key)
            self.offsets[key] = cursor.pos
            if kind == ValueType.STRING:
                self._read_string(cursor, key)
            elif kind == ValueType.ARRAY:
                self._read_array(cursor, key)
            else:
                value = cursor.scalar(kind, key)
                if kind == ValueType.BOOL:
                    if value > 1:
                        cursor.fail("K8", "a bool is neither 0 nor 1", key, value, "0 or 1", back=1)
                    value = bool(value)
                self._put(key, value, kind)
            self.ends[key] = cursor.pos

    def _put(self, key: str, value: Any, kind: ValueType, item: ValueType | None = None) -> None:
        self._values[key] = value
        self.types[key] = (kind, item)

    def _read_string(self, cursor: Cursor, key: str) -> None:
        n = cursor.u64(f"length of {key}")
        if n > cursor.end - cursor.pos:
            cursor.fail("K7", "a string ends after the file", key, n, cursor.end - cursor.pos, back=8)
        start, cursor.pos = cursor.pos, cursor.pos + n
        if n > min(MAX_EAGER_STRING, self._eager_budget):
            self._put(key, _Lazy(ValueType.STRING, None, start, cursor.pos, n), ValueType.STRING)
        else:
            self._eager_budget -= n
            self._put(key, self._text(key, cursor.buf[start : cursor.pos]), ValueType.STRING)

    def _read_array(self, cursor: Cursor, key: str) -> None:
        item = _value_type(cursor, key)
        if item == ValueType.ARRAY:
            cursor.fail("K5", "an array of arrays is not allowed", key, back=4)
        count = cursor.u64(f"length of {key}")
        size = 8 if item == ValueType.STRING else SCALARS[item].itemsize  # a string has at least its length
        walked = item in (ValueType.STRING, ValueType.BOOL)
        limit = min((cursor.end - cursor.pos) // size, self._walk_budget if walked else MAX_ARRAY_ITEMS)
        if count > limit:
            cursor.fail("K6", "an array has more items than can be", key, count, limit, back=8)
        start = cursor.pos
        self._walk_budget -= count if walked else 0
        if item == ValueType.STRING:
            _walk_strings(cursor, key, count)
        else:
            cursor.pos += count * size
            if item == ValueType.BOOL:
                _check_bools(cursor, key, start, count)
        self._put(key, _Lazy(ValueType.ARRAY, item, start, cursor.pos, count), ValueType.ARRAY, item)


def _value_type(cursor: Cursor, key: str) -> ValueType:
    code = cursor.u32(f"type of {key}")
    try:
        return ValueType(code)
    except ValueError:
        cursor.fail("K4", "unknown type of a metadata value", key, code, "0 to 12", back=4)


def _walk_strings(cursor: Cursor, key: str, count: int) -> None:
    """Step over `count` strings."""
    n_bytes = length_of_strings(cursor.buf, cursor.pos, cursor.end, count)
    if n_bytes is None:
        _find_bad_string(cursor, key, count)
    else:
        cursor.pos += n_bytes


def _find_bad_string(cursor: Cursor, key: str, count: int) -> None:
    """Raises at the first string that leaves the file."""
    for i in range(count):
        n = cursor.u64(f"length of {key}[{i}]")
        if n > cursor.end - cursor.pos:
            cursor.fail("K7", "a string ends after the file", f"{key}[{i}]", n, cursor.end - cursor.pos, back=8)
        cursor.pos += n


def _check_bools(cursor: Cursor, key: str, start: int, count: int) -> None:
    values = np.frombuffer(cursor.buf[start : start + count], dtype=np.uint8)
    if (values > 1).any():
        i = int(np.argmax(values > 1))
        cursor.pos = start + i
        cursor.fail("K8", "a bool is neither 0 nor 1", f"{key}[{i}]", int(values[i]), "0 or 1")


def read_counts(cursor: Cursor) -> tuple[int, int]:
    """n_tensors and n_kv, each checked against the bytes that follow (rule H5)."""
    counts = []
    limits = (("n_tensors", MIN_TENSOR_ENTRY, MAX_TENSORS), ("n_kv", MIN_KEY_ENTRY, MAX_KEYS))
    for field, entry, most in limits:
        count = cursor.u64(field)
        limit = min((cursor.end - HEADER_BYTES) // entry, most)
        if count > limit:
            cursor.fail("H5", "the header counts more entries than the file can hold", field, count, limit, back=8)
        counts.append(count)
    return counts[0], counts[1]


def _matches(have: ValueType, item: ValueType | None, want: Any) -> bool:
    if have == ValueType.ARRAY:
        args = getattr(want, "__args__", ())
        return getattr(want, "__origin__", want) is list and (not args or _scalar_matches(item, args[0]))
    return _scalar_matches(have, want)


def _scalar_matches(have: ValueType | None, want: Any) -> bool:
    if want is int:
        return have in INTEGERS
    if want is float:
        return have in FLOATS
    return have == {bool: ValueType.BOOL, str: ValueType.STRING}.get(want)


def _kind_name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not getattr(kind, "__args__", ()) else str(kind)
