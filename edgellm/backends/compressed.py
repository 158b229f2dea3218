"""Which matrices lose single zeros on the way into memory, and how large they are then (formats/panels.md).

As with zero tiles (sparse.py) each matrix is asked: the codes of a few groups of 16 rows are counted, and only where
these promise less to read the codes of all. And only where kernels expand codes as fast as memory gives them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from .. import clib
from ..parallel import parallel
from ..quants.panels import ROWS
from .sparse import WORTH, SparseIndex

if TYPE_CHECKING:
    from ..blocks import BlockType
    from ..weights import Weights

LAYOUT = 3  # EL_COMPRESSED of native/edgellm.h
SMALL = 64 << 20  # bytes of matrices that caches may hold: there instructions count, and expanding takes more of them
_SAMPLE = 4  # groups whose codes are counted first
_SCAN_BYTES = 4 << 20  # of rows that one task counts


@dataclass(frozen=True)
class CompressedIndex:
    """A matrix without its zero codes: the index (uint8) that stands before the streams, and the bytes of all."""

    index: np.ndarray
    n_bytes: int


_found: WeakKeyDictionary[Weights, dict[str, CompressedIndex | None]] = WeakKeyDictionary()


def find_compressed(
    names: Sequence[str], weights: Weights, n_threads: int, sparse: Mapping[str, SparseIndex]
) -> dict[str, CompressedIndex]:
    """The matrices of `names`, which lie in rows, that take the fewest bytes compressed; `sparse` are those that may
    do without zero tiles. Kept as long as `weights`, as those are."""
    if sum(weights.span(name)[1] for name in names) < SMALL:
        return {}
    known = _found.setdefault(weights, {})
    for name in names:
        if name in known:
            continue
        shape, offset = weights.shape(name), weights.span(name)[0]
        known[name] = compressed_index(
            weights.data(name), weights.type(name), math.prod(shape[:-1]), shape[-1], n_threads,
            lambda at, size, offset=offset: weights.file.advise_dont_need(offset + at, size),
        )  # fmt: skip
    found = {name: made for name in names if (made := known[name]) is not None}
    return {n: made for n, made in found.items() if n not in sparse or made.n_bytes < sparse[n].n_bytes}


def compressed_index(
    data: np.ndarray,
    kind: BlockType,
    rows: int,
    k: int,
    n_threads: int = 1,
    seen: Callable[[int, int], None] = lambda at, size: None,
) -> CompressedIndex | None:
    """The index of a (rows, k) matrix whose blocks are `data`; None where panels take not much more.

    `seen` is told of stretches of `data`, (first byte, bytes), that were counted.
    """
    if not has_fast_kernel(kind) or sampled_share(data, kind, rows, k) > WORTH:
        return None
    ffi, lib = clib.library()
    index = np.zeros(lib.el_compressed_index_bytes(kind.id, rows, k), dtype=np.uint8)
    target, source, row = ffi.from_buffer(index), ffi.from_buffer(data), kind.row_bytes(k)
    step = max(1, _SCAN_BYTES // (ROWS * row)) * ROWS

    def scan(first: int) -> int:
        return int(lib.el_compressed_scan(kind.id, source, target, rows, k, first, min(first + step, rows)))

    with closing(parallel(range(0, rows, step), scan, n_threads)) as done:
        for first, rc in done:
            clib.check(rc, "counting zeros")
            seen(first * row, min(step, rows - first) * row)
    n_bytes = lib.el_compressed_place(kind.id, target, rows, k)
    return CompressedIndex(index, n_bytes) if n_bytes <= WORTH * lib.el_panel_bytes(kind.id, rows, k) else None


def has_fast_kernel(kind: BlockType) -> bool:
    """Whether this machine expands codes of a block type in registers."""
    return clib.kernel_level(kind, LAYOUT) not in (None, "portable")


def sampled_share(data: np.ndarray, kind: BlockType, rows: int, k: int) -> float:
    """Bytes compressed, of those as panels, by a few groups; 1 where there is no such form."""
    ffi, lib = clib.library()
    found = ffi.new("int64_t *")
    dense = lib.el_compressed_sample(kind.id, ffi.from_buffer(data), rows, k, _SAMPLE, found)
    return float(found[0] / dense) if dense > 0 else 1.0
