"""The weights that one matrix loses, by pattern and method."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..blocks import BlockType
from ..imatrix import Imatrix
from . import masks
from .sparsegpt import prune_with_updates
from .statistics import Grams, Unit, mean_squares
from .wish import PruneWish, tile_k


def prune_matrix(
    w: np.ndarray, n_matrices: int, unit: Unit, seen: Imatrix | Grams, kind: BlockType, wish: PruneWish,
    tick: Callable[[], object],
) -> np.ndarray:  # fmt: skip
    """Sets weights of w, float32 (rows, k), to 0 in place; returns the mask, True where it did.

    `seen`: what was measured, of which w's inputs are `unit`, in a stack of `n_matrices`. `kind`: the type that w will
    have, which says how large a block is. `tick` is called now and then and may raise.
    """
    if isinstance(seen, Grams):
        root = seen.root(unit, w.shape[1])
        return prune_with_updates(w, root, wish.sparsity, wish.pattern, tile_k(kind), tick)
    means = mean_squares(seen, unit, n_matrices, w.shape[1]) if wish.reads_text else None
    scores = masks.scores(w, means)
    if wish.pattern == "unstructured":
        mask = masks.unstructured(scores, wish.sparsity, per_row=wish.group == "row")
    elif wish.pattern == "2:4":
        mask = masks.two_of_four(scores)
    else:
        mask = masks.blocks(scores, wish.sparsity, tile_k(kind))
    w[mask] = 0
    return mask
