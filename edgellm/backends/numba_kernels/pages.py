"""How kernels read and write pages (`edgellm.cache.pages` says what is in one): K, or V, of one KV head at a time.

Kernels get the pool three times, as `bytes8`, `halves` (float16 bits) and `floats`; `base` is the byte at which K or V
of the head begins. Keys are [head_dim][64], values [64][head_dim].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba.extending import register_jitable

from .intrinsics import at, f16_to_f32, f32_to_f16, put, rint
from .span import PAGE


def views(pool: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, int, int]:
    """A page pool as kernels take it: int8, uint16 and float32 of its arena, all flat; bytes of a page, of one head's
    K, and of its K and V."""
    flat, k, v = pool.arena.reshape(-1), pool.layout.k, pool.layout.v
    parts = flat.view(np.int8), flat.view(np.uint16), flat.view(np.float32)
    return *parts, pool.page_bytes, k.n_bytes, k.n_bytes + v.n_bytes


# ---- storing: x[source ..] (n) becomes token `lane` of a half that begins at byte `base` -----------------------------


@register_jitable
def _place(keys, n, lane):
    """(first, step): where the numbers of a token stand among those of a half."""
    return (lane, PAGE) if keys else (lane * n, 1)


@register_jitable
def _store_f32(x, source, n, bytes8, halves, floats, base, keys, lane):
    first, step = _place(keys, n, lane)
    for i in range(n):
        put(floats, base // 4 + first + i * step, at(x, source + i))


@register_jitable
def _store_f16(x, source, n, bytes8, halves, floats, base, keys, lane):
    first, step = _place(keys, n, lane)
    for i in range(n):
        put(halves, base // 2 + first + i * step, f32_to_f16(at(x, source + i)))


@register_jitable
def _store_q8_0(x, source, n, bytes8, halves, floats, base, keys, lane):
    first, step = _place(keys, n, lane)
    top = np.float32(0.0)
    for i in range(n):
        size = abs(at(x, source + i))
        top = size if size > top or size != size else top
    bits = f32_to_f16(top / np.float32(127.0))
    put(halves, (base + n * PAGE) // 2 + lane, bits)
    d = f16_to_f32(bits)
    inverse = np.float32(1.0) / d if d > 0 else np.float32(0.0)
    for i in range(n):
        value = at(x, source + i) * inverse
        value = value if value < np.float32(127.0) else np.float32(127.0)  # NaN becomes 127
        value = value if value > np.float32(-127.0) else np.float32(-127.0)
        put(bytes8, base + first + i * step, np.int8(rint(value)))


@register_jitable
def _nibble(row, i, width):
    """(byte, shift) of number i of a row of `width` 4-bit numbers; `row` is the number of numbers before it."""
    group = i // 16 * 16
    half, place = min(width - group, 16) // 2, i - group
    if place < half:
        return (row + group) // 2 + place, 0
    return (row + group) // 2 + place - half, 4


@register_jitable
def _code(value):
    """float32 -> a code 0 .. 15; NaN becomes 15."""
    value = value if value < np.float32(7.0) else np.float32(7.0)
    value = value if value > np.float32(-8.0) else np.float32(-8.0)
    return np.int64(rint(value)) + 8


@register_jitable
def _inverse(bits):
    d = f16_to_f32(bits)
    return np.float32(1.0) / d if d != 0 else np.float32(0.0)


@register_jitable
def _squared_error(x, source, n, bits):
    """Of x in q4_0 with this scale: 16 lanes, then the tree."""
    d, inverse = f16_to_f32(bits), _inverse(bits)
    lanes = np.zeros(16, np.float32)
    for i in range(n):
        rest = at(x, source + i) - d * np.float32(_code(at(x, source + i) * inverse) - 8)
        put(lanes, i % 16, at(lanes, i % 16) + rest * rest)
    width = 8
    while width:
        for i in range(width):
            put(lanes, i, at(lanes, i) + at(lanes, i + width))
        width //= 2
    return at(lanes, 0)


@register_jitable
def _store_q4_0(x, source, n, bytes8, halves, floats, base, keys, lane):
    extreme = at(x, source)
    for i in range(1, n):
        value = at(x, source + i)
        extreme = value if abs(value) > abs(extreme) or (value != value and extreme == extreme) else extreme
    bits, clipped = f32_to_f16(extreme / np.float32(-8.0)), f32_to_f16(extreme / np.float32(-9.0))
    if _squared_error(x, source, n, clipped) < _squared_error(x, source, n, bits):
        bits = clipped
    put(halves, (base + n * PAGE // 2) // 2 + lane, bits)
    inverse = _inverse(bits)
    for i in range(n):
        if keys:
            byte, shift = _nibble(i * PAGE, lane, PAGE)
        else:
            byte, shift = _nibble(lane * n, i, n)
        old = np.int64(at(bytes8, base + byte)) & (0xF0 >> shift)
        put(bytes8, base + byte, np.int8(old | _code(at(x, source + i) * inverse) << shift))


# ---- loading: page (n * 64) and factors (64) are set; a number is factors[token] * page[..] --------------------------


@register_jitable
def _load_f32(page, factors, factor, n, bytes8, halves, floats, base, keys):
    for i in range(n * PAGE):
        put(page, i, at(floats, base // 4 + i))
    for t in range(PAGE):
        put(factors, t, factor)


@register_jitable
def _load_f16(page, factors, factor, n, bytes8, halves, floats, base, keys):
    for i in range(n * PAGE):
        put(page, i, f16_to_f32(at(halves, base // 2 + i)))
    for t in range(PAGE):
        put(factors, t, factor)


@register_jitable
def _load_q8_0(page, factors, factor, n, bytes8, halves, floats, base, keys):
    for i in range(n * PAGE):
        put(page, i, np.float32(at(bytes8, base + i)))
    for t in range(PAGE):
        put(factors, t, factor * f16_to_f32(at(halves, (base + n * PAGE) // 2 + t)))


@register_jitable
def _load_q4_0(page, factors, factor, n, bytes8, halves, floats, base, keys):
    rows, width = (n, PAGE) if keys else (PAGE, n)
    for row in range(rows):
        start = row * width
        for group in range(start, start + width, 16):
            half = min(start + width - group, 16) // 2
            for i in range(half):
                both = np.int32(at(bytes8, base + group // 2 + i))
                put(page, group + i, np.float32((both & 15) - 8))
                put(page, group + half + i, np.float32((both >> 4 & 15) - 8))
    for t in range(PAGE):
        put(factors, t, factor * f16_to_f32(at(halves, (base + n * PAGE // 2) // 2 + t)))


STORE: dict[str, Callable[..., None]] = {
    "f32": _store_f32,
    "f16": _store_f16,
    "q8_0": _store_q8_0,
    "q4_0": _store_q4_0,
}
LOAD: dict[str, Callable[..., None]] = {"f32": _load_f32, "f16": _load_f16, "q8_0": _load_q8_0, "q4_0": _load_q4_0}
