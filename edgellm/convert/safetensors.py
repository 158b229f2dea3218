"""Reader for safetensors checkpoints: one file, or shards with an index. NumPy only.

The format is described at https://github.com/huggingface/safetensors#format: eight bytes of header length (little
endian), a JSON header, then the data of all tensors without holes. A file is checked whole (rules S1 to S8) before the
first tensor of it can be read; the index of a sharded checkpoint likewise (rule S9).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ..errors import ConvertError, MissingTensorError, ModelFormatError, one_line
from ..gguf.source import MappedFile
from .strict_json import StrictJSONError, parse, read_object

MAX_HEADER = 100_000_000  # bytes, the limit of the reference implementation
MAX_DIMS = 16
MAX_SIZE = (1 << 63) - 1

# every element type of the format that fills whole bytes -> bytes of one element
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
_NUMPY = {"F16": np.dtype("<f2"), "BF16": np.dtype("<u2"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8")}


@dataclass(frozen=True)
class Entry:
    """One tensor: element type, shape (rows first), and its bytes from `offset` of the file on."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    n_bytes: int


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
        if entry.dtype not in _NUMPY:
            raise ConvertError(
                "weights of this element type cannot be converted; convert a float checkpoint",
                path=self.path, offset=entry.offset, field=f"tensor {one_line(name)}, dtype", value=entry.dtype,
                limit=", ".join(_NUMPY),
            )  # fmt: skip
        dtype = _NUMPY[entry.dtype]
        k = entry.shape[-1] if entry.shape else 1
        first, count = entry.offset + start * k * dtype.itemsize, (stop - start) * k
        self._file.check_unchanged()
        raw = np.frombuffer(self._file.buffer, dtype=dtype, count=count, offset=first)  # (rows * k,), mapped
        if entry.dtype == "BF16":
            out = (raw.astype(np.uint32) << 16).view(np.float32)
        else:
            with np.errstate(over="ignore"):
                out = raw.astype(np.float32)
        del raw
        self._file.advise_dont_need(first, count * dtype.itemsize)
        return out.reshape(stop - start, k)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()


class Checkpoint:
    """All tensors of a folder: `model.safetensors`, or the shards that `model.safetensors.index.json` lists.

    Works like a mapping of name -> Entry, with `rows` as in SafetensorsFile.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = os.fspath(folder)
        self._files: dict[str, SafetensorsFile] = {}
        self._home: dict[str, SafetensorsFile] = {}
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        index = os.path.join(self.folder, "model.safetensors.index.json")
        single = os.path.join(self.folder, "model.safetensors")
        if os.path.lexists(index):
            shards = _read_index(index)
            for name in sorted(set(shards.weight_map.values())):
                self._files[name] = SafetensorsFile(_shard_path(self.folder, name, index))
            _check_index(shards, self._files, index)
            self._home = {name: self._files[shard] for name, shard in shards.weight_map.items()}
        elif os.path.lexists(single):
            _inside(self.folder, single, single)
            self._files[single] = file = SafetensorsFile(single)
            self._home = dict.fromkeys(file.entries, file)
        else:
            raise ConvertError(
                "no model.safetensors and no model.safetensors.index.json in this folder"
                + (
                    "; PyTorch .bin checkpoints are not read yet, save it as safetensors"
                    if _has_bin(self.folder)
                    else ""
                ),
                path=self.folder,
            )

    def __contains__(self, name: object) -> bool:
        return name in self._home

    def __iter__(self) -> Iterator[str]:
        return iter(self._home)

    def __len__(self) -> int:
        return len(self._home)

    def __getitem__(self, name: str) -> Entry:
        if name not in self._home:
            raise MissingTensorError("the checkpoint lacks a tensor that the model needs", path=self.folder, field=name)
        return self._home[name].entries[name]

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        return self._home[name].rows(name, start, stop)

    def path_of(self, name: str) -> str:
        """The shard that holds a tensor, for error messages."""
        return self._home[name].path

    @property
    def data_bytes(self) -> int:
        return sum(file.data_bytes for file in self._files.values())

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()


# ---- the index of a sharded checkpoint (rule S9) ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Index:
    weight_map: dict[str, str]  # tensor name -> file name of its shard
    total_size: int | None


def _fail_index(path: str, message: str, field: str, value: Any = None, limit: Any = None) -> Any:
    raise ModelFormatError(message, path=path, field=field, value=value, limit=limit, rule="S9")


def _read_index(path: str) -> _Index:
    _inside(os.path.dirname(path), path, path)
    table = read_object(path, rule="S9")
    weight_map = table.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        _fail_index(path, "the index needs a weight_map", "weight_map", weight_map)
    for name, shard in weight_map.items():
        if not isinstance(shard, str):
            _fail_index(path, "a shard must be the name of a file", f"weight_map.{one_line(name)}", shard)
    metadata = table.get("metadata") or {}
    size = metadata.get("total_size") if isinstance(metadata, dict) else None
    if isinstance(size, float) and size.is_integer():  # old writers stored it as a float
        size = int(size)
    if size is not None and (type(size) is not int or size < 0):
        _fail_index(path, "total_size must be a number of bytes", "metadata.total_size", size)
    return _Index(weight_map, size)


def _shard_path(folder: str, name: str, index: str) -> str:
    """The path of a shard, which must be a plain file name inside the folder."""
    if not name or name in (".", "..") or any(c in name for c in "/\\:\0"):
        _fail_index(
            index, "a shard must be a file name in the same folder", "weight_map", name, "no '..', '/' or drive"
        )
    path = os.path.join(folder, name)
    if not os.path.lexists(path):
        _fail_index(index, "a shard is missing; copy or download it again", "weight_map", name)
    _inside(folder, path, index)
    return path


def _inside(folder: str, path: str, blame: str) -> None:
    """A symbolic link must stay in the folder. The hub's cache is the exception: snapshots/X/F -> blobs/HASH."""
    if not os.path.islink(path):
        return
    root, target = os.path.realpath(folder), os.path.realpath(path)
    allowed = [root]
    above = os.path.dirname(root)
    if os.path.basename(above) == "snapshots":
        allowed.append(os.path.join(os.path.dirname(above), "blobs"))
    if not any(target.startswith(os.path.join(home, "")) for home in allowed):
        _fail_index(blame, "a symbolic link leads out of the folder", os.path.basename(path), target, root)


def _check_index(index: _Index, files: dict[str, SafetensorsFile], path: str) -> None:
    owner: dict[str, str] = {}
    for shard, file in files.items():
        for name in file.entries:
            if name in owner:
                both = f"{owner[name]} and {shard}"
                _fail_index(path, "a tensor is in two shards", f"tensor {one_line(name)}", both)
            owner[name] = shard
            if index.weight_map.get(name) != shard:
                where = index.weight_map.get(name, "no shard")
                _fail_index(path, "the index puts a tensor elsewhere", f"weight_map.{one_line(name)}", where, shard)
    for name, shard in index.weight_map.items():
        if name not in owner:
            _fail_index(
                path, "a tensor is not in the shard that the index names", f"weight_map.{one_line(name)}", shard
            )
    total = sum(file.data_bytes for file in files.values())
    if index.total_size is not None and index.total_size != total:
        _fail_index(path, "total_size is not the size of the shards", "metadata.total_size", index.total_size, total)


def _has_bin(folder: str) -> bool:
    try:
        return any(name.startswith("pytorch_model") and name.endswith(".bin") for name in os.listdir(folder))
    except OSError:
        return False
