"""Which matrices lose their zeros on the way into memory, and how large they are then (formats/panels.md).

Nobody says that a file was pruned, so each matrix is asked: a few groups of 16 rows are looked at, and only where these
have zero tiles the whole of it is. A dense matrix costs a few hundred rows' first bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import clib
from ..parallel import parallel
from ..quants.panels import ROWS

if TYPE_CHECKING:
    from ..blocks import BlockType
    from ..weights import Weights

LAYOUT = 2  # EL_SPARSE of native/edgellm.h
WORTH = 0.95  # of the bytes as panels: what a sparse matrix may take at most
_SAMPLE = 64  # groups that are looked at first
_SCAN_BYTES = 4 << 20  # of rows that one task looks through


@dataclass(frozen=True)
class SparseIndex:
    """A matrix without its zero tiles: the index that stands before the others, and the bytes of both."""

    index: np.ndarray  # uint8, a whole number of lines
    n_bytes: int


def find_sparse(names: Sequence[str], weights: Weights, n_threads: int) -> dict[str, SparseIndex]:
    """The matrices of `names`, which lie in rows, that are worth storing sparse."""
    found = {}
    for name in names:
        shape = weights.shape(name)
        made = sparse_index(weights.data(name), weights.type(name), math.prod(shape[:-1]), shape[-1], n_threads)
        if made is not None:
            found[name] = made
    return found


def sparse_index(data: np.ndarray, kind: BlockType, rows: int, k: int, n_threads: int) -> SparseIndex | None:
    """The index of a (rows, k) matrix whose blocks are `data`; None where panels take not much more."""
    ffi, lib = clib.library()
    source, live = ffi.from_buffer(data), ffi.new("int64_t *")
    dense = lib.el_sparse_sample(kind.id, source, rows, k, _SAMPLE, live)
    if dense < 0 or live[0] > WORTH * dense:
        return None
    index = np.zeros(lib.el_sparse_index_bytes(kind.id, rows, k), dtype=np.uint8)
    target = ffi.from_buffer(index)

    def scan(first: int) -> Any:
        return lib.el_sparse_scan(kind.id, source, target, rows, k, first, min(first + step, rows))

    step = max(1, _SCAN_BYTES // (ROWS * kind.row_bytes(k))) * ROWS
    with closing(parallel(range(0, rows, step), scan, n_threads)) as done:
        for _, rc in done:
            clib.check(rc, "looking for zero tiles")
    n_bytes = lib.el_sparse_place(kind.id, target, rows, k)
    return SparseIndex(index, n_bytes) if n_bytes <= WORTH * lib.el_panel_bytes(kind.id, rows, k) else None
