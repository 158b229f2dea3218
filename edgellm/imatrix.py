"""Importance matrices: how large the inputs of each weight matrix are, column by column, measured on a text.

An error in a column of weights reaches the output multiplied by that column's input, so the mean of the squared inputs
is what the quantiser weighs its errors with. llama.cpp's files are read and written, in both forms:

* GGUF (`general.type` = "imatrix"): keys imatrix.datasets, imatrix.chunk_count, imatrix.chunk_size; for each weight two
  F32 tensors, `NAME.in_sum2` (matrices, k) and `NAME.counts` (matrices, 1); a stack of experts has several matrices;
* the older .dat: little-endian int32 number of entries; for each int32 length of the name, the name, int32 calls, int32
  number of values, float32 values (mean square times calls); then int32 chunks, and the data set's name as before.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .errors import InvalidArgumentError, ModelFileNotFoundError, ModelFormatError, one_line
from .gguf import GGUFWriter, open_gguf
from .gguf.output import AtomicFile

_MAX_NAME = 1 << 12  # bytes
_CALL = 512  # inputs that a call of the older form stands for, which counts calls; llama.cpp's default chunk
_SUMS, _COUNTS = ".in_sum2", ".counts"


@dataclass
class Entry:
    """`sums`: float64 (matrices, k), sums of squared inputs; `counts`: float64 (matrices,), inputs of each."""

    sums: np.ndarray
    counts: np.ndarray

    def shaped(self, n_matrices: int, k: int) -> Entry | None:
        """As (n_matrices, k): the older form keeps a stack of matrices as one row. None where the sizes differ."""
        if self.sums.shape == (n_matrices, k):
            return self
        if len(self.sums) > 1 or self.sums.size != n_matrices * k:
            return None
        return Entry(self.sums.reshape(n_matrices, k), np.repeat(self.counts, n_matrices))


@dataclass
class Imatrix:
    """Entries by name of the weight tensor; `n_chunks` chunks of `chunk_size` tokens of `datasets` were run."""

    entries: dict[str, Entry] = field(default_factory=dict)
    datasets: list[str] = field(default_factory=list)
    n_chunks: int = 0
    chunk_size: int = 512

    def add(self, name: str, matrix: int, n_matrices: int, x: np.ndarray) -> None:
        """Count the inputs x, float (rows, k), of one matrix of a weight tensor."""
        entry = self.entries.get(name)
        if entry is None:
            entry = self.entries[name] = Entry(np.zeros((n_matrices, x.shape[1])), np.zeros(n_matrices))
        entry.sums[matrix] += np.square(x, dtype=np.float64).sum(axis=0)
        entry.counts[matrix] += len(x)

    def importance(self, name: str, n_matrices: int, k: int) -> np.ndarray | None:
        """Mean squared inputs of a tensor, float64 (n_matrices, k): 1 for matrices that saw nothing; None: no entry.

        Raises InvalidArgumentError when the entry has another shape: the file belongs to another model.
        """
        found = self.entries.get(name)
        if found is None:
            return None
        entry = found.shaped(n_matrices, k)
        if entry is None:
            raise InvalidArgumentError(
                f"the importance matrix has {found.sums.shape} numbers for {name}, the model needs "
                f"({n_matrices}, {k}); it was made for another model"
            )
        counts = entry.counts[:, None]
        means: np.ndarray = np.where(counts > 0, entry.sums / np.maximum(counts, 1), 1.0)
        return means

    def merge(self, other: Imatrix) -> None:
        """Add what `other` has seen. Raises InvalidArgumentError when the two belong to different models."""
        for name, entry in other.entries.items():
            own = self.entries.get(name, Entry(np.zeros_like(entry.sums), np.zeros_like(entry.counts)))
            more, own = entry.shaped(*own.sums.shape) or entry, own.shaped(*entry.sums.shape) or own
            if own.sums.shape != more.sums.shape:
                raise InvalidArgumentError(f"importance matrices of different models: the shapes of {name} differ")
            self.entries[name] = Entry(own.sums + more.sums, own.counts + more.counts)
        self.n_chunks += other.n_chunks
        self.datasets += [d for d in other.datasets if d not in self.datasets]

    def write(self, path: str | os.PathLike[str], form: str | None = None) -> None:
        """Write the file. `form`: "gguf" or "dat"; by default "dat" for names that end so. Raises OutputError."""
        form = form or ("dat" if os.fspath(path).endswith(".dat") else "gguf")
        if form not in ("gguf", "dat"):
            raise InvalidArgumentError(f"importance matrix form is '{form}'; choose gguf or dat")
        (_write_gguf if form == "gguf" else _write_dat)(self, path)


def read_imatrix(path: str | os.PathLike[str]) -> Imatrix:
    """Read either form. Raises ModelFileNotFoundError, ModelFormatError (what is broken and where)."""
    try:
        with open(path, "rb") as file:
            is_gguf = file.read(4) == b"GGUF"
    except (FileNotFoundError, IsADirectoryError):
        raise ModelFileNotFoundError(os.fspath(path)) from None
    return _read_gguf(path) if is_gguf else _read_dat(os.fspath(path))


# ---- GGUF ------------------------------------------------------------------------------------------------------------


def _read_gguf(path: str | os.PathLike[str]) -> Imatrix:
    with open_gguf(path) as file:
        if file.get("general.type", str, "") != "imatrix":
            raise ModelFormatError("this GGUF file is no importance matrix", path=file.path, field="general.type")
        out = Imatrix(
            datasets=list(file.get("imatrix.datasets", list[str], [])),
            n_chunks=file.get("imatrix.chunk_count", int, 0),
            chunk_size=file.get("imatrix.chunk_size", int, 0),
        )
        for name in file.tensors:
            if not name.endswith(_SUMS):
                continue
            base = name.removesuffix(_SUMS)
            sums, counts = _tensor(file, name), _tensor(file, base + _COUNTS)
            if sums.shape[0] != counts.size:
                raise ModelFormatError(
                    "sums and counts differ in their number of matrices", path=file.path, field=base,
                    value=sums.shape[0], limit=counts.size,
                )  # fmt: skip
            out.entries[base] = _entry(sums, counts.reshape(-1), base, file.path)
    return _not_empty(out, os.fspath(path))


def _tensor(file: Any, name: str) -> np.ndarray:
    """A float32 tensor as float64 with its leading sizes joined: (matrices, k)."""
    info = file.tensors.get(name)
    if info is None or info.type.name != "F32":
        what = "is missing" if info is None else f"is {info.type.name}, not F32"
        raise ModelFormatError(f"a tensor of the importance matrix {what}", path=file.path, field=one_line(name))
    rows: np.ndarray = file.data(name).view("<f4").reshape(-1, info.shape[-1]).astype(np.float64)
    return rows


def _write_gguf(imatrix: Imatrix, path: str | os.PathLike[str]) -> None:
    with GGUFWriter(path, None) as writer:
        writer.add("general.type", "imatrix")
        writer.add("imatrix.datasets", list(imatrix.datasets), "str")
        writer.add("imatrix.chunk_count", imatrix.n_chunks, "u32")
        writer.add("imatrix.chunk_size", imatrix.chunk_size, "u32")
        names = sorted(imatrix.entries)
        for name in names:
            writer.add_tensor_info(name + _SUMS, imatrix.entries[name].sums.shape, "F32")
            writer.add_tensor_info(name + _COUNTS, (len(imatrix.entries[name].counts), 1), "F32")
        for name in names:
            writer.write_tensor(name + _SUMS, imatrix.entries[name].sums.astype("<f4"))
            writer.write_tensor(name + _COUNTS, imatrix.entries[name].counts.astype("<f4"))


# ---- the older form --------------------------------------------------------------------------------------------------


class _Reader:
    """Takes numbers and texts off the front of the file's bytes."""

    def __init__(self, data: bytes, path: str) -> None:
        self.data, self.path, self.at = data, path, 0

    def fail(self, message: str, what: str, value: object = None, limit: object = None) -> ModelFormatError:
        return ModelFormatError(
            f"{message}; this is no importance matrix, or it is cut off", path=self.path, offset=self.at, field=what,
            value=value, limit=limit,
        )  # fmt: skip

    def take(self, n: int, what: str) -> bytes:
        if n > len(self.data) - self.at:
            raise self.fail("the file ends too early", what, n, len(self.data) - self.at)
        self.at += n
        return self.data[self.at - n : self.at]

    def number(self, what: str, low: int, high: int) -> int:
        value: int = struct.unpack("<i", self.take(4, what))[0]
        if not low <= value <= high:
            self.at -= 4
            raise self.fail("a number is out of range", what, value, f"{low} to {high}")
        return value

    def text(self, what: str) -> str:
        raw = self.take(self.number(f"length of {what}", 0, _MAX_NAME), what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail("a name is not UTF-8", what) from None


def _read_dat(path: str) -> Imatrix:
    with open(path, "rb") as file:
        reader = _Reader(file.read(), path)
    n_entries = reader.number("number of entries", 1, 1 << 20)
    out = Imatrix()
    for i in range(n_entries):
        name = reader.text(f"name of entry {i}")
        calls = reader.number(f"calls of {one_line(name)}", 0, (1 << 31) - 1)
        n = reader.number(f"values of {one_line(name)}", 1, (len(reader.data) - reader.at) // 4)
        values = np.frombuffer(reader.take(4 * n, name), "<f4").astype(np.float64)
        out.entries[name] = _entry(values[None] * _CALL, np.array([max(calls, 1) * _CALL], np.float64), name, path)
    if reader.at < len(reader.data):
        out.n_chunks = reader.number("number of chunks", 0, (1 << 31) - 1)
        out.datasets = [d for d in [reader.text("data set")] if d]
    return _not_empty(out, path)


def _write_dat(imatrix: Imatrix, path: str | os.PathLike[str]) -> None:
    calls = max(imatrix.n_chunks, 1)
    parts = [struct.pack("<i", len(imatrix.entries))]
    for name in sorted(imatrix.entries):
        entry = imatrix.entries[name]
        means = imatrix.importance(name, *entry.sums.shape)
        assert means is not None  # there is an entry of this name and shape
        values = (means * calls).astype("<f4").reshape(-1)
        raw = name.encode("utf-8")
        parts += [struct.pack("<i", len(raw)), raw, struct.pack("<ii", calls, values.size), values.tobytes()]
    raw = (imatrix.datasets[0] if imatrix.datasets else "").encode("utf-8")[:_MAX_NAME]
    parts += [struct.pack("<ii", imatrix.n_chunks, len(raw)), raw]
    _write_bytes(path, parts)


def _write_bytes(path: str | os.PathLike[str], parts: Iterable[bytes]) -> None:
    out = AtomicFile(path)
    parts = list(parts)
    try:
        out.open(sum(map(len, parts)))
        for part in parts:
            out.write(part)
        out.commit()
    except BaseException:
        out.abort()
        raise


# ---- both ------------------------------------------------------------------------------------------------------------


def _entry(sums: np.ndarray, counts: np.ndarray, name: str, path: str) -> Entry:
    for values in (sums, counts):
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise ModelFormatError(
                "the importance matrix holds a number that is negative or not finite", path=path, field=one_line(name)
            )
    return Entry(sums, counts)


def _not_empty(imatrix: Imatrix, path: str) -> Imatrix:
    if not imatrix.entries:
        raise ModelFormatError("the importance matrix has no entries", path=path, field="entries", value=0)
    return imatrix
