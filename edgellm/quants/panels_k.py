"""Panels of the formats with blocks of 256: a tile is one block of each of 16 rows. Pictures: formats/panels.md."""

from __future__ import annotations

import numpy as np

from ..blocks import BlockType
from .unpack import bit_planes, k_scales_mins, nibble_runs, q6_k_codes

ROWS = 16  # rows of a panel group
_HEAD = 320  # bytes of a tile before its lines: a line of f16, then scales and minimums
_HIGH_LINES = {"Q4_K": 0, "Q5_K": 2, "Q6_K": 4}  # of each 64 k, before their 8 lines of nibbles


def pack_tiles(blocks: np.ndarray, kind: BlockType) -> np.ndarray:
    """Structured blocks (groups, 16, n) -> tiles, uint8 (groups, n, kind.panel_tile)."""
    groups, _, n = blocks.shape
    flat = np.ascontiguousarray(blocks.transpose(0, 2, 1)).reshape(-1)  # tile by tile, row by row
    tiles = np.zeros((groups * n, kind.panel_tile), dtype=np.uint8)
    _put_halves(tiles[:, :32], flat["d"])
    if kind.name == "Q6_K":
        _put_pairs(tiles[:, 64:_HEAD], flat["scales"].view(np.uint8))
        codes = (q6_k_codes(flat) + np.int8(32)).view(np.uint8)
    else:
        _put_halves(tiles[:, 32:64], flat["dmin"])
        scales, mins = k_scales_mins(flat["scales"])
        _put_pairs(tiles[:, 64:192], scales)
        _put_pairs(tiles[:, 192:_HEAD], mins)
        codes = nibble_runs(flat["qs"], 32)
        if kind.name == "Q5_K":
            codes = codes | (bit_planes(flat["qh"], 32, 1) << 4)
    # (tiles, 64 k, quad, row, 4 k)
    quads = codes.reshape(-1, ROWS, 4, 16, 4).transpose(0, 2, 3, 1, 4)
    low = quads & 15
    parts = tiles[:, _HEAD:].reshape(len(tiles), 4, -1, ROWS, 4)
    high = _HIGH_LINES[kind.name]
    parts[:, :, high:] = low[:, :, :8] | (low[:, :, 8:] << 4)
    if high:
        parts[:, :, :high] = _fold(quads >> 4, high)
    return tiles.reshape(groups, n, -1)


def unpack_tiles(tiles: np.ndarray, kind: BlockType) -> np.ndarray:
    """The inverse of `pack_tiles`: structured blocks (groups, 16, n)."""
    groups, n, _ = tiles.shape
    tiles = tiles.reshape(groups * n, -1)
    blocks = np.zeros(groups * n * ROWS, dtype=kind.dtype)
    high = _HIGH_LINES[kind.name]
    parts = tiles[:, _HEAD:].reshape(len(tiles), 4, -1, ROWS, 4)
    quads = np.concatenate([parts[:, :, high:] & 15, parts[:, :, high:] >> 4], axis=2)
    if high:
        quads |= _unfold(parts[:, :, :high], 8 // (16 // high)) << 4
    codes = quads.transpose(0, 3, 1, 2, 4).reshape(-1, 256)
    blocks["d"] = _halves(tiles[:, :32])
    if kind.name == "Q6_K":
        blocks["scales"] = _pairs(tiles[:, 64:_HEAD]).view(np.int8)
        low = (codes & 15).reshape(-1, 2, 2, 2, 32)  # (block, half, nibble, g % 2, l)
        blocks["ql"] = (low[:, :, 0] | (low[:, :, 1] << 4)).reshape(-1, 128)
        blocks["qh"] = _planes(codes >> 4, 32, 2)
    else:
        blocks["dmin"] = _halves(tiles[:, 32:64])
        blocks["scales"] = _six_bits(_pairs(tiles[:, 64:192]), _pairs(tiles[:, 192:_HEAD]))
        low = (codes & 15).reshape(-1, 4, 2, 32)
        blocks["qs"] = (low[:, :, 0] | (low[:, :, 1] << 4)).reshape(-1, 128)
        if kind.name == "Q5_K":
            blocks["qh"] = _planes(codes >> 4, 32, 1)
    return blocks.reshape(groups, n, ROWS).transpose(0, 2, 1)


def _put_halves(out: np.ndarray, values: np.ndarray) -> None:
    """f16 (tiles * 16) -> bytes (tiles, 32)."""
    out[:] = np.ascontiguousarray(values).view(np.uint8).reshape(-1, 32)


def _halves(raw: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(raw).view(np.float16).reshape(-1)


def _put_pairs(out: np.ndarray, values: np.ndarray) -> None:
    """(tiles * 16 rows, groups) -> bytes [pairs of groups][16 rows][2] of each tile."""
    by_row = values.reshape(len(out), ROWS, -1, 2)
    out[:] = by_row.transpose(0, 2, 1, 3).reshape(len(out), -1)


def _pairs(raw: np.ndarray) -> np.ndarray:
    by_pair = raw.reshape(len(raw), -1, ROWS, 2)
    return np.ascontiguousarray(by_pair.transpose(0, 2, 1, 3)).reshape(len(raw) * ROWS, -1)


def _fold(high: np.ndarray, lines: int) -> np.ndarray:
    """Upper bits (tiles, 4, 16 quads, 16, 4) -> (tiles, 4, lines, 16, 4): 16 / lines quads a byte, low bits first."""
    per_line = 16 // lines
    planes = high.reshape(*high.shape[:2], lines, per_line, ROWS, 4)
    shifts = (np.arange(per_line, dtype=np.uint8) * np.uint8(8 // per_line))[:, None, None]
    return np.bitwise_or.reduce(planes << shifts, axis=3)


def _unfold(lines: np.ndarray, bits: int) -> np.ndarray:
    """The inverse of `_fold`, `bits` a quad."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None, None]
    planes = (lines[:, :, :, None] >> shifts) & np.uint8((1 << bits) - 1)
    return planes.reshape(*lines.shape[:2], 16, ROWS, 4)


def _planes(values: np.ndarray, run: int, bits: int) -> np.ndarray:
    """The inverse of `bit_planes`: (n, weights) -> (n, bytes)."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    planes = values.reshape(len(values), -1, 8 // bits, run) << shifts
    return np.bitwise_or.reduce(planes, axis=2).reshape(len(values), -1)


def _six_bits(scales: np.ndarray, mins: np.ndarray) -> np.ndarray:
    """The inverse of `k_scales_mins`: two (n, 8) of six bits -> (n, 12) bytes."""
    first = scales[:, :4] | (scales[:, 4:] >> 4 << 6)
    second = mins[:, :4] | (mins[:, 4:] >> 4 << 6)
    third = (scales[:, 4:] & 15) | (mins[:, 4:] << 4)
    return np.concatenate([first, second, third], axis=1)
