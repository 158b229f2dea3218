"""Binds the tensors of a file to the names and shapes that a plan uses, in one checked call.

Some files hold several matrices in one tensor (Phi-3: q|k|v, gate|up). A plan names such a part "tensor[a:b]": rows
a .. b - 1. Rows lie one after the other, so a part is a slice of the tensor's bytes and nothing is copied.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from .errors import ModelFormatError, PlanError
from .quants.panels import ROWS, panel_bytes
from .quants.panels_sparse import record_bytes

if TYPE_CHECKING:
    from .blocks import BlockType
    from .gguf import GGUFFile, TensorInfo
    from .plan import Plan

EMBEDDING = "token_embd.weight"
_PART = re.compile(r"(.+)\[(\d+):(\d+)\]")


def part_of(name: str) -> tuple[str, int, int] | None:
    """(tensor, first row, last row + 1) where `name` is a part of a tensor, else None."""
    found = _PART.fullmatch(name)
    return (found[1], int(found[2]), int(found[3])) if found else None


class Weights:
    """The tensors of `file` that `plan` uses, in block form; nothing is copied or decoded here.

    `names` are the plan's names of them, `extra` the tensors that nothing asked for (`file.warnings` says so too).

    Raises MissingTensorError (T12), ModelFormatError (T13: another shape; V6: the embedding has another number of rows
    than the vocabulary has pieces), PlanError (parts that do not cover their tensor).
    """

    def __init__(self, file: GGUFFile, plan: Plan) -> None:
        self.file = file
        self.names = tuple(plan.weights)
        self._shapes = dict(plan.weights)
        for name, shape in tensor_shapes(plan.weights).items():
            if name == EMBEDDING:
                _check_vocabulary(file, shape)
            file.bind(name, shape)
        self.extra = tuple(file.unbound())

    def type(self, name: str) -> BlockType:
        """The block type of a weight."""
        return self.file.tensors[_tensor(name)].type

    def shape(self, name: str) -> tuple[int, ...]:
        """Output features first: (n_out, n_in), (n,) for a vector, (n_experts, n_out, n_in)."""
        return self._shapes[name]

    def span(self, name: str) -> tuple[int, int]:
        """Where the bytes of a weight are in the file: (offset, number of bytes). As rows, also where it has panels."""
        info, part = self.file.tensors[_tensor(name)], part_of(name)
        if part is None:
            return info.offset, info.n_bytes
        row = info.n_bytes // info.shape[0]
        return info.offset + part[1] * row, (part[2] - part[1]) * row

    def stored_offset(self, name: str) -> int:
        """Where the bytes of `panels` begin in the file."""
        info, part = self.file.tensors[_tensor(name)], part_of(name)
        return info.offset + (part[1] // ROWS * _group_bytes(info) if part else 0)

    def sparse(self, name: str) -> bool:
        """Whether the file holds a weight in sparse panels."""
        return self.file.tensors[_tensor(name)].sparse

    def stored_bytes(self, name: str) -> int:
        """Bytes of a weight as the file holds it; of a part of sparse panels its share."""
        info, part = self.file.tensors[_tensor(name)], part_of(name)
        share = 1.0 if part is None else (part[2] - part[1]) / info.shape[0]
        return round(info.stored_bytes * share)

    def panels(self, name: str) -> np.ndarray | None:
        """The bytes of a weight that the file holds in panels: a read-only uint8 view of the mapping; else None.

        None also where a part of a tensor begins inside a group of 16 rows. Of sparse panels a part is all from its
        first record on. Raises ModelFormatError (L10) for a damaged index.
        """
        info, part = self.file.tensors[_tensor(name)], part_of(name)
        if not info.panels:
            return None
        if info.sparse:
            self.file.check_sparse(info.name)
        stored, group = self.file.stored(info.name), _group_bytes(info)
        if part is None:
            return stored
        last = None if info.sparse else -(-part[2] // ROWS) * group
        return None if part[1] % ROWS else stored[part[1] // ROWS * group : last]

    def data(self, name: str) -> np.ndarray:
        """The bytes of a weight row by row: a read-only uint8 view of the mapping; of one in panels a new array."""
        offset, n_bytes = self.span(name)
        start = offset - self.file.tensors[_tensor(name)].offset
        return self.file.data(_tensor(name))[start : start + n_bytes]

    def float32(self, name: str) -> np.ndarray:
        """A weight decoded to float32 in its shape; a new array at each call."""
        from .quants import dequantize

        return dequantize(self.data(name), self.type(name), self.shape(name))

    @property
    def matrix_types(self) -> set[str]:
        """Names of the block types of all matrices that the plan uses."""
        return {self.type(name).name for name in self.names if len(self.shape(name)) > 1}

    @property
    def n_bytes(self) -> int:
        """Bytes of all weights that the plan uses, as they are in the file."""
        return sum(self.span(name)[1] for name in self.names)


def tensor_shapes(weights: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The shapes that the file's tensors must have for a plan's `weights`: parts are joined to their tensor again.

    Raises PlanError where the parts of a tensor overlap, leave a gap or differ in their columns.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    parts: dict[str, list[tuple[int, int, tuple[int, ...]]]] = {}
    for name, shape in weights.items():
        part = part_of(name)
        if part is None:
            shapes[name] = shape
        else:
            shapes[part[0]] = ()  # keeps the order
            parts.setdefault(part[0], []).append((part[1], part[2], shape))
    for name, found in parts.items():
        row, columns = 0, found[0][2][1:]
        for first, stop, shape in sorted(found):
            if first != row or shape != (stop - first, *columns):
                raise PlanError(f"the parts of tensor '{name}' do not fit together at row {first}")
            row = stop
        shapes[name] = (row, *columns)
    return shapes


def read_tensor(file: GGUFFile, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """One tensor as float32 of this shape, for what is read while a plan is made. Raises as `Weights`."""
    from .quants import dequantize

    info = file.bind(name, shape)
    return dequantize(file.data(name), info.type, shape)


def _group_bytes(info: TensorInfo) -> int:
    """Bytes from one group of 16 rows of a tensor in panels to the next one, of sparse ones from record to record."""
    if info.sparse:
        return record_bytes(info.shape[-1], info.type)
    return panel_bytes(ROWS, info.shape[-1], info.type)


def _tensor(name: str) -> str:
    part = part_of(name)
    return part[0] if part else name


def _check_vocabulary(file: GGUFFile, shape: tuple[int, ...]) -> None:
    info = file.tensors.get(EMBEDDING)
    if info is not None and info.shape[0] != shape[0]:
        raise ModelFormatError(
            "the embedding table has another number of rows than the vocabulary has pieces",
            path=file.path, offset=info.offset, field=EMBEDDING, value=info.shape[0], limit=shape[0], rule="V6",
        )  # fmt: skip
