"""A model whose `attn_output` and `ffn_down` matrices see only activations of some size (tools/sparse_act.py).

A pass goes step by step through the runtime's own kernels, and what is below its matrix's threshold is set to 0 before
the product. That is what the sparse products compute, bit for bit (tools/sparse_act/kmajor.h).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.cache import Sequence
from edgellm.loader import Loaded
from edgellm.ops import Op
from edgellm.sampling.logprobs import log_softmax

KINDS = {"attn_output.weight": "o", "ffn_down.weight": "down"}


@dataclass(frozen=True)
class Site:
    """A matrix (rows, k) that may skip channels of its input; `step` is its index in the plan."""

    tensor: str
    kind: str
    step: int
    rows: int
    k: int

    @property
    def weights(self) -> int:
        return self.rows * self.k


def cut(x: np.ndarray, threshold: float) -> np.ndarray:
    """x with 0 in the place of |x| < threshold; a NaN stays."""
    return np.where(np.abs(x) < np.float32(threshold), np.float32(0), x)


class SparseModel:
    """`sites` in the order of the plan. Close it, or use it as a context manager."""

    def __init__(self, path: Path, n_ctx: int, threads: int | str) -> None:
        self.loaded = Loaded(
            path, n_ctx=n_ctx, threads=threads, backend="native", kv_type="auto", chat_template=None, seed=None,
            progress=None,
        )  # fmt: skip
        self.plan, self.runner = self.loaded.plan, self.loaded.runner
        self.sites = []
        for i, step in enumerate(self.plan.steps):
            kind = KINDS.get(step.weights[0].split(".", 2)[-1]) if step.op is Op.LINEAR else None
            if kind:
                self.sites.append(Site(step.weights[0], kind, i, *self.loaded.weights.shape(step.weights[0])))

    def __enter__(self) -> SparseModel:
        return self

    def __exit__(self, *error: object) -> None:
        self.loaded.close()

    def run(
        self, tokens: np.ndarray, position: int, outputs: np.ndarray, seq: Sequence,
        thresholds: Mapping[str, float] | None = None, see: Callable[[Site, np.ndarray], Any] | None = None,
    ) -> np.ndarray:  # fmt: skip
        """One pass of tokens (n,) -> logits float32 (len(outputs), n_vocab). `thresholds` are by tensor; `see` gets the
        input of each site, float32 (n, k), before anything is cut. The sequence has pages for the pass."""
        found = {site.step: site for site in self.sites}
        self.runner.begin(tokens, position, outputs, seq)
        for i in range(len(self.plan.steps)):
            site = found.get(i)
            if site is not None and (thresholds or see):
                buffer = self.plan.steps[i].inputs[0]
                x = self.runner.read(buffer)
                if see is not None:
                    see(site, x)
                if thresholds and thresholds.get(site.tensor):
                    self.runner.write(buffer, cut(x, thresholds[site.tensor]))
            self.runner.run_step(i)
        return self.runner.read(self.plan.logits)

    def window(
        self, tokens: np.ndarray, thresholds: Mapping[str, float] | None = None,
        see: Callable[[Site, np.ndarray], Any] | None = None,
    ) -> np.ndarray:  # fmt: skip
        """A window (n,) of at most 512 tokens in one pass: log-probabilities float64 (n - 1 - n // 2, n_vocab) of the
        tokens in its second half, which is what perplexity counts."""
        n = len(tokens)
        with Sequence(self.loaded.pool, n) as seq:
            seq.ensure(n)
            logits = self.run(tokens, 0, np.arange(n // 2, n - 1, dtype=np.int32), seq, thresholds, see)
        out: np.ndarray = log_softmax(logits)
        return out

    def matrix(self, site: Site) -> np.ndarray:
        """float32 (rows, k)."""
        return self.loaded.weights.float32(site.tensor)
