"""The KV cache: a pool of pages of 64 tokens, and sequences, which are page tables over it."""

from .overflow import PASS_TOKENS, Overflow
from .pages import (
    KV_TYPES,
    PAGE_TOKENS,
    PageLayout,
    page_bytes,
    quantize_q4_0,
    quantize_q8_0,
    resolve_kv_type,
    split_kv_type,
)
from .pool import NO_PAGE, PageError, PagePool
from .sequence import Sequence
from .sizes import cache_bytes, largest_n_ctx, n_blocks, pool_pages
from .span import Span
from .tree import PrefixTree

__all__ = [
    "KV_TYPES",
    "NO_PAGE",
    "PAGE_TOKENS",
    "PASS_TOKENS",
    "Overflow",
    "PageError",
    "PageLayout",
    "PagePool",
    "PrefixTree",
    "Sequence",
    "Span",
    "cache_bytes",
    "largest_n_ctx",
    "n_blocks",
    "page_bytes",
    "pool_pages",
    "quantize_q4_0",
    "quantize_q8_0",
    "resolve_kv_type",
    "split_kv_type",
]
