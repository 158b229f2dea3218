"""Names and shapes of the tensors of a Hugging Face checkpoint, and what they are called in GGUF."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

import numpy as np

from ..errors import ConvertError, ModelFormatError, one_line
from . import hf_bert
from .checkpoint import Tensors
from .hf_config import HFConfig, long_rope_divisors, rope_divisors
from .hf_families import EXPERT_NAMES, expert_dim, n_experts
from .pipeline import Weight, constant
from .tensor_map import Tensor

# Buffers that old versions of transformers saved; they follow from config.json.
_NOT_WEIGHTS = re.compile(r"(.*\.)?(rotary_emb\.inv_freq|attn\.bias|attention\.masked_bias|attn\.masked_bias)")


def model_tensors(c: HFConfig, names: Collection[str]) -> Iterator[Tensor]:
    """The tensors of a model in the order in which a pass reads them; `names` are those of the checkpoint."""
    if c.family.encoder:
        yield from hf_bert.tensors(c, names)
        return
    yield Tensor("model.embed_tokens.weight", "token_embd.weight", (c.n_vocab, c.dim))
    for i in range(c.n_layers):
        yield from _layer(c, f"model.layers.{i}", f"blk.{i}")
    yield Tensor("model.norm.weight", "output_norm.weight", (c.dim,), offset=c.family.norm_offset)
    if not c.tied:
        yield Tensor("lm_head.weight", "output.weight", (c.n_vocab, c.dim))


def _layer(c: HFConfig, hf: str, blk: str) -> Iterator[Tensor]:
    norms = [
        Tensor(f"{hf}.{source}.weight", f"{blk}.{name}.weight", (c.dim,), offset=c.family.norm_offset)
        for source, name in c.family.norms.items()
    ]
    yield from norms[:1]
    yield from _attention(c, f"{hf}.self_attn", blk)
    yield from norms[1:]
    yield from _experts(c, f"{hf}.{c.family.experts}", blk) if c.family.experts else _mlp(c, f"{hf}.mlp", blk)


def _attention(c: HFConfig, hf: str, blk: str) -> Iterator[Tensor]:
    f, q, kv = c.family, c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    if f.fused:
        yield from _matrix(f"{hf}.qkv_proj", f"{blk}.attn_qkv", (q + 2 * kv, c.dim), c.attention_bias)
    else:
        q_heads, k_heads = (c.n_heads, c.n_kv_heads) if f.interleaved else (0, 0)
        bias = c.attention_bias or f.qkv_bias
        yield from _matrix(f"{hf}.q_proj", f"{blk}.attn_q", (q, c.dim), bias, q_heads)
        yield from _matrix(f"{hf}.k_proj", f"{blk}.attn_k", (kv, c.dim), bias, k_heads)
        yield from _matrix(f"{hf}.v_proj", f"{blk}.attn_v", (kv, c.dim), bias)
    if f.qk_norm:
        for part, row in (("q", q), ("k", kv)):
            shape = (row if f.qk_norm == "row" else c.head_dim,)
            yield Tensor(f"{hf}.{part}_norm.weight", f"{blk}.attn_{part}_norm.weight", shape, offset=f.norm_offset)
    yield from _matrix(f"{hf}.o_proj", f"{blk}.attn_output", (c.dim, q), c.attention_bias)


def _mlp(c: HFConfig, hf: str, blk: str) -> Iterator[Tensor]:
    wide, narrow = (c.ffn_dim, c.dim), (c.dim, c.ffn_dim)
    if c.family.fused:  # the first half of its rows is the gate
        yield from _matrix(f"{hf}.gate_up_proj", f"{blk}.ffn_up", (2 * c.ffn_dim, c.dim), c.mlp_bias)
    else:
        yield from _matrix(f"{hf}.gate_proj", f"{blk}.ffn_gate", wide, c.mlp_bias)
        yield from _matrix(f"{hf}.up_proj", f"{blk}.ffn_up", wide, c.mlp_bias)
    yield from _matrix(f"{hf}.down_proj", f"{blk}.ffn_down", narrow, c.mlp_bias)


def _experts(c: HFConfig, hf: str, blk: str) -> Iterator[Tensor]:
    n, width = n_experts(c), expert_dim(c)
    yield Tensor(f"{hf}.gate.weight", f"{blk}.ffn_gate_inp.weight", (n, c.dim))
    shapes = ((n, width, c.dim), (n, width, c.dim), (n, c.dim, width))
    names = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
    for source, name, shape in zip(EXPERT_NAMES[c.family.experts], names, shapes, strict=True):
        sources = [f"{hf}.experts.{e}.{source}.weight" for e in range(n)]
        yield Tensor(sources[0], f"{blk}.{name}.weight", shape, stack=tuple(sources[1:]))


def _matrix(source: str, name: str, shape: tuple[int, int], bias: bool, heads: int = 0) -> Iterator[Tensor]:
    yield Tensor(f"{source}.weight", f"{name}.weight", shape, heads)
    if bias:
        yield Tensor(f"{source}.bias", f"{name}.bias", shape[:1], heads)


def interleave(n_heads: int, head_dim: int) -> np.ndarray:
    """Which source row goes to each row: int (n_heads * head_dim,).

    transformers rotates dimension j of a head together with j + head_dim / 2, GGUF's llama family 2j with 2j + 1.
    """
    one = np.arange(head_dim).reshape(2, head_dim // 2).T.reshape(-1)  # 0, h/2, 1, h/2 + 1, ...
    return (np.arange(n_heads)[:, None] * head_dim + one).reshape(-1)


def weights(c: HFConfig, checkpoint: Tensors) -> tuple[list[Weight], list[str]]:
    """The tensors of the output, each checked against config.json, and remarks.

    Raises MissingTensorError, ModelFormatError (a shape that differs) or ConvertError (a tensor nobody asked for).
    """
    wanted = list(model_tensors(c, frozenset(checkpoint)))
    out, notes = [_weight(c, t, checkpoint) for t in wanted], []
    divisors = rope_divisors(c)
    if divisors is not None:
        out.insert(0, constant("rope_freqs.weight", divisors))
    for name, values in long_rope_divisors(c).items():
        out.insert(0, constant(name, values))
    known = {source for t in wanted for source in (t.source, *t.stack)}
    for name in checkpoint:
        if name in known or _NOT_WEIGHTS.fullmatch(name):
            continue
        if c.family.encoder and hf_bert.LEFT_OUT.fullmatch(name):
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


def _weight(c: HFConfig, t: Tensor, checkpoint: Tensors) -> Weight:
    sources = (t.source, *t.stack)
    for source in sources:
        _check_shape(source, t.shape[1:] if t.stack else t.shape, checkpoint)
    path, head_dim, n_rows = checkpoint.path_of(t.source), c.head_dim, t.shape[-2] if len(t.shape) > 1 else 1

    def rows(start: int, stop: int) -> np.ndarray:
        x = checkpoint.rows(t.source, start, stop)
        return x + np.float32(t.offset) if t.offset else x

    def stacked_rows(start: int, stop: int) -> np.ndarray:
        parts = []
        while start < stop:
            i, first = divmod(start, n_rows)
            parts.append(checkpoint.rows(sources[i], first, min(n_rows, first + stop - start)))
            start += len(parts[-1])
        return np.concatenate(parts)

    def rotated_rows(start: int, stop: int) -> np.ndarray:  # start and stop at the limits of heads
        return checkpoint.rows(t.source, start, stop)[interleave((stop - start) // head_dim, head_dim)]

    def rotated_bias(start: int, stop: int) -> np.ndarray:
        return checkpoint.rows(t.source, start, stop)[:, interleave(t.heads, head_dim)]

    if not t.heads:
        return Weight(t.name, t.shape, stacked_rows if t.stack else rows, source=path)
    if len(t.shape) == 1:
        return Weight(t.name, t.shape, rotated_bias, source=path)
    return Weight(t.name, t.shape, rotated_rows, step=head_dim, source=path)


def _check_shape(source: str, shape: tuple[int, ...], checkpoint: Tensors) -> None:
    entry = checkpoint[source]
    if entry.shape != shape:
        raise ModelFormatError(
            "the shape of a tensor does not follow from config.json", path=checkpoint.path_of(source),
            offset=entry.offset, field=f"tensor {one_line(source)}, shape", value=list(entry.shape),
            limit=list(shape), rule="T13",
        )  # fmt: skip
