"""Which positions a token sees, and where their pages stand: `edgellm.cache.Span` and `Sequence.column`, compiled.

`place` is int64 (5,): head_blocks and ring of the sequence; keep, first and window of its span.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

from .intrinsics import at

HEAD, TAIL = 0, 1  # the two stretches: the head is met by the query once more turned, the tail by the query as it is
PAGE = 64  # tokens of a page (edgellm.cache.PAGE_TOKENS)
_HEAD_BLOCKS, _RING, _KEEP, _FIRST, _WINDOW = 0, 1, 2, 3, 4


def place_of(seq: Any) -> np.ndarray:
    """The `place` of a sequence, int64 (5,)."""
    span = seq.span
    return np.array([seq.head_blocks, seq.ring, span.keep, span.first, span.window], np.int64)


@register_jitable
def page_of(table, place, block):
    """The page of a block of 64 positions."""
    head = at(place, _HEAD_BLOCKS)
    return np.int64(at(table, block if block < head else head + (block - head) % at(place, _RING)))


@register_jitable
def _start(place, t):
    start = at(place, _FIRST)
    if at(place, _WINDOW) > 0:
        start = max(start, t - at(place, _WINDOW) + 1)
    return start if start > at(place, _KEEP) else 0


@register_jitable
def seen(stretch, place, t, window):
    """Positions [low, high) of a stretch that token t sees in a layer with this window (0: none); low >= high: none."""
    start, keep = _start(place, t), at(place, _KEEP)
    if stretch == TAIL:
        return max(start, t - window + 1 if window > 0 else 0), t + 1
    if start == 0:  # all is one stretch, the tail
        return 0, 0
    return max(t - (start - keep) - window + 1 if window > 0 else 0, 0), keep


@register_jitable
def blocks_seen(stretch, place, t0, t1, window):
    """Blocks [first, end) of a stretch that one of the tokens [t0, t1) sees; end 0: none."""
    first, end = 0, 0
    for t in range(t0, t1):
        low, high = seen(stretch, place, t, window)
        if low < high:
            first = low // PAGE if end == 0 else min(first, low // PAGE)
            end = max(end, (high - 1) // PAGE + 1)
    return first, end
