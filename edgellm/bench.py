"""Measuring speed: llama-bench's tests and names, so that figures can be put side by side.

`ppN` is a prompt of N tokens in passes of 512, `tgN` is N passes of one token; ` @ dD` says that D tokens were in the
cache before. Each repetition starts from the same cache; one warm-up run comes before the first.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgellm.generate import Engine
    from edgellm.model import Model
    from edgellm.plan import Plan
    from edgellm.weights import Weights
    from edgellm.worker import Job


@dataclass(frozen=True)
class BenchResult:
    """One test. Rates are tokens per second; `gb_per_s` counts the bytes of the file's tensors that the passes need.

    1 GB is 10^9 bytes. The bytes are those of the source GGUF, without padding or cache: each matrix once per pass, of
    an untied embedding table only the rows that are looked up.
    """

    test: str
    n_prompt: int
    n_gen: int
    n_depth: int
    n_threads: int
    avg_ts: float
    stddev_ts: float
    samples_ts: tuple[float, ...]
    gb_per_s: float
    isa: str
    backend: str
    model: str
    model_type: str
    model_size: int
    model_n_params: int
    kv_type: str
    peak_rss: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"samples_ts": list(self.samples_ts)}


def pass_bytes(plan: Plan, weights: Weights, n_tokens: int, n_outputs: int = 1) -> int:
    """Tensor bytes of the source file that one pass over `n_tokens` reads, with logits for `n_outputs` tokens.

    Of experts it is as many as the tokens could choose at most.
    """
    from edgellm.ops import Op

    looked_up = {name for step in plan.steps if step.op is Op.EMBED for name in step.weights}
    multiplied = {name for step in plan.steps if step.op is not Op.EMBED for name in step.weights}
    heads = {name for step in plan.steps if plan.logits in step.outputs for name in step.weights}
    chosen = {n: s.params["n_used"] for s in plan.steps if s.op is Op.EXPERTS for n in s.weights}
    total = 0
    for name in looked_up | multiplied:
        rows, row = _rows(weights, name)
        if name in chosen:  # a row is one expert
            total += min(rows, n_tokens * chosen[name]) * row
        elif name in multiplied and (n_outputs or name not in heads):  # the head runs only where logits are wanted
            total += rows * row
        elif name in looked_up:
            total += min(rows, n_tokens) * row
    return total


def _rows(weights: Weights, name: str) -> tuple[int, int]:
    """(rows, bytes of a row) of a tensor; a vector is one row."""
    shape = weights.shape(name)
    rows = shape[0] if len(shape) > 1 else 1
    n_bytes = weights.span(name)[1]
    return rows, n_bytes // rows


def tokens_for(n: int, n_vocab: int, step: int) -> list[int]:
    """`n` harmless token ids, spread over the vocabulary; the same in every run."""
    first = min(10, n_vocab - 1)
    span = max(1, min(1000, n_vocab - first))
    return [first + step * i % span for i in range(n)]


def run_tests(
    model: Model,
    prompts: Sequence[int],
    generations: Sequence[int],
    depths: Sequence[int],
    repetitions: int,
) -> Iterator[BenchResult]:
    """Every test that the numbers ask for, one after the other; 0 leaves a test out. See `one_test`."""
    for depth in depths:
        for n_prompt, n_gen in [(p, 0) for p in prompts if p] + [(0, n) for n in generations if n]:
            yield one_test(model, n_prompt, n_gen, depth, repetitions)


def one_test(model: Model, n_prompt: int, n_gen: int, depth: int, repetitions: int) -> BenchResult:
    """Time a prompt of `n_prompt` tokens or `n_gen` decoded tokens at `depth`, `repetitions` times."""
    from edgellm.generate import PREFILL_CHUNK
    from edgellm.machine import peak_rss

    loaded = model._loaded
    seconds = model._worker.call(lambda job: _measure(loaded.engine, job, n_prompt, n_gen, depth, repetitions))
    n = n_prompt or n_gen
    rates = [n / s for s in seconds]
    if n_prompt:
        chunks = [min(PREFILL_CHUNK, n_prompt - at) for at in range(0, n_prompt, PREFILL_CHUNK)]
        last = len(chunks) - 1
        n_bytes = sum(pass_bytes(loaded.plan, loaded.weights, c, int(i == last)) for i, c in enumerate(chunks))
    else:
        n_bytes = n_gen * pass_bytes(loaded.plan, loaded.weights, 1)
    return BenchResult(
        test=test_name(n_prompt, n_gen, depth),
        n_prompt=n_prompt,
        n_gen=n_gen,
        n_depth=depth,
        n_threads=model.threads,
        avg_ts=statistics.fmean(rates),
        stddev_ts=statistics.stdev(rates) if len(rates) > 1 else 0.0,
        samples_ts=tuple(rates),
        gb_per_s=statistics.fmean(n_bytes / s for s in seconds) / 1e9,
        isa=model.isa,
        backend=model.backend,
        model=str(model.path),
        model_type=model_type(model),
        model_size=loaded.weights.n_bytes,
        model_n_params=n_params(loaded.plan),
        kv_type=model.kv_type,
        peak_rss=peak_rss(),
    )


def test_name(n_prompt: int, n_gen: int, depth: int) -> str:
    """llama-bench's name of a test: `pp512`, `tg128`, `tg128 @ d4096`."""
    name = f"pp{n_prompt}" if n_prompt else f"tg{n_gen}"
    return f"{name} @ d{depth}" if depth else name


test_name.__test__ = False  # type: ignore[attr-defined]  # pytest: not a test


def model_type(model: Model) -> str:
    """Family and the type that most matrices have, such as `llama Q4_0`."""
    weights = model._loaded.weights
    kinds = Counter(weights.type(name).name for name in weights.names if len(weights.shape(name)) > 1)
    return f"{model.arch} {kinds.most_common(1)[0][0]}"


def n_params(plan: Plan) -> int:
    from math import prod

    return sum(prod(shape) for shape in plan.weights.values())


def _measure(engine: Engine, job: Job, n_prompt: int, n_gen: int, depth: int, repetitions: int) -> list[float]:
    """Seconds of each repetition. Runs on the worker thread."""
    n_vocab = engine.tokenizer.n_vocab
    engine.rewind(0)
    _feed(engine, job, tokens_for(depth, n_vocab, 7))
    work = tokens_for(n_prompt or n_gen, n_vocab, 11)
    warm_up = work if n_prompt else work[: max(1, min(16, n_gen))]
    seconds = []
    for i in range(repetitions + 1):
        tokens = warm_up if i == 0 else work
        engine.rewind(depth)
        start = time.perf_counter()
        if n_prompt:
            engine.prefill(tokens, job)
        else:
            _decode(engine, job, tokens)
        if i:
            seconds.append(time.perf_counter() - start)
    engine.rewind(0)
    return seconds


def _feed(engine: Engine, job: Job, tokens: list[int]) -> None:
    if tokens:
        engine.prefill(tokens, job)


def _decode(engine: Engine, job: Job, tokens: Iterable[int]) -> None:
    for token in tokens:
        engine.forward([token], [0], job.flag)
