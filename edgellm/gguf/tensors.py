"""The tensor part of a GGUF file: names, shapes, types and places, all checked before any data is touched."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from ..blocks import BY_ID, BY_NAME, BlockType
from ..errors import UnsupportedQuantError, one_line
from ..quants.panels_sparse import index_bytes
from .constants import MAX_BYTES, MAX_DIM, MAX_DIMS, MAX_NAME_BYTES, OTHER_TYPES, REMOVED_TYPES
from .metadata import Cursor
from .packed import fits_panels, panel_type_of, stored_bytes


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of the file. `shape` is rows first (NumPy order, the reverse of the file's), `offset` counts from the
    start of the file, `n_bytes` is the data as rows, without padding. `panels`: the file holds it in panels
    (formats/packed.md), which take `stored_bytes`; `sparse`: in `sparse_bytes` bytes, without its zero tiles."""

    name: str
    type: BlockType
    shape: tuple[int, ...]
    offset: int
    n_bytes: int
    panels: bool = False
    sparse_bytes: int = 0

    @property
    def sparse(self) -> bool:
        return self.sparse_bytes > 0

    @property
    def stored_bytes(self) -> int:
        """Bytes of the data in the file, without padding behind it."""
        return self.sparse_bytes or stored_bytes(self.type, self.shape, self.panels)


@dataclass(frozen=True)
class _Entry:
    """A tensor as the header has it: `offset` counts from the start of the data, `at` is where that field lies."""

    name: str
    type: BlockType
    shape: tuple[int, ...]
    n_bytes: int  # in the file
    offset: int
    at: int
    panels: bool
    sparse: bool


def align_up(n: int, alignment: int) -> int:
    return -(-n // alignment) * alignment


def read_entries(cursor: Cursor, n_tensors: int, alignment: int, sparse_bytes: list[int]) -> list[_Entry]:
    """The tensor descriptions from the cursor on (rules T1 to T9, T14, L9); sizes of sparse ones in `sparse_bytes`."""
    entries, seen, sizes = [], set(), iter(sparse_bytes)
    for _ in range(n_tensors):
        start = cursor.pos
        name = cursor.name("T1", MAX_NAME_BYTES, "tensor name")
        if name in seen:
            cursor.pos = start
            cursor.fail("T1", "two tensors have the same name", "tensor name", name)
        seen.add(name)
        shape = _read_shape(cursor, name)
        kind, panels, sparse = _read_type(cursor, name)
        n_bytes = _n_bytes(cursor, name, shape, kind, alignment, panels)
        if sparse:
            n_bytes = _sparse_bytes(cursor, name, shape, kind, next(sizes, 0))
        at = cursor.pos
        entries.append(_Entry(name, kind, shape, n_bytes, cursor.u64(f"offset of {name}"), at, panels, sparse))
    return entries


def _sparse_bytes(cursor: Cursor, name: str, shape: tuple[int, ...], kind: BlockType, n: int) -> int:
    """Rule L9: a sparse tensor takes at least its index, and at most that and all its tiles."""
    least = index_bytes(prod(shape[:-1]), shape[-1], kind)
    most = least + stored_bytes(kind, shape, True)
    if not least <= n <= most:
        cursor.fail("L9", "a sparse tensor cannot have this size", f"bytes of {name}", n, f"{least} to {most}", back=4)
    return n


def _read_shape(cursor: Cursor, name: str) -> tuple[int, ...]:
    """Sizes, rows first; the file stores the fastest one first."""
    n_dims = cursor.u32(f"n_dims of {name}")
    if not 1 <= n_dims <= MAX_DIMS:
        cursor.fail("T2", "bad number of dimensions", f"n_dims of {name}", n_dims, f"1 to {MAX_DIMS}", back=4)
    dims: list[int] = []
    for i in range(n_dims):
        n = cursor.u64(f"dim {i} of {name}")
        if not 1 <= n <= MAX_BYTES:
            cursor.fail("T3", "a dimension is zero or negative", f"dim {i} of {name}", n, f"1 to {MAX_DIM}", back=8)
        dims.append(n)
        if prod(dims) > MAX_BYTES:
            cursor.fail("T4", "the number of weights overflows", f"dims of {name}", tuple(dims), MAX_BYTES, back=8)
    for i, n in enumerate(dims):
        if n > MAX_DIM:
            cursor.fail("T14", "a dimension is too large", f"dim {i} of {name}", n, MAX_DIM, back=8 * (n_dims - i))
    return tuple(reversed(dims))


def _read_type(cursor: Cursor, name: str) -> tuple[BlockType, bool, bool]:
    """(block type, whether the tensor is in panels, whether these are sparse)."""
    code = cursor.u32(f"type of {name}")
    kind, in_panels = BY_ID.get(code), panel_type_of(code)
    if kind is not None:
        return kind, False, False
    if in_panels is not None:
        return in_panels[0], True, in_panels[1]
    signed = code - (1 << 32) if code >= 1 << 31 else code
    if code in OTHER_TYPES:
        what = f"has type {OTHER_TYPES[code]}, which is not supported yet"
    elif code in REMOVED_TYPES:
        what = f"has type {REMOVED_TYPES[code]}, which was removed from GGUF"
    else:
        what = "has an unknown type"
    raise UnsupportedQuantError(
        f"tensor {one_line(name)} {what}; quantise the model again to one of the supported types", path=cursor.path,
        offset=cursor.pos - 4, field=f"type of {name}", value=signed, limit=", ".join(BY_NAME), rule="T8",
    )  # fmt: skip


def _n_bytes(
    cursor: Cursor, name: str, shape: tuple[int, ...], kind: BlockType, alignment: int, panels: bool
) -> int:
    """Bytes of the data. Sizes are exact (Python integers), the limit is what a signed 64-bit reader can hold."""
    if shape[-1] % kind.block_size:
        cursor.fail(
            "T9", f"a row is no multiple of the {kind.name} block", f"dim 0 of {name}", shape[-1], kind.block_size, 12
        )
    if panels and not fits_panels(shape):
        cursor.fail("L3", "a tensor of this shape cannot be in panels", f"shape of {name}", shape, None, 4)
    n_bytes = stored_bytes(kind, shape, panels)
    if n_bytes > MAX_BYTES:
        cursor.fail("T5", "the size of a tensor overflows", f"size of {name}", n_bytes, MAX_BYTES, back=4)
    if align_up(n_bytes, alignment) > MAX_BYTES:
        cursor.fail("T6", "the padded size of a tensor overflows", f"size of {name}", n_bytes, MAX_BYTES, back=4)
    return n_bytes


def place(cursor: Cursor, entries: list[_Entry], alignment: int) -> tuple[dict[str, TensorInfo], int]:
    """Tensors with absolute offsets, and the end of the data with its last padding (rules T7, T10, T11)."""
    start = align_up(cursor.pos, alignment)
    infos: dict[str, TensorInfo] = {}
    running = 0
    for e in entries:
        cursor.pos = e.at
        if e.offset != running:
            cursor.fail("T10", _why_misplaced(e.offset, running, alignment), f"offset of {e.name}", e.offset, running)
        running += align_up(e.n_bytes, alignment)
        if start + running > MAX_BYTES:
            cursor.fail("T7", "the sum of the tensor sizes overflows", f"end of {e.name}", running, MAX_BYTES)
        rows = e.n_bytes if not e.panels else stored_bytes(e.type, e.shape, False)
        sparse = e.n_bytes if e.sparse else 0
        infos[e.name] = TensorInfo(e.name, e.type, e.shape, start + e.offset, rows, e.panels, sparse)
    for e in entries:
        end = start + e.offset + e.n_bytes
        if end > cursor.end:
            cursor.pos = e.at
            cursor.fail(
                "T11", "a tensor ends after the file; the file is cut off, copy or download it again",
                f"end of {e.name}", end, f"{cursor.end} bytes",
            )  # fmt: skip
    return infos, start + running


def _why_misplaced(offset: int, expected: int, alignment: int) -> str:
    if offset % alignment:
        return f"a tensor's offset is no multiple of the alignment {alignment}"
    if offset > expected:
        return "there is a hole before a tensor, or tensors are out of order"
    return "a tensor overlaps the one before it, or tensors are out of order"
