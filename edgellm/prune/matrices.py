"""The matrices of a model in float32, one layer at a time, with those that were changed in the place of the file's."""

from __future__ import annotations

import numpy as np

from ..blocks import BlockType
from ..quants import dequantize
from ..weights import Weights, part_of


class Matrices:
    """`matrix` decodes and keeps; `forget` lets go of all that it keeps, so that one layer is in memory at a time."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._kept: dict[str, np.ndarray] = {}
        self._changed: dict[str, tuple[np.ndarray, BlockType]] = {}

    def matrix(self, name: str) -> np.ndarray:
        """A weight as the plan names it: float32 (n_out, n_in), (n_experts, n_out, n_in), (n,)."""
        part = part_of(name)
        if part is not None:
            return self._whole(part[0])[part[1] : part[2]]
        return self._whole(name)

    def change(self, name: str, data: np.ndarray, kind: BlockType) -> np.ndarray:
        """From now on tensor `name` is these bytes, uint8, of a type; returns it decoded."""
        self._changed[name] = (data, kind)
        self._kept.pop(name, None)
        return self._whole(name)

    def forget(self) -> None:
        """Let go of everything that was decoded or changed."""
        self._kept.clear()
        self._changed.clear()

    def _whole(self, name: str) -> np.ndarray:
        if name not in self._kept:
            info = self._weights.file.tensors[name]
            data, kind = self._changed.get(name) or (self._weights.file.data(name), info.type)
            self._kept[name] = dequantize(data, kind, info.shape)
        return self._kept[name]
