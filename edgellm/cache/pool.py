"""A pool of KV pages of 64 tokens.

One page holds 64 positions of one layer, all KV heads: for each head first K as [head_dim][64] (a lane is a position),
then V as [64][head_dim] (a lane is a channel). That is the order in which kernels read it (native/edgellm.h), and the
only cache there is. A page may belong to several sequences (reference counts).

q8_0 pages hold int8 numbers; 64 float16 scales, one per position, stand behind K and behind V. (float16: two cache
lines instead of four beside the 64 lines of numbers at head_dim 64, and whatever a float16 page can hold still fits.)
"""

from __future__ import annotations

import contextlib
import mmap
import os

import numpy as np

from ..errors import EdgeLLMError, InvalidArgumentError, ModelClosedError, NotEnoughMemoryError
from ..machine import memory
from ..plan import KVShape

PAGE_TOKENS = 64
NO_PAGE = -1
KV_TYPES: dict[str, np.dtype] = {  # the numbers of a page
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "q8_0": np.dtype(np.int8),
}
_SCALE = np.dtype(np.float16)
_HUGE = 32 << 20  # arenas from this size on ask for 2 MB pages: attention reads all of the cache for each token


class PageError(EdgeLLMError):
    """A page was released or used that nobody holds: a fault in edgellm, stopped before it damages the cache."""


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
    """Bytes of one page: 64 positions of one layer."""
    scale = _SCALE.itemsize if kv_type == "q8_0" else 0
    return shape.n_kv_heads * 2 * PAGE_TOKENS * (shape.head_dim * KV_TYPES[kv_type].itemsize + scale)


def n_blocks(n_tokens: int) -> int:
    """Blocks of 64 positions that hold `n_tokens`."""
    return -(-n_tokens // PAGE_TOKENS)


def cache_bytes(shape: KVShape, kv_type: str, n_tokens: int) -> int:
    """Bytes of all pages of one sequence of `n_tokens`."""
    return n_blocks(n_tokens) * shape.n_layers * page_bytes(shape, kv_type)


def default_n_ctx(n_ctx_train: int, shape: KVShape, kv_type: str, free_bytes: int) -> int:
    """The context window to use when nobody chose one: min(trained, what fits in `free_bytes`).

    A result below `n_ctx_train` is a multiple of 64. Raises NotEnoughMemoryError when not even 64 tokens fit.
    """
    per_block = shape.n_layers * page_bytes(shape, kv_type)
    fits = free_bytes // per_block * PAGE_TOKENS
    if fits < PAGE_TOKENS:
        raise NotEnoughMemoryError(per_block, max(free_bytes, 0), ["a smaller model"], what="the KV cache")
    return min(n_ctx_train, fits)


class PagePool:
    """All pages of one model. The arena is virtual memory: a page costs memory once something was written to it.

    `arena` is uint8 (n_pages, page_bytes), its first byte at `address`, aligned to a memory page. A page is all zeros
    when it is handed out. Not thread-safe: a model uses its pool from one thread at a time.

    Raises InvalidArgumentError (kv_type, n_pages), NotEnoughMemoryError (the arena cannot be reserved).
    """

    def __init__(self, shape: KVShape, kv_type: str, n_pages: int) -> None:
        if kv_type not in KV_TYPES:
            raise InvalidArgumentError(f"kv_type is '{kv_type}'; choose {', '.join(KV_TYPES)}")
        if not 1 <= n_pages < 2**31:
            raise InvalidArgumentError(f"a page pool of {n_pages} pages; choose 1 to 2^31 - 1")
        self.shape, self.kv_type, self.n_pages = shape, kv_type, n_pages
        self.dtype = KV_TYPES[kv_type]
        self.page_bytes = page_bytes(shape, kv_type)
        self.arena: np.ndarray | None = _reserve(n_pages * self.page_bytes).reshape(n_pages, self.page_bytes)
        self.refs = np.zeros(n_pages, dtype=np.int32)  # (n_pages,) how many sequences hold each page
        self._fresh = 0  # pages from here on were never handed out: they are zero and cost nothing
        self._free: list[int] = []  # pages that were released, last one first

    @classmethod
    def for_tokens(cls, shape: KVShape, kv_type: str, n_tokens: int) -> PagePool:
        """A pool that holds one sequence of `n_tokens`."""
        return cls(shape, kv_type, max(1, n_blocks(n_tokens) * shape.n_layers))

    @property
    def address(self) -> int:
        """Where the arena is in memory, for compiled kernels. Raises ModelClosedError."""
        return self._open().ctypes.data

    @property
    def n_free(self) -> int:
        """Pages that can still be handed out."""
        return self.n_pages - self._fresh + len(self._free)

    def allocate(self, n: int) -> list[int]:
        """`n` zeroed pages, each with one reference; all or none. Raises NotEnoughMemoryError when the pool is full."""
        arena = self._open()
        if n > self.n_free:
            have = self.n_free * self.page_bytes
            raise NotEnoughMemoryError(n * self.page_bytes, have, ["a shorter context (n_ctx)"], what="the KV cache")
        pages = [self._free.pop() for _ in range(min(n, len(self._free)))]
        for page in pages:
            arena[page] = 0  # kernels multiply unused lanes by 0, so nothing non-finite may be left in them
        fresh = n - len(pages)
        pages += range(self._fresh, self._fresh + fresh)
        self._fresh += fresh
        self.refs[pages] = 1
        return pages

    def retain(self, page: int) -> None:
        """One more reference to a page that is in use. Raises PageError."""
        self._held(page)
        self.refs[page] += 1

    def release(self, page: int) -> None:
        """One reference less; the last one puts the page on the free list. Raises PageError."""
        self._held(page)
        self.refs[page] -= 1
        if self.refs[page] == 0:
            self._free.append(page)

    def k_view(self, page: int, head: int) -> np.ndarray:
        """(head_dim, 64) keys of one KV head, writable, in the pool's type; q8_0: to be multiplied by `scales`."""
        return self._numbers(page, head, 0).reshape(self.shape.head_dim, PAGE_TOKENS)

    def v_view(self, page: int, head: int) -> np.ndarray:
        """(64, head_dim) values of one KV head, writable, in the pool's type; q8_0: to be multiplied by `scales`."""
        return self._numbers(page, head, 1).reshape(PAGE_TOKENS, self.shape.head_dim)

    def scales(self, page: int, head: int) -> np.ndarray:
        """float16 (2, 64) scales of K and of V of one KV head's positions, writable. Only of q8_0 pages."""
        return self._heads(page)[head, :, self.shape.head_dim * PAGE_TOKENS :].view(_SCALE)

    def store(self, page: int, head: int, lane: int, k: np.ndarray, v: np.ndarray) -> None:
        """k and v, float32 (head_dim,), become position `lane` of a page, rounded as formats/arithmetic.md says."""
        if self.kv_type == "q8_0":
            scales = self.scales(page, head)
            k, scales[0, lane] = quantize_row(k)
            v, scales[1, lane] = quantize_row(v)
        self.k_view(page, head)[:, lane] = k
        self.v_view(page, head)[lane] = v

    def load(self, page: int, head: int) -> tuple[np.ndarray, np.ndarray]:
        """Keys and values of one KV head as float32 (64, head_dim) each."""
        k, v = self.k_view(page, head).T.astype(np.float32), self.v_view(page, head).astype(np.float32)
        if self.kv_type == "q8_0":
            d = self.scales(page, head).astype(np.float32)
            return k * d[0, :, None], v * d[1, :, None]
        return k, v

    def close(self) -> None:
        """Gives the memory back as soon as no view of it is left. Calling it again does nothing."""
        self.arena = None

    def _heads(self, page: int) -> np.ndarray:
        """uint8 (n_kv_heads, 2, bytes) of one page: K and V of each head."""
        self._held(page)
        return self._open()[page].reshape(self.shape.n_kv_heads, 2, -1)

    def _numbers(self, page: int, head: int, half: int) -> np.ndarray:
        n_bytes = self.shape.head_dim * PAGE_TOKENS * self.dtype.itemsize
        return self._heads(page)[head, half, :n_bytes].view(self.dtype)

    def _held(self, page: int) -> None:
        if not 0 <= page < self.n_pages or self.refs[page] < 1:
            raise PageError(f"page {page} of {self.n_pages} is not in use")

    def _open(self) -> np.ndarray:
        if self.arena is None:
            raise ModelClosedError("the KV cache is closed; load the model again")
        return self.arena


def quantize_row(x: np.ndarray) -> tuple[np.ndarray, np.float16]:
    """float32 (n,) -> int8 (n,) in -127 .. 127 and the float16 scale that they are multiplied with."""
    with np.errstate(all="ignore"):  # what is not finite makes the scale so, and the pass says where it comes from
        d = np.float16(np.abs(x).max() / np.float32(127))
        inverse = np.float32(1) / np.float32(d) if d > 0 else np.float32(0)
        scaled = x.astype(np.float32) * inverse
    return np.rint(np.nan_to_num(np.clip(scaled, -127, 127), nan=127)).astype(np.int8), d


def _reserve(n_bytes: int) -> np.ndarray:
    """Zeroed bytes that take no memory until they are written. Private: a forked child gets its own copy."""
    try:
        if os.name == "nt":
            arena = mmap.mmap(-1, n_bytes)
        else:
            arena = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError, ValueError, MemoryError):
        free = memory().available
        raise NotEnoughMemoryError(n_bytes, free, ["a shorter context (n_ctx)"], what="the KV cache") from None
    if n_bytes >= _HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            arena.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(arena, dtype=np.uint8)
