"""Sparse panels: panels whose zero tiles are not stored. The twin of the C packer; pictures in formats/panels.md.

An index of one record per group of 16 rows comes first, then the live tiles, group after group, as `pack_panels` has
them. A tile is zero where the blocks of all its rows are one of the type's zero blocks, so rows come back bit for bit.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ..blocks import BlockType
from ..errors import InvalidArgumentError
from .codecs import as_bytes
from .panels import LINE, ROWS, _check, _panel_type, pack_panels, unpack_panels

# Bytes of each zero block as (field, value of all its bytes) where they are not 0.
_FORMS: dict[str, tuple[dict[str, int], ...]] = {
    "Q4_0": ({"d": 0x8000, "qs": 0x88}, {"qs": 0x88}),
    "Q8_0": ({},),
    "Q4_K": ({},),
    "Q5_K": ({},),
    "Q6_K": ({"qh": 0xAA}, {}),
}


def zero_blocks(type: BlockType | str | int) -> tuple[bytes, ...]:
    """The blocks of a type that stand for zeros in sparse panels, by their form."""
    kind = _panel_type(type)
    return tuple(_block(kind, fields) for fields in _FORMS[kind.name])


def _block(kind: BlockType, fields: dict[str, int]) -> bytes:
    block = np.zeros(1, dtype=kind.dtype)
    for name, value in fields.items():
        part = block[name]
        part.view(np.uint16 if name == "d" else np.uint8)[...] = value
    return block.tobytes()


def tiles_per_group(k: int, kind: BlockType) -> int:
    """Tiles along k, a half one counted."""
    return -(-k // max(64, kind.block_size))


@lru_cache(maxsize=64)
def record_type(n_tiles: int) -> np.dtype:
    """One group's record: where its tiles begin (from the record on), how many there are, and which."""
    return np.dtype([("offset", "<u8"), ("n", "<u4"), ("form", "<u4"), ("live", "<u8", (-(-n_tiles // 64),))])


def record_bytes(k: int, kind: BlockType) -> int:
    """Bytes of the record of a group of k columns."""
    return record_type(tiles_per_group(k, kind)).itemsize


def index_bytes(rows: int, k: int, type: BlockType | str | int) -> int:
    """Bytes before the first tile: the records, filled up to a whole line."""
    kind = _panel_type(type)
    _check(rows, k, kind)
    n = -(-rows // ROWS) * record_bytes(k, kind)
    return -(-n // LINE) * LINE


def pack_sparse(blocks: object, rows: int, k: int, type: BlockType | str | int) -> np.ndarray:
    """Row-major blocks of a (rows, k) matrix -> sparse panels, flat uint8. Loses nothing."""
    kind = _panel_type(type)
    dense = pack_panels(blocks, rows, k, kind)
    groups, n_tiles = -(-rows // ROWS), tiles_per_group(k, kind)
    form, live = _live_tiles(as_bytes(blocks), rows, k, kind)  # (groups,), bool (groups, tiles)
    start = index_bytes(rows, k, kind)
    records = np.zeros(groups, dtype=record_type(n_tiles))
    records["form"], records["n"] = form, live.sum(axis=1)
    bits = np.zeros((groups, records["live"].shape[1] * 64), dtype=bool)
    bits[:, :n_tiles] = live
    records["live"] = np.packbits(bits, axis=1, bitorder="little").view("<u8")
    sizes = _tile_sizes(k, kind)
    ends = start + np.cumsum(live @ sizes)
    records["offset"] = np.concatenate([[start], ends[:-1]]) - np.arange(groups) * records.dtype.itemsize
    kept = np.repeat(live, sizes, axis=1).reshape(-1)  # a flag for each byte of the dense panels
    index = np.zeros(start, dtype=np.uint8)
    index[: records.nbytes] = records.view(np.uint8).reshape(-1)
    return np.concatenate([index, dense[kept]])


def unpack_sparse(panels: object, rows: int, k: int, type: BlockType | str | int) -> np.ndarray:
    """The inverse of `pack_sparse`: uint8 (rows, bytes of a row). Raises InvalidArgumentError as `check_sparse`."""
    kind = _panel_type(type)
    raw = as_bytes(panels)
    records = check_sparse(raw, rows, k, kind)
    groups, n_tiles, sizes = len(records), tiles_per_group(k, kind), _tile_sizes(k, kind)
    live = live_tiles(records, n_tiles)
    empty = [pack_panels(block * (ROWS * k // kind.block_size), ROWS, k, kind) for block in zero_blocks(kind)]
    dense = np.stack(empty)[records["form"]]  # (groups, bytes of a group), as if nothing were live
    first = records["offset"].astype(np.int64) + np.arange(groups) * records.dtype.itemsize
    for g in range(groups):
        stored = raw[first[g] : first[g] + int(live[g] @ sizes)]
        dense[g, np.repeat(live[g], sizes)] = stored
    assert dense.shape[1] == sizes.sum() and n_tiles == len(sizes)
    return unpack_panels(dense.reshape(-1), rows, k, kind)


def check_sparse(panels: np.ndarray, rows: int, k: int, type: BlockType | str | int) -> np.ndarray:
    """The records of sparse panels, uint8, after every field was held to the others and to the bytes that are there.

    Raises InvalidArgumentError that names the first group that is wrong.
    """
    kind = _panel_type(type)
    start, n_tiles = index_bytes(rows, k, kind), tiles_per_group(k, kind)
    if panels.size < start:
        raise InvalidArgumentError(f"sparse panels of ({rows}, {k}) have {start} bytes of index, not {panels.size}")
    records = panels[: -(-rows // ROWS) * record_type(n_tiles).itemsize].view(record_type(n_tiles))
    bits = np.unpackbits(np.ascontiguousarray(records["live"]).view(np.uint8), axis=1, bitorder="little")
    ends = start + np.cumsum(bits[:, :n_tiles].astype(np.int64) @ _tile_sizes(k, kind))
    offsets = np.concatenate([[start], ends[:-1]]) - np.arange(len(records)) * records.dtype.itemsize
    for what, wrong in (
        ("bits of tiles that it does not have", bits[:, n_tiles:].any(axis=1)),
        ("another number of tiles than bits", records["n"] != bits.sum(axis=1)),
        ("a zero block that its type does not have", records["form"] >= len(_FORMS[kind.name])),
        ("an offset that does not follow from the groups before it", records["offset"] != offsets.astype(np.uint64)),
    ):
        if wrong.any():
            raise InvalidArgumentError(f"sparse panels: group {int(wrong.argmax())} has {what}")
    if panels.size != ends[-1]:
        raise InvalidArgumentError(f"sparse panels of ({rows}, {k}) have {ends[-1]} bytes, not {panels.size}")
    return records


def live_tiles(records: np.ndarray, n_tiles: int) -> np.ndarray:
    """The bitmaps as bool (groups, tiles)."""
    bits = np.unpackbits(np.ascontiguousarray(records["live"]).view(np.uint8), axis=1, bitorder="little")
    return bits[:, :n_tiles].astype(bool)


def _live_tiles(source: np.ndarray, rows: int, k: int, kind: BlockType) -> tuple[np.ndarray, np.ndarray]:
    """(form of the zero tiles (groups,), live tiles (groups, tiles)) of row-major blocks.

    A group's zero tiles are all of one form: that of the first one.
    """
    groups, n, n_tiles = -(-rows // ROWS), k // kind.block_size, tiles_per_group(k, kind)
    blocks = source.reshape(rows, n, kind.type_size)
    zero = np.ones((len(_FORMS[kind.name]), groups, n_tiles), dtype=bool)
    per_tile = max(64, kind.block_size) // kind.block_size
    for form, block in enumerate(zero_blocks(kind)):
        same = np.ones((groups * ROWS, n_tiles * per_tile), dtype=bool)
        same[:rows, :n] = (blocks == np.frombuffer(block, np.uint8)).all(axis=2)
        zero[form] = same.reshape(groups, ROWS, n_tiles, per_tile).all(axis=(1, 3))
    first = np.where(zero.any(axis=2), zero.argmax(axis=2), n_tiles)  # (forms, groups): each form's first zero tile
    chosen = first.argmin(axis=0)
    return chosen, ~zero[chosen, np.arange(groups)]


def _tile_sizes(k: int, kind: BlockType) -> np.ndarray:
    """Bytes of each tile of a group, int64 (tiles,)."""
    sizes = np.full(tiles_per_group(k, kind), kind.panel_tile, dtype=np.int64)
    if k % max(64, kind.block_size):
        sizes[-1] = kind.panel_half
    return sizes
