"""Phi 3 and Phi 4 mini (Abdin et al. 2024): a Llama with q|k|v in one tensor and gate|up in another.

Long contexts: each speed of the rotation is divided by a number of its own (LongRoPE, Ding et al. 2024). There are two
sets of numbers; contexts beyond the original one take the long set, for all their positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config import LONGROPE, WINDOW, ModelConfig
from ..plan import Plan, PlanBuilder
from ..rope import longrope_table
from ..weights import EMBEDDING, read_tensor
from .parts import HALVES, Family, Rotation, attend, builder, head, linear, rotation, windows

if TYPE_CHECKING:
    from ..gguf import GGUFFile

LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"


def build(c: ModelConfig, file: GGUFFile, n_ctx: int) -> Plan:
    """The plan of a Phi 3 for windows of n_ctx tokens."""
    b = builder(c, file)
    turn, window = _rotation(b, c, file, n_ctx), windows(c, 0)

    x = b.embed(EMBEDDING, c.dim)
    for layer in range(c.n_layers):
        blk = f"blk.{layer}"
        h = b.rmsnorm(x, f"{blk}.attn_norm.weight", c.norm_eps)
        a = attend(b, c, *_qkv(b, c, h, blk), layer, turn, window=window[layer])
        x = b.add(x, a, label=f"{blk}.attn_residual")
        h = b.rmsnorm(x, f"{blk}.ffn_norm.weight", c.norm_eps)
        x = b.add(x, _mlp(b, c, h, blk), label=f"{blk}.ffn_residual")
    return b.build(head(b, c, x))


def _rotation(b: PlanBuilder, c: ModelConfig, file: GGUFFile, n_ctx: int) -> Rotation:
    if not (b.optional(LONG) or b.optional(SHORT) or c.rope_scaling.kind == LONGROPE):
        return rotation(b, c, file, HALVES)
    tables = {}
    for name in (LONG, SHORT):  # both are checked, whichever is used
        divisors = read_tensor(file, name, (c.rotary_dims // 2,))
        tables[name] = longrope_table(c.rotary_dims, c.rope_theta, c.rope_scaling, divisors, name)
    return Rotation(HALVES, b.rope_table(tables[LONG if n_ctx > c.rope_scaling.original_ctx else SHORT]))


def _qkv(b: PlanBuilder, c: ModelConfig, h: int, blk: str) -> tuple[int, int, int]:
    """Queries, keys and values: three ranges of rows of one tensor."""
    q_dim, kv_dim, name = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim, f"{blk}.attn_qkv.weight"
    parts = (("q", 0, q_dim), ("k", q_dim, kv_dim), ("v", q_dim + kv_dim, kv_dim))
    q, k, v = (b.linear(h, b.rows(name, first, n), n, out=p, label=f"{blk}.attn_{p}") for p, first, n in parts)
    return q, k, v


def _mlp(b: PlanBuilder, c: ModelConfig, h: int, blk: str) -> int:
    """SwiGLU; the first half of ffn_up is the gate."""
    name = f"{blk}.ffn_up.weight"
    gate = b.linear(h, b.rows(name, 0, c.ffn_dim), c.ffn_dim, out="gate", label=f"{blk}.ffn_gate")
    up = b.linear(h, b.rows(name, c.ffn_dim, c.ffn_dim), c.ffn_dim, out="up", label=f"{blk}.ffn_up")
    return linear(b, b.gated("silu", gate, up, label=f"{blk}.ffn_act"), f"{blk}.ffn_down", c.dim, "h")


FAMILY = Family(build, frozenset({WINDOW, LONGROPE}))
