"""A pool of KV pages of 64 tokens (pages.py says what is in one), and the only cache there is.

A page may belong to several sequences (reference counts).
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable

import numpy as np

from ..errors import EdgeLLMError, InvalidArgumentError, ModelClosedError, NotEnoughMemoryError
from ..machine import memory
from ..plan import KVShape
from .pages import PageLayout
from .sizes import n_blocks

NO_PAGE = -1
_HUGE = 32 << 20  # arenas from this size on ask for 2 MB pages: attention reads all of the cache for each token


class PageError(EdgeLLMError):
    """A page was released or used that nobody holds: a fault in edgellm, stopped before it damages the cache."""


class PagePool:
    """All pages of one model. The arena is virtual memory: a page costs memory once something was written to it.

    `arena` is uint8 (n_pages, page_bytes), its first byte at `address`, aligned to a memory page. A page is all zeros
    when it is handed out. Not thread-safe: a model uses its pool from one thread at a time.

    Raises InvalidArgumentError (kv_type, n_pages), NotEnoughMemoryError (the arena cannot be reserved).
    """

    def __init__(self, shape: KVShape, kv_type: str, n_pages: int) -> None:
        if not 1 <= n_pages < 2**31:
            raise InvalidArgumentError(f"a page pool of {n_pages} pages; choose 1 to 2^31 - 1")
        self.shape, self.kv_type, self.n_pages = shape, kv_type, n_pages
        self.layout = PageLayout(shape, kv_type)
        self.page_bytes = self.layout.page_bytes
        self.arena: np.ndarray | None = _reserve(n_pages * self.page_bytes).reshape(n_pages, self.page_bytes)
        self.refs = np.zeros(n_pages, dtype=np.int32)  # (n_pages,) how many sequences hold each page
        self._fresh = 0  # pages from here on were never handed out: they are zero and cost nothing
        self._free: list[int] = []  # pages that were released, last one first
        self.reclaim: Callable[[int], object] | None = None  # asked, when fewer than n pages are free, to release some

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
        if n > self.n_free and self.reclaim is not None:
            self.reclaim(n)
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

    def retain_all(self, pages: np.ndarray) -> None:
        """One more reference to each of some pages, int (n,), no page twice. Raises PageError."""
        for page in pages[(pages < 0) | (pages >= self.n_pages) | (self.refs[pages % self.n_pages] < 1)].tolist():
            self._held(page)
        self.refs[pages] += 1

    def copy(self, source: int, target: int) -> None:
        """Page `target` gets the bytes of `source`. Raises PageError."""
        self._held(source)
        self._held(target)
        arena = self._open()
        arena[target] = arena[source]

    def release(self, page: int) -> None:
        """One reference less; the last one puts the page on the free list. Raises PageError."""
        self._held(page)
        self.refs[page] -= 1
        if self.refs[page] == 0:
            self._free.append(page)

    def k_view(self, page: int, head: int) -> np.ndarray:
        """As PageLayout.k_view. Raises PageError, ModelClosedError, as do the following."""
        return self.layout.k_view(self._page(page), head)

    def v_view(self, page: int, head: int) -> np.ndarray:
        """As PageLayout.v_view."""
        return self.layout.v_view(self._page(page), head)

    def store(self, page: int, head: int, lane: int, k: np.ndarray, v: np.ndarray) -> None:
        """As PageLayout.store."""
        self.layout.store(self._page(page), head, lane, k, v)

    def load(self, page: int, head: int) -> tuple[np.ndarray, np.ndarray]:
        """As PageLayout.load."""
        return self.layout.load(self._page(page), head)

    def close(self) -> None:
        """Gives the memory back as soon as no view of it is left. Calling it again does nothing."""
        self.arena = None

    def _page(self, page: int) -> np.ndarray:
        """uint8 (page_bytes,) of one page."""
        self._held(page)
        row: np.ndarray = self._open()[page]
        return row

    def _held(self, page: int) -> None:
        if not 0 <= page < self.n_pages or self.refs[page] < 1:
            raise PageError(f"page {page} of {self.n_pages} is not in use")

    def _open(self) -> np.ndarray:
        if self.arena is None:
            raise ModelClosedError("the KV cache is closed; load the model again")
        return self.arena


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
