"""float32 -> blocks: one function for each format that does not search for its scales (pack_search.py has the others).

Each takes float32 (n, block_size) and fills structured blocks (n,) of `edgellm.blocks`. They give the bits
of ggml's reference quantisers (ggml-quants.c of llama.cpp; the `gguf` Python package).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .unpack import MXFP4_VALUES, e8m0_half


def _inverse(d: np.ndarray) -> np.ndarray:
    """1/d, and 0 where d is 0 or so small that 1/d overflows (its f16 scale is 0 anyway)."""
    with np.errstate(divide="ignore", over="ignore"):
        inv = np.float32(1) / d
    return np.where(np.isfinite(inv), inv, np.float32(0))


def _codes(values: np.ndarray, top: int) -> np.ndarray:
    """Truncate non-negative float codes to 0..top; a NaN becomes 0."""
    return np.nan_to_num(np.trunc(values), nan=0.0).clip(0, top).astype(np.uint8)


def _signed_scale(x: np.ndarray, zero: int) -> np.ndarray:
    """The value of largest magnitude (the first of equals), which code 0 must hit: d = extreme / -zero. (n, 1)."""
    at = np.abs(x).argmax(axis=1)[:, None]
    return np.take_along_axis(x, at, axis=1) / np.float32(-zero)


def _put_nibbles(codes: np.ndarray) -> np.ndarray:
    return (codes[:, :16] & 15) | (codes[:, 16:] << 4)


def _put_fifth_bits(codes: np.ndarray) -> np.ndarray:
    return np.packbits(codes >> 4, axis=1, bitorder="little")


def _to_symmetric(x: np.ndarray, b: np.ndarray, zero: int) -> np.ndarray:
    """Q4_0 and Q5_0: fills d, returns the codes (n, 32)."""
    d = _signed_scale(x, zero)
    b["d"] = d[:, 0]
    return _codes(x * _inverse(d) + np.float32(zero + 0.5), 2 * zero - 1)


def _to_affine(x: np.ndarray, b: np.ndarray, top: int) -> np.ndarray:
    """Q4_1 and Q5_1: fills d and m, returns the codes (n, 32)."""
    low = x.min(axis=1, keepdims=True)
    d = (x.max(axis=1, keepdims=True) - low) / np.float32(top)
    b["d"], b["m"] = d[:, 0], low[:, 0]
    return _codes((x - low) * _inverse(d) + np.float32(0.5), top)


def _to_q4_0(x: np.ndarray, b: np.ndarray) -> None:
    b["qs"] = _put_nibbles(_to_symmetric(x, b, 8))


def _to_q4_1(x: np.ndarray, b: np.ndarray) -> None:
    b["qs"] = _put_nibbles(_to_affine(x, b, 15))


def _to_q5_0(x: np.ndarray, b: np.ndarray) -> None:
    codes = _to_symmetric(x, b, 16)
    b["qs"], b["qh"] = _put_nibbles(codes), _put_fifth_bits(codes)


def _to_q5_1(x: np.ndarray, b: np.ndarray) -> None:
    codes = _to_affine(x, b, 31)
    b["qs"], b["qh"] = _put_nibbles(codes), _put_fifth_bits(codes)


def _round_away(v: np.ndarray) -> np.ndarray:
    """Round to nearest, halves away from zero (C's roundf)."""
    whole = np.trunc(v)
    return whole + np.where(np.abs(v - whole) >= 0.5, np.copysign(np.float32(1), v), np.float32(0))


def _to_q8_0(x: np.ndarray, b: np.ndarray) -> None:
    d = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    b["d"] = d[:, 0]
    b["qs"] = np.nan_to_num(_round_away(x * _inverse(d)), nan=0.0).clip(-127, 127).astype(np.int8)


def _to_bf16(x: np.ndarray, b: np.ndarray) -> None:
    """Round to nearest even; a NaN keeps its upper bits and becomes quiet."""
    bits = x[:, 0].view(np.uint32)
    rounded = (bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16
    is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
    b["x"] = np.where(is_nan, (bits >> 16) | 64, rounded).astype(np.uint16)


def _ternary(x: np.ndarray, b: np.ndarray) -> np.ndarray:
    """TQ1_0 and TQ2_0: fills d = max |x|, returns codes 0..2 as uint8 (n, 256)."""
    d = np.abs(x).max(axis=1, keepdims=True)
    b["d"] = d[:, 0]
    return (np.nan_to_num(_round_away(x * _inverse(d))).clip(-1, 1) + 1).astype(np.uint8)


def _to_tq1_0(x: np.ndarray, b: np.ndarray) -> None:
    """Five digits of base 3 in a byte (four in those of qh), stored as a fraction of 256 rounded up."""
    codes, parts = _ternary(x, b).astype(np.uint16), []
    for first, last, run, n in ((0, 160, 32, 5), (160, 240, 16, 5), (240, 256, 4, 4)):
        powers = np.array([81, 27, 9, 3, 1], dtype=np.uint16)[:n, None]
        parts.append((codes[:, first:last].reshape(len(x), n, run) * powers).sum(axis=1))
    packed = ((np.concatenate(parts, axis=1) * 256 + 242) // 243).astype(np.uint8)
    b["qs"], b["qh"] = packed[:, :48], packed[:, 48:]


def _to_tq2_0(x: np.ndarray, b: np.ndarray) -> None:
    planes = _ternary(x, b).reshape(len(x), 2, 4, 32) << np.array([0, 2, 4, 6], dtype=np.uint8)[:, None]
    b["qs"] = np.bitwise_or.reduce(planes, axis=2).reshape(len(x), 64)


def _to_mxfp4(x: np.ndarray, b: np.ndarray) -> None:
    """The exponent puts the largest magnitude into the top binade of e2m1; each weight takes the nearest value, the
    first of equally near ones. The logarithm is rounded to float32, as the reference has it."""
    d = np.abs(x).max(axis=1)
    log = np.log2(d.astype(np.float64)).astype(np.float32)
    b["e"] = np.where(d > 0, (np.floor(log) + np.float32(125)).clip(0, 254), 0).astype(np.uint8)
    values = e8m0_half(b["e"])[:, None] * MXFP4_VALUES.astype(np.float32)  # (n, 16)
    b["qs"] = _put_nibbles(np.abs(values[:, None, :] - x[:, :, None]).argmin(axis=2).astype(np.uint8))


def _to_plain(x: np.ndarray, b: np.ndarray) -> None:
    b["x"] = x[:, 0]


PACK: dict[str, Callable[[np.ndarray, np.ndarray], None]] = {
    "F32": _to_plain,
    "F16": _to_plain,
    "BF16": _to_bf16,
    "Q4_0": _to_q4_0,
    "Q4_1": _to_q4_1,
    "Q5_0": _to_q5_0,
    "Q5_1": _to_q5_1,
    "Q8_0": _to_q8_0,
    "TQ1_0": _to_tq1_0,
    "TQ2_0": _to_tq2_0,
    "MXFP4": _to_mxfp4,
}
