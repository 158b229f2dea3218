#!/usr/bin/env python3
"""What the number types of the KV cache cost: next-token distributions beside those of f16 pages.

    tools/kv_quality.py [MODEL.gguf ...] [--text FILE] [--windows 16] [--n-ctx 512]

A text is cut into windows at evenly spaced places; each window is one pass over all its tokens, once for each type. The
table gives the Kullback-Leibler divergence from f16 pages in nats for a token (mean with its standard error over
windows, 99th percentile, maximum), how often the likeliest token stays the same, and the perplexity, all on the
reference backend, whose activations are float32, so that pages are the only difference; and the mean divergence as the
fast backend has it, where activations are rounded to 8 bits and a difference in the last place may tip one.
`+ rotation` is tried here only: keys and queries, and values, are turned by an orthonormal Walsh-Hadamard transform of
each head (of blocks of the largest power of two that divides head_dim) before they are rounded. Without MODEL, the
built-in model. Exit 1: q8_0 exceeds --limit on one of the backends.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import edgellm
from edgellm.cache.pages import Half, PageLayout, split_kv_type

GRIMM = Path(__file__).resolve().parents[2] / "shared" / "data" / "text" / "grimm.txt"
ROWS = [  # kv_type, and which of K and V are turned
    ("f16", ""), ("f32", ""), ("q8_0", ""), ("q8_0:q4_0", ""), ("q4_0:q8_0", ""), ("q4_0", ""), ("q8_0:q4_0", "v"),
    ("q4_0:q8_0", "k"), ("q4_0", "kv"),
]  # fmt: skip


def hadamard(head_dim: int) -> np.ndarray:
    """float32 (head_dim, head_dim), orthonormal: Walsh-Hadamard transforms of the largest power of two that divides."""
    size, one = head_dim & -head_dim, np.ones((1, 1))
    while len(one) < size:
        one = np.block([[one, one], [one, -one]])
    return np.kron(np.eye(head_dim // size), one / np.sqrt(size)).astype(np.float32)


class Turned(Half):
    """K, or V, that is turned before it is stored, and turned back when it is read: to the scores and the weighted
    values the same as turned queries and outputs."""

    def __init__(self, like: Half) -> None:
        super().__init__(like.kv_type, like.head_dim, like.keys)
        self._turn = hadamard(like.head_dim)

    def store(self, half: np.ndarray, lane: int, x: np.ndarray) -> None:
        super().store(half, lane, x @ self._turn)

    def load(self, half: np.ndarray) -> np.ndarray:
        return super().load(half) @ self._turn.T


def turn(layout: PageLayout, halves: str) -> None:
    """Makes the halves named ("k", "v") of a pool's pages turned ones."""
    for name in halves:
        setattr(layout, name, Turned(getattr(layout, name)))


@dataclass
class Run:
    """What one type gave over all windows: KL of each token, share of equal first tokens."""

    kl: np.ndarray  # (windows, n)
    same: float
    perplexity: float


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """float64 log softmax of float32 (n, n_vocab)."""
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def run(
    path: str | None, backend: str, kv_type: str, turned: str, windows: list[list[int]], n_ctx: int
) -> list[np.ndarray]:
    """Log probabilities float64 (n, n_vocab) of each window."""
    options: dict[str, Any] = {} if backend == "reference" else {"exact": True}
    with edgellm.load(path, backend=backend, kv_type=kv_type, n_ctx=n_ctx, **options) as model:
        turn(model._loaded.pool.layout, turned)
        return [log_probabilities(model.logits(ids)) for ids in windows]


def compare(got: list[np.ndarray], base: list[np.ndarray], windows: list[list[int]]) -> Run:
    kl, same, loss = [], [], []
    for y, x, ids in zip(got, base, windows, strict=True):
        kl.append((np.exp(x) * (x - y)).sum(axis=1))
        same.append((x.argmax(axis=1) == y.argmax(axis=1)).mean())
        loss.append(-y[np.arange(len(ids) - 1), ids[1:]].mean())
    return Run(np.array(kl), float(np.mean(same)), float(np.exp(np.mean(loss))))


def take_windows(path: str | None, text: str, n_windows: int, n_ctx: int) -> tuple[list[list[int]], str]:
    """`n_windows` stretches of `n_ctx` token ids, and the model in words."""
    with edgellm.load(path, n_ctx=n_ctx) as model:
        ids, shape = model.tokenizer.encode(text), model.plan.kv
    starts = np.linspace(0, len(ids) - n_ctx, n_windows).astype(int)
    words = f"{shape.n_layers} layers, {shape.n_kv_heads} KV heads of {shape.head_dim}"
    return [[int(i) for i in ids[s : s + n_ctx]] for s in starts], words


def table(path: str | None, text: str, n_windows: int, n_ctx: int) -> tuple[list[str], float]:
    """The Markdown table of one model, and the larger mean divergence of q8_0."""
    windows, words = take_windows(path, text, n_windows, n_ctx)
    bases = {backend: run(path, backend, "f16", "", windows, n_ctx) for backend in ("reference", "auto")}
    lines = [
        f"**{Path(path).name if path else 'the built-in model'}** ({words}; {n_windows} windows of {n_ctx} tokens)", "",
        "| K : V | bytes per head and token | KL mean | 99 % | max | same top | perplexity | KL mean, fast |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    worst = 0.0
    for kv_type, turned in ROWS:
        got = compare(run(path, "reference", kv_type, turned, windows, n_ctx), bases["reference"], windows)
        means, fast = got.kl.mean(axis=1), "-"
        if not turned:
            other = compare(run(path, "auto", kv_type, "", windows, n_ctx), bases["auto"], windows).kl.mean()
            worst = max(worst, means.mean(), other) if kv_type == "q8_0" else worst
            fast = f"{other:.1e}"
        error = means.std(ddof=1) / np.sqrt(len(means)) if len(means) > 1 else 0.0
        name = kv_type + (f" + rotation of {' and '.join(turned.upper())}" if turned else "")
        lines.append(
            f"| {name} | {bytes_each(kv_type, path)} | {means.mean():.1e} ± {error:.0e} | "
            f"{np.quantile(got.kl, 0.99):.1e} | {got.kl.max():.1e} | {got.same:.2%} | {got.perplexity:.3f} | {fast} |"
        )
        print(lines[-1], file=sys.stderr, flush=True)
    return lines, worst


def bytes_each(kv_type: str, path: str | None) -> str:
    with edgellm.load(path, n_ctx=64) as model:
        dim = model.plan.kv.head_dim
    return f"{sum(Half(name, dim, keys=True).n_bytes for name in split_kv_type(kv_type)) / 64:g}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="GGUF files (default: the built-in model)")
    parser.add_argument("--text", type=Path, default=GRIMM, help="plain text (default: %(default)s)")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--n-ctx", type=int, default=512)
    parser.add_argument("--limit", type=float, default=1e-3, help="largest mean KL of q8_0 (default: %(default)s)")
    options = parser.parse_args()
    text, worst = options.text.read_text(encoding="utf-8"), 0.0
    for path in options.models or [None]:
        lines, found = table(path, text, options.windows, options.n_ctx)
        worst = max(worst, found)
        print("\n".join([*lines, ""]), flush=True)
    return int(worst > options.limit)


if __name__ == "__main__":
    sys.exit(main())
