"""What several families share: the attention block, the feed-forward blocks, the two ends of a model.

A family file puts these together as its paper does; what only one family has stands in its file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import ModelConfig
from ..plan import KVShape, Plan, PlanBuilder
from ..rope import rope_table
from ..weights import EMBEDDING, read_tensor

if TYPE_CHECKING:
    from ..gguf import GGUFFile

DIVISORS = "rope_freqs.weight"
INTERLEAVED, HALVES = "interleaved", "halves"  # the pairs of a head that are rotated together (edgellm.ops)


@dataclass(frozen=True)
class Family:
    """`build(config, file, n_ctx)` writes the plan for windows of n_ctx tokens.

    `uses` names the keys that change the result and that the plan obeys (edgellm.config refuses all others).
    """

    build: Callable[[ModelConfig, GGUFFile, int], Plan]
    uses: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Rotation:
    """How q and k of a layer are turned; `table` is a number from `PlanBuilder.rope_table`."""

    style: str
    table: int


def builder(c: ModelConfig, file: GGUFFile) -> PlanBuilder:
    """An empty plan for this model."""
    return PlanBuilder(c.name, KVShape(c.n_layers, c.n_kv_heads, c.head_dim), c.n_vocab, file.tensors)


def rotation(b: PlanBuilder, c: ModelConfig, file: GGUFFile, style: str) -> Rotation:
    """The one rotation of a model: theta and scaling of its metadata, divisors where the file has them (Llama 3)."""
    divisors: np.ndarray | None = None
    if b.optional(DIVISORS):
        divisors = read_tensor(file, DIVISORS, (c.rotary_dims // 2,))
    return Rotation(style, b.rope_table(rope_table(c.rotary_dims, c.rope_theta, c.rope_scaling, divisors)))


def windows(c: ModelConfig, period: int) -> list[int]:
    """The window of each layer (0: none). `period` n: all but the last of every n layers have it; 0: all have it.

    The file's own pattern goes before `period`.
    """
    layers = period if c.window_layers is None else c.window_layers
    if isinstance(layers, int):
        layers = tuple(not layers or i % layers < layers - 1 for i in range(c.n_layers))
    return [c.window if has else 0 for has in layers]


def linear(b: PlanBuilder, x: int, name: str, n_out: int, out: str) -> int:
    """A matrix, with its bias where the file has one."""
    return b.linear(x, f"{name}.weight", n_out, bias=b.optional(f"{name}.bias"), out=out)


def qkv(b: PlanBuilder, c: ModelConfig, h: int, blk: str) -> tuple[int, int, int]:
    """Queries, keys and values of a layer."""
    kv_dim = c.n_kv_heads * c.head_dim
    q = linear(b, h, f"{blk}.attn_q", c.n_heads * c.head_dim, "q")
    return q, linear(b, h, f"{blk}.attn_k", kv_dim, "k"), linear(b, h, f"{blk}.attn_v", kv_dim, "v")


def qk_norm(b: PlanBuilder, c: ModelConfig, q: int, k: int, blk: str, group: int = 0) -> tuple[int, int]:
    """RMSNorm of queries and keys: whole rows, or each `group` columns (one head) on their own."""
    q = b.rmsnorm(q, f"{blk}.attn_q_norm.weight", c.norm_eps, group=group, out=None)
    return q, b.rmsnorm(k, f"{blk}.attn_k_norm.weight", c.norm_eps, group=group, out=None)


def attend(
    b: PlanBuilder,
    c: ModelConfig,
    q: int,
    k: int,
    v: int,
    layer: int,
    turn: Rotation | None,
    *,
    window: int = 0,
    softcap: float = 0.0,
    scale: float | None = None,
    causal: bool = True,
) -> int:
    """Rotation (None: a layer without positions), attention over the cache and the output matrix."""
    blk = f"blk.{layer}"
    how: dict[str, Any] = {}
    if turn:
        how = {"rotary_dims": c.rotary_dims, "style": turn.style, "table": turn.table}
        q = b.rope(q, c.head_dim, **how, label=f"{blk}.rope_q")
        k = b.rope(k, c.head_dim, **how, label=f"{blk}.rope_k")
    scale = c.attention_scale if scale is None else scale
    how |= {"layer": layer, "scale": scale, "window": window, "softcap": softcap, "causal": causal}
    a = b.attention(q, k, v, **how, label=f"{blk}.attn")
    return linear(b, a, f"{blk}.attn_output", c.dim, "h")


def gated_mlp(b: PlanBuilder, c: ModelConfig, h: int, blk: str, activation: str = "silu") -> int:
    """down(activation(gate h) * up h): SwiGLU, or GeGLU with another activation (Shazeer 2020)."""
    gate = linear(b, h, f"{blk}.ffn_gate", c.ffn_dim, "gate")
    up = linear(b, h, f"{blk}.ffn_up", c.ffn_dim, "up")
    y = b.gated(activation, gate, up, label=f"{blk}.ffn_act")
    return linear(b, y, f"{blk}.ffn_down", c.dim, "h")


def experts(b: PlanBuilder, c: ModelConfig, h: int, blk: str) -> int:
    """A mixture of SwiGLU experts: the router's largest shares say which of them run (Jiang et al. 2024)."""
    logits = linear(b, h, f"{blk}.ffn_gate_inp", c.n_experts, "router")
    share = b.route(logits, c.n_experts_used, normalise=c.expert_norm, label=f"{blk}.ffn_route")
    gate, up, down = (f"{blk}.ffn_{part}_exps.weight" for part in ("gate", "up", "down"))
    label, n = f"{blk}.ffn_experts", c.n_experts_used
    return b.experts(h, share, (gate, up, down), c.expert_dim, activation="silu", n_used=n, label=label)


def head(b: PlanBuilder, c: ModelConfig, x: int) -> int:
    """Logits of the wanted rows: the last norm and the output matrix, which may be the embedding table itself."""
    x = b.take_rows(x)
    b.hidden = x = b.rmsnorm(x, "output_norm.weight", c.norm_eps, out="h_out")
    matrix = b.optional("output.weight") or EMBEDDING
    return b.linear(x, matrix, c.n_vocab, bias=b.optional("output.bias"), out="logits", label="output")
