"""A Llama in float64 whose cache keeps the first tokens and the last ones: StreamingLLM (Xiao et al. 2023), literally.

Token t has a cache of its own: the first `n_sinks` tokens and the last `window` ones, t among them, in a row. Keys are
rotated for their places in that row, and the query for the last place. Nothing is shared with edgellm's attention,
which keeps keys as they are and turns queries; the cost is O(n * (n_sinks + window)).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgellm.gguf import open_gguf
from edgellm.models import build_plan, read_config
from edgellm.weights import Weights

BLOCK = 16  # tokens that are worked on together once all their caches are full


class StreamModel:
    """The model of a GGUF file of family Llama without windows, scaling or experts; `window` 0: everything is kept.

    Tensors are decoded to float64. Raises what reading the file raises; ValueError for another family.
    """

    def __init__(self, path: Path, n_sinks: int, window: int) -> None:
        with open_gguf(path) as file:
            config = read_config(file)
            if config.arch != "llama" or config.window or config.n_experts:
                raise ValueError(f"{path}: the NumPy model knows plain Llamas only")
            plan = build_plan(config, file)
            weights = Weights(file, plan)
            self.w = {name: weights.float32(name).astype(np.float64) for name in plan.weights}
        self.config, self.n_sinks, self.window = config, n_sinks, window
        self.speeds = config.rope_theta ** -(np.arange(0, config.head_dim, 2) / config.head_dim)  # (pairs,)

    def logits(self, ids: np.ndarray, rows: int = 1000) -> Iterator[np.ndarray]:
        """float64 (<= rows, n_vocab) again and again, for all tokens of `ids` in order."""
        w, c = self.w, self.config
        x = w["token_embd.weight"][ids]  # (n, dim)
        for layer in range(c.n_layers):
            b = f"blk.{layer}"
            x = x + self._attention(b, self._norm(x, f"{b}.attn_norm")) @ w[f"{b}.attn_output.weight"].T
            h = self._norm(x, f"{b}.ffn_norm")
            gate, up = h @ w[f"{b}.ffn_gate.weight"].T, h @ w[f"{b}.ffn_up.weight"].T
            x = x + (gate / (1 + np.exp(-gate)) * up) @ w[f"{b}.ffn_down.weight"].T
        head = w.get("output.weight", w["token_embd.weight"])
        for start in range(0, len(ids), rows):
            yield self._norm(x[start : start + rows], "output_norm") @ head.T

    def losses(self, ids: np.ndarray) -> np.ndarray:
        """float64 (n - 1,): -ln p(ids[i + 1]) after ids[: i + 1]."""
        out, start = [], 0
        for rows in self.logits(ids[:-1]):
            wanted = ids[start + 1 : start + 1 + len(rows)]
            out.append(loss(rows, wanted))
            start += len(rows)
        return np.concatenate(out)

    def cache(self, t: int) -> np.ndarray:
        """The tokens in the cache of token t, in the order of their places."""
        if not self.window or t < self.n_sinks + self.window:
            return np.arange(t + 1)
        return np.concatenate([np.arange(self.n_sinks), np.arange(t - self.window + 1, t + 1)])

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + self.config.norm_eps) * self.w[f"{name}.weight"]

    def _attention(self, b: str, h: np.ndarray) -> np.ndarray:
        """(n, n_heads * head_dim): what the heads of layer `b` make of h (n, dim)."""
        n, c = len(h), self.config
        q, k, v = ((h @ self.w[f"{b}.attn_{r}.weight"].T).reshape(n, -1, c.head_dim) for r in "qkv")
        q, k = (x[..., 0::2] + 1j * x[..., 1::2] for x in (q, k))  # pairs as complex numbers
        out, t = np.empty((n, c.n_heads, c.head_dim)), 0
        while t < n:
            full = self.window and t >= self.n_sinks + self.window
            tokens = range(t, min(t + BLOCK, n) if full else t + 1)
            out[t : tokens.stop] = self._meet(q[t : tokens.stop], k, v, np.array([self.cache(i) for i in tokens]))
            t = tokens.stop
        return out.reshape(n, -1)

    def _meet(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, caches: np.ndarray) -> np.ndarray:
        """(B, n_heads, head_dim) of queries (B, n_heads, pairs) whose caches hold tokens `caches` (B, places)."""
        turns = np.exp(1j * np.arange(caches.shape[1])[:, None] * self.speeds)  # (places, pairs)
        keys = (k[caches] * turns[:, None]).transpose(0, 2, 3, 1)  # (B, n_kv, pairs, places)
        queries = (q * turns[-1]).reshape(len(q), keys.shape[1], -1, q.shape[-1])  # (B, n_kv, group, pairs)
        scores = (queries @ keys.conj()).real * self.config.attention_scale  # (B, n_kv, group, places)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return (weights @ v[caches].transpose(0, 2, 1, 3)).reshape(len(q), -1, v.shape[-1])


def loss(logits: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """float64 (n,): -ln of the probability that logits (n, n_vocab) give to the tokens `wanted` (n,)."""
    logits = logits.astype(np.float64)
    top = logits.max(axis=1)
    return np.log(np.exp(logits - top[:, None]).sum(axis=1)) + top - logits[np.arange(len(wanted)), wanted]
