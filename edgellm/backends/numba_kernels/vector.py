"""The steps that touch each value once: normalisation, activations, sums, rotations."""

from __future__ import annotations

import numpy as np
from numba.extending import register_jitable

from .intrinsics import ROUND, at, dot_f32, fma, put, times_power
from .jit import F32, INT, f32s, kernel

# exp(x) = 2^n p(r): n = round(x / ln 2), r = x - n ln 2 with ln 2 in two parts (Cody and Waite 1980), p of degree 6
# (formats/arithmetic.md). The result is infinite above 88.73 and 0 below -103.98.
_HIGH, _LOW, _ROUND = np.float32(89.0), np.float32(-104.0), np.float32(ROUND)
_LOG2_E, _LN2_HIGH, _LN2_LOW = (
    np.float32(float.fromhex(h)) for h in ("0x1.715476p+0", "0x1.62e4p-1", "0x1.7f7d1cp-20")
)
_C2, _C3, _C4, _C5, _C6 = (
    np.float32(float.fromhex(h))
    for h in ("0x1.fffff8p-2", "0x1.55549p-3", "0x1.555b14p-5", "0x1.123aecp-7", "0x1.68a7b6p-10")
)
_GELU_A = np.float32(float.fromhex("0x1.988454p+0"))  # 2 sqrt(2 / pi)
_GELU_B = np.float32(float.fromhex("0x1.6e4e26p-5"))  # 0.044715


@register_jitable
def exp32(x):
    """exp(x) in float32; NaN for NaN."""
    x = _HIGH if x > _HIGH else x
    x = _LOW if x < _LOW else x
    t = fma(x, _LOG2_E, _ROUND)
    n = t - _ROUND
    r = fma(n, -_LN2_LOW, fma(n, -_LN2_HIGH, x))
    p = fma(_C6, r, _C5)
    p = fma(p, r, _C4)
    p = fma(p, r, _C3)
    p = fma(p, r, _C2)
    p = fma(p, r, np.float32(1.0))
    p = fma(p, r, np.float32(1.0))
    return times_power(p, t)


@kernel(f32s, f32s, f32s, INT, INT, INT, F32)
def rmsnorm(x, weight, y, cols, first, last, eps):
    """Rows [first, last): y = x / sqrt(mean(x^2) + eps) * weight."""
    for row in range(first, last):
        base = row * cols
        mean = dot_f32(x, base, x, base, cols) / np.float32(cols)
        inverse = np.float32(1.0) / np.sqrt(mean + eps)
        for i in range(cols):
            put(y, base + i, at(x, base + i) * inverse * at(weight, i))


@kernel(f32s, f32s, f32s, INT, INT)
def gated_silu(gate, up, y, first, last):
    """y = gate * sigmoid(gate) * up for flat indices [first, last) (Elfwing et al. 2017; Shazeer 2020)."""
    for i in range(first, last):
        g = at(gate, i)
        put(y, i, g / (np.float32(1.0) + exp32(-g)) * at(up, i))


@kernel(f32s, f32s, f32s, INT, INT)
def gated_gelu_tanh(gate, up, y, first, last):
    """y = gelu(gate) * up; the tanh form of GELU is g * sigmoid(2 u), u = sqrt(2 / pi) (g + 0.044715 g^3)."""
    for i in range(first, last):
        g = at(gate, i)
        u = _GELU_A * fma(_GELU_B * g * g, g, g)
        put(y, i, g / (np.float32(1.0) + exp32(-u)) * at(up, i))


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
