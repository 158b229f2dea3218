"""What a layer's matrices are fed with, as each method wants to know it, in rounds that bound the memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from ..imatrix import Imatrix
from .sparsegpt import InverseRoot, inverse_root

GRAM_BYTES = 1 << 30  # of quadratic forms in memory at once; one is kept even where it is larger
Unit = tuple[str, int]  # a tensor whose inputs are measured, for all that share them; the matrix of its stack


@dataclass
class Grams:
    """Sums of x x^T, float64 (k, k), of the inputs of `wanted` matrices, and how many there were."""

    wanted: frozenset[Unit]
    sums: dict[Unit, np.ndarray] = field(default_factory=dict)
    counts: dict[Unit, int] = field(default_factory=dict)
    _last: tuple[Unit, InverseRoot] | None = None

    def add(self, name: str, matrix: int, n_matrices: int, x: np.ndarray) -> None:
        """Count the inputs x, float32 (rows, k), of one matrix of a tensor, if it is wanted."""
        unit = name, matrix
        if unit not in self.wanted or not len(x):
            return
        with np.errstate(all="ignore"):  # what is not finite is refused where it is used
            product = (x.T @ x).astype(np.float64)
        if unit in self.sums:
            self.sums[unit] += product
        else:
            self.sums[unit] = product
        self.counts[unit] = self.counts.get(unit, 0) + len(x)

    def mean(self, unit: Unit, k: int) -> np.ndarray:
        """The mean of x x^T (k, k); where nothing was seen, that of inputs of size 1 that are not alike."""
        return self.sums[unit] / self.counts[unit] if unit in self.sums else np.eye(k)

    def root(self, unit: Unit, k: int) -> InverseRoot:
        """Of `mean`. The last is kept."""
        if self._last is None or self._last[0] != unit:
            self._last = unit, inverse_root(self.mean(unit, k))
        return self._last[1]


def rounds(sizes: Mapping[Unit, int], budget: int = GRAM_BYTES) -> list[frozenset[Unit]]:
    """The units (with the k of their inputs) in as few groups as they fit into, in order."""
    groups: list[set[Unit]] = []
    used = budget
    for unit, k in sizes.items():
        n_bytes = 8 * k * k
        if not groups or used + n_bytes > budget:
            groups.append(set())
            used = 0
        groups[-1].add(unit)
        used += n_bytes
    return [frozenset(group) for group in groups]


def mean_squares(seen: Imatrix, unit: Unit, n_matrices: int, k: int) -> np.ndarray | None:
    """float64 (k,) of a unit; None where there was no text."""
    found = seen.importance(unit[0], n_matrices, k)
    return None if found is None else found[unit[1]]


def units(leaders: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], names: Iterable[str]) -> dict[Unit, int]:
    """{unit: k} of the tensors `names`; `leaders` names the tensor with whose inputs each one's are measured."""
    found: dict[Unit, int] = {}
    for name in names:
        shape = shapes[name]
        for e in range(shape[0] if len(shape) == 3 else 1):
            found[leaders[name], e] = shape[-1]
    return found
