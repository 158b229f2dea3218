"""A second implementation of every family, from their papers: float64, one token after the other, nothing shared.

It knows the tiny models of tiny_families.py and is what the backends are held to where no other program is at hand.
"""

from __future__ import annotations

from typing import Any

import numpy as np

GELU = {"gemma2", "gemma3"}
HALVES = {"qwen2", "qwen3", "qwen3moe", "gemma2", "gemma3", "phi3", "olmo2"}
POST_ONLY, SANDWICH = {"olmo2"}, {"gemma2", "gemma3"}


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


class StraightModel:
    """`tensors` by GGUF name in float64, `keys` as in tiny_families.FAMILIES, `family` the name there."""

    def __init__(self, family: str, keys: dict[str, Any], tensors: dict[str, np.ndarray], n_layers: int) -> None:
        self.family, self.keys, self.w, self.n_layers = family, keys, tensors, n_layers
        self.n_heads, self.n_kv = 4, 2
        self.cache: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(n_layers)]

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        w = self.w[f"{name}.weight"]
        rows = x.reshape(-1, len(w))  # one row, or one per head
        return (rows / np.sqrt(np.mean(rows**2, axis=1, keepdims=True) + 1e-5) * w).ravel()

    def mul(self, name: str, x: np.ndarray) -> np.ndarray:
        return self.w[f"{name}.weight"] @ x + self.w.get(f"{name}.bias", 0.0)

    def window(self, layer: int) -> int:
        """How far a layer looks back; 10^9 for everything."""
        size = self.keys.get("attention.sliding_window", 0)
        every_other = self.family in SANDWICH  # tiny_families gives gemma3 a period of 2
        return size if size and not (every_other and layer % 2) else 10**9

    def turn(self, x: np.ndarray, layer: int, position: int) -> np.ndarray:
        """Pairs of a head as complex numbers, each multiplied by exp(i * angle)."""
        if not self.keys.get("rope.layers", [True] * self.n_layers)[layer]:
            return x
        theta = self.keys.get("rope.freq_base", 1e4)
        if self.family == "gemma3" and self.window(layer) < 10**9:
            theta = 1e4
        heads = x.reshape(-1, self.d)
        if self.family in HALVES:
            z = heads[:, : self.d // 2] + 1j * heads[:, self.d // 2 :]
        else:
            z = heads[:, 0::2] + 1j * heads[:, 1::2]
        z = z * np.exp(1j * position * theta ** (-np.arange(0, self.d, 2) / self.d))
        parts = (z.real, z.imag)
        return (np.concatenate(parts, 1) if self.family in HALVES else np.stack(parts, -1)).reshape(x.shape)

    def attention(self, layer: int, h: np.ndarray, position: int) -> np.ndarray:
        b = f"blk.{layer}"
        if self.family == "phi3":
            q, k, v = np.split(self.mul(f"{b}.attn_qkv", h), [64, 96])
        else:
            q, k, v = (self.mul(f"{b}.attn_{r}", h) for r in "qkv")
        self.d = len(q) // self.n_heads
        if f"{b}.attn_q_norm.weight" in self.w:
            q, k = self.norm(q, f"{b}.attn_q_norm"), self.norm(k, f"{b}.attn_k_norm")
        q, k = self.turn(q, layer, position), self.turn(k, layer, position)
        self.cache[layer].append((k, v))
        past = self.cache[layer][-self.window(layer) :]
        cap, out = self.keys.get("attn_logit_softcapping"), []
        for head in range(self.n_heads):
            mine = slice(head * self.d, head * self.d + self.d)
            kv = slice(head // 2 * self.d, head // 2 * self.d + self.d)
            scores = np.array([q[mine] @ key[kv] for key, _ in past]) * self.keys.get("attention.scale", self.d**-0.5)
            scores = cap * np.tanh(scores / cap) if cap else scores
            p = np.exp(scores - scores.max())
            out.append(sum(a * value[kv] for a, (_, value) in zip(p / p.sum(), past, strict=True)))
        return self.mul(f"{b}.attn_output", np.concatenate(out))

    def feed_forward(self, layer: int, h: np.ndarray) -> np.ndarray:
        b = f"blk.{layer}"
        if "expert_count" in self.keys:
            return self.mixture(b, h)
        if self.family == "phi3":
            gate, up = np.split(self.mul(f"{b}.ffn_up", h), 2)
        else:
            gate, up = self.mul(f"{b}.ffn_gate", h), self.mul(f"{b}.ffn_up", h)
        return self.mul(f"{b}.ffn_down", (gelu if self.family in GELU else silu)(gate) * up)

    def mixture(self, b: str, h: np.ndarray) -> np.ndarray:
        p = np.exp(self.mul(f"{b}.ffn_gate_inp", h))
        p, out = p / p.sum(), 0.0
        best = sorted(range(len(p)), key=lambda e: -p[e])[: self.keys["expert_used_count"]]
        total = sum(p[e] for e in best) if self.keys.get("expert_weights_norm", True) else 1.0
        gate, up, down = (self.w[f"{b}.ffn_{part}_exps.weight"] for part in ("gate", "up", "down"))
        for e in best:
            out = out + p[e] / total * (down[e] @ (silu(gate[e] @ h) * (up[e] @ h)))
        return out

    def token(self, token: int, position: int) -> np.ndarray:
        k, f = self.keys, self.family
        x = self.w["token_embd.weight"][token] * (8.0 if f in SANDWICH else k.get("embedding_scale", 1.0))
        for layer in range(self.n_layers):
            b = f"blk.{layer}"
            for block, before, after in (
                (lambda h, n=layer: self.attention(n, h, position), "attn_norm", "post_attention_norm"),
                (lambda h, n=layer: self.feed_forward(n, h), "ffn_norm", "post_ffw_norm"),
            ):
                y = block(x if f in POST_ONLY else self.norm(x, f"{b}.{before}"))
                y = self.norm(y, f"{b}.{after}") if f in POST_ONLY | SANDWICH else y
                x = x + k.get("residual_scale", 1.0) * y
        logits = self.mul("token_embd", self.norm(x, "output_norm")) / k.get("logit_scale", 1.0)
        cap = k.get("final_logit_softcapping")
        return cap * np.tanh(logits / cap) if cap else logits

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        return np.array([self.token(int(t), i) for i, t in enumerate(tokens)])
