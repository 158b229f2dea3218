"""Block bytes -> float32 and back.

Every result is defined bit for bit, so that the compiled kernels and the quantiser can be compared with it exactly. The
formats are ggml's (ggml-common.h and ggml-quants.c of llama.cpp); Q4_0 to Q8_0, MXFP4 and the ternary types quantise
as its reference code does, the others by a search of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..blocks import BY_ID, BY_NAME, BlockType
from ..errors import InvalidArgumentError, UnsupportedQuantError
from .pack import PACK
from .pack_search import SEARCH
from .unpack import UNPACK

_CHUNK = 1 << 19  # weights handled at once: temporaries stay near 10 MB whatever the tensor


def resolve_type(kind: BlockType | str | int) -> BlockType:
    """The `BlockType` for itself, a name in any case ("q4_0") or a GGUF id. Raises UnsupportedQuantError."""
    if isinstance(kind, BlockType):
        return kind
    found = BY_NAME.get(kind.upper()) if isinstance(kind, str) else BY_ID.get(int(kind))
    if found is None:
        raise UnsupportedQuantError(f"element type {kind!r} is not supported; supported: {', '.join(BY_NAME)}")
    return found


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
    step, unpack = max(1, _CHUNK // kind.block_size), UNPACK[kind.name]
    with np.errstate(all="ignore"):  # inf and NaN scales are data here, not accidents
        for i in range(0, n_blocks, step):
            out[i : i + step] = unpack(blocks[i : i + step])
    return out.reshape(shape)


def quantize(x: np.ndarray, type: BlockType | str | int, importance: np.ndarray | None = None) -> np.ndarray:
    """float32 (rows, k) -> uint8 (rows, bytes of a row); more leading dimensions are kept, k is the last one.

    `importance` (k,), finite and not negative: how much an error in each column counts (see `check_importance`); types
    that have no scales to choose (F32, F16, BF16, TQ1_0, TQ2_0, MXFP4) do not look at it.
    Values too large for an f16 scale give an infinite scale (as in llama.cpp); check the input where that matters.
    Raises InvalidArgumentError when k is no multiple of the block size or `importance` does not fit.
    """
    kind = resolve_type(type)
    x = np.ascontiguousarray(x, dtype=np.float32)
    n_blocks, size = _n_blocks(kind, x.shape), kind.block_size
    flat = x.reshape(n_blocks, size)
    out = np.empty(n_blocks, dtype=kind.dtype)
    pack = PACK.get(kind.name) if importance is None or kind.name not in SEARCH else None
    weights = np.ones((1, size), np.float32)  # (blocks of a row, block size)
    if importance is not None:
        weights = check_importance(importance, x.shape[-1]).reshape(-1, size)
    step = max(1, _CHUNK // size)
    with np.errstate(all="ignore"):
        for i in range(0, n_blocks, step):
            part = flat[i : i + step]
            if pack is not None:
                pack(part, out[i : i + step])
            else:
                w = weights[np.arange(i, i + len(part)) % len(weights)]
                SEARCH[kind.name](part, w, out[i : i + step])
    return out.view(np.uint8).reshape(*x.shape[:-1], x.shape[-1] // size * kind.type_size)


def check_importance(importance: np.ndarray, k: int) -> np.ndarray:
    """Importance of k columns as the quantisers take it: float32 (k,) of mean 1, nothing below 1e-5, so that no weight
    is given up; all 1 if all are 0. Raises InvalidArgumentError."""
    v = np.asarray(importance, dtype=np.float64)
    if v.shape != (k,):
        raise InvalidArgumentError(f"importance of shape {v.shape} for rows of {k} weights; give one number per column")
    if not (np.isfinite(v).all() and (v >= 0).all()):
        raise InvalidArgumentError("importance must be finite and not negative")
    mean = v.mean()
    v = v / mean if mean > 0 else np.ones(k)
    return np.maximum(v, 1e-5).astype(np.float32)


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
