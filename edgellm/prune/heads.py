"""Heads of attention that go, and what they leave at zero.

A head's influence is the mean squared norm of what it adds to the layer's output, E ||W_o[:, head] a_head||^2: just the
error of that output when the head alone is taken away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InvalidArgumentError, UnsupportedFeatureError
from ..ops import Op
from ..plan import Step
from ..weights import part_of
from .masks import lowest


@dataclass(frozen=True)
class Attention:
    """The matrices of a layer's attention. q, k and v: (tensor, its first row of theirs); `output`: a tensor."""

    q: tuple[str, int]
    k: tuple[str, int]
    v: tuple[str, int]
    output: str
    n_heads: int
    n_kv_heads: int
    head_dim: int

    @property
    def tensors(self) -> set[str]:
        """Names of all of them."""
        return {self.q[0], self.k[0], self.v[0], self.output}


def find_attention(steps: Sequence[Step], path: str) -> Attention:
    """The attention of a layer's steps. Raises UnsupportedFeatureError where it is not one with plain matrices."""
    at = [i for i, step in enumerate(steps) if step.op is Op.ATTENTION]
    if len(at) == 1:
        step = steps[at[0]]
        before = {s.outputs[0]: s.weights[0] for s in steps[: at[0]] if s.op is Op.LINEAR}
        after = [s.weights[0] for s in steps[at[0] :] if s.op is Op.LINEAR and s.inputs[0] == step.outputs[0]]
        if all(buffer in before for buffer in step.inputs) and len(after) == 1:
            q, k, v = (_place(before[buffer]) for buffer in step.inputs)
            p = step.params
            return Attention(q, k, v, after[0], p["n_heads"], p["n_kv_heads"], p["head_dim"])
    raise UnsupportedFeatureError("the heads of this model's attention are not plain rows of matrices", path=path)


def influence(w: np.ndarray, gram: np.ndarray, n_heads: int) -> np.ndarray:
    """float64 (n_heads,) of the output matrix w (dim, n_heads * head_dim) and the mean of a a^T of its inputs."""
    dim = w.shape[1] // n_heads
    found = np.empty(n_heads)
    for h in range(n_heads):
        own = slice(h * dim, (h + 1) * dim)
        part = w[:, own].astype(np.float64)
        found[h] = ((part @ gram[own, own]) * part).sum()
    return found


def n_gone(n_heads: int, sparsity: float) -> int:
    """Raises InvalidArgumentError where the share is less than one head."""
    n = int(n_heads * sparsity)
    if n < 1:
        raise InvalidArgumentError(f"sparsity {sparsity} of {n_heads} heads is no head; give {1 / n_heads:.3g} or more")
    return n


def head_masks(a: Attention, gone: np.ndarray, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """{tensor: bool, its shape} of what becomes 0 when heads `gone`, bool (n_heads,), go: their rows of q and columns
    of the output; the rows of k and v whose heads have all gone."""
    masks = {name: np.zeros(shapes[name], dtype=bool) for name in a.tensors}
    rows = np.repeat(gone, a.head_dim)
    unused = np.repeat(gone.reshape(a.n_kv_heads, -1).all(axis=1), a.head_dim)
    for (name, first), own in ((a.q, rows), (a.k, unused), (a.v, unused)):
        masks[name][first : first + len(own)] |= own[:, None]
    masks[a.output] |= rows
    return masks


def choose_heads(w: np.ndarray, gram: np.ndarray, n_heads: int, sparsity: float) -> np.ndarray:
    """bool (n_heads,): the share of heads with the least influence, of this layer."""
    return lowest(influence(w, gram, n_heads), n_gone(n_heads, sparsity))


def _place(weight: str) -> tuple[str, int]:
    part = part_of(weight)
    return (part[0], part[1]) if part else (weight, 0)
