"""Binds the tensors of a file to the names and shapes that a plan uses, in one checked call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .errors import ModelFormatError

if TYPE_CHECKING:
    from .blocks import BlockType
    from .gguf import GGUFFile
    from .plan import Plan

EMBEDDING = "token_embd.weight"


class Weights:
    """The tensors of `file` that `plan` uses, in block form; nothing is copied or decoded here.

    `names` are those tensors, `extra` the ones that nothing asked for (`file.warnings` says so too).

    Raises MissingTensorError (T12), ModelFormatError (T13: another shape; V6: the embedding has another number of rows
    than the vocabulary has pieces).
    """

    def __init__(self, file: GGUFFile, plan: Plan) -> None:
        self.file = file
        self.names = tuple(plan.weights)
        for name, shape in plan.weights.items():
            if name == EMBEDDING:
                _check_vocabulary(file, shape)
            file.bind(name, shape)
        self.extra = tuple(file.unbound())

    def type(self, name: str) -> BlockType:
        """The block type of a tensor."""
        return self.file.tensors[name].type

    def shape(self, name: str) -> tuple[int, ...]:
        """Output features first: (n_out, n_in), or (n,) for a vector."""
        return tuple(self.file.tensors[name].shape)

    def data(self, name: str) -> np.ndarray:
        """The bytes of a tensor as they are in the file: a read-only uint8 view of the mapping."""
        return self.file.data(name)

    def float32(self, name: str) -> np.ndarray:
        """A tensor decoded to float32 in its shape; a new array at each call."""
        return _decode(self.file, name)

    @property
    def matrix_types(self) -> set[str]:
        """Names of the block types of all matrices that the plan uses."""
        return {self.type(name).name for name in self.names if len(self.shape(name)) > 1}

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors that the plan uses, as they are in the file."""
        return sum(int(self.file.tensors[name].n_bytes) for name in self.names)


def read_tensor(file: GGUFFile, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """One tensor as float32 of this shape, for what is read while a plan is made. Raises as `Weights`."""
    file.bind(name, shape)
    return _decode(file, name)


def _check_vocabulary(file: GGUFFile, shape: tuple[int, ...]) -> None:
    info = file.tensors.get(EMBEDDING)
    if info is not None and info.shape[0] != shape[0]:
        raise ModelFormatError(
            "the embedding table has another number of rows than the vocabulary has pieces",
            path=file.path, offset=info.offset, field=EMBEDDING, value=info.shape[0], limit=shape[0], rule="V6",
        )  # fmt: skip


def _decode(file: GGUFFile, name: str) -> np.ndarray:
    from .quants import dequantize

    info = file.tensors[name]
    return dequantize(file.data(name), info.type, tuple(info.shape))
