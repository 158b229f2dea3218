"""What a page looks like: the types of its numbers, where each head's K and V lie, and how they are rounded.

One page holds 64 positions of one layer, all KV heads: for each head first K as [head_dim][64] (a lane is a position),
then V as [64][head_dim] (a lane is a channel), each in its own type. That is the order in which kernels read it
(native/edgellm.h).

q8_0 keeps int8 numbers, and 64 float16 scales behind them, one per position. (float16: two cache lines instead of four
beside the 64 lines of numbers at head_dim 64, and whatever a float16 page can hold still fits.) q4_0 keeps 4-bit
numbers, less 8, two in a byte: a row of them, [64] or [head_dim], is in groups of 16, the last one may be shorter, and
byte i of a group of n holds number i in its low half and number i + n / 2 in the high one.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from ..errors import InvalidArgumentError
from ..plan import KVShape

PAGE_TOKENS = 64
KV_TYPES: dict[str, np.dtype] = {  # the numbers of a page
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "q8_0": np.dtype(np.int8),
    "q4_0": np.dtype(np.uint8),  # two in each
}
SCALED_TYPES = frozenset({"q8_0", "q4_0"})
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

    `k` and `v` say how a head's half of the page is made up. Raises InvalidArgumentError for a type that there is not,
    or that cannot hold heads of this size.
    """

    def __init__(self, shape: KVShape, kv_type: str) -> None:
        k_type, v_type = split_kv_type(kv_type)
        self.shape, self.kv_type = shape, kv_type
        self.k, self.v = Half(k_type, shape.head_dim, keys=True), Half(v_type, shape.head_dim, keys=False)
        self.page_bytes = shape.n_kv_heads * (self.k.n_bytes + self.v.n_bytes)

    def k_view(self, page: np.ndarray, head: int) -> np.ndarray:
        """(head_dim, 64) keys of one KV head, writable, in the page's type; q8_0: to be multiplied by the scales.

        q4_0: (head_dim, 32) bytes.
        """
        return self.k.numbers(self._halves(page, head)[0]).reshape(self.shape.head_dim, -1)

    def v_view(self, page: np.ndarray, head: int) -> np.ndarray:
        """(64, head_dim) values of one KV head, else as `k_view`; q4_0: (64, head_dim / 2) bytes."""
        return self.v.numbers(self._halves(page, head)[1]).reshape(PAGE_TOKENS, -1)

    def store(self, page: np.ndarray, head: int, lane: int, k: np.ndarray, v: np.ndarray) -> None:
        """k and v, float32 (head_dim,), become position `lane` of a page, rounded as formats/arithmetic.md says."""
        k_half, v_half = self._halves(page, head)
        self.k.store(k_half, lane, k)
        self.v.store(v_half, lane, v)

    def load(self, page: np.ndarray, head: int) -> tuple[np.ndarray, np.ndarray]:
        """Keys and values of one KV head as float32 (64, head_dim) each."""
        k_half, v_half = self._halves(page, head)
        return self.k.load(k_half), self.v.load(v_half)

    def _halves(self, page: np.ndarray, head: int) -> tuple[np.ndarray, np.ndarray]:
        """uint8 (n_bytes,) of one head's K, and of its V."""
        own = page.reshape(self.shape.n_kv_heads, -1)[head]
        return own[: self.k.n_bytes], own[self.k.n_bytes :]


class Half:
    """K, or V, of one head in a page: head_dim * 64 numbers, and behind them 64 scales where the type has scales.

    Its methods take the half as uint8 (n_bytes,). Raises InvalidArgumentError for q4_0 and an odd head_dim.
    """

    def __init__(self, kv_type: str, head_dim: int, keys: bool) -> None:
        if kv_type == "q4_0" and head_dim % 2:
            raise InvalidArgumentError(
                f"kv_type 'q4_0' keeps two numbers in a byte, but this model's head_dim is {head_dim}, an odd number; "
                "choose q8_0"
            )
        self.kv_type, self.head_dim, self.keys, self.dtype = kv_type, head_dim, keys, KV_TYPES[kv_type]
        self.number_bytes = head_dim * PAGE_TOKENS * self.dtype.itemsize // (2 if kv_type == "q4_0" else 1)
        self.n_bytes = self.number_bytes + (PAGE_TOKENS * _SCALE.itemsize if kv_type in SCALED_TYPES else 0)

    def numbers(self, half: np.ndarray) -> np.ndarray:
        """The numbers, flat, writable, in the half's type; q4_0: bytes."""
        return half[: self.number_bytes].view(self.dtype)

    def scales(self, half: np.ndarray) -> np.ndarray:
        """float16 (64,), writable; empty where the type has none."""
        return half[self.number_bytes :].view(_SCALE)

    def store(self, half: np.ndarray, lane: int, x: np.ndarray) -> None:
        """float32 (head_dim,) becomes position `lane`."""
        numbers = self.numbers(half)
        if self.kv_type == "q4_0":
            codes, self.scales(half)[lane] = quantize_q4_0(x)
            byte, shift = (part[lane] for part in self._nibbles)
            for up in (0, 4):  # one after the other: V's numbers lie two in a byte
                one = shift == up
                numbers[byte[one]] = numbers[byte[one]] & (0xF0 >> up) | codes[one] << up
            return
        if self.kv_type == "q8_0":
            x, self.scales(half)[lane] = quantize_q8_0(x)
        with np.errstate(over="ignore"):  # float16 becomes infinite, and the pass says where
            if self.keys:
                numbers[lane::PAGE_TOKENS] = x
            else:
                numbers[lane * self.head_dim : (lane + 1) * self.head_dim] = x

    def load(self, half: np.ndarray) -> np.ndarray:
        """float32 (64, head_dim)."""
        numbers = self.numbers(half)
        y: np.ndarray
        if self.kv_type == "q4_0":
            byte, shift = self._nibbles
            y = ((numbers[byte] >> shift) & 15).astype(np.float32) - 8
        elif self.keys:
            y = numbers.reshape(self.head_dim, PAGE_TOKENS).T.astype(np.float32)
        else:
            y = numbers.reshape(PAGE_TOKENS, self.head_dim).astype(np.float32)
        if self.kv_type in SCALED_TYPES:
            y = y * self.scales(half).astype(np.float32)[:, None]
        return y

    @cached_property
    def _nibbles(self) -> tuple[np.ndarray, np.ndarray]:
        """Of q4_0, (64, head_dim) each: the byte of a position's number, and how many bits up it stands in it."""
        lane, channel = np.indices((PAGE_TOKENS, self.head_dim))
        row, at, width = (channel, lane, PAGE_TOKENS) if self.keys else (lane, channel, self.head_dim)
        group = at // 16 * 16
        n, i = np.minimum(width - group, 16), at - group
        high = i >= n // 2
        return (row * width + group) // 2 + i - high * (n // 2), (4 * high).astype(np.uint8)


def quantize_q8_0(x: np.ndarray) -> tuple[np.ndarray, np.float16]:
    """float32 (n,) -> int8 (n,) in -127 .. 127 and the float16 scale that they are multiplied with."""
    with np.errstate(all="ignore"):  # what is not finite makes the scale so, and the pass says where it comes from
        d = np.float16(np.abs(x).max() / np.float32(127))
        inverse = np.float32(1) / np.float32(d) if d > 0 else np.float32(0)
        scaled = x.astype(np.float32) * inverse
    return np.rint(np.nan_to_num(np.clip(scaled, -127, 127), nan=127)).astype(np.int8), d


def quantize_q4_0(x: np.ndarray) -> tuple[np.ndarray, np.float16]:
    """float32 (n,) -> uint8 (n,) in 0 .. 15 and a float16 scale: x is about scale * (code - 8).

    The number of largest size becomes code -8, or -8 after clipping what would be -9: whichever leaves the smaller
    squared error (on Gaussian rows of 64 to 128 the choice takes 5 to 9 % off it).
    """
    extreme = x[np.argmax(x.view(np.uint32) & 0x7FFFFFFF)]  # by its bits: NaN above infinity above numbers
    found = [_with_extreme_at(code, extreme, x) for code in (-8, -9)]
    best = found[1] if found[1][2] < found[0][2] else found[0]
    return best[0], best[1]


def _with_extreme_at(code: int, extreme: np.float32, x: np.ndarray) -> tuple[np.ndarray, np.float16, np.float32]:
    """Codes, scale and squared error if `extreme` becomes `code`; the error's sum is in the order of arithmetic.md."""
    with np.errstate(all="ignore"):
        scale = np.float16(extreme / np.float32(code))
        d = np.float32(scale)
        inverse = np.float32(1) / d if d != 0 else np.float32(0)
        numbers = np.rint(np.nan_to_num(np.clip(x * inverse, -8, 7), nan=7))  # float32 (n,)
        rest = np.zeros(-(-len(x) // 16) * 16, np.float32)
        rest[: len(x)] = x - d * numbers
        lanes = np.zeros(16, np.float32)
        for group in (rest * rest).reshape(-1, 16):
            lanes += group
        for width in (8, 4, 2, 1):
            lanes = lanes[:width] + lanes[width:]
    return (numbers + 8).astype(np.uint8), scale, lanes[0]
