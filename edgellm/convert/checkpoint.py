"""All tensors of a checkpoint folder: safetensors or PyTorch `.bin`, one file or shards with an index.

Every shard is checked whole before a tensor can be read, and the index likewise (rule S9: every tensor is in exactly
the shard that the index names, and a shard is a plain file of the same folder).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..errors import ConvertError, MissingTensorError, ModelFormatError, one_line
from .elements import Entry
from .safetensors import SafetensorsFile
from .strict_json import read_object
from .torch_bin import TorchFile


class Shard(Protocol):
    """One checked, mapped file; SafetensorsFile and TorchFile are such."""

    path: str
    data_bytes: int

    @property
    def entries(self) -> Mapping[str, Entry]: ...
    def rows(self, name: str, start: int, stop: int) -> np.ndarray: ...
    def close(self) -> None: ...


class Tensors(Protocol):
    """What the converter reads from: a mapping of name -> Entry whose rows can be had as float32."""

    def __contains__(self, name: object) -> bool: ...
    def __iter__(self) -> Iterator[str]: ...
    def __getitem__(self, name: str) -> Entry: ...
    def rows(self, name: str, start: int, stop: int) -> np.ndarray: ...
    def path_of(self, name: str) -> str: ...


# File of a whole checkpoint (of shards: that name and ".index.json") and its reader. The first that is there counts;
# one that is refused is never followed by a try of the next.
_MODEL: tuple[tuple[str, type], ...] = (
    ("model.safetensors", SafetensorsFile),
    ("pytorch_model.bin", TorchFile),
)
_ADAPTER: tuple[tuple[str, type], ...] = (
    ("adapter_model.safetensors", SafetensorsFile),
    ("adapter_model.bin", TorchFile),
)


class Checkpoint:
    """All tensors of a folder: `model.safetensors` or `pytorch_model.bin`, or the shards that their `.index.json` list.

    Works like a mapping of name -> Entry, with `rows` as in SafetensorsFile. `adapter`: read `adapter_model.*` instead.
    """

    def __init__(self, folder: str | os.PathLike[str], adapter: bool = False) -> None:
        self.folder = os.fspath(folder)
        self._files: dict[str, Shard] = {}
        self._home: dict[str, Shard] = {}
        try:
            self._open(_ADAPTER if adapter else _MODEL)
        except BaseException:
            self.close()
            raise

    def _open(self, kinds: tuple[tuple[str, type], ...]) -> None:
        for name, reader in kinds:
            single = os.path.join(self.folder, name)
            index = single + ".index.json"
            if os.path.lexists(index):
                return self._open_shards(index, reader)
            if os.path.lexists(single):
                _inside(self.folder, single, single)
                self._files[single] = file = reader(single)
                self._home = dict.fromkeys(file.entries, file)
                return None
        names = " and no ".join(name for name, _ in kinds)
        raise ConvertError(f"no {names} in this folder, nor an index of shards", path=self.folder)

    def _open_shards(self, index: str, reader: type) -> None:
        shards = _read_index(index)
        for name in sorted(set(shards.weight_map.values())):
            self._files[name] = reader(_shard_path(self.folder, name, index))
        # PyTorch's writers count tensors that share their bytes in different ways, so that number says nothing
        _check_index(shards, self._files, index, check_total=reader is SafetensorsFile)
        self._home = {name: self._files[shard] for name, shard in shards.weight_map.items()}

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

    def file_of(self, name: str) -> Shard:
        """The opened file that holds a tensor."""
        return self._home[name]

    @property
    def paths(self) -> list[str]:
        """The files that hold the tensors."""
        return [file.path for file in self._files.values()]

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


def _check_index(index: _Index, files: dict[str, Shard], path: str, check_total: bool) -> None:
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
    if check_total and index.total_size is not None and index.total_size != total:
        _fail_index(path, "total_size is not the size of the shards", "metadata.total_size", index.total_size, total)
