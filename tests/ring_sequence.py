"""A sequence over a ring of pages with any span, for tests of what backends read: strict, and nothing but a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgellm.backends import create
from edgellm.cache import NO_PAGE, PAGE_TOKENS, PagePool, Span, n_blocks
from edgellm.plan import Plan
from edgellm.weights import Weights


class RingSequence:
    """What a backend needs of a sequence: head_blocks + ring columns, from `plan` the windows of its layers.

    What no later token of a layer sees leaves at `commit`: whole pages, and what shares a page with something that is
    still seen becomes NaN. Whoever reads it is found out.
    """

    def __init__(self, pool: PagePool, plan: Plan, head_blocks: int, ring: int, span: Span) -> None:
        self.pool, self.head_blocks, self.ring, self.span = pool, head_blocks, ring, span
        self.table = np.full((pool.shape.n_layers, head_blocks + ring), NO_PAGE, np.int32)
        self.length, self.n_ctx = 0, 2**31 - 1
        self.windows = {s.params["layer"]: s.params["window"] for s in plan.steps if s.op.value == "attention"}
        self.held: list[set[int]] = [set() for _ in self.table]  # blocks of each layer

    def column(self, block: int) -> int:
        head = self.head_blocks
        return block if block < head else head + (block - head) % self.ring

    def ensure(self, n_tokens: int) -> None:
        """Pages for positions [length, n_tokens) in columns that must be free."""
        for block in range(n_blocks(self.length), n_blocks(n_tokens)):
            column = self.column(block)
            assert (self.table[:, column] == NO_PAGE).all()
            self.table[:, column] = self.pool.allocate(len(self.table))
            for held in self.held:
                held.add(block)

    def commit(self, n_tokens: int) -> None:
        """Positions [0, n_tokens) were written; what the next token does not see is taken away."""
        self.length = n_tokens
        for layer, held in enumerate(self.held):
            first = self.span.tail_seen(n_tokens, self.windows[layer]).start  # the head stays, whatever sees it
            for block in sorted(held):
                lanes = range(block * PAGE_TOKENS, (block + 1) * PAGE_TOKENS)
                lost = [p % PAGE_TOKENS for p in lanes if self.span.keep <= p < first]
                self._forget(layer, block, lost)

    def _forget(self, layer: int, block: int, lanes: list[int]) -> None:
        column = self.column(block)
        page = int(self.table[layer, column])
        if len(lanes) == PAGE_TOKENS:
            self.pool.release(page)
            self.table[layer, column] = NO_PAGE
            self.held[layer].remove(block)
        elif self.pool.kv_type != "q8_0":
            for head in range(self.pool.shape.n_kv_heads):
                self.pool.k_view(page, head)[:, lanes] = np.nan
                self.pool.v_view(page, head)[lanes] = np.nan


def streamed(
    name: str,
    plan: Plan,
    weights: Weights,
    ids: np.ndarray,
    spans: Span | Mapping[int, Span],
    *,
    kv_type: str = "f32",
    chunk: int = 64,
    columns: tuple[int, int] = (1, 8),
    **options: Any,
) -> np.ndarray:
    """Logits (n, n_vocab) of all positions, in passes of `chunk` tokens over head_blocks, ring = `columns`.

    `spans` {t: span}: from token t on; a pass never reaches over such a border.
    """
    spans = {0: spans} if isinstance(spans, Span) else dict(spans)
    borders = sorted({*range(0, len(ids), chunk), *spans, len(ids)})
    pool = PagePool(plan.kv, kv_type, sum(columns) * plan.kv.n_layers)
    backend = create(name, plan, weights, **{"max_tokens": chunk, **options})
    seq = RingSequence(pool, plan, *columns, Span())
    out = []
    try:
        for start, end in zip(borders, borders[1:], strict=False):
            if start in spans:
                seq.span = spans[start]
                seq.commit(start)
            seq.ensure(end)
            part = np.asarray(ids[start:end], np.int32)
            out.append(backend.forward(part, start, np.arange(part.size, dtype=np.int32), seq).copy())
            seq.commit(end)
    finally:
        backend.close()
    return np.concatenate(out)
