"""Names and shapes of the tensors of a Hugging Face checkpoint, and what they are called in GGUF."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..errors import ConvertError, ModelFormatError, one_line
from .hf_config import HFConfig, rope_divisors
from .pipeline import Weight, constant
from .safetensors import Checkpoint

# Buffers that old versions of transformers saved; they follow from config.json.
_NOT_WEIGHTS = re.compile(r"(.*\.)?(rotary_emb\.inv_freq|attn\.bias|attention\.masked_bias|attn\.masked_bias)")


@dataclass(frozen=True)
class Tensor:
    """`source` in the checkpoint becomes `name`. `heads` > 0: rows are reordered for the interleaved rotation."""

    source: str
    name: str
    shape: tuple[int, ...]  # rows first
    heads: int = 0


def llama_tensors(c: HFConfig) -> Iterator[Tensor]:
    """The tensors of the Llama family in the order in which a pass reads them."""
    q, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    yield Tensor("model.embed_tokens.weight", "token_embd.weight", (c.n_vocab, c.dim))
    attention = (("q_proj", "attn_q", q, c.dim, c.n_heads), ("k_proj", "attn_k", kv, c.dim, c.n_kv_heads),
                 ("v_proj", "attn_v", kv, c.dim, 0), ("o_proj", "attn_output", c.dim, q, 0))  # fmt: skip
    mlp = (("gate_proj", "ffn_gate", c.ffn_dim, c.dim), ("up_proj", "ffn_up", c.ffn_dim, c.dim),
           ("down_proj", "ffn_down", c.dim, c.ffn_dim))  # fmt: skip
    for i in range(c.n_layers):
        hf, blk = f"model.layers.{i}", f"blk.{i}"
        yield Tensor(f"{hf}.input_layernorm.weight", f"{blk}.attn_norm.weight", (c.dim,))
        for source, name, rows, k, heads in attention:
            yield Tensor(f"{hf}.self_attn.{source}.weight", f"{blk}.{name}.weight", (rows, k), heads)
            if c.attention_bias:
                yield Tensor(f"{hf}.self_attn.{source}.bias", f"{blk}.{name}.bias", (rows,), heads)
        yield Tensor(f"{hf}.post_attention_layernorm.weight", f"{blk}.ffn_norm.weight", (c.dim,))
        for source, name, rows, k in mlp:
            yield Tensor(f"{hf}.mlp.{source}.weight", f"{blk}.{name}.weight", (rows, k))
            if c.mlp_bias:
                yield Tensor(f"{hf}.mlp.{source}.bias", f"{blk}.{name}.bias", (rows,))
    yield Tensor("model.norm.weight", "output_norm.weight", (c.dim,))
    if not c.tied:
        yield Tensor("lm_head.weight", "output.weight", (c.n_vocab, c.dim))


def interleave(n_heads: int, head_dim: int) -> np.ndarray:
    """Which source row goes to each row: int (n_heads * head_dim,).

    transformers rotates dimension j of a head together with j + head_dim / 2, GGUF's llama family 2j with 2j + 1.
    """
    one = np.arange(head_dim).reshape(2, head_dim // 2).T.reshape(-1)  # 0, h/2, 1, h/2 + 1, ...
    return (np.arange(n_heads)[:, None] * head_dim + one).reshape(-1)


def weights(c: HFConfig, checkpoint: Checkpoint) -> tuple[list[Weight], list[str]]:
    """The tensors of the output, each checked against config.json, and remarks.

    Raises MissingTensorError, ModelFormatError (a shape that differs) or ConvertError (a tensor nobody asked for).
    """
    wanted = list(llama_tensors(c))
    out, notes = [_weight(c, t, checkpoint) for t in wanted], []
    divisors = rope_divisors(c)
    if divisors is not None:
        out.insert(0, constant("rope_freqs.weight", divisors))
    known = {t.source for t in wanted}
    for name in checkpoint:
        if name in known or _NOT_WEIGHTS.fullmatch(name):
            continue
        if name == "lm_head.weight" and c.tied:
            notes.append("lm_head.weight was left out: config.json ties the head to the embedding table")
            continue
        raise ConvertError(
            f"a {c.architecture} has no such tensor with this config.json",
            path=checkpoint.path_of(name),
            field=f"tensor {one_line(name)}",
        )
    return out, notes


def _weight(c: HFConfig, t: Tensor, checkpoint: Checkpoint) -> Weight:
    entry = checkpoint[t.source]
    path = checkpoint.path_of(t.source)
    if entry.shape != t.shape:
        raise ModelFormatError(
            "the shape of a tensor does not follow from config.json", path=path, offset=entry.offset,
            field=f"tensor {one_line(t.source)}, shape", value=list(entry.shape), limit=list(t.shape), rule="T13",
        )  # fmt: skip
    source, head_dim = t.source, c.head_dim

    def rows(start: int, stop: int) -> np.ndarray:
        return checkpoint.rows(source, start, stop)

    def rotated_rows(start: int, stop: int) -> np.ndarray:  # start and stop at the limits of heads
        return checkpoint.rows(source, start, stop)[interleave((stop - start) // head_dim, head_dim)]

    def rotated_bias(start: int, stop: int) -> np.ndarray:
        return checkpoint.rows(source, start, stop)[:, interleave(t.heads, head_dim)]

    if not t.heads:
        return Weight(t.name, t.shape, rows, source=path)
    if len(t.shape) == 1:
        return Weight(t.name, t.shape, rotated_bias, source=path)
    return Weight(t.name, t.shape, rotated_rows, step=head_dim, source=path)
