"""Gemma 3 (Gemma Team 2025): Gemma 2's layers without softcaps; q and k are normalised head by head.

Five layers with a window go before each one without; those turn with a theta of their own and without scaling.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..config import WINDOW, ModelConfig
from ..plan import Plan
from ..rope import rope_table
from ..weights import EMBEDDING
from .gemma2 import add_normed, attention_scale
from .parts import HALVES, Family, Rotation, attend, builder, gated_mlp, head, qk_norm, qkv, rotation, windows

if TYPE_CHECKING:
    from ..gguf import GGUFFile

N_LAYERS_27B = 62


def build(c: ModelConfig, file: GGUFFile, n_ctx: int) -> Plan:
    """The plan of a Gemma 3 (text)."""
    b = builder(c, file)
    far = rotation(b, c, file, HALVES)
    near = Rotation(HALVES, b.rope_table(rope_table(c.rotary_dims, c.rope_theta_local)))
    window, scale = windows(c, 6), attention_scale(c, file, N_LAYERS_27B)

    x = b.scale(b.embed(EMBEDDING, c.dim), math.sqrt(c.dim), label="embed_scale")
    for layer in range(c.n_layers):
        blk, local = f"blk.{layer}", window[layer] > 0
        h = b.rmsnorm(x, f"{blk}.attn_norm.weight", c.norm_eps)
        q, k, v = qkv(b, c, h, blk)
        q, k = qk_norm(b, c, q, k, blk, group=c.head_dim)
        a = attend(b, c, q, k, v, layer, near if local else far, window=window[layer], scale=scale)
        x = add_normed(b, c, x, a, f"{blk}.post_attention_norm", f"{blk}.attn_residual")
        h = b.rmsnorm(x, f"{blk}.ffn_norm.weight", c.norm_eps)
        y = gated_mlp(b, c, h, blk, "gelu_tanh")
        x = add_normed(b, c, x, y, f"{blk}.post_ffw_norm", f"{blk}.ffn_residual")
    logits = head(b, c, x)
    return b.build(b.softcap(logits, c.logit_softcap, label="output_softcap") if c.logit_softcap else logits)


FAMILY = Family(build, frozenset({WINDOW, "final_logit_softcapping"}))
