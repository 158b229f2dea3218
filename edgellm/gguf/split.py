"""A model in several GGUF files (NAME-00001-of-00003.gguf, ...) as one: rule K13 of formats/container.md.

Any of the parts opens all of them. Each part is a sound file of its own, checked as such; the first one holds the
metadata (llama.cpp's tools/gguf-split). The names of the others follow from the name of the one that was given, never
from what a file says.
"""

from __future__ import annotations

import bisect
import contextlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np

from ..errors import ModelFileNotFoundError, ModelFormatError, one_line
from .reader import GGUFFile
from .tensors import TensorInfo

MAX_PARTS = 512  # open files that a process may well have
KEYS = ("split.no", "split.count", "split.tensors.count")
_NAME = re.compile(r"(?P<stem>.*)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.DOTALL)


def _fail(
    path: str, message: str, field: str, value: Any = None, limit: Any = None, offset: int | None = None
) -> NoReturn:
    raise ModelFormatError(message, path=path, offset=offset, field=field, value=value, limit=limit, rule="K13")


def is_part(file: GGUFFile) -> bool:
    """Whether a file says that there are more; checks the three keys against each other and its tensors."""
    count, number = file.get("split.count", int, 1), file.get("split.no", int, 0)
    here = len(file.tensors)
    total = file.get("split.tensors.count", int, here)
    if count < 0 or not 0 <= number < max(count, 1) or total < here or (count <= 1 and total != here):
        _fail(
            file.path, "the keys of a split file contradict each other", ", ".join(KEYS), (number, count, total),
            f"no < count, {here} tensors here", file.metadata.offsets.get("split.count"),
        )  # fmt: skip
    if count > 1 and file.packed is not None:
        _fail(file.path, "a packed file cannot be a part of a model", "split.count", count, 1)
    return bool(count > 1)


def open_parts(first: GGUFFile, strict: bool = False) -> SplitGGUFFile:
    """All parts of the model that `first`, any one of them, belongs to. Closes `first` when that fails.

    Raises ModelFormatError (rule K13: a part is missing, comes twice or belongs to another model), MissingKeyError.
    """
    parts: list[GGUFFile] = []
    try:
        given, names = _part_names(first)
        for i, name in enumerate(names):
            parts.append(first if i == given else _open_part(name, strict))
            _check_part(parts[-1], i, first)
        return SplitGGUFFile(parts)
    except BaseException:
        for part in (*parts, first):
            part.close()
        raise


def _part_names(file: GGUFFile) -> tuple[int, list[str]]:
    """(index of the given file, paths of all parts)."""
    count, number = file.get("split.count", int), file.get("split.no", int)
    folder, name = os.path.split(file.path)
    if count > MAX_PARTS:
        _fail(file.path, "the model is in too many files; merge them", "split.count", count, MAX_PARTS)
    want = f"-{number + 1:05d}-of-{count:05d}.gguf"
    found = _NAME.fullmatch(name)
    if found is None or not name.endswith(want):
        _fail(file.path, f"this is part {number + 1} of a model in {count} files; give it back its name", "file name",
              one_line(name), f"NAME{want}")  # fmt: skip
    return number, [os.path.join(folder, f"{found['stem']}-{i + 1:05d}-of-{count:05d}.gguf") for i in range(count)]


def _open_part(path: str, strict: bool) -> GGUFFile:
    try:
        return GGUFFile(path, strict)
    except ModelFileNotFoundError:
        _fail(path, "a part of the model is missing; download it into the same folder", "file name",
                     os.path.basename(path))  # fmt: skip


def _check_part(part: GGUFFile, number: int, first: GGUFFile) -> None:
    if part.packed is not None:
        _fail(part.path, "a packed file cannot be a part of a model", "edgellm.pack.version")
    want = {key: first.get(key, int) for key in KEYS} | {"split.no": number}
    for key, value in want.items():
        have = part.get(key, int, "missing")
        if have != value:
            _fail(part.path, "this file is no part of the same model, or it has a wrong name", key, have, value,
                  part.metadata.offsets.get(key))  # fmt: skip


class SplitGGUFFile(GGUFFile):
    """Parts that `open_parts` has checked, used like one GGUFFile; it closes them.

    `metadata` and `version` are those of the first part, without the keys of the split; `path` is its path and `paths`
    has all. `offset` of a tensor counts from the start of the first part as if the files were put together;
    `place_of` tells where it really lies.
    """

    def __init__(self, parts: Sequence[GGUFFile]) -> None:
        head = parts[0]
        self._parts = list(parts)
        self.path, self.version, self.alignment = head.path, head.version, head.alignment
        self.metadata = head.metadata
        self.n_bytes = sum(part.n_bytes for part in parts)
        self._starts = [sum(part.n_bytes for part in parts[:i]) for i in range(len(parts))]
        self._home: dict[str, GGUFFile] = {}
        self.tensors: dict[str, TensorInfo] = {}
        self._bound: set[str] = set()
        self.packed = None
        for part, start in zip(parts, self._starts, strict=True):
            self._check_keys(part)
            self._add_tensors(part, start)
        total = head.get("split.tensors.count", int)
        if len(self.tensors) != total:
            _fail(head.path, "the parts have another number of tensors together", "split.tensors.count", total,
                  len(self.tensors), head.metadata.offsets["split.tensors.count"])  # fmt: skip
        self.warnings = head.warnings
        for part in parts[1:]:
            self.warnings += [f"{os.path.basename(part.path)}: {line}" for line in part.warnings]
        self.metadata.drop(KEYS)

    def _check_keys(self, part: GGUFFile) -> None:
        """What a later part repeats must be the same: the first sign of a shard from another model."""
        for key in part.metadata if part is not self._parts[0] else ():
            if key in KEYS or key not in self.metadata:
                continue
            ours, theirs = self.metadata[key], part.metadata[key]
            if self.metadata.types[key] != part.metadata.types[key] or not np.array_equal(ours, theirs):
                value = theirs if isinstance(theirs, (str, int, float)) else None
                _fail(part.path, "this part belongs to another model: its metadata differs", key, value,
                      ours if value is not None else None, part.metadata.offsets[key])  # fmt: skip

    def _add_tensors(self, part: GGUFFile, start: int) -> None:
        for name, info in part.tensors.items():
            if name in self._home:
                _fail(part.path, "a tensor is in two parts", f"tensor {one_line(name)}",
                      os.path.basename(self._home[name].path), None, info.offset)  # fmt: skip
            self._home[name] = part
            self.tensors[name] = replace(info, offset=start + info.offset)

    @property
    def paths(self) -> list[str]:
        return [part.path for part in self._parts]

    def place_of(self, name: str) -> tuple[str, int]:
        part = self._home[name]
        return part.path, part.tensors[name].offset

    def data(self, name: str) -> np.ndarray:
        return self._home[self._info(name).name].data(name)

    def stored(self, name: str) -> np.ndarray:
        return self._home[self._info(name).name].stored(name)

    def read_in(self, told: Callable[[int], Any]) -> None:
        for part in self._parts:
            part.read_in(told)

    def maps(self) -> list[np.ndarray]:
        return [view for part in self._parts for view in part.maps()]

    def advise_dont_need(self, offset: int, n: int) -> None:
        i = max(0, bisect.bisect_right(self._starts, offset) - 1)
        self._parts[i].advise_dont_need(offset - self._starts[i], n)

    def check_unchanged(self) -> None:
        for part in self._parts:
            part.check_unchanged()

    def check_faults(self) -> None:
        for part in self._parts:
            part.check_faults()

    @property
    def closed(self) -> bool:
        return self._parts[0].closed

    def close(self) -> None:
        with contextlib.ExitStack() as stack:
            for part in self._parts:
                stack.callback(part.close)
