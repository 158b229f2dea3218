"""Feeds a model one token after the other, as decoding does, and keeps figures by bins: memory, time, loss, pages."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from stream_model import loss

import edgellm

if TYPE_CHECKING:
    from edgellm.cache import Sequence
    from edgellm.engine import Engine
    from edgellm.worker import Job

STATM = Path("/proc/self/statm")  # Linux


@dataclass(frozen=True)
class Bins:
    """Figures of consecutive bins of `size` tokens; arrays (n_bins,).

    `resident` bytes of the process and `pages` of the sequence at the end of a bin; `seconds` and `cpu` (seconds of all
    threads) of its passes, `typical` the median of its tokens' seconds; `loss`: mean -ln p(next token), nats.
    """

    size: int
    resident: np.ndarray
    seconds: np.ndarray
    cpu: np.ndarray
    typical: np.ndarray
    loss: np.ndarray
    pages: np.ndarray

    @classmethod
    def empty(cls, n_bins: int, size: int) -> Bins:
        return cls(size, *(np.full(n_bins, np.nan) for _ in range(6)))

    @property
    def position(self) -> np.ndarray:
        """Tokens that were fed at the end of each bin."""
        return self.size * np.arange(1, len(self.loss) + 1)

    @property
    def perplexity(self) -> np.ndarray:
        return np.exp(self.loss)

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: np.asarray(value) for name, value in vars(self).items()}


def resident() -> float:
    """Bytes of this process that are in memory; NaN where the system does not say."""
    if not STATM.exists():
        return float("nan")
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def own_stories(model: edgellm.Model, n: int) -> np.ndarray:
    """int32 (n,): stories that the model tells itself at temperature 1, each with the token that begins a text."""
    out: list[int] = []
    plain = edgellm.Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=1.0)
    begin = model.tokenizer.encode("")
    for seed in range(n):
        told = model.generate(begin, sampling=plain, seed=seed)
        out += [*begin, *told.token_ids]
        if len(out) >= n:
            break
    return np.array(out[:n], np.int32)


def feed(model: edgellm.Model, text: np.ndarray, n_tokens: int, *, size: int = 1000) -> Bins:
    """Figures of `n_tokens` tokens (a multiple of `size`) of `text`, which is repeated, in one sequence of `model`.

    What happens beyond its context window is the policy that it was loaded with. What the tool itself holds does not
    grow with the position.
    """
    engine = model._loaded.engine
    bins = Bins.empty(n_tokens // size, size)
    logits = np.zeros((size, model.n_vocab), np.float32)
    seq = model._worker.call(lambda job: engine.new_sequence())
    try:
        for i in range(len(bins.loss)):
            ids = text[np.arange(i * size, (i + 1) * size + 1) % len(text)]
            took = model._worker.call(lambda job, ids=ids: _passes(engine, seq, ids[:-1].tolist(), logits, job))
            bins.seconds[i], bins.cpu[i], bins.typical[i] = took
            bins.loss[i] = loss(logits, ids[1:]).mean()
            bins.resident[i], bins.pages[i] = resident(), seq.n_pages
    finally:
        model._worker.call(lambda job: seq.close())
    return bins


def _passes(engine: Engine, seq: Sequence, ids: list[int], logits: np.ndarray, job: Job) -> tuple[float, float, float]:
    """One pass for each token; its logits into the rows of `logits`. Returns seconds, CPU seconds, median seconds."""
    times, cpu = np.empty(len(ids) + 1), time.process_time()  # moments between tokens
    times[0] = time.perf_counter()
    for i, token in enumerate(ids):
        logits[i] = engine.forward(seq, [token], [0], job.flag)[0]
        times[i + 1] = time.perf_counter()
    return times[-1] - times[0], time.process_time() - cpu, float(np.median(np.diff(times)))
