"""`GGUFWriter`: writes a GGUF v3 file tensor by tensor, so that the whole model is never in memory.

The output is either the old file or the whole new one (see `output.py`).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from ..blocks import BlockType
from ..errors import InvalidArgumentError
from ..quants import resolve_type
from .constants import (
    DEFAULT_ALIGNMENT,
    FLOATS,
    HEADER_BYTES,
    INTEGERS,
    MAGIC,
    MAX_DIM,
    MAX_DIMS,
    MAX_KEY_BYTES,
    MAX_NAME_BYTES,
    SCALARS,
    ValueType,
)
from .output import AtomicFile
from .packed import PANEL_TYPE, SPARSE_TYPE, fits_panels, stored_bytes
from .tensors import align_up

_SHORT = {
    "u8": ValueType.UINT8, "i8": ValueType.INT8, "u16": ValueType.UINT16, "i16": ValueType.INT16,
    "u32": ValueType.UINT32, "i32": ValueType.INT32, "u64": ValueType.UINT64, "i64": ValueType.INT64,
    "f32": ValueType.FLOAT32, "f64": ValueType.FLOAT64, "bool": ValueType.BOOL, "str": ValueType.STRING,
}  # fmt: skip


@dataclass(frozen=True)
class _Tensor:
    name: str
    type: BlockType
    shape: tuple[int, ...]  # rows first
    n_bytes: int
    type_id: int


class GGUFWriter:
    """Write a file: `add` the metadata, `add_tensor_info` for every tensor, `write_tensor` in the same order, `close`.

        with GGUFWriter("out.gguf", "llama") as w:
            w.add("llama.block_count", 2)
            w.add_tensor_info("output_norm.weight", (64,), "F32")
            w.write_tensor("output_norm.weight", np.ones(64, np.float32))

    As a context manager it closes at the end and aborts on an exception. Raises OutputError when the system refuses
    (nothing half-written stays), InvalidArgumentError when it is used wrongly. `alignment` other than 32 needs the key
    general.alignment, which the caller adds.
    """

    def __init__(
        self, path: str | os.PathLike[str], arch: str | None, alignment: int = DEFAULT_ALIGNMENT
    ) -> None:
        self._out = AtomicFile(path)
        self.path, self.alignment = self._out.path, alignment
        self._metadata: dict[str, bytes] = {}
        self._tensors: dict[str, _Tensor] = {}
        self._order: list[_Tensor] = []
        self._written = 0
        self._started = self._done = self._stale = False  # stale: `replace` came after the header was written
        if arch is not None:  # None: not a model (an importance matrix)
            self.add("general.architecture", arch)

    # ---- metadata and tensor descriptions ------------------------------------------------------------------------

    def add(self, key: str, value: Any, kind: ValueType | str | None = None) -> None:
        """Add one metadata value; keys keep their order.

        Without `kind`: bool, int (u32 where it fits, else i32, u64 or i64), float (f32), str; a NumPy array keeps its
        type; a list becomes an array of str, bool, f32 or i32. `kind` ("u32", "f32", ... or a ValueType) sets the type,
        of arrays that of their items.
        """
        self._open_for_description()
        raw = key.encode("utf-8")
        if not 0 < len(raw) <= MAX_KEY_BYTES or "\0" in key or key in self._metadata:
            raise InvalidArgumentError(f"metadata key {key[:80]!r} is empty, too long, holds a NUL or was added before")
        wanted = _kind(kind)
        try:
            self._metadata[key] = _string(raw) + _encode(value, wanted)
        except (TypeError, ValueError, OverflowError, struct.error) as error:
            raise InvalidArgumentError(f"metadata {key}: the value does not fit its type: {error}") from None

    def add_raw(self, key: str, raw: bytes) -> None:
        """Add a value as another file has it: type code and value (`Metadata.raw`), which nobody looks at here."""
        self.add(key, 0)
        self._metadata[key] = _string(key.encode("utf-8")) + raw

    def replace(self, key: str, value: Any, kind: ValueType | str) -> None:
        """Give a key another value of the same length, at any time before `close`: what only the data tell."""
        new = _string(key.encode("utf-8")) + _encode(value, _kind(kind))
        if self._done or len(self._metadata.get(key, b"")) != len(new):
            raise InvalidArgumentError(f"metadata {key}: only a value of the same length can take its place")
        self._metadata[key] = new
        self._stale = self._started

    def value_offset(self, key: str) -> int:
        """Byte offset of a key's value in the file; of a string: of its length."""
        before = list(self._metadata).index(key)
        sizes = [len(entry) for entry in self._metadata.values()]
        return HEADER_BYTES + sum(sizes[:before]) + 8 + len(key.encode("utf-8")) + 4

    def add_tensor_info(
        self, name: str, shape: Sequence[int], type: BlockType | str | int, panels: bool = False, sparse_bytes: int = 0
    ) -> int:
        """Describe the next tensor; returns its bytes. `shape`: rows first, the last entry a multiple of the block.

        `panels`: its data will come in panels (formats/packed.md), not row by row; `sparse_bytes`: in sparse ones of so
        many bytes, which the caller lists in the metadata.
        """
        self._open_for_description()
        kind, shape = resolve_type(type), tuple(int(n) for n in shape)
        if not 0 < len(name.encode("utf-8")) <= MAX_NAME_BYTES or "\0" in name or name in self._tensors:
            raise InvalidArgumentError(f"tensor name {name[:80]!r} is empty, too long (63 bytes) or was added before")
        if not 1 <= len(shape) <= MAX_DIMS or any(not 1 <= n <= MAX_DIM for n in shape):
            raise InvalidArgumentError(f"tensor {name}: shape {shape} needs 1 to {MAX_DIMS} sizes from 1 to {MAX_DIM}")
        if shape[-1] % kind.block_size:
            raise InvalidArgumentError(f"tensor {name}: a row of {shape[-1]} is no multiple of the {kind.name} block")
        if panels and not (kind.has_panel and fits_panels(shape)):
            raise InvalidArgumentError(f"tensor {name}: {kind.name} of shape {shape} has no panels")
        type_id = int(kind.id) + (SPARSE_TYPE if sparse_bytes else PANEL_TYPE if panels else 0)
        tensor = _Tensor(name, kind, shape, sparse_bytes or stored_bytes(kind, shape, panels), type_id)
        self._tensors[name] = tensor
        self._order.append(tensor)
        return tensor.n_bytes

    def _open_for_description(self) -> None:
        if self._started or self._done:
            raise InvalidArgumentError(f"{self.path}: describe metadata and tensors before the first is written")

    # ---- data ----------------------------------------------------------------------------------------------------

    def write_tensor(self, name: str, data: Any) -> None:
        """Write the next tensor: its bytes as a C-contiguous buffer or array, or an iterable of such parts in order.

        Raises InvalidArgumentError when it is not this tensor's turn or the number of bytes is wrong.
        """
        if self._done:
            raise InvalidArgumentError(f"{self.path}: the writer is closed")
        if self._written >= len(self._order) or self._order[self._written].name != name:
            due = self._order[self._written].name if self._written < len(self._order) else "none"
            raise InvalidArgumentError(f"tensor {name} is written out of order; due: {due}")
        self._start()
        tensor, count = self._order[self._written], 0
        parts = [data] if isinstance(data, (np.ndarray, bytes, bytearray, memoryview)) else data
        for part in parts:
            view = _byte_view(part)
            count += view.nbytes
            if count > tensor.n_bytes:
                break
            self._out.write(view)
        if count != tensor.n_bytes:
            self.abort()
            raise InvalidArgumentError(f"tensor {name}: {tensor.n_bytes} bytes expected, got {count}")
        self._out.write(bytes(align_up(count, self.alignment) - count))
        self._written += 1

    def close(self) -> None:
        """Finish: all tensors must be there. Flushes to disk and renames over the output. Safe to call twice."""
        if self._done:
            return
        if self._written != len(self._order):
            due = self._order[self._written].name
            self.abort()
            raise InvalidArgumentError(f"{self.path}: tensor {due} was described but not written")
        self._start()
        if self._stale:
            self._out.rewrite(self.header())
        self._out.commit()
        self._done = True

    def abort(self) -> None:
        """Give up: nothing of the new file stays, an old output is as it was. Safe to call at any time."""
        self._done = True
        self._out.abort()

    def __enter__(self) -> GGUFWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def __del__(self) -> None:
        if hasattr(self, "_out"):  # not when the path was refused
            self._out.abort()

    # ---- the header --------------------------------------------------------------------------------------------------

    def header(self) -> bytes:
        """The bytes before the data, as far as they are described."""
        parts = [MAGIC, struct.pack("<IQQ", 3, len(self._order), len(self._metadata)), *self._metadata.values()]
        offset = 0
        for t in self._order:
            parts.append(_string(t.name.encode("utf-8")))
            parts.append(struct.pack(f"<I{len(t.shape)}QIQ", len(t.shape), *reversed(t.shape), t.type_id, offset))
            offset += align_up(t.n_bytes, self.alignment)
        header = b"".join(parts)
        return header + bytes(align_up(len(header), self.alignment) - len(header))

    def _start(self) -> None:
        """Open the output and write the header, at the first call."""
        if self._started:
            return
        self._started = True
        header = self.header()
        self._out.open(len(header) + sum(align_up(t.n_bytes, self.alignment) for t in self._order))
        self._out.write(header)


def _kind(kind: ValueType | str | None) -> ValueType | None:
    wanted = _SHORT.get(kind) if isinstance(kind, str) else kind
    if kind is not None and wanted is None:
        raise InvalidArgumentError(f"unknown metadata type {kind!r}; known: {', '.join(_SHORT)}")
    return wanted


def _byte_view(data: Any) -> memoryview:
    """A flat view of the bytes; a strided array is copied."""
    if isinstance(data, np.ndarray):
        data = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    return memoryview(data).cast("B")


def _string(raw: bytes) -> bytes:
    return struct.pack("<Q", len(raw)) + raw


def _encode(value: Any, kind: ValueType | None) -> bytes:
    """Type code and value."""
    if isinstance(value, np.generic):
        value, kind = value.item(), kind or _kind_of_dtype(value.dtype)
    if isinstance(value, (list, tuple, np.ndarray)):
        return struct.pack("<I", ValueType.ARRAY) + _encode_array(value, kind)
    kind = _kind_of_scalar(value) if kind is None else kind
    return struct.pack("<I", kind) + _encode_scalar(value, kind)


def _encode_scalar(value: Any, kind: ValueType) -> bytes:
    if kind == ValueType.STRING:
        if not isinstance(value, str):
            raise TypeError(f"expected str, got {type(value).__name__}")
        return _string(value.encode("utf-8"))
    if isinstance(value, str) or (kind in INTEGERS and value != int(value)):
        raise TypeError(f"{value!r} is not {kind.name.lower()}")
    return _checked_array([value], kind).tobytes()


def _encode_array(value: Any, kind: ValueType | None) -> bytes:
    if isinstance(value, np.ndarray):
        if value.ndim != 1:
            raise ValueError("arrays in metadata have one dimension")
        kind = kind or _kind_of_dtype(value.dtype)
    elif kind is None:
        kind = _kind_of_list(value)
    head = struct.pack("<IQ", kind, len(value))
    if kind == ValueType.STRING:
        return head + b"".join(_string(_text_bytes(v)) for v in value)
    return head + _checked_array(value, kind).tobytes()


def _text_bytes(value: Any) -> bytes:
    """UTF-8; lone surrogates from the reader become the bytes they stand for, bytes stay."""
    return value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")


def _checked_array(value: Any, kind: ValueType) -> np.ndarray:
    """The numbers in the type of `kind`; raises where one does not fit."""
    array = np.asarray(value)
    if array.size and array.dtype.kind not in "buif":
        raise TypeError(f"expected numbers, got {array.dtype}")
    if kind == ValueType.BOOL:
        return array.astype(np.bool_).astype(np.uint8)
    if kind in FLOATS:
        return array.astype(SCALARS[kind])
    info = np.iinfo(SCALARS[kind])
    if array.size and (array.dtype.kind == "f" or int(array.min()) < info.min or int(array.max()) > info.max):
        raise OverflowError(f"a value does not fit {kind.name.lower()}")
    return array.astype(SCALARS[kind])


def _kind_of_dtype(dtype: np.dtype) -> ValueType:
    if dtype.kind == "b":
        return ValueType.BOOL
    for kind, have in SCALARS.items():
        if kind != ValueType.BOOL and have == dtype.newbyteorder("<"):
            return kind
    raise TypeError(f"no metadata type for {dtype}")


def _kind_of_scalar(value: Any) -> ValueType:
    if isinstance(value, bool):
        return ValueType.BOOL
    if isinstance(value, int):
        for kind in (ValueType.UINT32, ValueType.INT32, ValueType.UINT64, ValueType.INT64):
            info = np.iinfo(SCALARS[kind])
            if info.min <= value <= info.max:
                return kind
        raise OverflowError("an integer has more than 64 bits")
    if isinstance(value, float):
        return ValueType.FLOAT32
    if isinstance(value, str):
        return ValueType.STRING
    raise TypeError(f"no metadata type for {type(value).__name__}")


def _kind_of_list(value: Sequence[Any]) -> ValueType:
    if all(isinstance(v, (str, bytes)) for v in value):
        return ValueType.STRING
    if all(isinstance(v, bool) for v in value):
        return ValueType.BOOL
    if all(isinstance(v, int) for v in value):
        return ValueType.INT32
    return ValueType.FLOAT32


