"""How many pages and bytes a cache takes, before there is one."""

from __future__ import annotations

from ..errors import InvalidArgumentError
from ..plan import KVShape
from .overflow import PASS_TOKENS
from .pages import PAGE_TOKENS, page_bytes

SLACK_TOKENS = 512  # that layers with a window of their own hold beyond it, so that a sequence can be rewound


def n_blocks(n_tokens: int) -> int:
    """Blocks of 64 positions that hold `n_tokens`."""
    return -(-n_tokens // PAGE_TOKENS)


def n_pages(shape: KVShape, n_tokens: int) -> int:
    """Most pages of one sequence of `n_tokens`: layers with a window of their own hold that much, what can be rewound,
    and the pass that runs."""
    pages = 0
    for window in shape.layer_windows:
        most = n_blocks(window + SLACK_TOKENS + PASS_TOKENS) + 1 if window else n_blocks(n_tokens)
        pages += min(most, n_blocks(n_tokens))
    return pages


def cache_bytes(shape: KVShape, kv_type: str, n_tokens: int) -> int:
    """Bytes of all pages of one sequence of `n_tokens`."""
    return n_pages(shape, n_tokens) * page_bytes(shape, kv_type)


def largest_n_ctx(most: int, shape: KVShape, kv_type: str, budget: int) -> int:
    """The longest context, up to `most` tokens, of which a pool of `budget` bytes holds one sequence.

    A result below `most` is a multiple of 64. Raises InvalidArgumentError where not even 64 tokens fit.
    """
    pages = budget // page_bytes(shape, kv_type)
    pool_pages(shape, kv_type, min(most, PAGE_TOKENS), 0, budget)
    low, high = 1, n_blocks(most)  # blocks: `low` fit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _one_sequence(shape, middle * PAGE_TOKENS) <= pages else (low, middle - 1)
    return min(most, low * PAGE_TOKENS)


def _one_sequence(shape: KVShape, n_ctx: int) -> int:
    """Pages of `n_ctx` tokens, of the pass that pushes some out of a window, and of a block that is copied."""
    return n_pages(shape, n_ctx + PASS_TOKENS) + 2 * shape.n_layers


def pool_pages(shape: KVShape, kv_type: str, n_ctx: int, free_bytes: int, budget: int | None = None) -> int:
    """Pages of a pool: `budget` bytes of them, or (None) room for two sequences of `n_ctx` tokens, less where only
    `free_bytes` of memory are free, and always room for one.

    Raises InvalidArgumentError for a budget that does not hold one.
    """
    one, size = _one_sequence(shape, n_ctx), page_bytes(shape, kv_type)
    if budget is None:
        return max(one, min(2 * one, max(free_bytes, 0) // size))
    if isinstance(budget, bool) or not isinstance(budget, int) or budget // size < one:
        raise InvalidArgumentError(
            f"cache_bytes is {budget!r}; a context of {n_ctx} tokens takes {one * size}; give more, or lower n_ctx"
        )
    return min(budget // size, 2**31 - 1)
