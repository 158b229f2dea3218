"""SmolLM3 (Bakouch et al. 2025): a Llama in which every fourth layer knows no positions (NoPE, Yang et al. 2025)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config import WINDOW, ModelConfig
from ..plan import Plan
from ..weights import EMBEDDING
from .parts import INTERLEAVED, Family, attend, builder, gated_mlp, head, qkv, rotation, windows

if TYPE_CHECKING:
    from ..gguf import GGUFFile

NO_ROPE_EVERY = 4  # where the file does not say


def build(c: ModelConfig, file: GGUFFile, n_ctx: int) -> Plan:
    """The plan of a SmolLM3."""
    b = builder(c, file)
    turn, window = rotation(b, c, file, INTERLEAVED), windows(c, 0)
    turned = c.rope_layers or tuple((i + 1) % NO_ROPE_EVERY != 0 for i in range(c.n_layers))

    x = b.embed(EMBEDDING, c.dim)
    for layer in range(c.n_layers):
        blk = f"blk.{layer}"
        h = b.rmsnorm(x, f"{blk}.attn_norm.weight", c.norm_eps)
        a = attend(b, c, *qkv(b, c, h, blk), layer, turn if turned[layer] else None, window=window[layer])
        x = b.add(x, a, label=f"{blk}.attn_residual")
        h = b.rmsnorm(x, f"{blk}.ffn_norm.weight", c.norm_eps)
        x = b.add(x, gated_mlp(b, c, h, blk), label=f"{blk}.ffn_residual")
    return b.build(head(b, c, x))


FAMILY = Family(build, frozenset({WINDOW}))
