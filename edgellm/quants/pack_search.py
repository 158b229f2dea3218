"""float32 and importance -> blocks, for the types that search for their scales (search.py).

Each function takes x and w, float32 (n, block_size), and fills structured blocks (n,) of `edgellm.blocks`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .pack import _put_fifth_bits, _put_nibbles
from .search import (
    CODEBOOK,
    NEAR,
    WIDE,
    Grid,
    affine_block,
    affine_search,
    grid,
    inverse,
    nearest,
    scale_search,
    scaled_block,
    to_half,
)
from .unpack import IQ4_VALUES

IQ4 = grid(-127, 113, CODEBOOK, iq4=True)


# ---- bits ------------------------------------------------------------------------------------------------------------


def put_planes(codes: np.ndarray, bits: int) -> np.ndarray:
    """uint8 (n, weights) -> (n, weights * bits / 8): the inverse of `unpack.bit_planes` with runs of 32 bytes."""
    planes = codes.reshape(len(codes), -1, 8 // bits, 32) << np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return np.bitwise_or.reduce(planes, axis=2).reshape(len(codes), -1)


def put_runs(codes: np.ndarray, run: int) -> np.ndarray:
    """uint8 codes 0..15 (n, weights) -> (n, weights / 2): the inverse of `unpack.nibble_runs`."""
    pairs = codes.reshape(len(codes), -1, 2, run)
    return (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).reshape(len(codes), -1)


def put_k_scales(scales: np.ndarray, mins: np.ndarray) -> np.ndarray:
    """uint8 (n, 8) each -> (n, 12): the inverse of `unpack.k_scales_mins`."""
    first, second = ((v[:, :4] | ((v[:, 4:] >> 4) << 6)) for v in (scales, mins))
    return np.concatenate([first, second, (scales[:, 4:] & 15) | ((mins[:, 4:] & 15) << 4)], axis=1)


def put_q3_scales(scales: np.ndarray) -> np.ndarray:
    """uint8 (n, 16), scale + 32 -> (n, 12): the inverse of `unpack.q3_k_scales`."""
    high = (scales >> 4).reshape(-1, 4, 4) << np.array([0, 2, 4, 6], dtype=np.uint8)[:, None]
    return np.concatenate([put_runs(scales & 15, 8), np.bitwise_or.reduce(high, axis=1)], axis=1)


def _bytes(v: np.ndarray, shift: int = 0) -> np.ndarray:
    """Whole numbers in float32 -> uint8, `shift` added; all but the first axis joined."""
    return (v.astype(np.int16) + np.int16(shift)).astype(np.uint8).reshape(len(v), -1)


# ---- super-blocks ----------------------------------------------------------------------------------------------------


def _groups(x: np.ndarray, w: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    return x.reshape(len(x), n, -1), w.reshape(len(w), n, -1)


def _to_q2_k(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> None:
    b["d"], b["dmin"], scales, mins, q = affine_block(*_groups(x, w, 16), 3, grid(0, 15, WIDE))
    b["scales"] = _bytes(scales) | (_bytes(mins) << 4)
    b["qs"] = put_planes(_bytes(q), 2)


def _to_q3_k(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> None:
    b["d"], scales, c = scaled_block(*_groups(x, w, 16), grid(-4, 3, NEAR), grid(-32, 31, WIDE))
    b["scales"] = put_q3_scales(_bytes(scales, 32))
    q = _bytes(c, 4)
    b["qs"], b["hmask"] = put_planes(q & 3, 2), put_planes(q >> 2, 1)


def _to_q4_k(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> None:
    b["d"], b["dmin"], scales, mins, q = affine_block(*_groups(x, w, 8), 15, grid(0, 63, WIDE))
    b["scales"] = put_k_scales(_bytes(scales), _bytes(mins))
    b["qs"] = put_runs(_bytes(q), 32)


def _to_q5_k(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> None:
    b["d"], b["dmin"], scales, mins, q = affine_block(*_groups(x, w, 8), 31, grid(0, 63, WIDE))
    b["scales"] = put_k_scales(_bytes(scales), _bytes(mins))
    q = _bytes(q)
    b["qs"], b["qh"] = put_runs(q & 15, 32), put_planes(q >> 4, 1)


def _to_q6_k(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> None:
    b["d"], scales, c = scaled_block(*_groups(x, w, 16), grid(-32, 31, NEAR), grid(-128, 127, WIDE))
    b["scales"] = scales.astype(np.int8)
    q = _bytes(c, 32)
    low = q.reshape(len(q), 2, 2, 64)  # (n, half, nibble, byte)
    b["ql"] = ((low[:, :, 0] & 15) | ((low[:, :, 1] & 15) << 4)).reshape(len(q), 128)
    b["qh"] = put_planes(q >> 4, 2)


def _to_iq4_xs(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> None:
    b["d"], scales, c = scaled_block(*_groups(x, w, 8), IQ4, grid(-32, 31, WIDE))
    scales = _bytes(scales, 32)
    b["scales_l"] = (scales[:, ::2] & 15) | ((scales[:, 1::2] & 15) << 4)
    high = (scales >> 4).astype(np.uint16) << np.arange(0, 16, 2, dtype=np.uint16)
    b["scales_h"] = np.bitwise_or.reduce(high, axis=1)
    b["qs"] = put_runs(_codebook_index(c.reshape(len(x), 256)), 16)


def _codebook_index(values: np.ndarray) -> np.ndarray:
    return np.searchsorted(IQ4_VALUES, values).astype(np.uint8)


# ---- blocks of 32 ----------------------------------------------------------------------------------------------------


def _scaled_32(x: np.ndarray, w: np.ndarray, b: np.ndarray, g: Grid) -> np.ndarray:
    """Fills d, returns the codes float32 (n, 32)."""
    d = to_half(scale_search(x, w, g)[0])
    b["d"] = d
    return g.codes(x * inverse(d)[:, None])


def _affine_32(x: np.ndarray, w: np.ndarray, b: np.ndarray, top: int) -> np.ndarray:
    """Fills d and m, returns the codes uint8 (n, 32)."""
    s, m, _, _ = affine_search(x, w, top, any_min=True)
    d, m = to_half(s), to_half(-m)
    b["d"], b["m"] = d, m
    return _bytes(nearest((x - m[:, None]) * inverse(d)[:, None], 0, top))


def _to_q4_0(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> None:
    b["qs"] = _put_nibbles(_bytes(_scaled_32(x, w, b, grid(-8, 7, NEAR)), 8))


def _to_q4_1(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> None:
    b["qs"] = _put_nibbles(_affine_32(x, w, b, 15))


def _to_q5_0(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> None:
    codes = _bytes(_scaled_32(x, w, b, grid(-16, 15, NEAR)), 16)
    b["qs"], b["qh"] = _put_nibbles(codes), _put_fifth_bits(codes)


def _to_q5_1(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> None:
    codes = _affine_32(x, w, b, 31)
    b["qs"], b["qh"] = _put_nibbles(codes), _put_fifth_bits(codes)


def _to_q8_0(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> None:
    b["qs"] = _scaled_32(x, w, b, grid(-127, 127, NEAR)).astype(np.int8)


def _to_iq4_nl(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> None:
    b["qs"] = _put_nibbles(_codebook_index(_scaled_32(x, w, b, IQ4)))


SEARCH: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], None]] = {
    "Q4_0": _to_q4_0,
    "Q4_1": _to_q4_1,
    "Q5_0": _to_q5_0,
    "Q5_1": _to_q5_1,
    "Q8_0": _to_q8_0,
    "Q2_K": _to_q2_k,
    "Q3_K": _to_q3_k,
    "Q4_K": _to_q4_k,
    "Q5_K": _to_q5_k,
    "Q6_K": _to_q6_k,
    "IQ4_NL": _to_iq4_nl,
    "IQ4_XS": _to_iq4_xs,
}
