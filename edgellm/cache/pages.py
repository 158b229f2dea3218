"""What a page looks like: the types of its numbers, where each head's K and V lie, and how they are rounded.

One page holds 64 positions of one layer, all KV heads: for each head first K as [head_dim][64] (a lane is a position),
then V as [64][head_dim] (a lane is a channel), each in its own type. That is the order in which kernels read it
(native/edgellm.h).

q8_0 keeps int8 numbers, and 64 float16 scales behind them, one per position. (float16: two cache lines instead of four
beside the 64 lines of numbers at head_dim 64, and whatever a float16 page can hold still fits.)
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
SCALED_TYPES = frozenset({"q8_0"})
_SCALE = np.dtype(np.float16)


def split_kv_type(kv_type: str) -> tuple[str, str]:
    """The types of K and V in a `kv_type` such as "f16" (both) or "q8_0:f16", each a key of KV_TYPES.

    Raises InvalidArgumentError.
    """
    k_type, separator, v_type = kv_type.partition(":")
    pair = (k_type, v_type if separator else k_type)
    for name in pair:
        if name not in KV_TYPES:
            raise InvalidArgumentError(f"kv_type is '{kv_type}'; choose {', '.join(KV_TYPES)}, or two as K:V")
    return pair


def resolve_kv_type(kv_type: str | tuple[str, str], matrix_types: set[str]) -> str:
    """The type of pages as `split_kv_type` takes it: one name, or "K:V" where the two differ.

    `kv_type` is one of KV_TYPES, "auto", or two of them as a pair or as "K:V". `matrix_types` are the type names of the
    model's matrices (`Weights.matrix_types`); "auto" is f32 where all of them are F32, else f16. Raises
    InvalidArgumentError.
    """
    names = kv_type.split(":") if isinstance(kv_type, str) else list(kv_type) if isinstance(kv_type, tuple) else []
    if not 1 <= len(names) <= 2 or not all(n == "auto" or (isinstance(n, str) and n in KV_TYPES) for n in names):
        choices = f"auto, {', '.join(KV_TYPES)}"
        raise InvalidArgumentError(f"kv_type is {kv_type!r}; choose {choices}, or two of them (K, V)")
    names = [("f32" if matrix_types == {"F32"} else "f16") if n == "auto" else n for n in names]
    return names[0] if names[0] == names[-1] else f"{names[0]}:{names[1]}"


def page_bytes(shape: KVShape, kv_type: str) -> int:
    """Bytes of one page: 64 positions of one layer. Raises InvalidArgumentError as PageLayout does."""
    return PageLayout(shape, kv_type).page_bytes


class PageLayout:
    """Reads and writes pages of one shape and type, each given as its uint8 (page_bytes,).

    `k` and `v` say how a head's half of the page is made up. Raises InvalidArgumentError for a type that there is not.
    """

    def __init__(self, shape: KVShape, kv_type: str) -> None:
        k_type, v_type = split_kv_type(kv_type)
        self.shape, self.kv_type = shape, kv_type
        self.k, self.v = Half(k_type, shape.head_dim), Half(v_type, shape.head_dim)
        self.page_bytes = shape.n_kv_heads * (self.k.n_bytes + self.v.n_bytes)

    def k_view(self, page: np.ndarray, head: int) -> np.ndarray:
        """(head_dim, 64) keys of one KV head, writable, in the page's type; q8_0: to be multiplied by `scales`."""
        return self.k.numbers(self._halves(page, head)[0]).reshape(self.shape.head_dim, PAGE_TOKENS)

    def v_view(self, page: np.ndarray, head: int) -> np.ndarray:
        """(64, head_dim) values of one KV head, writable, in the page's type; q8_0: to be multiplied by `scales`."""
        return self.v.numbers(self._halves(page, head)[1]).reshape(PAGE_TOKENS, self.shape.head_dim)

    def store(self, page: np.ndarray, head: int, lane: int, k: np.ndarray, v: np.ndarray) -> None:
        """k and v, float32 (head_dim,), become position `lane` of a page, rounded as formats/arithmetic.md says."""
        k_half, v_half = self._halves(page, head)
        self.k_view(page, head)[:, lane] = self.k.encode(k_half, lane, k)
        self.v_view(page, head)[lane] = self.v.encode(v_half, lane, v)

    def load(self, page: np.ndarray, head: int) -> tuple[np.ndarray, np.ndarray]:
        """Keys and values of one KV head as float32 (64, head_dim) each."""
        k_half, v_half = self._halves(page, head)
        k, v = self.k_view(page, head).T, self.v_view(page, head)
        return self.k.decode(k_half, k), self.v.decode(v_half, v)

    def _halves(self, page: np.ndarray, head: int) -> tuple[np.ndarray, np.ndarray]:
        """uint8 (n_bytes,) of one head's K, and of its V."""
        own = page.reshape(self.shape.n_kv_heads, -1)[head]
        return own[: self.k.n_bytes], own[self.k.n_bytes :]


class Half:
    """K, or V, of one head in a page: head_dim * 64 numbers, and behind them 64 scales where the type has scales.

    Its methods take the half as uint8 (n_bytes,).
    """

    def __init__(self, kv_type: str, head_dim: int) -> None:
        self.kv_type, self.dtype = kv_type, KV_TYPES[kv_type]
        self.number_bytes = head_dim * PAGE_TOKENS * self.dtype.itemsize
        self.n_bytes = self.number_bytes + (PAGE_TOKENS * _SCALE.itemsize if kv_type in SCALED_TYPES else 0)

    def numbers(self, half: np.ndarray) -> np.ndarray:
        """The numbers, flat, writable, in the half's type."""
        return half[: self.number_bytes].view(self.dtype)

    def scales(self, half: np.ndarray) -> np.ndarray:
        """float16 (64,), writable; empty where the type has none."""
        return half[self.number_bytes :].view(_SCALE)

    def encode(self, half: np.ndarray, lane: int, x: np.ndarray) -> np.ndarray:
        """float32 (head_dim,) of position `lane` as numbers of the half's type; the scale is written."""
        if self.kv_type == "q8_0":
            x, self.scales(half)[lane] = quantize_row(x)
        return x

    def decode(self, half: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Numbers (64, head_dim) as float32."""
        y = x.astype(np.float32)
        return y * self.scales(half).astype(np.float32)[:, None] if self.kv_type in SCALED_TYPES else y


def quantize_row(x: np.ndarray) -> tuple[np.ndarray, np.float16]:
    """float32 (n,) -> int8 (n,) in -127 .. 127 and the float16 scale that they are multiplied with."""
    with np.errstate(all="ignore"):  # what is not finite makes the scale so, and the pass says where it comes from
        d = np.float16(np.abs(x).max() / np.float32(127))
        inverse = np.float32(1) / np.float32(d) if d > 0 else np.float32(0)
        scaled = x.astype(np.float32) * inverse
    return np.rint(np.nan_to_num(np.clip(scaled, -127, 127), nan=127)).astype(np.int8), d
