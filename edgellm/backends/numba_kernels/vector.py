"""The steps that touch each value once: normalisation, activations, sums, rotations."""

from __future__ import annotations

from collections.abc import Sequence

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


_TANH_SMALL = np.float32(0.625)
_T3, _T5, _T7, _T9, _T11 = (
    np.float32(float.fromhex(h))
    for h in ("-0x1.555532p-2", "0x1.110726p-3", "-0x1.b83c36p-5", "0x1.5225c4p-6", "-0x1.75de5ep-8")
)


# Phi(-a) = t P(t) exp(-a^2 / 2), t = 1 / (1 + c a) (formats/arithmetic.md).
_PHI_C, _P0, _P1, _P2, _P3, _P4, _P5, _P6, _P7, _P8 = (
    np.float32(float.fromhex(h))
    for h in (
        "0x1.6p-2", "0x1.18d2a8p-3", "0x1.19a722p-3", "0x1.deb29ep-4", "0x1.cb3146p-4", "-0x1.368b58p-5",
        "0x1.828c26p-3", "-0x1.142740p-2", "0x1.24767ap-3", "-0x1.c3e82cp-6",
    )
)  # fmt: skip


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


@kernel(f32s, f32s, f32s, f32s, INT, INT, INT, F32)
def layernorm(x, weight, bias, y, cols, first, last, eps):
    """Rows [first, last): y = (x - mean) / sqrt(variance + eps) * weight + bias."""
    ones, centred = np.ones(cols, np.float32), np.empty(cols, np.float32)
    for row in range(first, last):
        base = row * cols
        mean = dot_f32(x, base, ones, 0, cols) / np.float32(cols)
        for i in range(cols):
            put(centred, i, at(x, base + i) - mean)
        variance = dot_f32(centred, 0, centred, 0, cols) / np.float32(cols)
        inverse = np.float32(1.0) / np.sqrt(variance + eps)
        for i in range(cols):
            put(y, base + i, fma(at(centred, i) * inverse, at(weight, i), at(bias, i)))


@kernel(f32s, f32s, INT, INT)
def gelu(x, y, first, last):
    """y = x * Phi(x) for flat indices [first, last): max(x, 0) - |x| Phi(-|x|) (Hendrycks and Gimpel 2016)."""
    for i in range(first, last):
        value = at(x, i)
        a = abs(value)
        t = np.float32(1.0) / fma(_PHI_C, a, np.float32(1.0))
        p = fma(_P8, t, _P7)
        p = fma(p, t, _P6)
        p = fma(p, t, _P5)
        p = fma(p, t, _P4)
        p = fma(p, t, _P3)
        p = fma(p, t, _P2)
        p = fma(p, t, _P1)
        p = fma(p, t, _P0)
        h = p * t * exp32(np.float32(-0.5) * a * a)
        put(y, i, fma(-a, h, value if value > 0 else np.float32(0.0)))


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


@register_jitable
def tanh32(u):
    """tanh(u): an odd polynomial up to 0.625, 1 - 2 / (1 + exp(2 u)) beyond (formats/arithmetic.md)."""
    z = u * u
    p = fma(_T11, z, _T9)
    p = fma(p, z, _T7)
    p = fma(p, z, _T5)
    p = fma(p, z, _T3)
    two, one = np.float32(2.0), np.float32(1.0)
    small, large = fma(p * z, u, u), one - two / (one + exp32(two * u))
    return small if abs(u) < _TANH_SMALL else large


@kernel(f32s, f32s, INT, INT, F32)
def softcap(x, y, first, last, cap):
    """y = cap * tanh(x / cap) for flat indices [first, last)."""
    for i in range(first, last):
        put(y, i, cap * tanh32(at(x, i) / cap))


@kernel(f32s, f32s, INT, INT, INT, INT)
def route(logits, share, n, n_rows, n_used, normalise):
    """share = softmax(logits) (n_rows, n) at the n_used largest of each row, of equals the first; 0 elsewhere."""
    ones, chosen = np.ones(n, np.float32), np.empty(n, np.int32)
    for base in range(0, n_rows * n, n):
        top = np.float32(-np.inf)
        for e in range(base, base + n):
            value = at(logits, e)
            top = value if value > top or value != value else top
        for e in range(n):
            put(share, base + e, exp32(at(logits, base + e) - top))
            chosen[e] = 0
        whole, total = dot_f32(share, base, ones, 0, n), np.float32(0.0)
        for _ in range(n_used):
            best = -1
            for e in range(n):
                if chosen[e] == 0 and (best < 0 or at(share, base + e) > at(share, base + best)):
                    best = e
            chosen[best] = 1
        for e in range(n):
            put(share, base + e, at(share, base + e) / whole if chosen[e] == 1 else np.float32(0.0))
            total += at(share, base + e)
        if normalise:
            for e in range(n):
                if chosen[e] == 1:
                    put(share, base + e, at(share, base + e) / total)


def angles(
    positions: Sequence[int], inv_freq: np.ndarray, magnitude: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin, times magnitude, of the angles of all pairs at these positions: float32 (n * pairs,) each.

    Angles are float64: at position 100,000 a float32 angle is off by a thousandth.
    """
    turns = np.asarray(positions, np.float64)[:, None] * inv_freq  # (n, pairs)
    cos, sin = (np.ascontiguousarray(f(turns) * magnitude, np.float32).reshape(-1) for f in (np.cos, np.sin))
    return cos, sin


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
