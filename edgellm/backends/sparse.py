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
from weakref import WeakKeyDictionary

import numpy as np

from .. import clib
from ..parallel import parallel
from ..quants.panels import ROWS
from ..quants.panels_sparse import record_bytes

if TYPE_CHECKING:
    from ..blocks import BlockType
    from ..weights import Weights

LAYOUT = 2  # EL_SPARSE of native/edgellm.h
WORTH = 0.95  # of the bytes as panels: what a sparse matrix may take at most
_SAMPLE = 64  # groups that are looked at first
_SCAN_BYTES = 4 << 20  # of rows that one task looks through


@dataclass(frozen=True)
class SparseIndex:
    """A matrix without its zero tiles: the index that stands before the others, and the bytes of both.

    `index`: uint8, a whole number of lines; `k`: columns of the matrix.
    """

    index: np.ndarray
    n_bytes: int
    type: BlockType
    k: int

    def tiles(self, data: np.ndarray, first: int) -> np.ndarray:
        """The live tiles, uint8, of rows whose blocks are `data`; `first`, the first of them, begins a group."""
        ffi, lib = clib.library()
        rows = data.size // self.type.row_bytes(self.k)
        size, record = lib.el_sparse_index_bytes(self.type.id, rows, self.k), record_bytes(self.k, self.type)
        own = np.zeros(size, dtype=np.uint8)  # the index of these rows alone
        used = -(-rows // ROWS) * record
        own[:used] = self.index[first // ROWS * record :][:used]
        out = np.zeros(lib.el_sparse_place(self.type.id, ffi.from_buffer(own), rows, self.k), dtype=np.uint8)
        out[:size] = own
        rc = lib.el_pack_sparse(self.type.id, ffi.from_buffer(data), ffi.from_buffer(out), rows, self.k, 0, rows)
        clib.check(rc, "packing without zero tiles")
        return out[size:]


_found: WeakKeyDictionary[Weights, dict[str, SparseIndex | None]] = WeakKeyDictionary()


def find_sparse(names: Sequence[str], weights: Weights, n_threads: int) -> dict[str, SparseIndex]:
    """The matrices of `names`, which lie in rows, that are worth storing sparse.

    Kept as long as `weights`: loading asks once for the estimate of memory and once when it packs.
    """
    known = _found.setdefault(weights, {})
    for name in names:
        if name not in known:
            shape = weights.shape(name)
            rows = math.prod(shape[:-1])
            known[name] = sparse_index(weights.data(name), weights.type(name), rows, shape[-1], n_threads)
    return {name: made for name in names if (made := known[name]) is not None}


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
    return SparseIndex(index, n_bytes, kind, k) if n_bytes <= WORTH * lib.el_panel_bytes(kind.id, rows, k) else None
