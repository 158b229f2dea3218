"""A sequence: one conversation's place in the cache, a page table over the pool."""

from __future__ import annotations

import numpy as np

from ..errors import ContextOverflowError, InvalidArgumentError, ModelClosedError, NotEnoughMemoryError
from ..machine import memory
from .pool import NO_PAGE, PagePool, n_blocks
from .span import Span


def _empty_table(n_layers: int, blocks: int) -> np.ndarray:
    """int32 (n_layers, blocks), all NO_PAGE."""
    try:
        return np.full((n_layers, blocks), NO_PAGE, dtype=np.int32)
    except MemoryError:
        need, free = 4 * n_layers * blocks, memory().available
        raise NotEnoughMemoryError(need, free, ["a shorter context (n_ctx)"], what="the page table") from None


class Sequence:
    """One conversation's place in the cache: a page table, and how many positions hold valid K and V.

    `table` is int32 (n_layers, ceil(n_ctx / 64)), -1 where there is no page. A pass over positions
    [length, length + n) goes: `ensure(length + n)`, the backend's forward, `commit(length + n)`. When the pass failed,
    `rewind(length)` gives its pages back. Use it as a context manager, or `close` it.

    The table is a ring behind a fixed head: block b (positions 64 b ..) lies in column `column(b)`. `span` says which
    positions a token sees.

    Raises InvalidArgumentError for n_ctx < 1, NotEnoughMemoryError for a table that does not fit.
    """

    def __init__(self, pool: PagePool, n_ctx: int) -> None:
        if not 1 <= n_ctx < 2**31:
            raise InvalidArgumentError(f"n_ctx is {n_ctx}; choose 1 to 2^31 - 1")
        self.pool, self.n_ctx, self.length = pool, n_ctx, 0
        self.table = _empty_table(pool.shape.n_layers, n_blocks(n_ctx))
        self.head_blocks, self.ring = 0, self.table.shape[1]
        self.span = Span()
        self._closed = False

    def column(self, block: int) -> int:
        """Where in the table the page of a block of 64 positions stands."""
        head = self.head_blocks
        return block if block < head else head + (block - head) % self.ring

    @property
    def n_pages(self) -> int:
        """Pages that this sequence holds."""
        return int(np.count_nonzero(self.table != NO_PAGE))

    def ensure(self, n_tokens: int) -> None:
        """Makes sure that positions [0, n_tokens) have pages in every layer; nothing changes on failure.

        Raises ContextOverflowError beyond n_ctx, NotEnoughMemoryError when the pool is full, ModelClosedError.
        """
        if self._closed:
            raise ModelClosedError("the sequence is closed")
        if n_tokens > self.n_ctx:
            raise ContextOverflowError(n_tokens, self.n_ctx)
        part = self.table[:, : n_blocks(n_tokens)]
        missing = part == NO_PAGE
        n = int(np.count_nonzero(missing))
        if n:
            part[missing] = self.pool.allocate(n)

    def commit(self, n_tokens: int) -> None:
        """Positions [0, n_tokens) are valid now: a pass has written them. Raises InvalidArgumentError."""
        if not self.length <= n_tokens <= self.n_ctx or np.any(self.table[:, : n_blocks(n_tokens)] == NO_PAGE):
            raise InvalidArgumentError(f"commit of {n_tokens} tokens; the sequence has {self.length}")
        self.length = n_tokens

    def rewind(self, n_tokens: int) -> None:
        """Forgets everything from position `n_tokens` on and frees the pages that lie wholly beyond it.

        Raises InvalidArgumentError unless 0 <= n_tokens <= length.
        """
        if not 0 <= n_tokens <= self.length:
            raise InvalidArgumentError(f"rewind to {n_tokens} tokens; the sequence has {self.length}")
        beyond = self.table[:, n_blocks(n_tokens) :]
        for page in beyond[beyond != NO_PAGE]:
            self.pool.release(int(page))
        beyond[...] = NO_PAGE
        self.length = n_tokens

    def close(self) -> None:
        """Gives all pages back. Calling it again does nothing."""
        if not self._closed:
            self.rewind(0)
            self._closed = True

    def __enter__(self) -> Sequence:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
