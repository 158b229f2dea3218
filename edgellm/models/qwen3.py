"""Qwen 3 (Yang et al. 2025): each head of q and k is normalised before it is rotated.

The mixture of experts ("qwen3moe") has the same layers with experts in the place of the feed-forward block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config import WINDOW, ModelConfig
from ..plan import Plan
from ..weights import EMBEDDING
from .parts import HALVES, Family, attend, builder, experts, gated_mlp, head, qk_norm, qkv, rotation, windows

if TYPE_CHECKING:
    from ..gguf import GGUFFile


def build(c: ModelConfig, file: GGUFFile, n_ctx: int) -> Plan:
    """The plan of a Qwen 3."""
    b = builder(c, file)
    turn, window = rotation(b, c, file, HALVES), windows(c, 0)

    x = b.embed(EMBEDDING, c.dim)
    for layer in range(c.n_layers):
        blk = f"blk.{layer}"
        h = b.rmsnorm(x, f"{blk}.attn_norm.weight", c.norm_eps)
        q, k, v = qkv(b, c, h, blk)
        q, k = qk_norm(b, c, q, k, blk, group=c.head_dim)
        x = b.add(x, attend(b, c, q, k, v, layer, turn, window=window[layer]), label=f"{blk}.attn_residual")
        h = b.rmsnorm(x, f"{blk}.ffn_norm.weight", c.norm_eps)
        y = experts(b, c, h, blk) if c.n_experts else gated_mlp(b, c, h, blk)
        x = b.add(x, y, label=f"{blk}.ffn_residual")
    return b.build(head(b, c, x))


FAMILY = Family(build, frozenset({WINDOW}))
EXPERTS = Family(build, frozenset({WINDOW, "expert_count"}))
