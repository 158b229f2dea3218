"""Attention over KV pages: a streaming softmax (Milakov and Gimelshein 2018).

A page holds, for each KV head, K as [head_dim][64] and V as [64][head_dim] (`pages`). It is decoded to float32 once for
all the queries of a tile: up to 16 tokens times the query heads that share the KV head. The cache is cut into splits of
8 pages at fixed positions. Each split gives every query a partial result (maximum, sum, weighted values); these are
merged in ascending order, those of the head before those of the tail where a sequence has lost what lay between
(`edgellm.cache.Span`). A query's sums depend on nothing but its own position, so tiles, passes and threads change no
bit.
"""

from __future__ import annotations

import functools

import numpy as np
from numba import types
from numba.extending import register_jitable

from .intrinsics import at, fma, is_set, put, sum64
from .jit import F32, INT, Kernel, f32s, i8s, i32s, i64s, u16s, variant
from .pages import LOAD, STORE
from .span import HEAD, PAGE, TAIL, blocks_seen, page_of, seen
from .vector import exp32, tanh32

TILE = 16  # tokens whose queries share one decoded page
SPLIT = 8  # pages of a split
# A query's state: the maximum and the sum so far, those of the present split, and whether there was a split before.
_TOP, _SUM, _PART_TOP, _PART_SUM, _BEGUN, _STATE = 0, 1, 2, 3, 4, 5
STORE_K = STORE_V = STORE["f32"]  # `variant` sets those of the pages' types
LOAD_K = LOAD_V = LOAD["f32"]


def _store(
    k, v, bytes8, halves, floats, page_bytes, k_bytes, head_bytes, table, place, n_heads, head_dim, position, n_tokens
):  # fmt: skip
    """Writes k and v, (n_tokens, n_heads, head_dim), of positions [position, position + n_tokens) to their pages.

    The pool and its sizes are those of `pages.views`; `table` and `place` (`span`) name the page of each block.
    """
    for token in range(n_tokens):
        block, lane = (position + token) // PAGE, (position + token) % PAGE
        for head in range(n_heads):
            base = page_of(table, place, block) * page_bytes + head * head_bytes
            source = (token * n_heads + head) * head_dim
            STORE_K(k, source, head_dim, bytes8, halves, floats, base, True, lane)
            STORE_V(v, source, head_dim, bytes8, halves, floats, base + k_bytes, False, lane)


@register_jitable
def _score(q, query, page, factors, head_dim, softcap, low, high, scores, here, state, s):
    """scores[here + t] = factors[t] * q . K[t], -inf outside lanes [low, high); the split's maximum grows with them."""
    for t in range(PAGE):
        put(scores, here + t, np.float32(0.0))
    for d in range(head_dim):
        factor = at(q, query + d)
        for t in range(PAGE):
            put(scores, here + t, fma(factor, at(page, d * PAGE + t), at(scores, here + t)))
    top = at(state, s + _PART_TOP)
    for t in range(PAGE):
        value = at(scores, here + t) * at(factors, t)
        if softcap > 0:
            value = softcap * tanh32(value / softcap)
        value = value if low <= t and t < high else np.float32(-np.inf)
        put(scores, here + t, value)
        top = value if value > top or value != value else top
    put(state, s + _PART_TOP, top)


@register_jitable
def _weigh(page, factors, head_dim, low, high, scores, here, state, s, part, target):
    """Adds the values of lanes [low, high), weighed by exp(score - maximum), to part[target ..]; and the weights.

    A value is factors[t] * page[t].
    """
    top = at(state, s + _PART_TOP)
    for t in range(PAGE):
        put(scores, here + t, exp32(at(scores, here + t) - top))
    put(state, s + _PART_SUM, at(state, s + _PART_SUM) + sum64(scores, here))
    for t in range(low, high):
        factor = at(scores, here + t) * at(factors, t)
        for d in range(head_dim):
            put(part, target + d, fma(factor, at(page, t * head_dim + d), at(part, target + d)))


@register_jitable
def _add_split(state, s, mixed, part, target, head_dim):
    """Adds the partial result of the present split to what came before it: the first one is all there is."""
    before, top = at(state, s + _TOP), at(state, s + _PART_TOP)
    if at(state, s + _BEGUN) == 0:
        put(state, s + _BEGUN, np.float32(1.0))
        put(state, s + _TOP, top)
        put(state, s + _SUM, at(state, s + _PART_SUM))
        for i in range(target, target + head_dim):
            put(mixed, i, at(part, i))
        return
    new = top if top > before or top != top else before
    old_share, new_share = exp32(before - new), exp32(top - new)
    put(state, s + _TOP, new)
    put(state, s + _SUM, at(state, s + _SUM) * old_share + at(state, s + _PART_SUM) * new_share)
    for i in range(target, target + head_dim):
        put(mixed, i, at(mixed, i) * old_share + at(part, i) * new_share)


@register_jitable
def _meet_page(
    values, queries, page, factors, t0, t1, n_heads, head, group, head_dim, softcap, stretch, place, position, ahead,
    window, block, scores, state, part,
):  # fmt: skip
    """All queries of a tile, tokens [t0, t1), meet a decoded page of keys, or of values."""
    for i in range((t1 - t0) * group):
        low, high = seen(stretch, place, max(position + t0 + i // group, ahead), window)
        low, high = max(low - block * PAGE, 0), min(high - block * PAGE, PAGE)  # lanes [low, high) are seen
        here, s = (i * SPLIT + block % SPLIT) * PAGE, i * _STATE
        if low < high and values == 0:
            query = ((t0 + i // group) * n_heads + head * group + i % group) * head_dim
            _score(queries, query, page, factors, head_dim, softcap, low, high, scores, here, state, s)
        elif low < high:
            _weigh(page, factors, head_dim, low, high, scores, here, state, s, part, i * head_dim)


def _attend(
    q, turned, out, bytes8, halves, floats, page_bytes, k_bytes, head_bytes, table, place, n_heads, n_kv, head_dim,
    window, scale, softcap, position, n_tokens, causal, first, last, cancel,
):  # fmt: skip
    """Items [first, last) of (token tile, KV head): out = softmax(scale * q . K) V, both (n_tokens, n_heads, head_dim).

    A token sees the positions of `span.seen`: the head's keys meet `turned` (as q), the tail's meet `q`. Where `causal`
    is 0, it sees what the last token of the pass sees.
    """
    ahead = 0 if causal else position + n_tokens - 1  # every token sees at least what the token here does
    group = n_heads // n_kv
    n_states = min(TILE, n_tokens) * group  # queries of a tile
    page = np.empty(head_dim * PAGE, np.float32)  # K (head_dim, 64) or V (64, head_dim)
    factors = np.empty(PAGE, np.float32)
    scores = np.empty(n_states * SPLIT * PAGE, np.float32)  # (n_states, SPLIT, 64)
    state = np.empty(n_states * _STATE, np.float32)  # (n_states, _STATE)
    mixed, part = np.empty(n_states * head_dim, np.float32), np.empty(n_states * head_dim, np.float32)
    for item in range(first, last):
        head, t0 = item % n_kv, item // n_kv * TILE
        t1 = min(t0 + TILE, n_tokens)
        state[:] = np.float32(0.0)
        for stretch in range(HEAD, TAIL + 1):
            start, end = blocks_seen(
                stretch, place, max(position + t0, ahead), max(position + t1, ahead + 1), window
            )
            for split in range(start // SPLIT, (end - 1) // SPLIT + 1):
                for i in range(n_states):
                    put(state, i * _STATE + _PART_TOP, np.float32(-np.inf))
                    put(state, i * _STATE + _PART_SUM, np.float32(0.0))
                part[:] = np.float32(0.0)
                b0, b1 = max(split * SPLIT, start), min(split * SPLIT + SPLIT, end)
                for step in range(2 * (b1 - b0)):  # first the keys of all pages of the split, then their values
                    if is_set(cancel):
                        return
                    values, block = step // (b1 - b0), b0 + step % (b1 - b0)
                    base = page_of(table, place, block) * page_bytes + head * head_bytes
                    if values:
                        one = np.float32(1.0)
                        LOAD_V(page, factors, one, head_dim, bytes8, halves, floats, base + k_bytes, False)
                    else:
                        LOAD_K(page, factors, scale, head_dim, bytes8, halves, floats, base, True)
                    _meet_page(
                        values, q if stretch == TAIL else turned, page, factors, t0, t1, n_heads, head, group, head_dim,
                        softcap, stretch, place, position, ahead, window, block, scores, state, part,
                    )  # fmt: skip
                for i in range((t1 - t0) * group):
                    low, high = seen(stretch, place, max(position + t0 + i // group, ahead), window)
                    if max(low, b0 * PAGE) < min(high, b1 * PAGE):
                        _add_split(state, i * _STATE, mixed, part, i * head_dim, head_dim)
        for i in range((t1 - t0) * group):
            target = ((t0 + i // group) * n_heads + head * group + i % group) * head_dim
            for d in range(head_dim):
                put(out, target + d, at(mixed, i * head_dim + d) / at(state, i * _STATE + _SUM))


@functools.cache
def kernels(k_type: str, v_type: str) -> tuple[Kernel, Kernel]:
    """(store, attend) for pages that hold K and V in these types (`edgellm.cache.KV_TYPES`)."""
    cache = (i8s, u16s, f32s, INT, INT, INT, i32s, i64s)
    store = types.void(f32s, f32s, *cache, INT, INT, INT, INT)
    attend = types.void(f32s, f32s, f32s, *cache, INT, INT, INT, INT, F32, F32, INT, INT, INT, INT, INT, i32s)
    name = k_type if k_type == v_type else f"{k_type}_{v_type}"
    return (
        Kernel(variant(_store, STORE_K=STORE[k_type], STORE_V=STORE[v_type]), store, f"store_{name}"),
        Kernel(variant(_attend, LOAD_K=LOAD[k_type], LOAD_V=LOAD[v_type]), attend, f"attend_{name}"),
    )
