"""A sequence: one conversation's place in the cache, a page table over the pool."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..errors import ContextOverflowError, InvalidArgumentError, ModelClosedError, NotEnoughMemoryError
from ..machine import memory
from .overflow import PASS_TOKENS, Overflow
from .pages import PAGE_TOKENS
from .pool import NO_PAGE, PagePool
from .sizes import SLACK_TOKENS, n_blocks

UNKNOWN = -1  # the id of a token of which only keys and values are known


def _empty_table(n_layers: int, blocks: int) -> np.ndarray:
    """int32 (n_layers, blocks), all NO_PAGE."""
    try:
        return np.full((n_layers, blocks), NO_PAGE, dtype=np.int32)
    except MemoryError:
        need, free = 4 * n_layers * blocks, memory().available
        raise NotEnoughMemoryError(need, free, ["a shorter context (n_ctx)"], what="the page table") from None


class _Layers:
    """Layers that forget at the same pace: those with one window of their own (0: none). `oldest` is the first block
    behind the head of which they may hold a page."""

    def __init__(self, window: int, layers: list[int], oldest: int) -> None:
        self.window, self.oldest = window, oldest
        self.layers = np.array(layers, dtype=np.intp)  # (n,)


class Sequence:
    """One conversation's place in the cache: a page table, and how many positions hold valid K and V.

    A pass over positions [length, length + n) goes: `ensure(length + n)`, the backend's forward, `commit(length + n)`.
    When the pass failed, `rewind(length)` takes everything back. Use it as a context manager, or `close` it.

    `overflow` says what happens beyond `n_ctx` tokens, `span` which positions a token sees. Pages that no layer sees
    any more go back to the pool when a pass is committed, never before. A page that others hold too is copied before it
    is written to.

    `table` is int32 (n_layers, head_blocks + ring), -1 where there is no page: a ring behind a fixed head. Block b
    (positions 64 b ..) lies in column `column(b)`.

    Raises InvalidArgumentError for n_ctx < 1 or a policy that does not go with it, NotEnoughMemoryError for a table
    that does not fit.
    """

    def __init__(self, pool: PagePool, n_ctx: int, overflow: Overflow | str | None = None) -> None:
        self.overflow = Overflow.parse(overflow).fit(n_ctx)
        self.pool, self.n_ctx, self.length = pool, n_ctx, 0
        self.exact = 0  # so many tokens, from the first on, are what exact passes make of them
        self.limit = self.overflow.limit(n_ctx)  # positions that there can be
        self.span = self._settled = self.overflow.span()  # that of the running pass, and that of the last commit
        self.head_blocks = n_blocks(self.span.keep)
        tail = self.overflow.tail_tokens(n_ctx)
        self.ring = n_blocks(tail) if self.overflow.kind == "error" else n_blocks(tail + PASS_TOKENS) + 1
        self.table = _empty_table(pool.shape.n_layers, self.head_blocks + self.ring)
        self.turns: list[int] = []  # positions where turns begin, for drop-turns; those that were dropped leave
        self._ids: list[int] = []  # of positions [_first_id, length)
        self._first_id = 0
        self._head_ids: list[int] = []  # of the head, once it is not among _ids any more
        self._blocks = 0  # blocks below this one have had their pages
        self._layers = [
            _Layers(window, [i for i, w in enumerate(pool.shape.layer_windows) if w == window], self.head_blocks)
            for window in sorted({0, *pool.shape.layer_windows})
        ]
        self._closed = False

    def column(self, block: int) -> int:
        """Where in the table the page of a block of 64 positions stands."""
        head = self.head_blocks
        return block if block < head else head + (block - head) % self.ring

    def columns(self, first: int, end: int) -> np.ndarray:
        """int64 (end - first,): `column` of blocks first .. end - 1."""
        if end - first == 1:  # as in decoding: five times as fast
            return np.array([self.column(first)])
        blocks, head = np.arange(first, end), self.head_blocks
        return np.where(blocks < head, blocks, head + (blocks - head) % self.ring)

    @property
    def n_pages(self) -> int:
        """Pages that this sequence holds."""
        return int(np.count_nonzero(self.table != NO_PAGE))

    @property
    def dropped(self) -> int:
        """Tokens that the last one did not see any more."""
        return self.span.shift(self.length - 1) if self.length else 0

    @property
    def ids(self) -> list[int]:
        """Ids of the tokens that are still seen, head and tail, in order: `length - dropped` of them."""
        if not self.dropped:
            return list(self._ids)
        start = self.span.start(self.length - 1)
        head = self._head_ids if self._first_id else self._ids[: self.span.keep]
        return head + self._ids[start - self._first_id :]

    # ---- a pass

    def has_room(self, n: int = 1) -> bool:
        """Whether the policy has room for `n` tokens more; the pool may still be full."""
        try:
            self.overflow.room(self._settled, self.length, self.length + n, self.n_ctx, self.turns)
        except ContextOverflowError:
            return False
        return True

    def spare(self, most: int) -> int:
        """How many of `most` tokens (64 at most) a pass can have behind its first one, at no cost to anybody: nothing
        is dropped for them, and there are free pages."""
        first = self.length + 1
        n = min(most, self.overflow.spare(self._settled, self.length, self.n_ctx) - 1)
        if n > 0 and n_blocks(first + n) > n_blocks(first) and self.pool.n_free < 2 * len(self.table):
            n = n_blocks(first) * PAGE_TOKENS - first
        return max(0, n)

    def trim(self) -> None:
        """Gives back pages of positions that a pass had and that were not committed."""
        if self._blocks > n_blocks(self.length):
            self.rewind(self.length)

    def ensure(self, n_tokens: int) -> None:
        """Makes sure that positions [length, n_tokens) have pages in every layer, this sequence's alone.

        Where the policy has to drop tokens for them, `span` changes. Nothing changes on failure. Raises
        ContextOverflowError (the policy has no room), NotEnoughMemoryError (the pool is full), InvalidArgumentError
        (more tokens than one pass may have), ModelClosedError.
        """
        self._check_open()
        span = self.overflow.room(self._settled, self.length, n_tokens, self.n_ctx, self.turns)
        first, end = self.length // PAGE_TOKENS, n_blocks(n_tokens)
        if end - max(self._layers[0].oldest, self.head_blocks) > self.ring:
            raise InvalidArgumentError(f"a pass of {n_tokens - self.length} tokens; choose up to {PASS_TOKENS}")
        columns = self.columns(first, max(first, end))
        pages = self.table[:, columns]  # (n_layers, blocks), a copy
        wanted = (self.pool.refs[pages] > 1) | (pages == NO_PAGE)  # shared ones, and those that are not there
        if wanted.any():
            old = pages[wanted]
            pages[wanted] = self.pool.allocate(len(old))
            for source, target in zip(old.tolist(), pages[wanted].tolist(), strict=True):
                if source != NO_PAGE:
                    self.pool.copy(source, target)
                    self.pool.release(source)
            self.table[:, columns] = pages
        self.span, self._blocks = span, max(self._blocks, end)

    def commit(self, n_tokens: int, ids: Iterable[int] | None = None, exact: bool = False) -> None:
        """Positions [length, n_tokens) are valid now: a pass has written them.

        `ids` are their tokens, if known; `exact` says whether it was an exact pass.

        Gives back the pages that no layer sees any more. Raises InvalidArgumentError.
        """
        new = [UNKNOWN] * (n_tokens - self.length) if ids is None else list(ids)
        if not self.length <= n_tokens <= self.limit or n_blocks(n_tokens) > self._blocks:
            raise InvalidArgumentError(f"commit of {n_tokens} tokens; the sequence has {self.length}")
        if len(new) != n_tokens - self.length:
            raise InvalidArgumentError(f"commit of {n_tokens - self.length} tokens with {len(new)} ids")
        if not new:  # nothing was accepted, so nothing is dropped for it
            self.span = self._settled
            return
        self._ids += new
        if exact and self.exact == self.length:
            self.exact = n_tokens
        self.length, self._settled = n_tokens, self.span
        self._give_back()

    def _give_back(self) -> None:
        start = self.span.start(self.length)  # what the next token sees of the tail
        for group in self._layers:
            seen = max(start, self.length - group.window + 1 - SLACK_TOKENS) if group.window else start
            oldest = max(self.head_blocks, min(seen, self.length) // PAGE_TOKENS)
            if oldest > group.oldest:
                self._release(group.layers, self.columns(group.oldest, oldest))
                group.oldest = oldest
        oldest = self._layers[0].oldest  # the first group: layers without a window of their own
        if oldest > self.head_blocks and (first := oldest * PAGE_TOKENS - 1) > self._first_id:
            if not self._first_id:
                self._head_ids = self._ids[: self.span.keep]
            del self._ids[: first - self._first_id]
            self._first_id = first
            self.turns = [turn for turn in self.turns if turn >= start]

    def _release(self, layers: np.ndarray, columns: np.ndarray) -> None:
        """Gives back what some layers hold in `columns`."""
        part = self.table[np.ix_(layers, columns)]
        for page in part[part != NO_PAGE].tolist():
            self.pool.release(page)
        self.table[np.ix_(layers, columns)] = NO_PAGE

    # ---- back

    def can_rewind(self, n_tokens: int) -> bool:
        """Whether everything is still there that a token at position `n_tokens` sees. What was dropped by hand (by
        `shift` or `drop-turns`) stays dropped, unless `n_tokens` is within the head."""
        if not 0 <= n_tokens <= self.length:
            return False
        span = self._settled
        if n_tokens <= span.keep:
            return True  # the head is always there, for every layer
        start = span.start(n_tokens)
        if n_tokens < start:
            return False
        for group in self._layers:
            seen = max(start, n_tokens - group.window + 1) if group.window else start
            if max(self.head_blocks, seen // PAGE_TOKENS) < group.oldest:
                return False
        return True

    def rewind(self, n_tokens: int) -> None:
        """Forgets everything from position `n_tokens` on and frees the pages that lie wholly beyond it.

        0 is always possible. Raises InvalidArgumentError unless `can_rewind(n_tokens)`.
        """
        if not self.can_rewind(n_tokens):
            raise InvalidArgumentError(
                f"rewind to {n_tokens} tokens; the sequence has {self.length}, of which {self.dropped} were dropped"
            )
        kept = n_blocks(n_tokens)
        self._release(np.arange(len(self.table)), np.unique(self.columns(kept, max(kept, self._blocks))))
        self._blocks = kept
        self.length, self.exact = n_tokens, min(self.exact, n_tokens)
        for group in self._layers:
            group.oldest = min(group.oldest, max(self.head_blocks, kept))
        if n_tokens <= self._settled.keep:
            self._settled = self.overflow.span()
            if self._first_id:
                self._ids, self._first_id = self._head_ids, 0
        self.span = self._settled
        del self._ids[n_tokens - self._first_id :]
        self.turns = [turn for turn in self.turns if turn <= n_tokens]

    def begin_turn(self) -> None:
        """A turn begins with the next token: `drop-turns` may drop what stands before it."""
        if self.turns[-1:] != [self.length]:
            self.turns.append(self.length)

    # ---- others of the same pool

    def fork(self) -> Sequence:
        """Another sequence with the same tokens, which shares the pages. Raises ModelClosedError."""
        self._check_open()
        other = Sequence(self.pool, self.n_ctx, self.overflow)
        other.table[...] = self.table
        self.pool.retain_all(self.table[self.table != NO_PAGE])
        other.length, other.exact, other._blocks = self.length, self.exact, self._blocks
        other._first_id, other._settled, other.turns = self._first_id, self._settled, list(self.turns)
        other._ids, other._head_ids = list(self._ids), list(self._head_ids)
        for mine, own in zip(self._layers, other._layers, strict=True):
            own.oldest = mine.oldest
        other.rewind(other.length)  # pages of a pass that runs are not shared
        return other

    def adopt(self, ids: list[int], pages: np.ndarray, exact: int) -> None:
        """An empty sequence begins with the tokens `ids`, whose keys and values are in `pages`, int32 (n_layers,
        blocks), -1 where a layer has forgotten a block. The pages are shared; `exact` is as in the attribute."""
        columns = self.columns(0, pages.shape[1])
        self.pool.retain_all(pages[pages != NO_PAGE])
        self.table[:, columns] = pages
        self.length, self.exact, self._ids, self._blocks = len(ids), exact, ids, pages.shape[1]
        self._give_back()

    def restore(self, fork: Sequence) -> None:
        """Becomes what `fork` is, and takes its pages; `fork` is closed then."""
        self.close()
        self.__dict__.update(fork.__dict__)
        fork._closed, fork.table = True, np.full_like(fork.table, NO_PAGE)

    def close(self) -> None:
        """Gives all pages back. Calling it again does nothing."""
        if not self._closed:
            self.rewind(0)
            self._closed = True

    @property
    def closed(self) -> bool:
        return self._closed

    def _check_open(self) -> None:
        if self._closed:
            raise ModelClosedError("the sequence is closed")

    def __enter__(self) -> Sequence:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
