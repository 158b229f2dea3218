"""SparseGPT (Frantar and Alistarh 2023): columns are pruned from left to right, and the weights to their right make up
for what each lost weight did, as well as a quadratic form of the inputs says (optimal brain surgeon).

With H = mean of x x^T over the inputs and U upper triangular, U^T U = H^-1, the row U[c, c:] / U[c, c] is what a weight
of column c that becomes 0 adds to the columns from c on, and w^2 / U[c, c]^2 the error that stays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..errors import ConvertError
from . import masks

BLOCK = 128  # columns whose weights are chosen together, and updated at once
_DAMPING = 0.01  # of the mean of H's diagonal, added to it
_TRIES = 4  # with ten times the damping each, where H is not positive definite in float64


@dataclass(frozen=True)
class InverseRoot:
    """`upper`: U float64 (k, k), upper triangular, U^T U = (H + damping)^-1; `dead` bool (k,): columns without input.
    """

    upper: np.ndarray
    dead: np.ndarray


def prune_with_updates(
    w: np.ndarray, root: InverseRoot, sparsity: float, pattern: str, tile: int,
    tick: Callable[[], object] = lambda: None,
) -> np.ndarray:  # fmt: skip
    """Prunes w, float32 (rows, k), and updates what is left, in place; returns the mask (rows, k), True where it is 0.

    Columns without input become 0 beside the share `sparsity`. `tile`: columns of a block of block16. `tick` is called
    now and then and may raise.
    """
    upper, k = root.upper, w.shape[1]
    w[:, root.dead] = 0
    width = tile if pattern == "block16" else BLOCK
    gone = _whole_blocks(w, upper, sparsity, tile) if pattern == "block16" else np.zeros(w.shape, dtype=bool)
    for start in range(0, k, width):
        here = slice(start, min(start + width, k))
        part, own = w[:, here].astype(np.float64), upper[here, here]  # (rows, width), (width, width)
        if pattern == "unstructured":
            gone[:, here] = masks.lowest(_saliency(part, own), int(part.size * sparsity))
        errors = _columns(part, own, gone[:, here], pattern == "2:4")
        w[:, here] = part
        w[:, here.stop :] -= (errors @ upper[here, here.stop :]).astype(np.float32)
        tick()
    return gone


def inverse_root(gram: np.ndarray) -> InverseRoot:
    """Of gram, float64 (k, k), the mean of x x^T. Raises ConvertError where it is not finite or cannot be inverted."""
    if not np.isfinite(gram).all():
        raise ConvertError("the inputs of a matrix are not finite on this text; the model file is damaged or unfit")
    h = gram.copy()
    diagonal = np.arange(len(h))
    dead = h[diagonal, diagonal] == 0
    h[dead, dead] = 1
    damping = _DAMPING * h[diagonal, diagonal].mean()
    for _ in range(_TRIES):
        h[diagonal, diagonal] += damping
        try:  # H = V V^T with V upper triangular, by the factor of H with rows and columns turned round
            v = np.linalg.cholesky(h[::-1, ::-1])[::-1, ::-1]
            return InverseRoot(np.triu(np.linalg.inv(v)), dead)
        except np.linalg.LinAlgError:
            damping *= 10
    raise ConvertError("the inputs of a matrix on this text are too much alike; take another text, or method wanda")


def _columns(part: np.ndarray, root: np.ndarray, gone: np.ndarray, fours: bool) -> np.ndarray:
    """Prunes columns `part` float64 (rows, width) by `gone` (rows, width), which `fours` chooses; returns what each
    lost, over its U[c, c]: (rows, width)."""
    errors = np.zeros_like(part)
    for c in range(part.shape[1]):
        if fours and c % 4 == 0:
            four = slice(c, c + 4)
            gone[:, four] = masks.two_of_four(_saliency(part[:, four], root[four, four]))
        errors[:, c] = np.where(gone[:, c], part[:, c], 0) / root[c, c]
        part[:, c:] -= np.outer(errors[:, c], root[c, c:])
        part[gone[:, c], c] = 0
    return errors


def _saliency(part: np.ndarray, root: np.ndarray) -> np.ndarray:
    """The error that each weight would leave, float64 (rows, width)."""
    saliency: np.ndarray = np.square(part) / np.square(np.diagonal(root))
    return saliency


def _whole_blocks(w: np.ndarray, upper: np.ndarray, sparsity: float, tile: int) -> np.ndarray:
    """The blocks of block16, chosen in the whole matrix before any update: columns differ too much to take the same
    share of each."""
    return masks.blocks(np.abs(w) / np.diagonal(upper), sparsity, tile)
