"""The Llama family (Touvron et al. 2023; Llama 3: Grattafiori et al. 2024), and what shares its shape.

A layer: x += attention(norm(x)); x += feed_forward(norm(x)), with RMSNorm, rotary positions, grouped KV heads
(Ainslie et al. 2023) and SwiGLU (Shazeer 2020). GGUF stores the rows of q and k so that neighbours form the pairs that
are rotated ("interleaved").

Mistral (Jiang et al. 2023) adds a sliding window in every layer, Mixtral (Jiang et al. 2024) experts in the place of
the feed-forward block; in GGUF both are called "llama".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config import WINDOW, ModelConfig
from ..plan import Plan
from ..weights import EMBEDDING
from .parts import INTERLEAVED, Family, attend, builder, experts, gated_mlp, head, qkv, rotation, windows

if TYPE_CHECKING:
    from ..gguf import GGUFFile


def build(c: ModelConfig, file: GGUFFile, n_ctx: int) -> Plan:
    """The plan of a Llama; `file` tells which biases there are, whether the head is tied, and Llama 3's divisors."""
    b = builder(c, file)
    turn, window = rotation(b, c, file, INTERLEAVED), windows(c, 0)

    x = b.embed(EMBEDDING, c.dim)
    for layer in range(c.n_layers):
        blk = f"blk.{layer}"
        h = b.rmsnorm(x, f"{blk}.attn_norm.weight", c.norm_eps)
        a = attend(b, c, *qkv(b, c, h, blk), layer, turn, window=window[layer])
        x = b.add(x, a, label=f"{blk}.attn_residual")
        h = b.rmsnorm(x, f"{blk}.ffn_norm.weight", c.norm_eps)
        y = experts(b, c, h, blk) if c.n_experts else gated_mlp(b, c, h, blk)
        x = b.add(x, y, label=f"{blk}.ffn_residual")
    return b.build(head(b, c, x))


FAMILY = Family(build, frozenset({WINDOW, "expert_count"}))
