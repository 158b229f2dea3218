"""Which weights of a matrix go: scores, and the patterns that choose the lowest ones. All masks are True where a weight
becomes 0.

Magnitude scores a weight by |w|. Wanda (Sun et al. 2023) scores it by |w| * ||x||, the norm of what its column is
multiplied with: roughly what the output would miss. The same share of each row goes there; of the whole matrix is the
other choice, and the better one for small models (docs/sparsity.md).
"""

from __future__ import annotations

import numpy as np

from ..errors import ConvertError, one_line
from .wish import TILE_ROWS


def scores(w: np.ndarray, mean_squares: np.ndarray | None) -> np.ndarray:
    """float32 (rows, k) >= 0 for weights w (rows, k): |w|, or |w| * sqrt(mean_squares) of the inputs (k,)."""
    size: np.ndarray = np.abs(w)
    if mean_squares is None:
        return size
    norms = np.sqrt(mean_squares)
    top = norms.max(initial=0.0)
    size *= (norms / top if top > 0 else np.ones_like(norms)).astype(np.float32)  # no overflow
    return size


def lowest(values: np.ndarray, n: int) -> np.ndarray:
    """bool, the shape of `values`: the n lowest ones; of equals those that come first."""
    if n <= 0:
        return np.zeros(values.shape, dtype=bool)
    flat = values.reshape(-1)
    border = np.partition(flat, n - 1)[n - 1]
    mask: np.ndarray = flat < border
    equals = np.flatnonzero(flat == border)[: n - int(np.count_nonzero(mask))]
    mask[equals] = True
    return mask.reshape(values.shape)


def unstructured(found: np.ndarray, sparsity: float, per_row: bool) -> np.ndarray:
    """The lowest share of scores `found` (rows, k), of each row or of the whole matrix."""
    if not per_row:
        return lowest(found, int(found.size * sparsity))
    n = int(found.shape[1] * sparsity)
    mask = np.empty(found.shape, dtype=bool)
    for i, row in enumerate(found):
        mask[i] = lowest(row, n)
    return mask


def two_of_four(found: np.ndarray) -> np.ndarray:
    """Two of every four neighbours in a row, those with the lowest scores (rows, k)."""
    fours = found.reshape(len(found), -1, 4)
    order = np.argsort(fours, axis=2, kind="stable")
    mask = np.zeros(fours.shape, dtype=bool)
    np.put_along_axis(mask, order[:, :, :2], True, axis=2)
    return mask.reshape(found.shape)


def blocks(found: np.ndarray, sparsity: float, tile: int) -> np.ndarray:
    """Whole blocks of 16 rows x `tile` k, those with the lowest mean square of scores (rows, k), while they are no more
    than the share of all weights. Blocks at the lower and right edges may be smaller."""
    rows, k = found.shape
    tops, lefts = np.arange(0, rows, TILE_ROWS), np.arange(0, k, tile)
    squares = np.add.reduceat(np.square(found, dtype=np.float64), lefts, axis=1)
    sums = np.add.reduceat(squares, tops, axis=0)  # (groups of rows, tiles)
    sizes = np.outer(np.diff(tops, append=rows), np.diff(lefts, append=k))
    order = np.argsort((sums / sizes).reshape(-1), kind="stable")
    fitting = np.cumsum(sizes.reshape(-1)[order]) <= rows * k * sparsity
    gone = np.zeros(sums.size, dtype=bool)
    gone[order[fitting]] = True
    return spread(gone.reshape(sums.shape), rows, k, tile)


def spread(gone: np.ndarray, rows: int, k: int, tile: int) -> np.ndarray:
    """bool (rows, k) of bool (groups of 16 rows, tiles)."""
    return np.repeat(np.repeat(gone, TILE_ROWS, axis=0)[:rows], tile, axis=1)[:, :k]


def check_fours(k: int, name: str, path: str) -> None:
    """Raises ConvertError where rows are no multiple of four."""
    if k % 4:
        raise ConvertError(
            "rows of this length have no groups of four; choose another pattern", path=path,
            field=f"tensor {one_line(name)}", value=k,
        )  # fmt: skip
