"""Runs two backends step by step on the same inputs and finds the first step whose results differ.

After each step the second backend is given the first one's result, so every step is judged on its own and errors do not
add up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..cache import PagePool, Sequence, resolve_kv_type
from ..errors import InvalidArgumentError
from ..plan import Plan
from ..weights import Weights
from . import Backend, create


@dataclass(frozen=True)
class Difference:
    """The first step that differs. `nmse` is sum((a - b)^2) / sum(a^2) over its output, (row, col) the worst place."""

    step: int
    label: str
    op: str
    nmse: float
    row: int
    col: int
    a: float
    b: float

    def __str__(self) -> str:
        return (
            f"step {self.step} ({self.op} {self.label}) differs: NMSE {self.nmse:.3g}; "
            f"worst at [{self.row}, {self.col}]: {self.a:.6g} against {self.b:.6g}"
        )


def default_tolerance(weights: Weights) -> float:
    """NMSE that one step may have: 1e-9 where activations stay float32, 1e-3 where kernels round them to 8 bits."""
    exact = all(weights.type(name).activation == "f32" for name in weights.names)
    return 1e-9 if exact else 1e-3


def compare(
    plan: Plan,
    weights: Weights,
    tokens: np.ndarray,
    a: str | Backend = "reference",
    b: str | Backend = "native",
    *,
    n_past: int = 0,
    kv_type: str = "f32",
    n_threads: int = 1,
    tolerance: float | None = None,
) -> Difference | None:
    """The first step in which backends `a` and `b` differ by more than `tolerance` (NMSE), or None.

    `tokens` is int32 (n,). The first `n_past` of them are put into the cache by backend `a`, the rest is the one pass
    that is compared, with all logits wanted; n_past = n - 1 compares a decoding step. Backends given by name are made
    and closed here. Raises what `create` and passes raise, InvalidArgumentError unless 0 <= n_past < n.
    """
    tokens = np.asarray(tokens, dtype=np.int32)
    if not 0 <= n_past < len(tokens):
        raise InvalidArgumentError(f"n_past is {n_past} of {len(tokens)} tokens")
    tolerance = default_tolerance(weights) if tolerance is None else tolerance
    kv_type = resolve_kv_type(kv_type, weights.matrix_types)
    runs: list[_Run] = []
    try:
        for which in (a, b):
            runs.append(_Run(plan, weights, tokens, which, kv_type, n_threads))
        first, second = runs
        if n_past:
            first.backend.forward(tokens[:n_past], 0, np.zeros(0, np.int32), first.seq)
            second.pool.arena[...] = first.pool.arena  # both took the same pages in the same order
        for run in runs:
            run.begin(n_past)
        return _first_difference(plan, first.backend, second.backend, tolerance)
    finally:
        for run in runs:
            run.close()


class _Run:
    """One backend with a cache of its own that has room for all tokens."""

    def __init__(
        self, plan: Plan, weights: Weights, tokens: np.ndarray, which: str | Backend, kv_type: str, n_threads: int
    ) -> None:
        self.owned, self.tokens = isinstance(which, str), tokens
        n = len(tokens)
        self.backend = create(which, plan, weights, n_threads=n_threads, max_tokens=n) if self.owned else which
        self.pool = PagePool.for_tokens(plan.kv, kv_type, n)
        self.seq = Sequence(self.pool, n)
        self.seq.ensure(n)

    def begin(self, n_past: int) -> None:
        n = len(self.tokens) - n_past
        self.backend.begin(self.tokens[n_past:], n_past, np.arange(n, dtype=np.int32), self.seq)

    def close(self) -> None:
        if self.owned:
            self.backend.close()
        self.seq.close()
        self.pool.close()


def _first_difference(plan: Plan, a: Backend, b: Backend, tolerance: float) -> Difference | None:
    for i, step in enumerate(plan.steps):
        a.run_step(i)
        b.run_step(i)
        out = step.outputs[0]
        x, y = a.read(out), b.read(out)  # (rows, cols) each
        error = nmse(x, y)
        if not error <= tolerance:  # a NaN is a difference too
            row, col = np.unravel_index(_worst(x, y), x.shape)
            values = float(x[row, col]), float(y[row, col])
            return Difference(i, step.label, step.op.value, error, int(row), int(col), *values)
        b.write(out, x)
    return None


def _worst(x: np.ndarray, y: np.ndarray) -> int:
    """Flat index of the largest difference, the first NaN before all others."""
    return int(np.argmax(np.abs(x - y)))


def nmse(a: np.ndarray, b: np.ndarray) -> float:
    """sum((a - b)^2) / sum(a^2) in float64; 0 where both are all zero."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    error, power = float(np.sum((a - b) ** 2)), float(np.sum(a**2))
    return 0.0 if error == 0.0 else error / power if power else float("inf")
