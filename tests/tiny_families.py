"""Tiny random models of every family: which tensors they have, literally, and the keys that make them special."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from helpers import _random_weights, _tensor_type, tiny_vocab

from edgellm.gguf import GGUFWriter
from edgellm.quants import quantize

DIM, FFN, N_HEADS, N_KV = 64, 96, 4, 2
Shapes = dict[str, tuple[int, ...]]


def _attention(head_dim: int = 16, biases: bool = False) -> Shapes:
    q, kv = N_HEADS * head_dim, N_KV * head_dim
    shapes: Shapes = {"attn_q.weight": (q, DIM), "attn_k.weight": (kv, DIM), "attn_v.weight": (kv, DIM)}
    if biases:
        shapes |= {"attn_q.bias": (q,), "attn_k.bias": (kv,), "attn_v.bias": (kv,)}
    return shapes | {"attn_output.weight": (DIM, q)}


NORMS: Shapes = {"attn_norm.weight": (64,), "ffn_norm.weight": (64,)}
POST_NORMS: Shapes = {"post_attention_norm.weight": (64,), "post_ffw_norm.weight": (64,)}
MLP: Shapes = {"ffn_gate.weight": (96, 64), "ffn_up.weight": (96, 64), "ffn_down.weight": (64, 96)}
HEAD_NORMS: Shapes = {"attn_q_norm.weight": (32,), "attn_k_norm.weight": (32,)}
ROW_NORMS: Shapes = {"attn_q_norm.weight": (64,), "attn_k_norm.weight": (32,)}


def _experts(n: int, width: int) -> Shapes:
    return {
        "ffn_gate_inp.weight": (n, 64),
        "ffn_gate_exps.weight": (n, width, 64),
        "ffn_up_exps.weight": (n, width, 64),
        "ffn_down_exps.weight": (n, 64, width),
    }


FUSED: Shapes = {
    "attn_qkv.weight": (128, 64), "attn_output.weight": (64, 64), "ffn_up.weight": (192, 64),
    "ffn_down.weight": (64, 96),
}  # fmt: skip

# family -> (name of the architecture, tensors of one layer, keys below the name)
FAMILIES: dict[str, tuple[str, Shapes, dict[str, Any]]] = {
    "llama": ("llama", NORMS | MLP | _attention(), {}),
    "mistral": ("llama", NORMS | MLP | _attention(), {"attention.sliding_window": 20}),
    "mixtral": ("llama", NORMS | _attention() | _experts(4, 96), {"expert_count": 4, "expert_used_count": 2}),
    "qwen2": ("qwen2", NORMS | MLP | _attention(biases=True), {"rope.freq_base": 1e6}),
    "qwen3": ("qwen3", NORMS | MLP | _attention(32) | HEAD_NORMS, {}),
    "qwen3moe": (
        "qwen3moe",
        NORMS | _attention(32) | HEAD_NORMS | _experts(8, 32),
        {"expert_count": 8, "expert_used_count": 3, "expert_feed_forward_length": 32},
    ),
    "gemma2": (
        "gemma2",
        NORMS | POST_NORMS | MLP | _attention(32),
        {
            "attention.sliding_window": 20, "attention.scale": 0.2, "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 8.0,
        },
    ),
    "gemma3": (
        "gemma3",
        NORMS | POST_NORMS | MLP | _attention(32) | HEAD_NORMS,
        {"attention.sliding_window": 20, "attention.sliding_window_pattern": 2, "rope.freq_base": 1e6},
    ),
    "phi3": ("phi3", NORMS | FUSED, {"attention.sliding_window": 40}),
    "olmo2": ("olmo2", POST_NORMS | MLP | _attention() | ROW_NORMS, {}),
    "granite": (
        "granite",
        NORMS | MLP | _attention(),
        {"embedding_scale": 6.0, "residual_scale": 0.4, "logit_scale": 4.0, "attention.scale": 0.2},
    ),
    "smollm3": ("smollm3", NORMS | MLP | _attention(), {"rope.layers": [True, False]}),
}  # fmt: skip


def tiny_family_gguf(
    path: str | Path,
    family: str,
    *,
    type: str = "F32",
    seed: int = 0,
    n_layers: int = 2,
    layer: Shapes | None = None,
    whole: Shapes | None = None,
    **metadata: Any,
) -> Path:
    """Write a model of `family` with random weights and the vocabulary of `tiny_vocab`; returns the path.

    `layer` changes tensors of every layer (the shape None takes one away), `whole` adds tensors that stand alone.
    `metadata` are keys below the architecture's name; None leaves a key out.
    """
    pieces, scores, types = tiny_vocab()
    arch, block, keys = FAMILIES[family]
    head_dim = block.get("attn_q.weight", (64,))[0] // N_HEADS
    keys = {
        "block_count": n_layers, "context_length": 256, "embedding_length": DIM, "feed_forward_length": FFN,
        "attention.head_count": N_HEADS, "attention.head_count_kv": N_KV, "attention.key_length": head_dim,
        "attention.value_length": head_dim, "attention.layer_norm_rms_epsilon": 1e-5,
    } | keys | metadata  # fmt: skip
    block = {name: shape for name, shape in {**block, **(layer or {})}.items() if shape is not None}
    shapes: Shapes = {"token_embd.weight": (len(pieces), DIM), "output_norm.weight": (DIM,), **(whole or {})}
    shapes |= {f"blk.{i}.{name}": shape for i in range(n_layers) for name, shape in block.items()}
    rng = np.random.default_rng(seed)
    with GGUFWriter(path, arch) as w:
        for key, value in keys.items():
            if value is not None:
                w.add(f"{arch}.{key}", value)
        w.add("tokenizer.ggml.model", "llama")
        w.add("tokenizer.ggml.tokens", pieces)
        w.add("tokenizer.ggml.scores", np.array(scores, dtype=np.float32))
        w.add("tokenizer.ggml.token_type", np.array(types, dtype=np.int32))
        kinds = {n: "F32" if n.endswith("gate_inp.weight") else _tensor_type(s, type) for n, s in shapes.items()}
        for name, shape in shapes.items():
            w.add_tensor_info(name, shape, kinds[name])
        for name, shape in shapes.items():
            x = _random_weights(rng, name, shape)
            w.write_tensor(name, quantize(np.abs(x) + 1 if name.startswith("rope_f") else x, kinds[name]))
    return Path(path)
