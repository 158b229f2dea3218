"""Reader for one safetensors file. NumPy only; `checkpoint` puts the shards of a folder together.

The format is described at https://github.com/huggingface/safetensors#format: eight bytes of header length (little
endian), a JSON header, then the data of all tensors without holes. A file is checked whole (rules S1 to S8) before the
first tensor of it can be read.
"""

from __future__ import annotations

import os
from math import prod
from typing import Any

import numpy as np

from ..errors import ModelFormatError, one_line
from ..gguf.source import MappedFile
from .elements import ITEM_BYTES, Entry, as_float32, float_type
from .strict_json import StrictJSONError, parse

MAX_HEADER = 100_000_000  # bytes, the limit of the reference implementation
MAX_DIMS = 16
MAX_SIZE = (1 << 63) - 1


class _Header:
    """Checks the header of one file and turns it into entries."""

    def __init__(self, file: MappedFile) -> None:
        self.file = file

    def fail(self, rule: str, message: str, field: str, value: Any = None, limit: Any = None, offset: int = 8) -> Any:
        raise ModelFormatError(
            message, path=self.file.path, offset=offset, field=field, value=value, limit=limit, rule=rule
        )

    def read(self) -> tuple[dict[str, Entry], dict[str, str], int]:
        """Entries by name, the metadata, and the bytes of all tensors together."""
        size = self.file.size
        if size < 8:
            self.fail("S1", "the file is too short to be a safetensors file", "size", size, "at least 8 bytes", 0)
        n = int.from_bytes(self.file.buffer[:8], "little")
        if not 2 <= n <= min(MAX_HEADER, size - 8):
            self.fail(
                "S2", "the header length is wrong; this is no safetensors file, or it is cut off",
                "header length", n, f"2 to {min(MAX_HEADER, size - 8)}", 0,
            )  # fmt: skip
        table = self._json(self.file.buffer[8 : 8 + n])
        metadata = self._metadata(table.pop("__metadata__", {}))
        entries = {name: self._entry(name, row, 8 + n) for name, row in table.items()}
        self._check_layout(entries, 8 + n)
        return entries, metadata, size - 8 - n

    def _json(self, raw: bytes) -> dict[str, Any]:
        if raw[:1] != b"{":
            self.fail("S3", "the header must be a JSON object and start with '{'", "header", raw[:16])
        try:
            table = parse(raw)
        except StrictJSONError as error:
            rule = "S4" if error.duplicate else "S3"
            self.fail(rule, f"the header is not valid: {error}", "header")
        return table

    def _metadata(self, found: Any) -> dict[str, str]:
        if not isinstance(found, dict):
            self.fail("S8", "the metadata of the header must be an object", "__metadata__", found)
        for key, value in found.items():
            if not isinstance(value, str):
                self.fail("S8", "a metadata value must be a string", f"__metadata__.{one_line(key)}", value)
        return found

    def _entry(self, name: str, row: Any, start: int) -> Entry:
        field = f"tensor {one_line(name)}"
        if not isinstance(row, dict) or not {"dtype", "shape", "data_offsets"} <= row.keys():
            self.fail("S6", "a tensor needs dtype, shape and data_offsets", field, row)
        dtype, shape, span = row["dtype"], row["shape"], row["data_offsets"]
        if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
            self.fail("S7", "unknown element type", f"{field}, dtype", dtype, ", ".join(ITEM_BYTES))
        if not isinstance(shape, list) or len(shape) > MAX_DIMS:
            what = f"{len(shape)} dimensions" if isinstance(shape, list) else shape
            self.fail("S6", "the shape is not a list of sizes", f"{field}, shape", what, f"at most {MAX_DIMS}")
        if not all(type(n) is int and 0 <= n <= MAX_SIZE for n in shape):
            self.fail("S6", "a size in the shape is no whole number", f"{field}, shape", shape, f"0 to {MAX_SIZE}")
        if not isinstance(span, list) or len(span) != 2 or not all(type(n) is int for n in span):
            self.fail("S5", "data_offsets must be two whole numbers", f"{field}, data_offsets", span)
        begin, end = span
        limit = self.file.size - start
        if not 0 <= begin <= end <= limit:
            self.fail("S5", "the tensor ends before it begins or after the file", f"{field}, data_offsets", span, limit)
        n_bytes = prod(shape) * ITEM_BYTES[dtype]
        if n_bytes != end - begin:
            self.fail("S6", "shape and dtype do not match the bytes", f"{field}, data_offsets", end - begin, n_bytes)
        return Entry(name, dtype, tuple(shape), start + begin, n_bytes)

    def _check_layout(self, entries: dict[str, Entry], start: int) -> None:
        """No overlap, no hole, nothing after the last tensor (rule S5)."""
        at = start
        for e in sorted(entries.values(), key=lambda e: (e.offset, e.n_bytes)):
            if e.offset != at:
                what = "there is a hole before a tensor" if e.offset > at else "a tensor overlaps another one"
                self.fail("S5", what, f"tensor {one_line(e.name)}, begin", e.offset - start, at - start, e.offset)
            at = e.offset + e.n_bytes
        if at != self.file.size:
            self.fail("S5", "there are bytes after the last tensor", "size", self.file.size, at, at)


class SafetensorsFile:
    """One checked, mapped file. `entries`: name -> Entry; `data_bytes`: bytes of all tensors. Close it, or use `with`.

    Raises ModelFormatError (rules S1 to S8, F1 to F4) or ModelFileNotFoundError.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = MappedFile(path)
        self.path = self._file.path
        try:
            with self._file.reading():
                self.entries, self.metadata, self.data_bytes = _Header(self._file).read()
        except BaseException:
            self._file.close()
            raise

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of a tensor as float32 (stop - start, k); a vector is one row, leading sizes are joined.

        f16, bf16 and f32 become float32 exactly, f64 is rounded. The mapped pages are given back, so that memory stays
        small however large the file is. Raises ConvertError for other element types and ModelFileChanged when the
        file was written to.
        """
        entry = self.entries[name]
        dtype = float_type(entry, self.path)
        k = entry.shape[-1] if entry.shape else 1
        first, count = entry.offset + start * k * dtype.itemsize, (stop - start) * k
        with self._file.reading():
            raw = np.frombuffer(self._file.buffer, dtype=dtype, count=count, offset=first)  # (rows * k,), mapped
            out = as_float32(raw, entry.dtype)
        del raw
        self._file.advise_dont_need(first, count * dtype.itemsize)
        return out.reshape(stop - start, k)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()
