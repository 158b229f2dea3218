"""Reader for PyTorch checkpoints (`pytorch_model.bin`): the zip format of PyTorch 1.6 and later. NumPy only.

The file is an archive of `NAME/data.pkl`, a pickled table of tensors, and `NAME/data/KEY`, their storages. Nothing in
it is ever run: `stored_zip` checks the archive, `torch_pickle` reads the table. A file is checked whole before a
tensor can be read (rules Z1 to Z9, formats/checkpoints.md), and one that is refused is not tried in another way.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ..errors import ModelFormatError, one_line
from ..gguf.source import MappedFile
from .elements import ITEM_BYTES, Entry, as_float32, float_type
from .stored_zip import Member, read_members
from .torch_pickle import MAX_BYTES, Reader, View

_LEGACY = "load it in PyTorch with weights_only=True and save it as safetensors"
# first bytes -> what the file is
_OTHERS = (
    (b"\x80\x02", f"this is a PyTorch checkpoint of the old format (bare pickle), which is not read; {_LEGACY}"),
    (b"\x80", f"this is a bare pickle, which is not read; {_LEGACY}"),
    (b"GGUF", "this is a GGUF file, not a PyTorch checkpoint"),
    (b"version https://git-lfs", "this is a Git LFS pointer, not the checkpoint; run `git lfs pull`"),
)


@dataclass(frozen=True)
class TorchEntry(Entry):
    """`offset` is where the first element lies; `strides` are in elements."""

    strides: tuple[int, ...] = ()


class TorchFile:
    """One checked, mapped file, used like SafetensorsFile. `entries`: name -> TorchEntry. Close it, or use `with`.

    Raises ModelFormatError (rules Z1 to Z9, F1 to F4) or ModelFileNotFoundError.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = MappedFile(path)
        self.path = self._file.path
        self.metadata: dict[str, str] = {}
        try:
            with self._file.reading():
                self._members = self._read_members()
                self.entries = self._entries(self._read_table())
        except BaseException:
            self._file.close()
            raise
        self.data_bytes = sum(e.n_bytes for e in self.entries.values())

    def _fail(self, rule: str, message: str, field: str, value: Any = None, limit: Any = None, offset: int = 0) -> Any:
        raise ModelFormatError(
            message, path=self.path, offset=offset, field=field, value=value, limit=limit, rule=rule
        )

    def _read_members(self) -> dict[str, Member]:
        """The members by their names below the one top folder."""
        start = self._file.buffer[:265]
        if start[:4] != b"PK\3\4":
            what = next((text for magic, text in _OTHERS if start.startswith(magic)), None)
            if start[257:262] == b"ustar":
                what = f"this is a PyTorch checkpoint of the oldest format (tar), which is not read; {_LEGACY}"
            self._fail("Z1", what or "this is no PyTorch checkpoint", "first bytes", start[:4], b"PK\3\4")
        members = read_members(self._file)
        tops = {name.partition("/")[0] for name in members}
        if len(tops) != 1 or not all("/" in name for name in members):
            self._fail("Z2", "this archive is no PyTorch checkpoint: it has not one folder", "members", len(tops), 1)
        found = {name.partition("/")[2]: member for name, member in members.items()}
        if any(name.startswith("code/") or name == "constants.pkl" for name in found):
            self._fail("Z1", "this is a TorchScript program, not a checkpoint; save its state_dict", "members")
        order = found.get("byteorder")
        if order is not None and self._file.buffer[order.offset : order.offset + min(order.size, 16)] != b"little":
            self._fail("Z2", "only little-endian checkpoints are read", "byteorder", None, "little", order.offset)
        return found

    def _read_table(self) -> Any:
        table = self._members.get("data.pkl")
        if table is None:
            self._fail("Z2", "this archive is no PyTorch checkpoint: it has no table of tensors", "data.pkl")
        if table.size > MAX_BYTES:
            self._fail("Z5", "the table of tensors is too large", "data.pkl", table.size, MAX_BYTES, table.offset)
        raw = self._file.buffer[table.offset : table.offset + table.size]
        return Reader(raw, self.path, table.offset).read()

    def _entries(self, table: Any) -> dict[str, TorchEntry]:
        if not isinstance(table, dict) or not table:
            self._fail("Z5", "the checkpoint is no table of tensors", "data.pkl", type(table).__name__)
        out = {}
        for name, view in table.items():
            if not isinstance(name, str) or not name or not isinstance(view, View):
                inner = isinstance(view, dict)
                hint = "; save that table alone (a state_dict)" if inner else ""
                self._fail("Z5", f"the checkpoint holds something that is no tensor{hint}", f"key {one_line(name)}",
                           "a table" if inner else type(view).__name__)  # fmt: skip
            out[name] = self._entry(name, view)
        return out

    def _entry(self, name: str, view: View) -> TorchEntry:
        storage, field = view.storage, f"tensor {one_line(name)}"
        member, item = self._members.get(f"data/{storage.key}"), ITEM_BYTES[storage.dtype]
        if member is None:
            self._fail("Z8", "the storage of a tensor is missing", field, storage.key)
        if storage.numel * item > member.size:
            self._fail("Z8", "a storage is longer than its member of the archive", field, storage.numel * item,
                       member.size, member.offset)  # fmt: skip
        at = member.offset + view.first * item
        return TorchEntry(name, storage.dtype, view.shape, at, prod(view.shape) * item, view.strides)

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of a tensor as float32 (stop - start, k); a vector is one row, leading sizes are joined.

        As SafetensorsFile.rows, whatever the strides are.
        """
        e = self.entries[name]
        dtype = float_type(e, self.path)
        k = e.shape[-1] if e.shape else 1
        steps = tuple(s * dtype.itemsize if n > 1 else 0 for n, s in zip(e.shape, e.strides, strict=True))
        if prod(e.shape) == 0 or start == stop:
            return np.zeros((stop - start, k), dtype=np.float32)
        with self._file.reading():
            x = np.ndarray(e.shape, dtype, self._file.buffer, e.offset, steps)  # mapped
            if x.flags.c_contiguous or x.ndim < 2:
                raw = x.reshape(-1, k)[start:stop]
            elif x.ndim == 2:
                raw = x[start:stop]
            else:
                raw = np.stack([x[np.unravel_index(i, e.shape[:-1])] for i in range(start, stop)])
            out = as_float32(raw, e.dtype)
        del raw, x
        span = sum((n - 1) * s for n, s in zip(e.shape, steps, strict=True)) + dtype.itemsize
        first, size = e.offset, span
        if len(e.shape) == 2 and steps[0] == max(steps):  # rows follow each other
            first, size = e.offset + start * steps[0], (stop - start) * steps[0]
        self._file.advise_dont_need(first, size)
        return np.ascontiguousarray(out).reshape(stop - start, k)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> TorchFile:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()
