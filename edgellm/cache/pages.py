"""What a page looks like: the types of its numbers, where each head's K and V lie, and how they are rounded.

One page holds 64 positions of one layer, all KV heads: for each head first K as [head_dim][64] (a lane is a position),
then V as [64][head_dim] (a lane is a channel). That is the order in which kernels read it (native/edgellm.h).

q8_0 pages hold int8 numbers; 64 float16 scales, one per position, stand behind K and behind V. (float16: two cache
lines instead of four beside the 64 lines of numbers at head_dim 64, and whatever a float16 page can hold still fits.)
"""

from __future__ import annotations

import numpy as np

from ..errors import InvalidArgumentError
from ..plan import KVShape

PAGE_TOKENS = 64
KV_TYPES: dict[str, np.dtype] = {  # the numbers of a page
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "q8_0": np.dtype(np.int8),
}
_SCALE = np.dtype(np.float16)


def resolve_kv_type(kv_type: str, matrix_types: set[str]) -> str:
    """The type of pages, a key of KV_TYPES, for a `kv_type` of "auto" or one of these keys.

    `matrix_types` are the type names of the model's matrices (`Weights.matrix_types`); "auto" is f32 where all of them
    are F32, else f16. Raises InvalidArgumentError.
    """
    if kv_type == "auto":
        return "f32" if matrix_types == {"F32"} else "f16"
    if kv_type not in KV_TYPES:
        raise InvalidArgumentError(f"kv_type is '{kv_type}'; choose auto, {', '.join(KV_TYPES)}")
    return kv_type


def page_bytes(shape: KVShape, kv_type: str) -> int:
    """Bytes of one page: 64 positions of one layer. Raises InvalidArgumentError as PageLayout does."""
    return PageLayout(shape, kv_type).page_bytes


class PageLayout:
    """Reads and writes pages of one shape and type, each given as its uint8 (page_bytes,).

    Raises InvalidArgumentError for a type that there is not.
    """

    def __init__(self, shape: KVShape, kv_type: str) -> None:
        if kv_type not in KV_TYPES:
            raise InvalidArgumentError(f"kv_type is '{kv_type}'; choose {', '.join(KV_TYPES)}")
        self.shape, self.kv_type, self.dtype = shape, kv_type, KV_TYPES[kv_type]
        scale = _SCALE.itemsize if kv_type == "q8_0" else 0
        self.page_bytes = shape.n_kv_heads * 2 * PAGE_TOKENS * (shape.head_dim * self.dtype.itemsize + scale)

    def k_view(self, page: np.ndarray, head: int) -> np.ndarray:
        """(head_dim, 64) keys of one KV head, writable, in the page's type; q8_0: to be multiplied by `scales`."""
        return self._numbers(page, head, 0).reshape(self.shape.head_dim, PAGE_TOKENS)

    def v_view(self, page: np.ndarray, head: int) -> np.ndarray:
        """(64, head_dim) values of one KV head, writable, in the page's type; q8_0: to be multiplied by `scales`."""
        return self._numbers(page, head, 1).reshape(PAGE_TOKENS, self.shape.head_dim)

    def scales(self, page: np.ndarray, head: int) -> np.ndarray:
        """float16 (2, 64) scales of K and of V of one KV head's positions, writable. Only of q8_0 pages."""
        return self._heads(page)[head, :, self.shape.head_dim * PAGE_TOKENS :].view(_SCALE)

    def store(self, page: np.ndarray, head: int, lane: int, k: np.ndarray, v: np.ndarray) -> None:
        """k and v, float32 (head_dim,), become position `lane` of a page, rounded as formats/arithmetic.md says."""
        if self.kv_type == "q8_0":
            scales = self.scales(page, head)
            k, scales[0, lane] = quantize_row(k)
            v, scales[1, lane] = quantize_row(v)
        self.k_view(page, head)[:, lane] = k
        self.v_view(page, head)[lane] = v

    def load(self, page: np.ndarray, head: int) -> tuple[np.ndarray, np.ndarray]:
        """Keys and values of one KV head as float32 (64, head_dim) each."""
        k, v = self.k_view(page, head).T.astype(np.float32), self.v_view(page, head).astype(np.float32)
        if self.kv_type == "q8_0":
            d = self.scales(page, head).astype(np.float32)
            return k * d[0, :, None], v * d[1, :, None]
        return k, v

    def _heads(self, page: np.ndarray) -> np.ndarray:
        """uint8 (n_kv_heads, 2, bytes): K and V of each head."""
        return page.reshape(self.shape.n_kv_heads, 2, -1)

    def _numbers(self, page: np.ndarray, head: int, half: int) -> np.ndarray:
        n_bytes = self.shape.head_dim * PAGE_TOKENS * self.dtype.itemsize
        return self._heads(page)[head, half, :n_bytes].view(self.dtype)


def quantize_row(x: np.ndarray) -> tuple[np.ndarray, np.float16]:
    """float32 (n,) -> int8 (n,) in -127 .. 127 and the float16 scale that they are multiplied with."""
    with np.errstate(all="ignore"):  # what is not finite makes the scale so, and the pass says where it comes from
        d = np.float16(np.abs(x).max() / np.float32(127))
        inverse = np.float32(1) / np.float32(d) if d > 0 else np.float32(0)
        scaled = x.astype(np.float32) * inverse
    return np.rint(np.nan_to_num(np.clip(scaled, -127, 127), nan=127)).astype(np.int8), d
