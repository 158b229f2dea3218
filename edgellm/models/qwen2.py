"""Qwen 2 and 2.5 (Yang et al. 2024): a Llama whose queries, keys and values have biases; pairs are two halves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config import WINDOW, ModelConfig
from ..plan import Plan
from ..weights import EMBEDDING
from .parts import HALVES, Family, attend, builder, gated_mlp, head, qkv, rotation, windows

if TYPE_CHECKING:
    from ..gguf import GGUFFile


def build(c: ModelConfig, file: GGUFFile, n_ctx: int) -> Plan:
    """The plan of a Qwen 2."""
    b = builder(c, file)
    turn, window = rotation(b, c, file, HALVES), windows(c, 0)

    x = b.embed(EMBEDDING, c.dim)
    for layer in range(c.n_layers):
        blk = f"blk.{layer}"
        h = b.rmsnorm(x, f"{blk}.attn_norm.weight", c.norm_eps)
        a = attend(b, c, *qkv(b, c, h, blk), layer, turn, window=window[layer])
        x = b.add(x, a, label=f"{blk}.attn_residual")
        h = b.rmsnorm(x, f"{blk}.ffn_norm.weight", c.norm_eps)
        x = b.add(x, gated_mlp(b, c, h, blk), label=f"{blk}.ffn_residual")
    return b.build(head(b, c, x))


FAMILY = Family(build, frozenset({WINDOW}))
