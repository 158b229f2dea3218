"""Blocks -> float32: one function for each format, in the order of arithmetic that formats/blocks.md defines.

Each takes structured blocks (n,) of `edgellm.blocks` and returns float32 (n, block_size). The formats are ggml's
(ggml-common.h and ggml-quants.c of llama.cpp).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# Values of the 4-bit codebooks (ggml-common.h). IQ4_NL: unevenly spaced, dense around 0. MXFP4: twice the values of the
# e2m1 float of the OCP Microscaling Formats specification 1.0.
IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.int8)
MXFP4_VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], dtype=np.int8)


def _nibbles(qs: np.ndarray) -> np.ndarray:
    """(n, 16) bytes -> (n, 32) codes 0..15: low nibbles are weights 0..15, high nibbles 16..31."""
    return np.concatenate([qs & 15, qs >> 4], axis=1)


def _fifth_bits(qh: np.ndarray) -> np.ndarray:
    """(n, 4) bytes -> (n, 32) values 0 or 16: bit i of the little-endian word belongs to weight i."""
    return np.unpackbits(qh, axis=1, bitorder="little") << 4


def _half(field: np.ndarray) -> np.ndarray:
    """f16 (n,) -> float32 (n, 1)."""
    return field.astype(np.float32)[:, None]


def _from_q4_0(b: np.ndarray) -> np.ndarray:
    return _half(b["d"]) * (_nibbles(b["qs"]).astype(np.float32) - np.float32(8))


def _from_q4_1(b: np.ndarray) -> np.ndarray:
    return _half(b["d"]) * _nibbles(b["qs"]).astype(np.float32) + _half(b["m"])


def _from_q5_0(b: np.ndarray) -> np.ndarray:
    codes = _nibbles(b["qs"]) | _fifth_bits(b["qh"])
    return _half(b["d"]) * (codes.astype(np.float32) - np.float32(16))


def _from_q5_1(b: np.ndarray) -> np.ndarray:
    codes = _nibbles(b["qs"]) | _fifth_bits(b["qh"])
    return _half(b["d"]) * codes.astype(np.float32) + _half(b["m"])


def _from_q8_0(b: np.ndarray) -> np.ndarray:
    return _half(b["d"]) * b["qs"].astype(np.float32)


def q6_k_codes(b: np.ndarray) -> np.ndarray:
    """Q6_K blocks (n,) -> int8 (n, 256), codes -32..31 in weight order.

    A block is two halves of 128 weights. In a half, weight 32*g + l (g = 0..3, l = 0..31) has its low four bits in byte
    `ql[64*half + 32*(g % 2) + l]` (low nibble for g < 2, else high) and its high two bits in `qh[32*half + l] >> 2*g`.
    """
    ql = b["ql"].reshape(-1, 2, 1, 2, 32)  # (n, half, nibble, g % 2, l)
    low = np.concatenate([ql & 15, ql >> 4], axis=2).reshape(-1, 2, 4, 32)  # (n, half, g, l)
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8)[:, None]
    high = (b["qh"].reshape(-1, 2, 1, 32) >> shifts) & 3  # (n, half, g, l)
    return ((low | (high << 4)).astype(np.int8) - np.int8(32)).reshape(-1, 256)


def _from_q6_k(b: np.ndarray) -> np.ndarray:
    scales = _half(b["d"]) * b["scales"].astype(np.float32)  # (n, 16), one for 16 weights
    codes = q6_k_codes(b).reshape(-1, 16, 16).astype(np.float32)
    return (scales[:, :, None] * codes).reshape(-1, 256)


def _from_bf16(b: np.ndarray) -> np.ndarray:
    return (b["x"].astype(np.uint32) << 16).view(np.float32)[:, None]


def nibble_runs(qs: np.ndarray, run: int) -> np.ndarray:
    """(n, bytes) -> (n, 2 * bytes) codes 0..15: of each `run` bytes first all low nibbles, then all high ones."""
    qs = qs.reshape(len(qs), -1, 1, run)
    return np.concatenate([qs & 15, qs >> 4], axis=2).reshape(len(qs), -1)


def bit_planes(qs: np.ndarray, run: int, bits: int) -> np.ndarray:
    """(n, bytes) -> (n, bytes * 8 / bits): of each `run` bytes first the lowest `bits` of all, then the next ones."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    planes = (qs.reshape(len(qs), -1, 1, run) >> shifts) & np.uint8((1 << bits) - 1)
    return planes.reshape(len(qs), -1)


def _scaled(scales: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """float32 scales (n, groups) times codes (n, weights) -> float32 (n, groups, weights / groups)."""
    groups = codes.reshape(*scales.shape, -1).astype(np.float32)
    return scales[:, :, None] * groups


def _from_q2_k(b: np.ndarray) -> np.ndarray:
    steps = _half(b["d"]) * (b["scales"] & 15).astype(np.float32)  # (n, 16)
    mins = _half(b["dmin"]) * (b["scales"] >> 4).astype(np.float32)
    return (_scaled(steps, bit_planes(b["qs"], 32, 2)) - mins[:, :, None]).reshape(-1, 256)


def q3_k_scales(packed: np.ndarray) -> np.ndarray:
    """(n, 12) bytes -> int8 (n, 16), scales -32..31: 8 bytes of low nibbles, then 4 of high bit pairs."""
    low, high = nibble_runs(packed[:, :8], 8), bit_planes(packed[:, 8:], 4, 2)
    return (low | (high << 4)).astype(np.int8) - np.int8(32)


def _from_q3_k(b: np.ndarray) -> np.ndarray:
    steps = _half(b["d"]) * q3_k_scales(b["scales"]).astype(np.float32)
    high = bit_planes(b["hmask"], 32, 1)  # 1: nothing is taken off, 0: 4 is
    codes = bit_planes(b["qs"], 32, 2).astype(np.int8) + (high << 2).astype(np.int8) - np.int8(4)
    return _scaled(steps, codes).reshape(-1, 256)


def k_scales_mins(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Q4_K and Q5_K: (n, 12) bytes -> 6-bit scales and minimums, uint8 (n, 8) each.

    Bytes 0-3 and 4-7: scales and minimums 0-3 in their low six bits, whose top two bits are the high bits of 4-7; bytes
    8-11: the low nibbles are the low four bits of scales 4-7, the high nibbles those of minimums 4-7.
    """
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, (third & 15) | ((first >> 2) & 48)], axis=1)
    mins = np.concatenate([second & 63, (third >> 4) | ((second >> 2) & 48)], axis=1)
    return scales, mins


def _affine_of_32(b: np.ndarray, codes: np.ndarray) -> np.ndarray:
    scales, mins = k_scales_mins(b["scales"])
    steps = _half(b["d"]) * scales.astype(np.float32)  # (n, 8)
    offsets = _half(b["dmin"]) * mins.astype(np.float32)
    return (_scaled(steps, codes) - offsets[:, :, None]).reshape(-1, 256)


def _from_q4_k(b: np.ndarray) -> np.ndarray:
    return _affine_of_32(b, nibble_runs(b["qs"], 32))


def _from_q5_k(b: np.ndarray) -> np.ndarray:
    return _affine_of_32(b, nibble_runs(b["qs"], 32) | (bit_planes(b["qh"], 32, 1) << 4))


def _from_iq4_nl(b: np.ndarray) -> np.ndarray:
    return _half(b["d"]) * IQ4_VALUES[_nibbles(b["qs"])].astype(np.float32)


def _from_iq4_xs(b: np.ndarray) -> np.ndarray:
    low = np.stack([b["scales_l"] & 15, b["scales_l"] >> 4], axis=2).reshape(-1, 8)
    high = (b["scales_h"][:, None] >> np.arange(0, 16, 2, dtype=np.uint16)).astype(np.uint8) & 3
    steps = _half(b["d"]) * ((low | (high << 4)).astype(np.int8) - np.int8(32)).astype(np.float32)
    return _scaled(steps, IQ4_VALUES[nibble_runs(b["qs"], 16)]).reshape(-1, 256)


def e8m0_half(e: np.ndarray) -> np.ndarray:
    """Half of the power of two that an e8m0 byte stands for, float32: 2**(e - 128); e = 0 and 1 are subnormal."""
    e = e.astype(np.uint32)
    bits = np.where(e < 2, np.uint32(0x200000) << np.minimum(e, 1), (e - np.uint32(1)) << np.uint32(23))
    return bits.astype(np.uint32).view(np.float32)


def _from_mxfp4(b: np.ndarray) -> np.ndarray:
    return e8m0_half(b["e"])[:, None] * MXFP4_VALUES[_nibbles(b["qs"])].astype(np.float32)


def _ternary_digits(qs: np.ndarray, run: int, n: int) -> np.ndarray:
    """(n_blocks, bytes) -> int8 codes -1..1: each byte is a fraction of 256; times 3**j mod 256, its top third is
    digit j. Of each `run` bytes first all digits 0, then all digits 1, ... up to n."""
    powers = np.array([1, 3, 9, 27, 81], dtype=np.uint8)[:n, None]
    digits = qs.reshape(len(qs), -1, 1, run) * powers  # modulo 256
    return (((digits.astype(np.uint16) * 3) >> 8).astype(np.int8) - np.int8(1)).reshape(len(qs), -1)


def _from_tq1_0(b: np.ndarray) -> np.ndarray:
    parts = [_ternary_digits(b["qs"][:, :32], 32, 5), _ternary_digits(b["qs"][:, 32:], 16, 5)]
    codes = np.concatenate([*parts, _ternary_digits(b["qh"], 4, 4)], axis=1)
    return _half(b["d"]) * codes.astype(np.float32)


def _from_tq2_0(b: np.ndarray) -> np.ndarray:
    return _half(b["d"]) * (bit_planes(b["qs"], 32, 2).astype(np.int8) - np.int8(1)).astype(np.float32)


UNPACK: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "F32": lambda b: b["x"].astype(np.float32)[:, None],
    "F16": lambda b: _half(b["x"]),
    "BF16": _from_bf16,
    "Q4_0": _from_q4_0,
    "Q4_1": _from_q4_1,
    "Q5_0": _from_q5_0,
    "Q5_1": _from_q5_1,
    "Q8_0": _from_q8_0,
    "Q2_K": _from_q2_k,
    "Q3_K": _from_q3_k,
    "Q4_K": _from_q4_k,
    "Q5_K": _from_q5_k,
    "Q6_K": _from_q6_k,
    "IQ4_NL": _from_iq4_nl,
    "IQ4_XS": _from_iq4_xs,
    "TQ1_0": _from_tq1_0,
    "TQ2_0": _from_tq2_0,
    "MXFP4": _from_mxfp4,
}
