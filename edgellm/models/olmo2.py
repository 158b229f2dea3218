"""OLMo 2 (OLMo Team 2024): norms stand after the blocks, not before; whole rows of q and k are normalised."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config import ModelConfig
from ..plan import Plan
from ..weights import EMBEDDING
from .gemma2 import add_normed
from .parts import HALVES, Family, attend, builder, gated_mlp, head, qk_norm, qkv, rotation

if TYPE_CHECKING:
    from ..gguf import GGUFFile


def build(c: ModelConfig, file: GGUFFile, n_ctx: int) -> Plan:
    """The plan of an OLMo 2."""
    b = builder(c, file)
    turn = rotation(b, c, file, HALVES)

    x = b.embed(EMBEDDING, c.dim)
    for layer in range(c.n_layers):
        blk = f"blk.{layer}"
        q, k, v = qkv(b, c, x, blk)
        q, k = qk_norm(b, c, q, k, blk)
        a = attend(b, c, q, k, v, layer, turn)
        x = add_normed(b, c, x, a, f"{blk}.post_attention_norm", f"{blk}.attn_residual")
        x = add_normed(b, c, x, gated_mlp(b, c, x, blk), f"{blk}.post_ffw_norm", f"{blk}.ffn_residual")
    return b.build(head(b, c, x))


FAMILY = Family(build)
