"""Which form each matrix's panels take: dense, sparse (zero tiles left out) or compressed (zero codes left out).

Whatever takes the fewest bytes, by the weights themselves: a few groups of rows are looked at first, so a model without
zeros pays for nothing, and only a matrix that promises to become smaller is counted whole (formats/panels.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
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

WORTH = 0.95  # of the dense panels' bytes, at most: less is lost in kernels that have more to do
_SAMPLE = {"sparse": 64, "compressed": 4}  # groups of 16 rows that are looked at first; counting codes takes longer
_STRETCH = 2 << 20  # bytes of rows that one task counts


@dataclass(frozen=True)
class PanelForm:
    """A form that is not dense. `layout`: enum el_layout; `index`: uint8, the beginning of the matrix's `n_bytes`."""

    layout: int
    index: np.ndarray
    n_bytes: int


@dataclass(frozen=True)
class Functions:
    """The C functions of one form (native/edgellm.h)."""

    layout: int
    index_bytes: Any
    sample: Any
    scan: Any
    place: Any
    pack: Any


def functions(form: str) -> Functions:
    """Those of "sparse" or "compressed"."""
    _, lib = clib.library()
    if form == "sparse":
        return Functions(
            lib.EL_SPARSE, lib.el_sparse_index_bytes, lib.el_sparse_sample, lib.el_sparse_scan, lib.el_sparse_place,
            lib.el_pack_sparse,
        )  # fmt: skip
    return Functions(
        lib.EL_COMPRESSED, lib.el_compressed_index_bytes, lib.el_compressed_sample, lib.el_compressed_scan,
        lib.el_compressed_place, lib.el_pack_compressed,
    )  # fmt: skip


def packer(layout: int) -> Any:
    """The C function that packs rows into panels of a layout."""
    _, lib = clib.library()
    if layout == lib.EL_PANELS:
        return lib.el_pack_panels
    return functions("sparse" if layout == lib.EL_SPARSE else "compressed").pack


def forms_for(kind: BlockType) -> list[str]:
    """Forms that kernels of this machine read as fast as memory gives them, for a block type."""
    level = clib.kernel_level(kind, clib.library()[1].EL_COMPRESSED)
    return ["sparse", "compressed"] if level not in (None, "portable") else ["sparse"]


def choose_forms(names: Iterable[str], weights: Weights, n_threads: int) -> dict[str, PanelForm]:
    """The weights of `names`, in rows in the file, that take fewer bytes in another form than as dense panels."""
    found = {}
    for name in names:
        shape, offset = weights.shape(name), weights.span(name)[0]
        best = best_form(
            weights.data(name), weights.type(name), math.prod(shape[:-1]), shape[-1], n_threads,
            lambda at, size, offset=offset: weights.file.advise_dont_need(offset + at, size),
        )  # fmt: skip
        if best is not None:
            found[name] = best
    return found


def best_form(
    data: np.ndarray,
    kind: BlockType,
    rows: int,
    k: int,
    n_threads: int = 1,
    seen: Callable[[int, int], None] = lambda at, size: None,
) -> PanelForm | None:
    """The form, if any, that is worth it for a (rows, k) matrix of blocks; uint8 `data` row by row.

    `seen` is told of stretches of `data`, (first byte, bytes), that were counted.
    """
    ffi, lib = clib.library()
    dense = lib.el_panel_bytes(kind.id, rows, k)
    share, form = min((sampled_share(data, kind, rows, k, form), form) for form in forms_for(kind))
    if share > WORTH:
        return None
    c = functions(form)
    index = np.zeros(c.index_bytes(kind.id, rows, k), dtype=np.uint8)
    target, source, row = ffi.from_buffer(index), ffi.from_buffer(data), kind.row_bytes(k)
    step = max(1, _STRETCH // (ROWS * row)) * ROWS

    def scan(first: int) -> int:
        return int(c.scan(kind.id, source, target, rows, k, first, min(first + step, rows)))

    with closing(parallel(range(0, rows, step), scan, n_threads)) as done:
        for first, rc in done:
            clib.check(rc, f"counting the zeros of a {kind.name} matrix")
            seen(first * row, min(step, rows - first) * row)
    n_bytes = int(c.place(kind.id, target, rows, k))
    return PanelForm(c.layout, index, n_bytes) if 0 <= n_bytes <= WORTH * dense else None


def sampled_share(data: np.ndarray, kind: BlockType, rows: int, k: int, form: str) -> float:
    """Bytes in a form, of those of dense panels, by a few groups; 1 where it cannot be told."""
    ffi, _ = clib.library()
    found = ffi.new("int64_t *")
    dense = functions(form).sample(kind.id, ffi.from_buffer(data), rows, k, _SAMPLE[form], found)
    return found[0] / dense if dense > 0 else 1.0
