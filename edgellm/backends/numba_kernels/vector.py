"""The steps that touch each value once: normalisation, activations, sums, rotations."""

from __future__ import annotations

import numpy as np
from numba.extending import register_jitable

from .intrinsics import at, fma, put, rint, scale_by_power
from .jit import F32, INT, f32s, kernel

# exp(x) = 2^n * exp(r) with n = round(x / ln 2) and |r| <= ln 2 / 2; exp(r) by its Taylor series to r^7 (error 5e-9).
# ln 2 is split in two so that r keeps all its bits (Cody and Waite 1980).
_LOG2_E, _LN2_HIGH, _LN2_LOW = np.float32(1.4426950408889634), np.float32(0.693359375), np.float32(-2.12194440e-4)
_LOWEST, _HIGHEST = np.float32(-87.0), np.float32(88.0)  # beyond them a float32 exp is (nearly) 0 or infinite
_C2, _C3, _C4, _C5, _C6, _C7 = (np.float32(1 / f) for f in (2, 6, 24, 120, 720, 5040))


@register_jitable
def exp32(x):
    """exp(x) in float32 within 2e-7: 0 below -87, infinite above 88, NaN for NaN."""
    c = min(max(x, _LOWEST), _HIGHEST) if x == x else _LOWEST
    n = rint(c * _LOG2_E)
    r = fma(n, -_LN2_LOW, fma(n, -_LN2_HIGH, c))
    p = fma(r, _C7, _C6)
    p = fma(r, p, _C5)
    p = fma(r, p, _C4)
    p = fma(r, p, _C3)
    p = fma(r, p, _C2)
    p = fma(r, p, np.float32(1.0))
    p = fma(r, p, np.float32(1.0))
    y = scale_by_power(p, np.int32(n))
    y = y if x >= _LOWEST else np.float32(0.0)
    y = y if x <= _HIGHEST else np.float32(np.inf)
    return y if x == x else x


@kernel(f32s, f32s, f32s, INT, INT, INT, F32)
def rmsnorm(x, weight, y, cols, first, last, eps):
    """Rows [first, last): y = x / sqrt(mean(x^2) + eps) * weight; the mean in float64."""
    for row in range(first, last):
        base = row * cols
        total = 0.0
        for i in range(cols):
            value = np.float64(at(x, base + i))
            total += value * value
        scale = np.float32(1.0 / np.sqrt(total / cols + np.float64(eps)))
        for i in range(cols):
            put(y, base + i, at(x, base + i) * scale * at(weight, i))


@kernel(f32s, f32s, f32s, INT, INT)
def gated_silu(gate, up, y, first, last):
    """y = gate * sigmoid(gate) * up for flat indices [first, last) (Elfwing et al. 2017; Shazeer 2020)."""
    one = np.float32(1.0)
    for i in range(first, last):
        g = at(gate, i)
        put(y, i, g / (one + exp32(-g)) * at(up, i))


@kernel(f32s, f32s, f32s, INT, INT)
def gated_gelu_tanh(gate, up, y, first, last):
    """y = gelu(gate) * up with the tanh form of GELU: tanh(u) = 1 - 2 / (exp(2u) + 1)."""
    one, two = np.float32(1.0), np.float32(2.0)
    c, cubic = np.float32(0.7978845608028654), np.float32(0.044715)  # sqrt(2 / pi)
    for i in range(first, last):
        g = at(gate, i)
        u = c * (g + cubic * g * g * g)
        tanh = one - two / (exp32(two * u) + one)
        put(y, i, np.float32(0.5) * g * (one + tanh) * at(up, i))


@kernel(f32s, f32s, f32s, INT, INT)
def add(x, y, out, first, last):
    """out = x + y for flat indices [first, last)."""
    for i in range(first, last):
        put(out, i, at(x, i) + at(y, i))


@kernel(f32s, f32s, f32s, INT, INT, INT, INT, INT, INT, INT)
def rope(x, cos, sin, cols, head_dim, n_pairs, step, other, first, last):
    """Turns pair i of each head of rows [first, last), in place, by the angle of cos and sin (rows, n_pairs).

    The pair is columns i * step and i * step + other of the head.
    """
    for row in range(first, last):
        for head in range(row * cols, row * cols + cols, head_dim):
            for i in range(n_pairs):
                c, s = at(cos, row * n_pairs + i), at(sin, row * n_pairs + i)
                a, b = at(x, head + i * step), at(x, head + i * step + other)
                put(x, head + i * step, a * c - b * s)
                put(x, head + i * step + other, a * s + b * c)
