"""Panels: 16 rows interleaved so that one 64-byte line holds [16 rows][4 k]. The twin of the C packer.

A matrix (rows, k) becomes groups of 16 rows (the last one padded with rows of zero bytes), a group is a run of tiles
along k. A full tile covers 64 k, a half tile the last 32 when k = 32 mod 64; formats with blocks of 256 have tiles of
256 k (panels_k.py). Pictures: formats/panels.md.
"""

from __future__ import annotations

import numpy as np

from ..blocks import BlockType
from ..errors import InvalidArgumentError
from .codecs import as_bytes, resolve_type
from .panels_k import pack_tiles, unpack_tiles

ROWS = 16  # rows of a panel group
LINE = 64  # bytes of a line


def _panel_type(type: BlockType | str | int) -> BlockType:
    kind = resolve_type(type)
    if not kind.has_panel:
        raise InvalidArgumentError(f"{kind.name} has no panel layout")
    return kind


def _check(rows: int, k: int, kind: BlockType) -> None:
    if rows < 1 or k < 1 or k % kind.block_size:
        raise InvalidArgumentError(
            f"{kind.name} panels need rows >= 1 and k a positive multiple of {kind.block_size}, got rows {rows}, k {k}"
        )


def panel_bytes(rows: int, k: int, type: BlockType | str | int) -> int:
    """Bytes of a (rows, k) matrix in panels. Raises InvalidArgumentError for a type or k without panels."""
    kind = _panel_type(type)
    _check(rows, k, kind)
    groups, tile_k = -(-rows // ROWS), max(64, kind.block_size)
    return groups * (k // tile_k * kind.panel_tile + (k % tile_k != 0) * kind.panel_half)


def pack_panels(blocks: object, rows: int, k: int, type: BlockType | str | int) -> np.ndarray:
    """Row-major blocks of a (rows, k) matrix -> panels, flat uint8 of `panel_bytes` bytes. Loses nothing."""
    kind = _panel_type(type)
    size = panel_bytes(rows, k, kind)
    groups, n = -(-rows // ROWS), k // kind.block_size
    source = as_bytes(blocks)
    if source.size != rows * n * kind.type_size:
        raise InvalidArgumentError(
            f"{kind.name} ({rows}, {k}) has {rows * n * kind.type_size} bytes, got {source.size}"
        )
    padded = np.zeros((groups * ROWS, n), dtype=kind.dtype)
    padded[:rows] = source.view(kind.dtype).reshape(rows, n)
    padded = padded.reshape(groups, ROWS, n)
    if kind.block_size == 256:
        return pack_tiles(padded, kind).reshape(-1)
    scales, codes = padded["d"].view(np.uint16), _codes(padded)  # (groups, 16, n), (groups, 16, n, 32)

    out = np.zeros((groups, size // groups), dtype=np.uint8)
    full = k // 64
    tiles = out[:, : full * kind.panel_tile].reshape(groups, full, kind.panel_tile)
    _fill(tiles, scales[:, :, : 2 * full], codes[:, :, : 2 * full], 2, kind)
    if k % 64:
        half = out[:, full * kind.panel_tile :].reshape(groups, 1, kind.panel_half)
        _fill(half, scales[:, :, 2 * full :], codes[:, :, 2 * full :], 1, kind)
    return out.reshape(-1)


def unpack_panels(panels: object, rows: int, k: int, type: BlockType | str | int) -> np.ndarray:
    """The inverse of `pack_panels`: uint8 (rows, bytes of a row)."""
    kind = _panel_type(type)
    size = panel_bytes(rows, k, kind)
    raw = as_bytes(panels)
    if raw.size != size:
        raise InvalidArgumentError(f"{kind.name} panels of ({rows}, {k}) have {size} bytes, got {raw.size}")
    groups, n, full = -(-rows // ROWS), k // kind.block_size, k // 64
    raw = raw.reshape(groups, size // groups)
    if kind.block_size == 256:
        blocks = unpack_tiles(raw.reshape(groups, n, -1), kind)
        return np.ascontiguousarray(blocks).reshape(groups * ROWS, n)[:rows].view(np.uint8)
    out = np.zeros((groups, ROWS, n), dtype=kind.dtype)
    tiles = raw[:, : full * kind.panel_tile].reshape(groups, full, kind.panel_tile)
    _read(tiles, out[:, :, : 2 * full], 2, kind)
    if k % 64:
        _read(raw[:, full * kind.panel_tile :].reshape(groups, 1, kind.panel_half), out[:, :, 2 * full :], 1, kind)
    return np.ascontiguousarray(out.reshape(groups * ROWS, n)[:rows]).view(np.uint8)


def _codes(blocks: np.ndarray) -> np.ndarray:
    """The 32 codes of each block in order of k: unsigned nibbles for Q4_0, the signed bytes (as uint8) for Q8_0."""
    qs = blocks["qs"]
    if qs.dtype == np.int8:
        return qs.view(np.uint8)
    return np.concatenate([qs & 15, qs >> 4], axis=-1)


def _fill(tiles: np.ndarray, scales: np.ndarray, codes: np.ndarray, per_tile: int, kind: BlockType) -> None:
    """Write (groups, tiles, bytes) from scales (groups, 16, n) and codes (groups, 16, n, 32)."""
    groups, n_tiles, _ = tiles.shape
    if n_tiles == 0:
        return
    by_tile = scales.reshape(groups, ROWS, n_tiles, per_tile).transpose(0, 2, 3, 1)  # (groups, tiles, k-block, row)
    tiles[:, :, : 32 * per_tile] = np.ascontiguousarray(by_tile).view(np.uint8).reshape(groups, n_tiles, -1)
    # quads of k first, then the row, then the four k: (groups, tiles, quad, row, 4)
    quads = codes.reshape(groups, ROWS, n_tiles, per_tile * 8, 4).transpose(0, 2, 3, 1, 4)
    if kind.name == "Q4_0":  # low nibble: first half of the tile's k, high nibble: second half
        middle = per_tile * 4
        quads = quads[:, :, :middle] | (quads[:, :, middle:] << 4)
    tiles[:, :, LINE:] = quads.reshape(groups, n_tiles, -1)


def _read(tiles: np.ndarray, out: np.ndarray, per_tile: int, kind: BlockType) -> None:
    """The inverse of `_fill`, into structured blocks (groups, 16, n)."""
    groups, n_tiles, _ = tiles.shape
    if n_tiles == 0:
        return
    scales = np.ascontiguousarray(tiles[:, :, : 32 * per_tile]).view(np.uint16)
    scales = scales.reshape(groups, n_tiles, per_tile, ROWS).transpose(0, 3, 1, 2)
    out["d"] = np.ascontiguousarray(scales).reshape(groups, ROWS, -1).view(np.float16)
    quads = tiles[:, :, LINE:].reshape(groups, n_tiles, -1, ROWS, 4)
    if kind.name == "Q4_0":
        quads = np.concatenate([quads & 15, quads >> 4], axis=2)
    codes = np.ascontiguousarray(quads.transpose(0, 3, 1, 2, 4)).reshape(groups, ROWS, -1, 32)
    out["qs"] = codes[..., :16] | (codes[..., 16:] << 4) if kind.name == "Q4_0" else codes.view(np.int8)
