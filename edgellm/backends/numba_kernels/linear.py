"""Products of a weight matrix in block form with one or many columns of activations.

A quantised row is unpacked once into integer codes that stay in the first-level cache and then meets every column. The
integer sum over a block is exact; one fma adds it to the row's total, in ascending order (formats/arithmetic.md). Every
(row, column) is summed by itself, so neither the number of threads nor that of columns changes a bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import register_jitable

from ... import blocks
from ...blocks import BlockType
from . import unpack
from .intrinsics import (
    at,
    bf16_at,
    bits_float,
    dot32,
    dot256,
    dot_f32,
    eight_dots,
    f16_at,
    f16_to_f32,
    f32_at,
    float_bits,
    fma,
    is_set,
    put,
    rint,
    u16_at,
)
from .jit import INT, Kernel, f32s, i8s, i32s, ro_u8s, variant
from .unpack import lows_q2_k, unpack_q4_0

_TILE_BYTES = 1 << 15  # unpacked rows that meet a column while it is in the first-level cache

# ---- exact sums ------------------------------------------------------------------------------------------------------


@register_jitable
def _sums_of_32(codes, i, q, j, n_blocks, sums, first):
    """sums[first + b] = the exact sum of codes times activations in block b of a row (from i) and a column (from j)."""
    for b in range(0, n_blocks - 7, 8):
        eight_dots(codes, i + b * 32, q, j + b * 32, sums, first + b)
    for b in range(n_blocks - n_blocks % 8, n_blocks):
        put(sums, first + b, np.float32(dot32(codes, i + b * 32, q, j + b * 32)))


@register_jitable
def _sums_of_256(codes, i, q, j, n_blocks, sums, first):
    """As `_sums_of_32` for blocks of 256; rounded to float32 as that is how the sum enters the row's total."""
    for b in range(n_blocks):
        put(sums, first + b, np.float32(dot256(codes, i + b * 256, q, j + b * 256)))


@register_jitable
def _low_sum(lows, i, s, j):
    """The exact sum of 16 minimums times the activations' sums, as float32."""
    total = np.int32(0)
    for g in range(16):
        total += np.int32(at(lows, i + g)) * at(s, j + g)
    return np.float32(total)


@register_jitable
def _byte_at(w, offset):
    return np.uint16(at(w, offset))


@register_jitable
def _e8m0(e):
    """Half of the power of two that an e8m0 byte stands for; 0 and 1 are subnormal."""
    bits = np.int32(0x200000) << np.int32(e) if e < 2 else (np.int32(e) - np.int32(1)) << np.int32(23)
    return bits_float(np.int32(bits))


# What `variant` replaces in the templates below; the values here are those of Q4_0.
BLOCK, BYTES, PER_SUM = 32, 18, 32  # weights and bytes of a block, activations per integer sum
SCALE_AT, LOW_AT = 0, -1  # bytes before the block's scale and minimum (-1: it has none)
UNPACK, SUMS, DECODE = unpack_q4_0, _sums_of_32, f16_at  # block -> codes; sums of blocks; bytes -> a float
RAW_SCALE, SCALE = u16_at, f16_to_f32  # bytes -> a scale as it is stored; that -> float32
DMIN_AT, LOWS = -1, lows_q2_k  # the minimums' common scale (-1: the format has none); block -> 16 minimums
CODES, TILE_WEIGHTS = np.int8, _TILE_BYTES  # type of unpacked codes, and how many are unpacked at a time

# ---- activations -----------------------------------------------------------------------------------------------------


def _quantize(x, first, last, k, q, d, s):
    """Columns [first, last) of x (n, k) -> int8 q (n, k), scales d (n, k / BLOCK), sums s (n, k / PER_SUM)."""
    top, zero = np.float32(127.0), np.float32(0.0)
    for block in range(first * k // BLOCK, last * k // BLOCK):
        bits = np.int32(0)  # of the largest magnitude; ordered like the numbers, and a NaN is above infinity
        for i in range(block * BLOCK, block * BLOCK + BLOCK):
            bits = max(bits, float_bits(at(x, i)) & np.int32(0x7FFFFFFF))
        largest = bits_float(bits)
        inverse = top / largest if largest != zero else zero
        put(d, block, largest / top)
        for i in range(block * BLOCK, block * BLOCK + BLOCK):
            value = at(x, i) * inverse
            value = value if value < top else top  # a NaN too: the block's scale is not finite then
            value = value if value > -top else -top
            put(q, i, np.int8(np.int32(rint(value))))
        for group in range(block * BLOCK // PER_SUM, (block + 1) * BLOCK // PER_SUM):
            total = np.int32(0)
            for i in range(group * PER_SUM, group * PER_SUM + PER_SUM):
                total += np.int32(at(q, i))
            put(s, group, np.int32(total))


_quantize_signature = types.void(f32s, INT, INT, INT, i8s, f32s, i32s)
quantize_q8_32 = Kernel(variant(_quantize, BLOCK=32, PER_SUM=32), _quantize_signature, "quantize_q8_32")
quantize_q8_256 = Kernel(variant(_quantize, BLOCK=256, PER_SUM=16), _quantize_signature, "quantize_q8_256")

# ---- quantised weights -----------------------------------------------------------------------------------------------


def _linear_quantised(w, k, first, last, q, d, s, n_cols, bias, residual, y, n_rows, cancel):
    """Rows [first, last) of blocks. All arrays are flat; the comments of `_tail` tell their shapes.

    Four rows are summed side by side: one alone would wait for each of its additions.
    """
    n_blocks = k // BLOCK
    tile = 4 if n_cols == 1 else max(4, TILE_WEIGHTS // k // 4 * 4)
    codes = np.zeros(tile * k, CODES)  # (tile, k)
    halves = np.zeros(tile * n_blocks, np.uint16)  # (tile, n_blocks) scales as they are stored
    scale = np.zeros(tile * n_blocks, np.float32)
    low = np.zeros(tile * n_blocks if LOW_AT >= 0 or DMIN_AT >= 0 else 1, np.float32)
    lows = np.zeros(tile * n_blocks * 16 if DMIN_AT >= 0 else 1, np.int16)  # (tile, n_blocks, 16)
    sums = np.empty(4 * n_blocks, np.float32)  # (4, n_blocks)
    for start in range(first, last, tile):
        if is_set(cancel):
            return
        n = min(tile, last - start)
        for b in range(n * n_blocks):
            offset = (start * n_blocks + b) * BYTES
            UNPACK(w, offset, codes, b * BLOCK)
            put(halves, b, RAW_SCALE(w, offset + SCALE_AT))
            if LOW_AT >= 0:
                put(low, b, f16_at(w, offset + LOW_AT))
            if DMIN_AT >= 0:
                put(low, b, -f16_at(w, offset + DMIN_AT))
                LOWS(w, offset, lows, b * 16)
        for b in range(n * n_blocks):  # by itself, so that many are converted at once
            put(scale, b, SCALE(at(halves, b)))
        for m in range(n_cols):
            for i in range(0, n, 4):  # rows beyond n hold leftovers; their totals are not written
                for row in range(4):
                    SUMS(codes, (i + row) * k, q, m * k, n_blocks, sums, row * n_blocks)
                t0, t1, t2, t3 = np.float32(0.0), np.float32(0.0), np.float32(0.0), np.float32(0.0)
                for b in range(n_blocks):
                    dx = at(d, m * n_blocks + b)
                    b0 = i * n_blocks + b
                    b1, b2, b3 = b0 + n_blocks, b0 + 2 * n_blocks, b0 + 3 * n_blocks
                    t0 = fma(at(scale, b0) * dx, at(sums, b), t0)
                    t1 = fma(at(scale, b1) * dx, at(sums, n_blocks + b), t1)
                    t2 = fma(at(scale, b2) * dx, at(sums, 2 * n_blocks + b), t2)
                    t3 = fma(at(scale, b3) * dx, at(sums, 3 * n_blocks + b), t3)
                    if LOW_AT >= 0:
                        sx = np.float32(at(s, m * n_blocks + b))
                        t0, t1 = fma(at(low, b0) * dx, sx, t0), fma(at(low, b1) * dx, sx, t1)
                        t2, t3 = fma(at(low, b2) * dx, sx, t2), fma(at(low, b3) * dx, sx, t3)
                    if DMIN_AT >= 0:
                        j = (m * n_blocks + b) * 16
                        t0 = fma(at(low, b0) * dx, _low_sum(lows, b0 * 16, s, j), t0)
                        t1 = fma(at(low, b1) * dx, _low_sum(lows, b1 * 16, s, j), t1)
                        t2 = fma(at(low, b2) * dx, _low_sum(lows, b2 * 16, s, j), t2)
                        t3 = fma(at(low, b3) * dx, _low_sum(lows, b3 * 16, s, j), t3)
                for row, total in enumerate((t0, t1, t2, t3)):
                    if i + row < n:
                        _finish(total, start + i + row, m, bias, residual, y, n_rows)


@register_jitable
def _finish(total, row, column, bias, residual, y, n_rows):
    """y[column, row] = total (+ bias) (+ residual)."""
    if bias.size > 0:
        total = total + at(bias, row)
    if residual.size > 0:
        total = at(residual, column * n_rows + row) + total
    put(y, column * n_rows + row, total)


# ---- float weights ---------------------------------------------------------------------------------------------------


def _linear_float(w, k, first, last, x, n_cols, bias, residual, y, n_rows, cancel):
    """Rows [first, last), decoded to float32."""
    tile = 1 if n_cols == 1 else max(1, TILE_WEIGHTS // k)
    row = np.empty(tile * k, np.float32)  # (tile, k)
    for start in range(first, last, tile):
        if is_set(cancel):
            return
        n = min(tile, last - start)
        for i in range(n * k):
            put(row, i, DECODE(w, (start * k + i) * BYTES))
        for m in range(n_cols):
            for i in range(n):
                total = dot_f32(row, i * k, x, m * k, k)
                _finish(total, start + i, m, bias, residual, y, n_rows)


# ---- one kernel for each type ----------------------------------------------------------------------------------------

_tail = (f32s, f32s, f32s, INT, i32s)  # bias or empty, residual or empty, y (n_cols, n_rows), n_rows, cancel flag
_quantised_signature = types.void(ro_u8s, INT, INT, INT, i8s, f32s, i32s, INT, *_tail)
_float_signature = types.void(ro_u8s, INT, INT, INT, f32s, INT, *_tail)


def _field(type: BlockType, name: str) -> int:
    return int(type.dtype.fields[name][1]) if name in type.dtype.fields else -1


def _quantised(type: BlockType, lows: Any = lows_q2_k, **other: Any) -> Kernel:
    """`other` replaces more of the template's names."""
    of_256 = type.block_size == 256
    codes = np.int16 if of_256 else np.int8
    values = {
        "BLOCK": type.block_size,
        "BYTES": type.type_size,
        "SCALE_AT": _field(type, "d"),
        "LOW_AT": _field(type, "m"),
        "DMIN_AT": _field(type, "dmin"),
        "UNPACK": getattr(unpack, f"unpack_{type.name.lower()}"),
        "LOWS": lows,
        "SUMS": _sums_of_256 if of_256 else _sums_of_32,
        "CODES": codes,
        "TILE_WEIGHTS": _TILE_BYTES // np.dtype(codes).itemsize,
    }
    function = variant(_linear_quantised, **{**values, **other})
    return Kernel(function, _quantised_signature, f"linear_{type.name.lower()}")


def _float(type: BlockType, decode: Any) -> Kernel:
    function = variant(_linear_float, BYTES=type.type_size, DECODE=decode, TILE_WEIGHTS=_TILE_BYTES // 4)
    return Kernel(function, _float_signature, f"linear_{type.name.lower()}")


LINEAR: dict[int, Kernel] = {
    blocks.F32.id: _float(blocks.F32, f32_at),
    blocks.F16.id: _float(blocks.F16, f16_at),
    blocks.BF16.id: _float(blocks.BF16, bf16_at),
    blocks.Q2_K.id: _quantised(blocks.Q2_K),
    blocks.Q4_K.id: _quantised(blocks.Q4_K, unpack.lows_of_32),
    blocks.Q5_K.id: _quantised(blocks.Q5_K, unpack.lows_of_32),
    blocks.MXFP4.id: _quantised(blocks.MXFP4, SCALE_AT=0, RAW_SCALE=_byte_at, SCALE=_e8m0),
}
LINEAR.update((type.id, _quantised(type)) for type in blocks.ALL if type.id not in LINEAR)
