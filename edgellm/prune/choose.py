"""The weights that one matrix loses, by pattern and method."""

from __future__ import annotations

import numpy as np

from ..blocks import BlockType
from . import masks
from .wish import PruneWish, tile_k


def prune_matrix(w: np.ndarray, mean_squares: np.ndarray | None, kind: BlockType, wish: PruneWish) -> np.ndarray:
    """Sets weights of w, float32 (rows, k), to 0 in place; returns the mask, True where it did.

    `mean_squares` float64 (k,): of the inputs, None for the method that looks at weights only. `kind`: the type that w
    will have, which says how large a block is.
    """
    scores = masks.scores(w, mean_squares if wish.reads_text else None)
    if wish.pattern == "unstructured":
        mask = masks.unstructured(scores, wish.sparsity, per_row=wish.method == "wanda")
    elif wish.pattern == "2:4":
        mask = masks.two_of_four(scores)
    else:
        mask = masks.blocks(scores, wish.sparsity, tile_k(kind))
    w[mask] = 0
    return mask
