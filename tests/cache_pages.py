"""Recognisable numbers in pages: what a pass would write, and what must be found later."""

from __future__ import annotations

import numpy as np

from edgellm.cache import NO_PAGE, PAGE_TOKENS, Sequence


def write(seq: Sequence, position: int, value: float) -> None:
    """Puts `value` into every K and V lane of a position, other numbers for each layer and head, as a pass would."""
    block, lane = divmod(position, PAGE_TOKENS)
    for layer in range(len(seq.table)):
        for head in range(seq.pool.shape.n_kv_heads):
            page = int(seq.table[layer, seq.column(block)])
            assert seq.pool.refs[page] == 1, "only a page of one's own is written to"
            seq.pool.k_view(page, head)[:, lane] = value + layer
            seq.pool.v_view(page, head)[lane] = -value - head


def append(seq: Sequence, values: list[int]) -> None:
    """One pass that writes `values` and has them as ids too."""
    start = seq.length
    seq.ensure(start + len(values))
    for i, value in enumerate(values):
        write(seq, start + i, float(value))
    seq.commit(start + len(values), values)


def check(seq: Sequence, values: list[int]) -> None:
    """Everything that the last and the next token see holds the values (one for each position) that were written."""
    assert seq.length == len(values)
    if not values:
        return
    for layer, window in enumerate(seq.pool.shape.layer_windows):
        for t in {seq.length - 1, seq.length}:
            for position in seen(seq, t, window):
                if position < seq.length and (t == seq.length or held(seq, layer, position)):
                    check_one(seq, layer, position, float(values[position]))
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


def check_one(seq: Sequence, layer: int, position: int, value: float) -> None:
    block, lane = divmod(position, PAGE_TOKENS)
    page = int(seq.table[layer, seq.column(block)])
    assert page != NO_PAGE, (layer, position)
    for head in range(seq.pool.shape.n_kv_heads):
        assert (seq.pool.k_view(page, head)[:, lane] == np.float32(value + layer)).all()
        assert (seq.pool.v_view(page, head)[lane] == np.float32(-value - head)).all()
