"""Products of a weight matrix in block form with one or many columns of activations.

Sixteen rows at a time, a few blocks of theirs are turned into lines that stay in the first-level cache (`panel`) and
meet every column. The integer sum over a block is exact; one fma adds it to the row's total, in ascending order
(formats/arithmetic.md). Every (row, column) is summed by itself, so neither threads nor columns change a bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import register_jitable

from ... import blocks
from ...blocks import BlockType
from . import panel
from .intrinsics import at, bf16_at, bits_float, dot_f32, f16_at, f32_at, float_bits, is_set, put, rint
from .jit import INT, Kernel, f32s, i8s, i32s, ro_u8s, variant
from .lines import ROWS

_TILE_BYTES = 1 << 15  # decoded rows that meet a column while they are in the first-level cache
_TILE_WEIGHTS = 512  # of each of the 16 rows, likewise
WIDE = 4  # columns that share a load of a line

# What `variant` replaces in the templates below.
BLOCK, BYTES, PER_SUM = 32, 18, 32  # weights and bytes of a block, activations per integer sum
GROUPS, HAS_LOW, HAS_LOWS = 1, 0, 0  # integer scales of a block; whether it has a minimum, and minimums of groups
UNPACK = MANY = ONE = None  # intrinsics of `panel`: blocks -> lines; those times many columns, times one
DECODE = f32_at  # bytes -> a float
TILE_WEIGHTS = _TILE_BYTES // 4

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

# ---- blocks ---------------------------------------------------------------------------------------------------------


@register_jitable
def _aligned(raw, n):
    """n elements of an array that is 64 bytes longer, from where a cache line begins."""
    skip = (-raw.ctypes.data % 64) // raw.itemsize
    return raw[skip : skip + n]


def _linear_blocks(w, k, first, last, q, d, s, n_cols, bias, residual, y, n_rows, cancel):
    """Rows [first, last) of blocks; w holds at least 16 rows. All arrays are flat, shapes stand at `_tail`.

    A last panel that would go beyond the rows begins earlier; only rows from `first` on are written.
    """
    n_blocks, tile = k // BLOCK, TILE_WEIGHTS // BLOCK
    stride = n_blocks * BYTES
    codes = _aligned(np.empty(tile * BLOCK * ROWS + 64, np.int8), tile * BLOCK * ROWS)
    scale = _aligned(np.empty(tile * ROWS + 16, np.float32), tile * ROWS)
    low = _aligned(np.empty(tile * ROWS * HAS_LOW + 16, np.float32), tile * ROWS * HAS_LOW)
    steps = _aligned(np.empty(tile * ROWS * GROUPS + 16, np.int32), tile * ROWS * GROUPS)
    lows = _aligned(np.empty(tile * ROWS * GROUPS * HAS_LOWS + 16, np.int32), tile * ROWS * GROUPS * HAS_LOWS)
    totals = _aligned(np.empty(n_cols * ROWS + 16, np.float32), n_cols * ROWS)
    for start in range(first, last, ROWS):
        if is_set(cancel):
            return
        base = max(min(start, n_rows - ROWS), 0)
        totals[:] = np.float32(0.0)
        for b0 in range(0, n_blocks, tile):
            n = min(tile, n_blocks - b0)
            for b in range(n):
                offset, ahead = base * stride + (b0 + b) * BYTES, (base + ROWS) * stride + (b0 + b) * BYTES * ROWS
                UNPACK(w, offset, stride, ahead, b, codes, steps, lows, scale, low)
            for m in range(0, n_cols - WIDE + 1, WIDE):
                MANY(codes, steps, lows, scale, low, n, b0, q, d, s, k, m, totals)
            for m in range(n_cols - n_cols % WIDE, n_cols):
                ONE(codes, steps, lows, scale, low, n, b0, q, d, s, k, m, totals)
        for m in range(n_cols):
            for row in range(start, min(start + ROWS, last)):
                _finish(at(totals, m * ROWS + row - base), row, m, bias, residual, y, n_rows)


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


def _blocks(type: BlockType) -> Kernel:
    values = {
        "BLOCK": type.block_size,
        "BYTES": type.type_size,
        "GROUPS": panel.n_groups(type),
        "HAS_LOW": int("m" in type.dtype.fields or "dmin" in type.dtype.fields),
        "HAS_LOWS": int("dmin" in type.dtype.fields),
        "UNPACK": panel.unpacker(type),
        "MANY": panel.multiplier(type, WIDE),
        "ONE": panel.multiplier(type, 1),
        "TILE_WEIGHTS": _TILE_WEIGHTS,
    }
    return Kernel(variant(_linear_blocks, **values), _quantised_signature, f"linear_{type.name.lower()}")


def _float(type: BlockType, decode: Any) -> Kernel:
    function = variant(_linear_float, BYTES=type.type_size, DECODE=decode, TILE_WEIGHTS=_TILE_BYTES // 4)
    return Kernel(function, _float_signature, f"linear_{type.name.lower()}")


LINEAR: dict[int, Kernel] = {
    blocks.F32.id: _float(blocks.F32, f32_at),
    blocks.F16.id: _float(blocks.F16, f16_at),
    blocks.BF16.id: _float(blocks.BF16, bf16_at),
}
LINEAR.update((type.id, _blocks(type)) for type in blocks.ALL if type.id not in LINEAR)
