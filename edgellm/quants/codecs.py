"""Block bytes -> float32 and back.

Every result is defined bit for bit, so that the compiled kernels and the quantiser can be compared with it exactly. The
formats are ggml's (ggml-common.h and ggml-quants.c of llama.cpp); Q4_0 to Q8_0 quantise as its reference code does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..blocks import BY_ID, BY_NAME, BlockType
from ..errors import InvalidArgumentError, UnsupportedQuantError

_CHUNK = 1 << 19  # weights handled at once: temporaries stay near 10 MB whatever the tensor


def resolve_type(kind: BlockType | str | int) -> BlockType:
    """The `BlockType` for itself, a name in any case ("q4_0") or a GGUF id. Raises UnsupportedQuantError."""
    if isinstance(kind, BlockType):
        return kind
    found = BY_NAME.get(kind.upper()) if isinstance(kind, str) else BY_ID.get(int(kind))
    if found is None:
        raise UnsupportedQuantError(f"element type {kind!r} is not supported; supported: {', '.join(BY_NAME)}")
    return found


# ---- unpacking: structured blocks (n,) -> float32 (n, block_size) ----------------------------------------------------


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


# ---- packing: float32 (n, block_size) -> structured blocks (n,) ------------------------------------------------------


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


def _to_q6_k(x: np.ndarray, b: np.ndarray) -> None:
    """Plain rounding: each 16 weights get scale extreme / -32, these 16 scales share one f16 (d = extreme / -128).

    llama.cpp searches for scales of smaller error; any choice is a valid Q6_K block.
    """
    groups = x.reshape(-1, 16)
    sub = _signed_scale(groups, 32).reshape(-1, 16)  # (n, 16)
    d = _signed_scale(sub, 128)
    b["d"] = d[:, 0]
    d = _half(b["d"])  # the stored, rounded scale
    b["scales"] = np.nan_to_num(np.rint(sub * _inverse(d))).clip(-128, 127).astype(np.int8)
    steps = (d * b["scales"].astype(np.float32)).reshape(-1, 1)
    codes = np.nan_to_num(np.rint(groups * _inverse(steps))).clip(-32, 31).astype(np.int8) + np.int8(32)
    codes = codes.view(np.uint8).reshape(-1, 2, 4, 32)  # (n, half, g, l)
    b["ql"] = ((codes[:, :, :2] & 15) | (codes[:, :, 2:] << 4)).reshape(-1, 128)
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8)[:, None]
    b["qh"] = np.bitwise_or.reduce((codes >> 4) << shifts, axis=2).reshape(-1, 64)


def _to_bf16(x: np.ndarray, b: np.ndarray) -> None:
    """Round to nearest even; a NaN keeps its upper bits and becomes quiet."""
    bits = x[:, 0].view(np.uint32)
    rounded = (bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16
    is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
    b["x"] = np.where(is_nan, (bits >> 16) | 64, rounded).astype(np.uint16)


# ---- the public functions --------------------------------------------------------------------------------------------

_UNPACK: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "F32": lambda b: b["x"].astype(np.float32)[:, None],
    "F16": lambda b: _half(b["x"]),
    "BF16": _from_bf16,
    "Q4_0": _from_q4_0,
    "Q4_1": _from_q4_1,
    "Q5_0": _from_q5_0,
    "Q5_1": _from_q5_1,
    "Q8_0": _from_q8_0,
    "Q6_K": _from_q6_k,
}


def _to_plain(x: np.ndarray, b: np.ndarray) -> None:
    b["x"] = x[:, 0]


_PACK: dict[str, Callable[[np.ndarray, np.ndarray], None]] = {
    "F32": _to_plain,
    "F16": _to_plain,
    "BF16": _to_bf16,
    "Q4_0": _to_q4_0,
    "Q4_1": _to_q4_1,
    "Q5_0": _to_q5_0,
    "Q5_1": _to_q5_1,
    "Q8_0": _to_q8_0,
    "Q6_K": _to_q6_k,
}


def as_bytes(data: object) -> np.ndarray:
    """Any contiguous array or buffer as a flat uint8 view, without a copy where possible."""
    if isinstance(data, np.ndarray):
        return np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    return np.frombuffer(data, dtype=np.uint8)  # type: ignore[call-overload]


def dequantize(data: object, type: BlockType | str | int, shape: Sequence[int]) -> np.ndarray:
    """Weights of a tensor as float32, C order.

    `data`: its bytes (any buffer), rows one after the other. `shape`: rows first, the last entry a multiple of the
    block size. Returns an array of `shape`. Raises InvalidArgumentError when the number of bytes does not fit it.
    """
    kind = resolve_type(type)
    shape = tuple(int(n) for n in shape)
    n_blocks = _n_blocks(kind, shape)
    raw = as_bytes(data)
    if raw.size != n_blocks * kind.type_size:
        raise InvalidArgumentError(
            f"{kind.name} data of shape {shape} has {n_blocks * kind.type_size} bytes, got {raw.size}"
        )
    blocks = raw.view(kind.dtype)
    out = np.empty((n_blocks, kind.block_size), dtype=np.float32)
    step, unpack = max(1, _CHUNK // kind.block_size), _UNPACK[kind.name]
    with np.errstate(all="ignore"):  # inf and NaN scales are data here, not accidents
        for i in range(0, n_blocks, step):
            out[i : i + step] = unpack(blocks[i : i + step])
    return out.reshape(shape)


def quantize(x: np.ndarray, type: BlockType | str | int) -> np.ndarray:
    """float32 (rows, k) -> uint8 (rows, bytes of a row); more leading dimensions are kept, k is the last one.

    Values too large for an f16 scale give an infinite scale (as in llama.cpp); check the input where that matters.
    Raises InvalidArgumentError when k is no multiple of the block size.
    """
    kind = resolve_type(type)
    x = np.ascontiguousarray(x, dtype=np.float32)
    n_blocks = _n_blocks(kind, x.shape)
    flat = x.reshape(n_blocks, kind.block_size)
    out = np.empty(n_blocks, dtype=kind.dtype)
    step, pack = max(1, _CHUNK // kind.block_size), _PACK[kind.name]
    with np.errstate(all="ignore"):
        for i in range(0, n_blocks, step):
            pack(flat[i : i + step], out[i : i + step])
    return out.view(np.uint8).reshape(*x.shape[:-1], x.shape[-1] // kind.block_size * kind.type_size)


def can_quantize(k: int, type: BlockType | str | int) -> bool:
    """Whether rows of `k` weights fit the type's blocks."""
    return k > 0 and k % resolve_type(type).block_size == 0


def _n_blocks(kind: BlockType, shape: tuple[int, ...]) -> int:
    if not shape or shape[-1] % kind.block_size or any(n < 0 for n in shape):
        raise InvalidArgumentError(
            f"shape {tuple(shape)}: a row must be a multiple of the {kind.name} block of {kind.block_size} weights"
        )
    total = 1
    for n in shape:
        total *= n
    return total // kind.block_size
