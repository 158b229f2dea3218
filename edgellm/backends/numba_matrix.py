"""Weights and memory of the Numba backend: matrices as they lie in the file, buffers, activations as 8 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..blocks import F32, BlockType
from ..plan import Plan
from ..quants import dequantize
from .lowering import activation_planes
from .numba_kernels.linear import LINEAR, quantize_q8_32, quantize_q8_256
from .numba_kernels.lines import ROWS

NONE = np.empty(0, np.float32)  # no bias, no residual
GROUPS = {"q8_32": (32, 32, quantize_q8_32), "q8_256": (256, 16, quantize_q8_256)}  # per scale, per sum, kernel


@dataclass(frozen=True)
class Matrix:
    """A weight as its bytes in the file, uint8 (rows * row_bytes,), one row after the other.

    Kernels read 16 rows at a time: `data` of fewer rows is a copy with rows of zeros after them.
    """

    type: BlockType
    data: np.ndarray
    rows: int
    cols: int

    def __post_init__(self) -> None:
        if self.rows < ROWS:
            padded = np.zeros(self.data.size // self.rows * ROWS, np.uint8)
            padded[: self.data.size] = self.data
            object.__setattr__(self, "data", padded)

    @property
    def by_row(self) -> np.ndarray:
        """uint8 (rows, row bytes)."""
        row_bytes = self.cols // self.type.block_size * self.type.type_size
        return self.data[: self.rows * row_bytes].reshape(self.rows, row_bytes)

    def part(self, index: int, n: int) -> Matrix:
        """Matrix `index` of n that follow each other."""
        rows = self.rows // n
        return Matrix(self.type, self.by_row[index * rows : (index + 1) * rows].reshape(-1), rows, self.cols)


def input_kind(m: Matrix) -> str:
    return m.type.activation if m.type.id in LINEAR else "f32"


def linear_rows(m: Matrix, first: int, last: int, inputs: tuple[np.ndarray, ...], tail: tuple[Any, ...]) -> None:
    """Rows [first, last) of one matrix. A type without a kernel is decoded, 16 rows at a time."""
    kernel = LINEAR.get(m.type.id)
    if kernel is not None:
        kernel(m.data, m.cols, first, last, *inputs, *tail)
        return
    n_cols, bias, residual, y, n_rows, cancel = tail
    for r in range(first, last, ROWS):
        here = slice(r, min(r + ROWS, last))
        n = here.stop - r
        plain = dequantize(m.by_row[here], m.type, (n, m.cols)).reshape(-1).view(np.uint8)
        part = np.empty((n_cols, n), np.float32)
        LINEAR[F32.id](plain, m.cols, 0, n, *inputs, n_cols, NONE, NONE, part.reshape(-1), n, cancel)
        if bias.size:
            part += bias[here]
        if residual.size:
            part += residual[: n_cols * n_rows].reshape(n_cols, n_rows)[:, here]
        y[: n_cols * n_rows].reshape(n_cols, n_rows)[:, here] = part


class Scratch:
    """Buffers and quantised activations. Sized for max_tokens; memory is taken only where a pass writes."""

    def __init__(self, plan: Plan, matrices: dict[str, Matrix], max_tokens: int) -> None:
        self._plan, self._max_tokens = plan, max_tokens
        self._buffers: dict[int, np.ndarray] = {}
        self._widest = activation_planes(plan) * max((m.cols for m in matrices.values()), default=1)
        self._quantised: dict[str, tuple[np.ndarray, ...]] = {}
        self._up: np.ndarray | None = None

    def buffer(self, index: int) -> np.ndarray:
        """float32 (max_tokens * cols,) of a plan buffer."""
        if index not in self._buffers:
            self._buffers[index] = np.zeros(self._max_tokens * self._plan.buffers[index].cols, np.float32)
        return self._buffers[index]

    @property
    def up(self) -> np.ndarray:
        """float32, the product that a gated linear step multiplies with; as large as the widest buffer of tokens."""
        if self._up is None:
            widest = max(b.cols for b in self._plan.buffers if b.rows == "tokens")
            self._up = np.zeros(self._max_tokens * widest, np.float32)
        return self._up

    def quantised(self, kind: str) -> tuple[np.ndarray, ...]:
        """(int8, float32 scales, int32 sums) for max_tokens columns of the widest input, in all planes."""
        if kind not in self._quantised:
            per_scale, per_sum, _ = GROUPS[kind]
            n = self._max_tokens * self._widest
            self._quantised[kind] = (
                np.zeros(n, np.int8), np.zeros(n // per_scale + 1, np.float32), np.zeros(n // per_sum + 1, np.int32)
            )  # fmt: skip
        return self._quantised[kind]

    def close(self) -> None:
        self._buffers, self._quantised, self._up = {}, {}, None
