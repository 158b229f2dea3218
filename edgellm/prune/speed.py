"""How fast a pruned file decodes beside the one that it was made from: both loaded, in turns, for a second or so."""

from __future__ import annotations

import os
import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..loader import Loaded

N_TOKENS, ROUNDS, N_CTX = 24, 7, 64
CERTAIN = 1.03  # less is within what a machine does by itself


@dataclass(frozen=True)
class Speed:
    """Decoded tokens per second, medians; `ratio` is the median of the rounds' ratios."""

    before: float
    after: float
    ratio: float

    @property
    def text(self) -> str:
        rates = f"{self.after:.1f} tokens/s, {self.before:.1f} before (decoding, in turns)"
        if self.ratio >= CERTAIN:
            return f"{self.ratio:.2f} x as fast: {rates}"
        return f"the zeros make nothing faster here ({self.ratio:.2f} x): {rates}; docs/sparsity.md says which would"


def measure_speed(before: str, after: str, threads: int | str) -> Speed | None:
    """Decodes the same tokens with both files.

    None for encoders, where there is no compiled library, and where memory does not hold both.
    """
    from .. import clib
    from ..loader import Loaded
    from ..machine import memory

    if not clib.available() or memory().available < 2 * (os.path.getsize(before) + os.path.getsize(after)):
        return None
    seconds: tuple[list[float], list[float]] = ([], [])
    with ExitStack() as stack:
        models = []
        for path in (before, after):
            model = Loaded(
                path, n_ctx=N_CTX, threads=threads, backend="native", kv_type="auto", chat_template=None, seed=None,
                progress=None, speculate="off",
            )  # fmt: skip
            stack.callback(model.close)
            models.append(model)
        if not models[0].plan.causal:
            return None
        for i in range(-1, ROUNDS):  # the first round is not counted
            for which in (0, 1) if i % 2 else (1, 0):
                found = _decode(models[which])
                seconds[which].extend([found] if i >= 0 else [])
    ratio = statistics.median(a / b for a, b in zip(*seconds, strict=True))
    old, new = (N_TOKENS / statistics.median(times) for times in seconds)
    return Speed(old, new, ratio)


def _decode(model: Loaded) -> float:
    """Seconds that N_TOKENS passes of one token take."""
    with model.engine.new_sequence() as seq:
        start = time.perf_counter()
        for i in range(N_TOKENS):
            model.engine.forward(seq, [i % model.plan.n_vocab], [0], None)
        return time.perf_counter() - start
