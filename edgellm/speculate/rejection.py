"""Exact rejection sampling: drafts that were drawn at random, checked so that what comes out is distributed as the
model says, whatever drew them.

For a token drawn from q where the model says p: it is kept with probability min(1, p / q); else another is drawn from
the residual distribution, max(p - q, 0) scaled to 1 (Leviathan et al. 2023; Chen et al. 2023). For a draft without
probabilities (q is 1 at its token) this is the same as drawing from p and comparing, which `Decoding` does: it keeps
the very same tokens for a seed, not only their distribution.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def acceptance(p: np.ndarray, q: np.ndarray, drafted: np.ndarray) -> np.ndarray:
    """float64 (n,): with which probability tokens `drafted` (n,), drawn from q, are kept where the model says p.

    p and q: float64 (n_vocab,), each sums to 1.
    """
    kept: np.ndarray = np.minimum(1.0, p[drafted] / q[drafted])  # what was drawn from q is not impossible in it
    return kept


def residual(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """float64 (n_vocab,): from what the token is drawn that stands in for one that was not kept."""
    rest: np.ndarray = np.maximum(p - q, 0.0)
    total = rest.sum()
    return rest / total if total > 0.0 else p  # p and q are the same: nothing is ever not kept


def choose(p: np.ndarray, q: np.ndarray, drafted: np.ndarray, uniforms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(which were kept, bool (n,); the tokens, int64 (n,)) for tokens `drafted` (n,), each drawn from q on its own.

    p and q: float64 (n_vocab,). `uniforms`: float64 (n, 2), random numbers in [0, 1).
    """
    kept = uniforms[:, 0] < acceptance(p, q, drafted)
    return kept, np.where(kept, drafted, draw(residual(p, q), uniforms[:, 1]))


def draw(p: np.ndarray, at: np.ndarray) -> np.ndarray:
    """int64 (n,): tokens from the distribution p (n_vocab,); `at` (n,) in [0, 1) says which."""
    mass, last = np.cumsum(p), int(np.flatnonzero(p)[-1])
    tokens: np.ndarray = np.minimum(np.searchsorted(mass, at * mass[-1], side="right"), last)
    return tokens


def verify(target: np.ndarray, draft: np.ndarray, tokens: Sequence[int], uniforms: np.ndarray) -> list[int]:
    """What comes of a draft: the tokens of it that are kept and one more, drawn where the first was not, or behind all.

    `target`: float64 (k + 1, n_vocab), what the model says in the place of each token of the draft and behind it;
    `draft`: float64 (k, n_vocab), from what each of the `tokens` (k,) was drawn; `uniforms`: float64 (k + 1, 2).
    """
    out: list[int] = []
    for i, token in enumerate(tokens):
        kept, chosen = choose(target[i], draft[i], np.array([token]), uniforms[i : i + 1])
        out.append(int(chosen[0]))
        if not kept[0]:
            return out
    k = len(tokens)
    return [*out, int(draw(target[k], uniforms[k : k + 1, 1])[0])]
