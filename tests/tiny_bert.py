"""A tiny random BERT, and the same model from its paper in float64, without plans, pages or kernels."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from helpers import CONTROL, NORMAL, UNKNOWN, _random_weights, _tensor_type

from edgellm.blocks import BlockType
from edgellm.gguf import GGUFFile, GGUFWriter
from edgellm.quants import dequantize, quantize

SPECIAL = {"[PAD]": CONTROL, "[UNK]": UNKNOWN, "[CLS]": CONTROL, "[SEP]": CONTROL, "[MASK]": CONTROL}
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PIECES = [*SPECIAL, *(f"▁{c}" for c in LETTERS), *LETTERS, "▁.", "▁,", "▁!", "▁the", "▁cat", "▁dog"]
CLS, SEP = 2, 3
Shapes = dict[str, tuple[int, ...]]


def bert_shapes(n_layers: int = 2, dim: int = 32, ffn: int = 48, n_ctx: int = 64, n_types: int = 2) -> Shapes:
    """GGUF tensor names and shapes (rows first)."""
    norm = {"weight": (dim,), "bias": (dim,)}
    shapes: Shapes = {
        "token_embd.weight": (len(PIECES), dim), "token_types.weight": (n_types, dim),
        "position_embd.weight": (n_ctx, dim), **{f"token_embd_norm.{p}": s for p, s in norm.items()},
    }  # fmt: skip
    for i in range(n_layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes |= {f"blk.{i}.{name}.weight": (dim, dim), f"blk.{i}.{name}.bias": (dim,)}
        shapes |= {f"blk.{i}.ffn_up.weight": (ffn, dim), f"blk.{i}.ffn_up.bias": (ffn,)}
        shapes |= {f"blk.{i}.ffn_down.weight": (dim, ffn), f"blk.{i}.ffn_down.bias": (dim,)}
        for name in ("attn_output_norm", "layer_output_norm"):
            shapes |= {f"blk.{i}.{name}.{p}": s for p, s in norm.items()}
    return shapes


def tiny_bert_gguf(
    path: str | Path,
    *,
    type: str = "F32",
    n_layers: int = 2,
    dim: int = 32,
    n_heads: int = 4,
    ffn: int = 48,
    n_ctx: int = 64,
    seed: int = 0,
    shapes: dict[str, tuple[int, ...] | None] | None = None,
    **metadata: Any,
) -> Path:
    """Write a BERT with random weights over the vocabulary `PIECES`; returns the path.

    `shapes` changes or (None) takes away tensors, `metadata` adds or (None) takes away keys: "bert." is put in front of
    those without a dot.
    """
    keys: dict[str, Any] = {
        "block_count": n_layers, "context_length": n_ctx, "embedding_length": dim, "feed_forward_length": ffn,
        "attention.head_count": n_heads, "attention.layer_norm_epsilon": 1e-12, "attention.causal": False,
        "tokenizer.ggml.model": "bert", "tokenizer.ggml.tokens": PIECES, "tokenizer.ggml.token_type_count": 2,
        "tokenizer.ggml.token_type": np.array([SPECIAL.get(p, NORMAL) for p in PIECES], np.int32),
        "tokenizer.ggml.unknown_token_id": 1, "tokenizer.ggml.cls_token_id": CLS,
        "tokenizer.ggml.seperator_token_id": SEP, "tokenizer.ggml.padding_token_id": 0,
    } | metadata  # fmt: skip
    wanted = {**bert_shapes(n_layers, dim, ffn, n_ctx), **(shapes or {})}
    made = {name: shape for name, shape in wanted.items() if shape is not None}
    rng = np.random.default_rng(seed)
    with GGUFWriter(path, "bert") as w:
        for key, value in keys.items():
            if value is not None:
                w.add(key if key.startswith("tokenizer.") else f"bert.{key}", value)
        plain = ("position_embd.weight", "token_types.weight")
        kinds = {n: "F32" if n in plain else _tensor_type(s, type) for n, s in made.items()}
        for name, shape in made.items():
            w.add_tensor_info(name, shape, kinds[name])
        for name, shape in made.items():
            w.write_tensor(name, quantize(_random_weights(rng, name, shape), kinds[name]))
    return Path(path)


class StraightBert:
    """BERT as Devlin et al. write it: `hidden(ids)` gives the last layer's states, float64 (n, dim)."""

    def __init__(self, file: GGUFFile, n_heads: int) -> None:
        def floats(info: Any, data: np.ndarray) -> np.ndarray:
            kind: BlockType = info.type
            return dequantize(data, kind, info.shape).astype(np.float64)

        self.w = {name: floats(info, file.data(name)) for name, info in file.tensors.items()}
        self.n_heads, self.eps = n_heads, file.get("bert.attention.layer_norm_epsilon", float)
        self.n_layers = file.get("bert.block_count", int)

    def hidden(self, ids: np.ndarray) -> np.ndarray:
        w = self.w
        x = w["token_embd.weight"][ids] + w["token_types.weight"][0] + w["position_embd.weight"][: len(ids)]
        x = self._norm(x, "token_embd_norm")
        for i in range(self.n_layers):
            x = self._norm(x + self._attention(x, f"blk.{i}."), f"blk.{i}.attn_output_norm")
            up = self._linear(x, f"blk.{i}.ffn_up")
            phi = 0.5 * np.vectorize(math.erfc)(-up / math.sqrt(2))
            x = self._norm(x + self._linear(up * phi, f"blk.{i}.ffn_down"), f"blk.{i}.layer_output_norm")
        return x

    def _attention(self, x: np.ndarray, blk: str) -> np.ndarray:
        n, dim = x.shape
        q, k, v = (
            self._linear(x, f"{blk}attn_{part}").reshape(n, self.n_heads, -1).transpose(1, 0, 2) for part in "qkv"
        )  # (heads, n, head_dim) each
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(dim / self.n_heads)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = weights / weights.sum(-1, keepdims=True) @ v
        return self._linear(mixed.transpose(1, 0, 2).reshape(n, dim), f"{blk}attn_output")

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + self.eps)
        return x * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]
