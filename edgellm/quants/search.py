"""Finding scales: the quantisers of the K-quants and the IQ4 types, and of all types where columns have importance.

Each looks for the block with the smallest sum of w * (x - x')**2; w is the importance of a column (1 without any).
The parts, from the inside out:

* one group, x' = s * c with codes c: for given codes the best s is sum(w x c) / sum(w c c). Candidate scales give
  codes, the best candidate is improved by taking turns: best scale for the codes, nearest codes for the scale.
* one group, x' = s * q - m: the same, with a 2 x 2 least squares problem for s and m.
* a super-block, whose scales are d times small integers: finding d is the first problem again, with the groups' scales
  in place of the weights and the curvature of their errors, sum(w c c), in place of the importance. Then every group
  tries the integers beside its own and keeps the one of smallest true error; d (and dmin) are solved for once more over
  all weights of the super-block, and the better of the two ways is kept.

This is the slow twin of native/quantize_search.h, and both give the same bytes. Therefore everything is float32, every
operation rounds on its own, and sums halve: t[i] += t[i + n/2] until one number is left.
Shapes: x and w are (n, groups, weights of a group).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .unpack import IQ4_VALUES

_F = np.float32
_MIDDLES = (IQ4_VALUES[1:].astype(np.float32) + IQ4_VALUES[:-1].astype(np.float32)) / _F(2)  # (15,)

_ROUND = _F(12582912)  # 1.5 * 2**23: added, it leaves no room for a fraction, and no negative zeros come back
TURNS = 2  # of codes and scale
BESIDE = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1))  # steps of scale and minimum


def fold(t: np.ndarray) -> np.ndarray:
    """Sum over the last axis (a power of two long) by halving."""
    while t.shape[-1] > 1:
        middle = t.shape[-1] // 2
        t = t[..., :middle] + t[..., middle:]
    return t[..., 0]


def ratio(a: np.ndarray | np.float32, b: np.ndarray) -> np.ndarray:
    """a / b, and 0 where that is not finite."""
    r = a / b
    return np.where(np.isfinite(r), r, _F(0))


def inverse(d: np.ndarray) -> np.ndarray:
    return ratio(_F(1), d)


def nearest(v: np.ndarray, low: int, high: int) -> np.ndarray:
    """The whole number in low .. high nearest to v (halves: the even one), float32; not-a-number gives low."""
    v = np.where(v > _F(low), v, _F(low))
    v = np.where(v < _F(high), v, _F(high))
    return (v + _ROUND) - _ROUND


def nearest_iq4(v: np.ndarray) -> np.ndarray:
    """The value of the IQ4 codebook nearest to v (halves: the lower one), float32."""
    at = np.zeros(v.shape, np.intp)
    for middle in _MIDDLES:
        at += v > middle
    return IQ4_VALUES.astype(np.float32)[at]


def to_half(d: np.ndarray) -> np.ndarray:
    """float32 as an f16 field keeps it."""
    return d.astype(np.float16).astype(np.float32)


def extreme(x: np.ndarray) -> np.ndarray:
    """The value of largest magnitude along the last axis, the first of equals."""
    at = np.abs(x).argmax(axis=-1)[..., None]
    return np.take_along_axis(x, at, axis=-1)[..., 0]


@dataclass(frozen=True)
class Grid:
    """Codes of a group, low .. high (`iq4`: the values of that codebook), and the candidate tops: the codes, whole or
    not, that the extreme weight is tried on."""

    low: int
    high: int
    tops: tuple[float, ...]
    iq4: bool = False

    def codes(self, v: np.ndarray) -> np.ndarray:
        return nearest_iq4(v) if self.iq4 else nearest(v, self.low, self.high)


def grid(low: int, high: int, offsets: tuple[float, ...], iq4: bool = False) -> Grid:
    """Candidates are the ends of the range, each with the offsets added."""
    ends = (low, high) if low < 0 else (high,)
    return Grid(low, high, tuple(end + o for o in offsets for end in ends), iq4)


NEAR = (0.0, -0.45, 0.45, -0.9, 0.9)
WIDE = (0.0, -0.25, 0.25, -0.5, 0.5, -0.75, 0.75, -1.0, 1.0)
AFFINE = (0.0, -0.2, 0.2, -0.4, 0.4, -0.6, 0.6, -0.8, 0.8, -1.0, 1.0)
CODEBOOK = (0.0, -3.0, 3.0, -6.0, 6.0, -9.0, 9.0, -12.0, 12.0)


def _keep(best: list[np.ndarray], new: list[np.ndarray]) -> list[np.ndarray]:
    """Per problem the one of smaller error, which comes first in both lists (the old one of equals)."""
    better = new[0] < best[0]
    return [np.where(better.reshape(better.shape + (1,) * (n.ndim - better.ndim)), n, o)
            for n, o in zip(new, best, strict=True)]  # fmt: skip


def scale_search(x: np.ndarray, w: np.ndarray, g: Grid) -> tuple[np.ndarray, np.ndarray]:
    """x' = s * c along the last axis -> the best s and its curvature sum(w c c), without that axis."""
    wx, unit = w * x, inverse(extreme(x))
    zero = np.zeros_like(unit)
    best = [np.full_like(unit, np.inf), zero, zero]  # error, s, curvature

    def attempt(inv: np.ndarray) -> list[np.ndarray]:
        c = g.codes(x * inv[..., None])
        wc = w * c
        curvature = fold(wc * c)
        s = ratio(fold(wx * c), curvature)
        miss = x - s[..., None] * c
        return _keep(best, [fold(w * (miss * miss)), s, curvature])

    for top in g.tops:
        best = attempt(unit * _F(top))
    for _ in range(TURNS):
        best = attempt(inverse(best[1]))
    return best[1], best[2]


def affine_search(
    x: np.ndarray, w: np.ndarray, top: int, any_min: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x' = s * q - m with q in 0 .. top and m >= 0 (unless `any_min`) -> s, m, sum(w q q), sum(w)."""
    low = x.min(axis=-1)
    low = low if any_min else np.where(low < 0, low, _F(0))
    span = x.max(axis=-1) - low
    wx, sum_w = w * x, fold(w)
    sum_x, zero = fold(wx), np.zeros_like(low)
    best = [np.full_like(low, np.inf), zero, -low, zero]  # error, s, m, curvature

    def attempt(inv: np.ndarray, m: np.ndarray) -> list[np.ndarray]:
        q = nearest((x + m[..., None]) * inv[..., None], 0, top)
        wq = w * q
        sum_q, sum_qq, sum_qx = fold(wq), fold(wq * q), fold(wx * q)
        det = sum_w * sum_qq - sum_q * sum_q
        s, m = ratio(sum_w * sum_qx - sum_q * sum_x, det), ratio(sum_q * sum_qx - sum_qq * sum_x, det)
        several = det > 0  # else all codes are equal
        s, m = np.where(several, s, _F(0)), np.where(several, m, -ratio(sum_x, sum_w))
        if not any_min:  # where the best minimum is above 0 it becomes 0
            s, m = np.where(m > 0, s, ratio(sum_qx, sum_qq)), np.where(m > 0, m, _F(0))
        miss = x - (s[..., None] * q - m[..., None])
        return _keep(best, [fold(w * (miss * miss)), s, m, sum_qq])

    for offset in AFFINE:
        best = attempt(ratio(_F(top + offset), span), -low)
    for _ in range(TURNS):
        best = attempt(inverse(best[1]), best[2])
    return best[1], best[2], best[3], sum_w


def scaled_block(
    x: np.ndarray, w: np.ndarray, g: Grid, scales: Grid
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x' = (d * L) * c -> d (n,) as f16 keeps it, L (n, groups), codes c (as x); whole numbers in float32."""
    s, curvature = scale_search(x, w, g)
    d = to_half(scale_search(s, curvature, scales)[0])
    whole = nearest(s * inverse(d)[:, None], scales.low, scales.high)
    best = _scaled_attempt(x, w, g, scales, d, whole)
    c = best[2][..., None] * best[3]
    wc = w * c
    d = to_half(ratio(fold(fold(wc * x)), fold(fold(wc * c))))
    best = _keep(best, _scaled_attempt(x, w, g, scales, d, best[2]))
    return best[1], best[2], best[3]


def _scaled_attempt(x, w, g: Grid, scales: Grid, d, whole) -> list[np.ndarray]:
    best = None
    for beside in (0, -1, 1):
        level = np.clip(whole + _F(beside), scales.low, scales.high)
        step = (d[:, None] * level)[..., None]
        c = g.codes(x * inverse(step))
        miss = x - step * c
        new = [fold(w * (miss * miss)), level, c]
        best = new if best is None else _keep(best, new)
    return [fold(best[0]), d, best[1], best[2]]


def affine_block(
    x: np.ndarray, w: np.ndarray, top: int, scales: Grid
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x' = (d * L) * q - dmin * M -> d, dmin (n,) as f16 keeps them, L, M (n, groups), codes q (as x)."""
    s, m, curvature, sum_w = affine_search(x, w, top)
    d, dmin = (to_half(scale_search(v, u, scales)[0]) for v, u in ((s, curvature), (m, sum_w)))
    whole = [nearest(v * inverse(u)[:, None], 0, scales.high) for v, u in ((s, d), (m, dmin))]
    best = _affine_attempt(x, w, top, scales.high, d, dmin, *whole)
    a = best[3][..., None] * best[5]
    b = np.broadcast_to(best[4][..., None], a.shape)
    wa, wb = w * a, w * b
    aa, ab, bb, ax, bx = (fold(fold(t)) for t in (wa * a, wa * b, wb * b, wa * x, wb * x))
    det = aa * bb - ab * ab
    d, dmin = ratio(ax * bb - bx * ab, det), ratio(ax * ab - bx * aa, det)
    free = (det > 0) & (dmin > 0)
    d, dmin = to_half(np.where(free, d, ratio(ax, aa))), to_half(np.where(free, dmin, _F(0)))
    best = _keep(best, _affine_attempt(x, w, top, scales.high, d, dmin, best[3], best[4]))
    return best[1], best[2], best[3], best[4], best[5]


def _affine_attempt(x, w, top: int, high: int, d, dmin, scale, minimum) -> list[np.ndarray]:
    best = None
    for down, left in BESIDE:
        level, lower = np.clip(scale + _F(down), 0, high), np.clip(minimum + _F(left), 0, high)
        step, offset = (d[:, None] * level)[..., None], (dmin[:, None] * lower)[..., None]
        q = nearest((x + offset) * inverse(step), 0, top)
        miss = x - (step * q - offset)
        new = [fold(w * (miss * miss)), level, lower, q]
        best = new if best is None else _keep(best, new)
    return [fold(best[0]), d, dmin, best[1], best[2], best[3]]



