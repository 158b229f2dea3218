"""BERT encoders of transformers: names of their tensors, and the GGUF keys that only encoders have."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from ..errors import ConvertError, UnsupportedFeatureError
from .hf_families import Key
from .tensor_map import Tensor

if TYPE_CHECKING:
    from .hf_config import HFConfig

# What a text's embedding does not need: the pooler, heads, and a buffer of old versions.
LEFT_OUT = re.compile(r"(bert\.)?(pooler\..*|embeddings\.position_ids)|cls\..*")

_LAYER = {  # name in a layer of the checkpoint -> name in a layer of GGUF, norms apart
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
}
_NORMS = {"attention.output.LayerNorm": "attn_output_norm", "output.LayerNorm": "layer_output_norm"}


def tensors(c: HFConfig, names: Collection[str]) -> Iterator[Tensor]:
    """The tensors of a BERT. `names` are those of the checkpoint: models with a head have "bert." in front of them,
    old ones call weight and bias of a norm gamma and beta."""
    hf = "bert." if any(name.startswith("bert.") for name in names) else ""
    yield Tensor(f"{hf}embeddings.word_embeddings.weight", "token_embd.weight", (c.n_vocab, c.dim))
    types = (n_token_types(c), c.dim)
    yield Tensor(f"{hf}embeddings.token_type_embeddings.weight", "token_types.weight", types)
    yield Tensor(f"{hf}embeddings.position_embeddings.weight", "position_embd.weight", (c.n_ctx, c.dim))
    yield from _norm(f"{hf}embeddings.LayerNorm", "token_embd_norm", c.dim, names)
    for i in range(c.n_layers):
        source, blk = f"{hf}encoder.layer.{i}", f"blk.{i}"
        for part, name in _LAYER.items():
            n_out, n_in = {"ffn_up": (c.ffn_dim, c.dim), "ffn_down": (c.dim, c.ffn_dim)}.get(name, (c.dim, c.dim))
            yield Tensor(f"{source}.{part}.weight", f"{blk}.{name}.weight", (n_out, n_in))
            yield Tensor(f"{source}.{part}.bias", f"{blk}.{name}.bias", (n_out,))
        for part, name in _NORMS.items():
            yield from _norm(f"{source}.{part}", f"{blk}.{name}", c.dim, names)


def _norm(source: str, name: str, dim: int, names: Collection[str]) -> Iterator[Tensor]:
    weight, bias = ("gamma", "beta") if f"{source}.gamma" in names else ("weight", "bias")
    yield Tensor(f"{source}.{weight}", f"{name}.weight", (dim,))
    yield Tensor(f"{source}.{bias}", f"{name}.bias", (dim,))


def keys(c: HFConfig) -> list[Key]:
    """Keys below the family's name. Raises UnsupportedFeatureError for a BERT that is not the plain one."""
    for name, usual in (("position_embedding_type", "absolute"), ("is_decoder", False), ("add_cross_attention", False)):
        value = c.raw.get(name)
        if value not in (None, usual):
            raise UnsupportedFeatureError("this setting is not supported", path=c.path, field=name, value=value,
                                          limit=usual)  # fmt: skip
    return [("attention.layer_norm_epsilon", c.norm_eps, "f32"), ("attention.causal", False, "bool")]


def n_token_types(c: HFConfig) -> int:
    """Token types (sentence A, sentence B). Raises ConvertError."""
    value = c.raw.get("type_vocab_size", 2)
    if type(value) is not int or not 1 <= value <= 1 << 16:
        raise ConvertError(
            "a hyperparameter is no whole number in its range", path=c.path, field="type_vocab_size", value=value,
            limit=f"1 to {1 << 16}",
        )  # fmt: skip
    return value
