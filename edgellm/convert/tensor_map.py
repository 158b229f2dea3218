"""One row of the map from a checkpoint's tensors to those of GGUF."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tensor:
    """`source` in the checkpoint becomes `name`. `heads` > 0: rows are reordered for the interleaved rotation.

    `offset` is added to every weight. `stack` names further tensors that follow `source`, one matrix after the other;
    `shape` is then (number of matrices, rows, columns).
    """

    source: str
    name: str
    shape: tuple[int, ...]  # rows first
    heads: int = 0
    offset: float = 0.0
    stack: tuple[str, ...] = ()
