"""Granite 3 (IBM 2024): a Llama with four multipliers: of embeddings, attention scores, residuals and logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config import ModelConfig
from ..plan import Plan, PlanBuilder
from ..weights import EMBEDDING
from .parts import INTERLEAVED, Family, attend, builder, gated_mlp, head, qkv, rotation

if TYPE_CHECKING:
    from ..gguf import GGUFFile


def build(c: ModelConfig, file: GGUFFile, n_ctx: int) -> Plan:
    """The plan of a Granite 3; the attention multiplier is the file's attention scale."""
    b = builder(c, file)
    turn = rotation(b, c, file, INTERLEAVED)

    x = _times(b, b.embed(EMBEDDING, c.dim), c.embedding_scale, "embed_scale")
    for layer in range(c.n_layers):
        blk = f"blk.{layer}"
        h = b.rmsnorm(x, f"{blk}.attn_norm.weight", c.norm_eps)
        a = attend(b, c, *qkv(b, c, h, blk), layer, turn)
        x = b.add(x, _times(b, a, c.residual_scale, f"{blk}.attn_scale"), label=f"{blk}.attn_residual")
        h = b.rmsnorm(x, f"{blk}.ffn_norm.weight", c.norm_eps)
        y = gated_mlp(b, c, h, blk)
        x = b.add(x, _times(b, y, c.residual_scale, f"{blk}.ffn_scale"), label=f"{blk}.ffn_residual")
    return b.build(_times(b, head(b, c, x), 1.0 / c.logit_scale, "output_scale"))  # logits are divided by theirs


def _times(b: PlanBuilder, x: int, factor: float, label: str) -> int:
    return x if factor == 1.0 else b.scale(x, factor, label=label)


FAMILY = Family(build, frozenset({"embedding_scale", "residual_scale", "logit_scale"}))
