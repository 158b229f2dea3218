"""Gemma 2 (Gemma Team 2024): norms before and after both blocks, GeGLU, softcaps on scores and logits.

Every other layer, from the first on, sees only a window. Embeddings are multiplied by sqrt(dim). Norm weights are
stored with their 1 added.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..config import WINDOW, ModelConfig
from ..plan import Plan, PlanBuilder
from ..weights import EMBEDDING
from .parts import HALVES, Family, attend, builder, gated_mlp, head, qkv, rotation, windows

if TYPE_CHECKING:
    from ..gguf import GGUFFile

N_LAYERS_27B = 46  # scales scores by dim / n_heads, the smaller ones by head_dim; only edgellm's converter writes a key
ATTENTION_CAP, LOGIT_CAP = 50.0, 30.0  # of all published models, where the file does not say


def build(c: ModelConfig, file: GGUFFile, n_ctx: int) -> Plan:
    """The plan of a Gemma 2."""
    b = builder(c, file)
    turn, window, scale = rotation(b, c, file, HALVES), windows(c, 2), attention_scale(c, file, N_LAYERS_27B)
    cap = ATTENTION_CAP if c.attention_softcap is None else c.attention_softcap

    x = b.scale(b.embed(EMBEDDING, c.dim), math.sqrt(c.dim), label="embed_scale")
    for layer in range(c.n_layers):
        blk = f"blk.{layer}"
        h = b.rmsnorm(x, f"{blk}.attn_norm.weight", c.norm_eps)
        a = attend(b, c, *qkv(b, c, h, blk), layer, turn, window=window[layer], softcap=cap, scale=scale)
        x = add_normed(b, c, x, a, f"{blk}.post_attention_norm", f"{blk}.attn_residual")
        h = b.rmsnorm(x, f"{blk}.ffn_norm.weight", c.norm_eps)
        y = gated_mlp(b, c, h, blk, "gelu_tanh")
        x = add_normed(b, c, x, y, f"{blk}.post_ffw_norm", f"{blk}.ffn_residual")
    logits = head(b, c, x)
    cap = LOGIT_CAP if c.logit_softcap is None else c.logit_softcap
    return b.build(b.softcap(logits, cap, label="output_softcap") if cap else logits)


def add_normed(b: PlanBuilder, c: ModelConfig, x: int, y: int, norm: str, label: str) -> int:
    """x + norm(y): a block's result is normalised before it joins the residual stream."""
    return b.add(x, b.rmsnorm(y, f"{norm}.weight", c.norm_eps, out=None), label=label)


def attention_scale(c: ModelConfig, file: GGUFFile, n_layers_27b: int) -> float:
    """The file's own scale; without one 1 / sqrt(head_dim), in the 27B models 1 / sqrt(dim / n_heads)."""
    if c.n_layers == n_layers_27b and not file.get(f"{c.arch}.attention.scale", float, 0.0):
        return 1.0 / math.sqrt(c.dim / c.n_heads)
    return c.attention_scale


FAMILY = Family(build, frozenset({WINDOW, "attn_logit_softcapping", "final_logit_softcapping"}))
