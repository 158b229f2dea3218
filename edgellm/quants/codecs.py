"""Block bytes -> float32 and back.

Every result is defined bit for bit, so that the compiled kernels and the quantiser can be compared with it exactly. The
formats are ggml's (ggml-common.h and ggml-quants.c of llama.cpp); Q4_0 to Q8_0 quantise as its reference code does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..blocks import BY_ID, BY_NAME, BlockType
from ..errors import InvalidArgumentError, UnsupportedQuantError
from .pack import PACK
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
    step, pack = max(1, _CHUNK // kind.block_size), _packer(kind)
    with np.errstate(all="ignore"):
        for i in range(0, n_blocks, step):
            pack(flat[i : i + step], out[i : i + step])
    return out.view(np.uint8).reshape(*x.shape[:-1], x.shape[-1] // kind.block_size * kind.type_size)


def _packer(kind: BlockType) -> Callable[[np.ndarray, np.ndarray], None]:
    if kind.name not in PACK:
        raise UnsupportedQuantError(f"{kind.name} cannot be written here; types that can: {', '.join(PACK)}")
    return PACK[kind.name]


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
