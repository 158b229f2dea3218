"""Perplexity of hidden states: the output head in stretches of the vocabulary, so that no row of logits is ever whole.

The measure is that of `edgellm.perplexity`: the second half of each window counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import NonFiniteError
from ..plan import Plan, Step

_WORST = 88.0  # nats; e^88 is 1.7e38


@dataclass(frozen=True)
class Quality:
    """Perplexity and the standard error of its estimate, over `n_tokens` counted tokens."""

    ppl: float
    ppl_error: float
    n_tokens: int


def first_counted(n_ctx: int) -> int:
    """The position in a window whose logits foretell the first token that counts."""
    return n_ctx // 2


def token_losses(
    hidden: np.ndarray,
    targets: np.ndarray,
    stretches: Iterable[tuple[int, np.ndarray]],
    bias: np.ndarray | None = None,
    after: Sequence[Step] = (),
    plan: Plan | None = None,
) -> np.ndarray:
    """-ln p(target), float64 (n,), for what the head reads, hidden float32 (n, dim), and int targets (n,).

    `stretches`: (first row, rows of the head float32 (m, dim)) in order; `bias` (n_vocab,); `after`: steps that work on
    one logit at a time.
    """
    from ..backends.reference import BODIES

    top, total = np.full(len(hidden), -np.inf), np.zeros(len(hidden))
    wanted = np.full(len(hidden), np.nan)
    with np.errstate(all="ignore"):  # what is not finite is refused by `quality`
        for start, rows in stretches:
            logits = hidden @ rows.T
            if bias is not None:
                logits = logits + bias[start : start + len(rows)]
            for step in after:
                logits = BODIES[step.op](step, None, plan, logits)
            wide = logits.astype(np.float64)
            new_top = np.maximum(top, wide.max(axis=1))
            total = total * np.exp(top - new_top) + np.exp(wide - new_top[:, None]).sum(axis=1)
            top = new_top
            inside = np.flatnonzero((targets >= start) & (targets < start + len(rows)))
            wanted[inside] = wide[inside, targets[inside] - start]
        losses: np.ndarray = top + np.log(total) - wanted
    return losses


def quality(losses: np.ndarray) -> Quality:
    """Perplexity of losses float64 (n,). Raises NonFiniteError where it is beyond float32, which the metadata hold."""
    nll = float(losses.mean())
    if not nll < _WORST:
        raise NonFiniteError("output", f"the mean loss on the held-out text is {nll:.3g}")
    ppl = math.exp(nll)
    spread = float(losses.std()) / math.sqrt(len(losses) - 1) if len(losses) > 1 else 0.0
    return Quality(ppl, ppl * spread, len(losses))


def head_stretches(
    n_rows: int, rows: Callable[[int, int], np.ndarray], dim: int, budget: int = 1 << 24
) -> Iterable[tuple[int, np.ndarray]]:
    """`rows(start, stop)`, float32 (stop - start, dim), in stretches of about `budget` weights."""
    step = max(1, budget // dim)
    for start in range(0, n_rows, step):
        yield start, rows(start, min(start + step, n_rows))
