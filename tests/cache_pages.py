"""Recognisable numbers in pages: what a pass would write, and what must be found later."""

from __future__ import annotations

import numpy as np

from edgellm.cache import NO_PAGE, PAGE_TOKENS, Sequence


def write(seq: Sequence, start: int, values: list[float]) -> None:
    """Puts each of `values` into all K and V lanes of its position, other numbers for each layer and head, as a pass
    would that begins at `start`."""
    first, numbers = start, np.array(values, np.float32)
    while len(numbers):
        block, lane = divmod(first, PAGE_TOKENS)
        here, numbers = numbers[: PAGE_TOKENS - lane], numbers[PAGE_TOKENS - lane :]
        lanes = slice(lane, lane + len(here))
        for layer in range(len(seq.table)):
            page = int(seq.table[layer, seq.column(block)])
            assert seq.pool.refs[page] == 1, "only a page of one's own is written to"
            for head in range(seq.pool.shape.n_kv_heads):
                seq.pool.k_view(page, head)[:, lanes] = here + layer
                seq.pool.v_view(page, head)[lanes] = -here[:, None] - head
        first += len(here)


def append(seq: Sequence, values: list[int], exact: bool = False) -> None:
    """One pass that writes `values` and has them as ids too."""
    start = seq.length
    seq.ensure(start + len(values))
    write(seq, start, values)
    seq.commit(start + len(values), values, exact)


def check(seq: Sequence, values: list[int]) -> None:
    """Everything that the last and the next token see holds the values (one for each position) that were written."""
    assert seq.length == len(values)
    if not values:
        return
    for layer, window in enumerate(seq.pool.shape.layer_windows):
        check_positions(seq, layer, [p for p in seen(seq, seq.length, window) if p < seq.length], values)
        last = [p for p in seen(seq, seq.length - 1, window) if held(seq, layer, p)]
        check_positions(seq, layer, last, values)
    dropped = seq.dropped
    start = seq.span.start(seq.length - 1)
    assert seq.ids == (values[: seq.span.keep] + values[start:] if dropped else values)
    assert len(seq.ids) == seq.length - dropped


def seen(seq: Sequence, t: int, window: int) -> list[int]:
    """Positions that token t sees in a layer with a window of its own: straight from the definition in span.py."""
    start, shift = seq.span.start(t), seq.span.shift(t)
    tail = [j for j in range(start, t + 1) if not window or j > t - window]
    head = [s for s in range(seq.span.keep) if not window or s > t - shift - window] if shift else []
    return head + tail


def held(seq: Sequence, layer: int, position: int) -> bool:
    return bool(seq.table[layer, seq.column(position // PAGE_TOKENS)] != NO_PAGE)


def check_positions(seq: Sequence, layer: int, positions: list[int], values: list[int]) -> None:
    for block in sorted({p // PAGE_TOKENS for p in positions}):
        here = [p for p in positions if p // PAGE_TOKENS == block]
        lanes, want = [p % PAGE_TOKENS for p in here], np.array([values[p] for p in here], np.float32)
        page = int(seq.table[layer, seq.column(block)])
        assert page != NO_PAGE, (layer, block)
        for head in range(seq.pool.shape.n_kv_heads):
            assert (seq.pool.k_view(page, head)[:, lanes] == want + layer).all()
            assert (seq.pool.v_view(page, head)[lanes] == -want[:, None] - head).all()
