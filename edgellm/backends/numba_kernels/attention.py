"""Attention over KV pages: a streaming softmax (Milakov and Gimelshein 2018), page after page in ascending order.

A page holds, for each KV head, K as [head_dim][64] and V as [64][head_dim]. It is decoded to float32 once for all the
queries of a tile (up to 16 tokens times the query heads that share the KV head). Each query only sees its own pages in
order, so tiles and threads change no bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import register_jitable

from .intrinsics import at, f16_to_f32, f32_to_f16, fma, is_set, put
from .jit import F32, INT, Kernel, f32s, i32s, u16s, variant
from .vector import exp32

TILE = 16  # tokens whose queries share one decoded page
PAGE = 64  # tokens of a page (edgellm.kv.PAGE_TOKENS)


def _store(k, v, arena, page_size, table, n_heads, head_dim, position, n_tokens):
    """Writes k and v, (n_tokens, n_heads, head_dim), of positions [position, position + n_tokens) to their pages.

    `arena` is the pool as elements of its type, `page_size` elements per page; `table` names the page of each block.
    """
    for token in range(n_tokens):
        block, lane = (position + token) // PAGE, (position + token) % PAGE
        for head in range(n_heads):
            base = np.int64(at(table, block)) * page_size + head * 2 * head_dim * PAGE
            source = (token * n_heads + head) * head_dim
            for d in range(head_dim):
                put(arena, base + d * PAGE + lane, ENCODE(at(k, source + d)))
                put(arena, base + (PAGE + lane) * head_dim + d, ENCODE(at(v, source + d)))


def _attend(
    q, out, arena, page_size, table, n_heads, n_kv_heads, head_dim, window, scale, position, n_tokens, first, last, cancel
):
    """Items [first, last) of (token tile, KV head): out = softmax(scale * q . K) V, both (n_tokens, n_heads, head_dim).

    A token at position p sees [max(0, p - window + 1), p] (window 0: all up to p).
    """
    group = n_heads // n_kv_heads
    n_queries, area = TILE * group, head_dim * PAGE
    keys, values = np.empty(area, np.float32), np.empty(area, np.float32)  # (head_dim, 64), (64, head_dim)
    scores = np.empty(PAGE, np.float32)
    largest, total = np.empty(n_queries, np.float32), np.empty(n_queries, np.float32)
    mixed = np.empty(n_queries * head_dim, np.float32)  # (n_queries, head_dim), sums of values
    lowest = np.float32(-np.inf)
    for item in range(first, last):
        tile, head = item // n_kv_heads, item % n_kv_heads
        t0 = tile * TILE
        t1 = min(t0 + TILE, n_tokens)
        largest[:] = lowest
        total[:] = np.float32(0.0)
        mixed[:] = np.float32(0.0)
        first_seen = max(position + t0 - window + 1, 0) if window > 0 else 0
        for block in range(first_seen // PAGE, (position + t1 - 1) // PAGE + 1):
            if is_set(cancel):
                return
            base = np.int64(at(table, block)) * page_size + head * 2 * area
            for i in range(area):
                put(keys, i, DECODE(at(arena, base + i)))
            for i in range(area):
                put(values, i, DECODE(at(arena, base + area + i)))
            for token in range(t0, t1):
                own = position + token
                low = max(own - window + 1 - block * PAGE, 0) if window > 0 else 0
                high = min(own + 1 - block * PAGE, PAGE)  # lanes [low, high) are seen
                if low >= high:
                    continue
                for g in range(group):
                    state = (token - t0) * group + g
                    query = (token * n_heads + head * group + g) * head_dim
                    for t in range(PAGE):
                        put(scores, t, np.float32(0.0))
                    for d in range(head_dim):
                        factor = at(q, query + d)
                        for t in range(PAGE):
                            put(scores, t, fma(factor, at(keys, d * PAGE + t), at(scores, t)))
                    before = at(largest, state)
                    top = before
                    for t in range(low, high):
                        value = at(scores, t) * scale
                        put(scores, t, value)
                        if value > top or value != value:
                            top = value
                    for t in range(PAGE):
                        put(scores, t, exp32(at(scores, t) - top) if low <= t and t < high else np.float32(0.0))
                    here = np.float32(0.0)
                    for t in range(low, high):
                        here += at(scores, t)
                    fade = exp32(before - top)
                    put(largest, state, top)
                    put(total, state, fma(at(total, state), fade, here))
                    if top != before:
                        for d in range(head_dim):
                            put(mixed, state * head_dim + d, at(mixed, state * head_dim + d) * fade)
                    for t in range(low, high):
                        factor = at(scores, t)
                        for d in range(head_dim):
                            there = state * head_dim + d
                            put(mixed, there, fma(factor, at(values, t * head_dim + d), at(mixed, there)))
        for token in range(t0, t1):
            for g in range(group):
                state = (token - t0) * group + g
                target = (token * n_heads + head * group + g) * head_dim
                for d in range(head_dim):
                    put(out, target + d, at(mixed, state * head_dim + d) / at(total, state))


@register_jitable
def _itself(x: Any) -> Any:
    return x


def _pair(kv_type: str, arena: Any, encode: Any, decode: Any) -> tuple[Kernel, Kernel]:
    store = types.void(f32s, f32s, arena, INT, i32s, INT, INT, INT, INT)
    attend = types.void(f32s, f32s, arena, INT, i32s, INT, INT, INT, INT, F32, INT, INT, INT, INT, i32s)
    return (
        Kernel(variant(_store, ENCODE=encode), store, f"store_{kv_type}"),
        Kernel(variant(_attend, DECODE=decode), attend, f"attend_{kv_type}"),
    )


KERNELS: dict[str, tuple[Kernel, Kernel]] = {  # by the pool's type: (store, attend)
    "f32": _pair("f32", f32s, _itself, _itself),
    "f16": _pair("f16", u16s, f32_to_f16, f16_to_f32),
}
