"""The Llama family (Touvron et al. 2023; Llama 3: Grattafiori et al. 2024), and what shares its shape.

A layer: x += attention(norm(x)); x += feed_forward(norm(x)), with RMSNorm, rotary positions, grouped KV heads
(Ainslie et al. 2023) and SwiGLU (Shazeer 2020). GGUF stores the rows of q and k so that neighbours form the pairs that
are rotated ("interleaved").
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config import ModelConfig
from ..errors import UnsupportedFeatureError
from ..plan import KVShape, Plan, PlanBuilder
from ..rope import rope_table
from ..weights import EMBEDDING, read_tensor

if TYPE_CHECKING:
    from ..gguf import GGUFFile

DIVISORS = "rope_freqs.weight"
# Parts of a layer that relatives of this family have. Leaving one out would give wrong answers, so they are refused.
FOREIGN_PARTS = ("attn_q_norm", "attn_k_norm", "attn_sub_norm", "ffn_sub_norm", "ffn_gate_inp", "attn_sinks",
                 "post_attention_norm", "post_ffw_norm", "attn_qkv")  # fmt: skip


def build(config: ModelConfig, file: GGUFFile) -> Plan:
    """The plan of a Llama; `file` tells which biases there are, whether the head is tied, and Llama 3's divisors."""
    c = config
    _refuse_relatives(file)
    b = PlanBuilder(c.name, KVShape(c.n_layers, c.n_kv_heads, c.head_dim), c.n_vocab, file.tensors)
    divisors = read_tensor(file, DIVISORS, (c.rotary_dims // 2,)) if b.optional(DIVISORS) else None
    table = b.rope_table(rope_table(c.rotary_dims, c.rope_theta, c.rope_scaling, divisors))

    x = b.embed(EMBEDDING, c.dim)
    for layer in range(c.n_layers):
        blk = f"blk.{layer}"
        h = b.rmsnorm(x, f"{blk}.attn_norm.weight", c.norm_eps)
        x = b.add(x, _attention(b, c, h, layer, table), label=f"{blk}.attn_residual")
        h = b.rmsnorm(x, f"{blk}.ffn_norm.weight", c.norm_eps)
        x = b.add(x, _feed_forward(b, c, h, blk), label=f"{blk}.ffn_residual")
    x = b.take_rows(x)
    x = b.rmsnorm(x, "output_norm.weight", c.norm_eps, out="h_out")
    head = b.optional("output.weight") or EMBEDDING  # a tied head is the embedding table itself
    return b.build(b.linear(x, head, c.n_vocab, bias=b.optional("output.bias"), out="logits", label="output"))


def _attention(b: PlanBuilder, c: ModelConfig, h: int, layer: int, table: int) -> int:
    blk = f"blk.{layer}"
    q = _linear(b, h, f"{blk}.attn_q", c.n_heads * c.head_dim, "q")
    k = _linear(b, h, f"{blk}.attn_k", c.n_kv_heads * c.head_dim, "k")
    v = _linear(b, h, f"{blk}.attn_v", c.n_kv_heads * c.head_dim, "v")
    q = b.rope(q, c.head_dim, c.rotary_dims, style="interleaved", table=table, label=f"{blk}.rope_q")
    k = b.rope(k, c.head_dim, c.rotary_dims, style="interleaved", table=table, label=f"{blk}.rope_k")
    a = b.attention(q, k, v, layer=layer, scale=c.attention_scale, label=f"{blk}.attn")
    return _linear(b, a, f"{blk}.attn_output", c.dim, "h")


def _feed_forward(b: PlanBuilder, c: ModelConfig, h: int, blk: str) -> int:
    gate = _linear(b, h, f"{blk}.ffn_gate", c.ffn_dim, "gate")
    up = _linear(b, h, f"{blk}.ffn_up", c.ffn_dim, "up")
    y = b.gated("silu", gate, up, label=f"{blk}.ffn_act")
    return _linear(b, y, f"{blk}.ffn_down", c.dim, "h")


def _linear(b: PlanBuilder, x: int, name: str, n_out: int, out: str) -> int:
    """A matrix, with its bias where the file has one."""
    return b.linear(x, f"{name}.weight", n_out, bias=b.optional(f"{name}.bias"), out=out)


def _refuse_relatives(file: GGUFFile) -> None:
    for name in file.tensors:
        if any(f".{part}." in name for part in FOREIGN_PARTS):
            raise UnsupportedFeatureError(
                "this tensor belongs to a relative of the Llama family that is not supported yet",
                path=file.path,
                field=name,
            )
