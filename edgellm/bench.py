"""Measuring speed: llama-bench's tests and names, so that figures can be put side by side.

`ppN` is a prompt of N tokens in passes of 512, `tgN` is N passes of one token; ` @ dD` says that D tokens were in the
cache before. Each repetition starts from the same cache; one warm-up run comes before the first.

What is counted: the bytes of the file's tensors that a pass needs (never padding, never the cache), and the
multiply-adds that it really does (the output head only for tokens whose logits are wanted; those of attention on their
own). Shares hold them against the machine's own limits, measured in the same run (`edgellm.probe`).
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from edgellm.cache import Overflow, split_kv_type
from edgellm.errors import InvalidArgumentError

if TYPE_CHECKING:
    from edgellm.cache import Sequence as Cached
    from edgellm.engine import Engine
    from edgellm.model import Model
    from edgellm.plan import Plan
    from edgellm.probe import Limits
    from edgellm.weights import Weights
    from edgellm.worker import Job


@dataclass(frozen=True)
class BenchResult:
    """One test. Rates are tokens per second; `gb_per_s` counts the bytes of the file's tensors that the passes need.

    1 GB is 10^9 bytes. The bytes are those of the source GGUF, without padding or cache: each matrix once per pass, of
    an untied embedding table only the rows that are looked up. `madds` and `attention_madds` are multiply-adds of one
    repetition. Shares are None where they say nothing (reading for pp, multiplying for tg) or were not measured:
    `read_share` of the bandwidth, `int8_share` and `bf16_share` of the fastest instructions of that kind. `busy` is the
    number of busy processes beside the run; `type_k` and `type_v` are the page types of the cache. With `speculate`
    other than "off", `draft_tokens` of all repetitions were guessed and `draft_accepted` came true.
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
    type_k: str
    type_v: str
    peak_rss: int
    madds: int
    attention_madds: int
    read_share: float | None
    int8_share: float | None
    bf16_share: float | None
    busy: int
    speculate: str = "off"
    draft_tokens: int = 0
    draft_accepted: int = 0

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


def pass_madds(plan: Plan, n_tokens: int, n_outputs: int = 1) -> int:
    """Multiply-adds of a pass in products with weights: each row of a matrix with each token, or each wanted output."""
    from edgellm.ops import Op

    total = 0
    for step in plan.steps:
        n = n_outputs if step.outputs and plan.buffers[step.outputs[0]].rows == "outputs" else n_tokens
        if step.op is Op.LINEAR:
            rows, cols = plan.weights[step.weights[0]]
            total += n * rows * cols
        elif step.op is Op.EXPERTS:
            one = sum(rows * cols for _, rows, cols in (plan.weights[name] for name in step.weights))
            total += n * step.params["n_used"] * one
    return total


def attention_madds(plan: Plan, n_tokens: int, depth: int) -> int:
    """Multiply-adds of a pass in attention: scores and values of every visible position, for every head."""
    from edgellm.ops import Op

    total = 0
    for step in plan.steps:
        if step.op is Op.ATTENTION:
            p = step.params
            window = p["window"] or depth + n_tokens
            seen = sum(min(window, depth + i + 1) for i in range(n_tokens))
            total += 2 * p["n_heads"] * p["head_dim"] * seen
    return total


@dataclass(frozen=True)
class Work:
    """What one repetition of a test needs: bytes of the file's tensors, multiply-adds with weights and in attention."""

    n_bytes: int
    madds: int
    attention_madds: int


def work_of(plan: Plan, weights: Weights, n_prompt: int, n_gen: int, depth: int) -> Work:
    """A prompt of `n_prompt` tokens (logits for the last one), or `n_gen` passes of one token."""
    passes = [(1, 1)] * n_gen
    if n_prompt:
        from edgellm.engine import PREFILL_CHUNK

        starts = range(0, n_prompt, PREFILL_CHUNK)
        passes = [(min(PREFILL_CHUNK, n_prompt - at), int(at + PREFILL_CHUNK >= n_prompt)) for at in starts]
    counted: Counter[tuple[int, int]] = Counter(passes)
    attention = 0
    for n_tokens, _ in passes:
        attention += attention_madds(plan, n_tokens, depth)
        depth += n_tokens
    return Work(
        sum(times * pass_bytes(plan, weights, *kind) for kind, times in counted.items()),
        sum(times * pass_madds(plan, *kind) for kind, times in counted.items()),
        attention,
    )


@contextmanager
def busy_processes(n: int) -> Iterator[None]:
    """`n` processes that never rest, as long as the block runs. Raises InvalidArgumentError in a frozen program."""
    if n and getattr(sys, "frozen", False):  # sys.executable is then the program itself
        raise InvalidArgumentError("a frozen program has no Python to start busy processes with; measure without them")
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        if n:
            time.sleep(0.3)  # until they are really running
        yield
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


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
    limits: Limits | None = None,
    busy: int = 0,
    speculate: str = "off",
) -> Iterator[BenchResult]:
    """Every test that the numbers ask for, one after the other; 0 leaves a test out. See `one_test`."""
    for depth in depths:
        for n_prompt, n_gen in [(p, 0) for p in prompts if p] + [(0, n) for n in generations if n]:
            yield one_test(model, n_prompt, n_gen, depth, repetitions, limits, busy, "off" if n_prompt else speculate)


def one_test(
    model: Model, n_prompt: int, n_gen: int, depth: int, repetitions: int, limits: Limits | None = None, busy: int = 0,
    speculate: str = "off",
) -> BenchResult:  # fmt: skip
    """Time a prompt of `n_prompt` tokens or `n_gen` decoded tokens at `depth`, `repetitions` times.

    It is held against `limits` (`edgellm.probe.limits_apart`); `busy` processes run beside it. Decoded tokens are the
    same for every model, one pass each; with `speculate` they are what the model says at temperature 0, because guesses
    come true by what is said.
    """
    from edgellm.machine import peak_rss

    loaded = model._loaded
    type_k, type_v = split_kv_type(model.kv_type)
    with busy_processes(busy):
        runs = model._worker.call(
            lambda job: _measure(loaded.engine, job, n_prompt, n_gen, depth, repetitions, speculate)
        )
    rates = [(n_prompt or n_gen) / run.seconds for run in runs]
    work = work_of(loaded.plan, loaded.weights, n_prompt, n_gen, depth)
    read = work.n_bytes if speculate == "off" else work.n_bytes * statistics.fmean(run.passes for run in runs) / n_gen
    per_s = statistics.fmean(1 / run.seconds for run in runs)
    madds = work.madds * per_s if n_prompt else 0.0
    return BenchResult(
        test=test_name(n_prompt, n_gen, depth),
        n_prompt=n_prompt,
        n_gen=n_gen,
        n_depth=depth,
        n_threads=model.threads,
        avg_ts=statistics.fmean(rates),
        stddev_ts=statistics.stdev(rates) if len(rates) > 1 else 0.0,
        samples_ts=tuple(rates),
        gb_per_s=read * per_s / 1e9,
        isa=model.isa,
        backend=model.backend,
        model=str(model.path),
        model_type=model_type(model),
        model_size=loaded.weights.n_bytes,
        model_n_params=n_params(loaded.plan),
        type_k=type_k,
        type_v=type_v,
        peak_rss=peak_rss(),
        madds=work.madds,
        attention_madds=work.attention_madds,
        read_share=_share(0.0 if n_prompt else read * per_s, None if limits is None else limits.read),
        int8_share=_share(madds, None if limits is None else limits.int8),
        bf16_share=_share(madds, None if limits is None else limits.bf16),
        busy=busy,
        speculate=speculate,
        draft_tokens=sum(run.drafted for run in runs),
        draft_accepted=sum(run.accepted for run in runs),
    )


def _share(rate: float, limit: float | None) -> float | None:
    return rate / limit if rate and limit else None


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


@dataclass(frozen=True)
class _Run:
    """One repetition: how long it took, in how many passes, and the guesses that were checked and came true."""

    seconds: float
    passes: int
    drafted: int = 0
    accepted: int = 0


def _measure(
    engine: Engine, job: Job, n_prompt: int, n_gen: int, depth: int, repetitions: int, speculate: str
) -> list[_Run]:
    """Every repetition but the first, which warms up. Runs on the worker thread."""
    n_vocab = engine.tokenizer.n_vocab
    work = tokens_for(n_prompt or n_gen, n_vocab, 11)
    warm_up = work if n_prompt else work[: max(1, min(16, n_gen))]
    runs = []
    with engine.new_sequence(Overflow()) as deep:
        if depth:
            engine.prefill(deep, tokens_for(depth, n_vocab, 7), job)
        for i in range(repetitions + 1):
            with deep.fork() as seq:
                start, passes, drafts = time.perf_counter(), engine.passes, (0, 0)
                if n_prompt:
                    engine.prefill(seq, work, job)
                elif speculate != "off":
                    drafts = _answer(engine, seq, job, work[0], n_gen, speculate)
                else:
                    _decode(engine, seq, job, work if i else warm_up)
                if i:
                    runs.append(_Run(time.perf_counter() - start, engine.passes - passes, *drafts))
    return runs


def _decode(engine: Engine, seq: Cached, job: Job, tokens: Iterable[int]) -> None:
    for token in tokens:
        engine.forward(seq, [token], [0], job.flag)


def _answer(engine: Engine, seq: Cached, job: Job, first: int, n: int, speculate: str) -> tuple[int, int]:
    """`n` passes or fewer, from token `first` on, each token the most probable one; guesses checked and come true."""
    from edgellm.sampling import Sampler, Sampling

    greedy = Sampler(Sampling(temperature=0.0), engine.tokenizer.n_vocab)
    steps = engine.decoding(seq, job.flag, speculate, greedy)
    steps.begin(seq.ids)
    token = first
    for i in range(n):
        token = greedy.sample(steps.next(token, n - i)[: engine.tokenizer.n_vocab])
    steps.end()
    steps.close()
    return steps.n_drafted, steps.n_accepted
