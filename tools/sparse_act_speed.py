"""Whole tokens through the native backend, dense and sparse in turns, for the experiment of tools/sparse_act.py.

What is timed is one call of the runtime's pass for one token of a text, in its context, with all of its steps, on all
threads: embedding, norms, attention, all matrices, output head, all through the runtime's own kernels. In a sparse pass
the products of `attn_output` and `ffn_down` are those of tools/sparse_act/kmajor.h, with thresholding, quantising and
listing inside the time; nothing else differs. Not in it: sampling and text, which are the same for both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import sparse_act_native as native
from sparse_act_model import Site, SparseModel

from edgellm.cache import Sequence as CacheSequence
from edgellm.errors import InvalidArgumentError
from edgellm.ops import Op

RUN = 16  # tokens that are timed together
FEWEST, MOST = 8, 2000  # rounds
PAST = 256  # tokens in the context
WIDTHS = range(2, 9)  # tokens of a pass that verifies guesses


class SparsePasses:
    """The matrices of a model's sites by channel, and the switch between dense and sparse passes."""

    def __init__(self, model: SparseModel, block_rows: int | None = None) -> None:
        self.model, self.module = model, native.runtime()
        self._lists = native.Lists(self.module, max(site.k for site in model.sites))
        self._kept = np.zeros(max(site.k for site in model.sites), np.float32)
        room = {"live": self._lists.struct[0], "kept": self.module.ffi.from_buffer("float[]", self._kept)}
        self._scratch = self.module.ffi.new("sa_scratch *", room)
        self.matrices = [self._stored(site, block_rows) for site in model.sites]
        self.steps = [self._step(site) for site in model.sites]
        self._used: list[Any] = []

    def _stored(self, site: Site, block_rows: int | None) -> native.KMajor:
        """Blocks of 256 rows, or of 128 where there would not be one of those for each thread."""
        weights = self.model.loaded.weights
        size = block_rows or (256 if site.rows >= 256 * self.model.loaded.threads else 128)
        kind = weights.type(site.tensor)
        return native.KMajor(self.module, weights.data(site.tensor), kind, site.rows, site.k, size)

    def _step(self, site: Site) -> int:
        """Of the lowered plan."""
        steps = self.model.runner._fused.steps
        found = [i for i, step in enumerate(steps) if step.op == "linear" and step.weights == (site.tensor,)]
        if len(found) != 1 or steps[found[0]].planes != 1:
            raise InvalidArgumentError(f"{site.tensor} is no product of its own in this model's plan")
        return found[0]

    def use(self, thresholds: Mapping[str, float] | None) -> None:
        """From now on passes of one token are sparse, with these thresholds by tensor; None: dense."""
        rows = zip(self.steps, self.model.sites, self.matrices, strict=True)
        found = [(step, (thresholds or {}).get(site.tensor, 0.0), w.struct[0]) for step, site, w in rows]
        self._used = [self.module.ffi.new("sa_site[]", found)] if thresholds is not None else [self.module.ffi.NULL]
        self.module.lib.sa_use(self._used[0], len(found), self._scratch)

    def live(self, n_passes: int) -> float:
        """Live channels per pass since `use`, as a share of all inputs of the sites."""
        return self.module.lib.sa_live_seen() / n_passes / sum(site.k for site in self.model.sites)


class Bench:
    """A text in the cache, and passes over the tokens that follow it."""

    def __init__(self, passes: SparsePasses, tokens: np.ndarray) -> None:
        self.passes, self.runner, self.tokens = passes, passes.model.runner, tokens
        self.seq = CacheSequence(passes.model.loaded.pool, len(tokens))
        self.seq.ensure(len(tokens))
        passes.use(None)
        self.runner.forward(tokens[:PAST], 0, np.zeros(0, np.int32), self.seq)
        self.seq.commit(PAST)
        self.seq.ensure(len(tokens))

    def one(self, position: int) -> np.ndarray:
        """The logits float32 (n_vocab,) after the token at a position."""
        last = np.zeros(1, np.int32)
        logits: np.ndarray = self.runner.forward(self.tokens[position : position + 1], position, last, self.seq)[0]
        return logits

    def check(self, thresholds: Mapping[str, float]) -> None:
        """Raises AssertionError unless a sparse pass gives the bits of a dense one whose small inputs were set to 0."""
        self.passes.use(thresholds)
        fast = self.one(PAST).copy()
        self.passes.use(None)
        slow = self.passes.model.run(self.tokens[PAST : PAST + 1], PAST, np.zeros(1, np.int32), self.seq, thresholds)[0]
        assert (fast == slow).all(), "the sparse pass differs from the dense one with zeros"

    def seconds(self, start: int) -> float:
        """Of a pass, the mean over RUN tokens."""
        begin = time.perf_counter()
        for position in range(start, start + RUN):
            self.one(position)
        return (time.perf_counter() - begin) / RUN

    def widths(self, rounds: int) -> dict[int, float]:
        """Seconds of a dense pass over so many tokens with all their logits: what verifying guesses costs."""
        self.passes.use(None)
        times: dict[int, list[float]] = {n: [] for n in (1, *WIDTHS)}
        for _ in range(rounds):
            for n, found in times.items():
                begin = time.perf_counter()
                for start in range(PAST, PAST + RUN, 8):
                    self.runner.forward(self.tokens[start : start + n], start, np.arange(n, dtype=np.int32), self.seq)
                found.append((time.perf_counter() - begin) / (RUN / 8))
        return {n: statistics.median(found) for n, found in times.items()}


def rounds_in(seconds: float, passes: int, each: float) -> int:
    """Rounds of so many passes that fit into the time, within reason."""
    return max(FEWEST, min(MOST, int(seconds / (passes * each))))


def measure(bench: Bench, settings: Mapping[str, Mapping[str, float]], rounds: int) -> dict[str, dict[str, float]]:
    """For each setting (thresholds by tensor) seconds per token and how much faster than dense, medians over rounds.

    A round runs dense and all settings over the same tokens, in an order that goes round; "dense" is in the result too,
    with the ratio of a second dense run to the first: how far two equal things are apart here.
    """
    names: list[str | None] = [None, "dense", *settings]
    times: dict[str | None, list[float]] = {name: [] for name in names}
    live: dict[str, list[float]] = {name: [] for name in settings}
    places = range(PAST, len(bench.tokens) - RUN + 1, RUN)
    for i in range(rounds + 1):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            bench.passes.use(None if name is None else settings.get(name))
            seconds = bench.seconds(places[i % len(places)])
            if name in settings:
                live[name].append(bench.passes.live(RUN))
            if i:  # the first round warms up
                times[name].append(seconds)
    found = {}
    for name in map(str, names[1:]):
        ratios = sorted(a / b for a, b in zip(times[None], times[name], strict=True))
        quarter = len(ratios) // 4
        found[name] = {
            "seconds": statistics.median(times[name]), "gain": statistics.median(ratios),
            "live": statistics.mean(live.get(name, [1.0])),
            "gain_low": ratios[quarter], "gain_high": ratios[-1 - quarter],
        }  # fmt: skip
    return found


def draft_gain(same: float, cost: float, widths: Mapping[int, float]) -> tuple[float, int]:
    """(gain, guesses) of the sparse pass as a draft with dense verification, with the best number of guesses per pass.

    `same`: share of guesses that come true; `cost`: of a sparse pass, in dense ones; `widths`: seconds of dense passes
    by their tokens. Tokens per round are (1 - a^(k + 1)) / (1 - a) (Leviathan et al. 2023, arXiv:2211.17192), its cost
    is k sparse passes and one dense pass over k + 1 tokens.
    """

    def gain(k: int) -> float:
        expected = sum(same**i for i in range(k + 1))
        return expected / (k * cost + widths[k + 1] / widths[1])

    best = max(range(1, max(widths)), key=gain)
    return gain(best), best


def read_shares(model: SparseModel, live: float) -> tuple[float, float]:
    """What a token reads of the sites' matrices, and of all matrices, as shares: all scales, codes of live channels."""
    weights = model.loaded.weights
    every = {step.weights[0] for step in model.plan.steps if step.op is Op.LINEAR}
    total = sum(weights.span(name)[1] for name in every)
    own = sum(weights.span(site.tensor)[1] for site in model.sites)
    bits = {"Q4_0": 4, "Q8_0": 8}
    saved = sum(site.weights * (1 - live) * bits[weights.type(site.tensor).name] / 8 for site in model.sites)
    return 1 - saved / own, 1 - saved / total


def quick_thresholds(model: SparseModel, tokens: np.ndarray, shares: Sequence[float]) -> dict[str, dict[str, float]]:
    """{share: thresholds by tensor} from one pass over tokens (n,): every site alike, for speed alone."""
    found: dict[str, dict[str, float]] = {f"{share:g}": {} for share in shares}

    def see(site: Site, x: np.ndarray) -> None:
        for share in shares:
            found[f"{share:g}"][site.tensor] = float(np.quantile(np.abs(x), share)) if share else 0.0

    with CacheSequence(model.loaded.pool, len(tokens)) as seq:
        seq.ensure(len(tokens))
        model.run(tokens, 0, np.zeros(1, np.int32), seq, see=see)
    return found


def speed(
    model: SparseModel, tokens: np.ndarray, settings: Mapping[str, Mapping[str, float]], seconds: float,
    block_rows: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What the page needs of one model: `settings` as `measure` gives them, with the shares of bytes that are read, and
    the cost of passes by their tokens. `tokens`: at least PAST + RUN; the first PAST are the context. Passes run for
    about `seconds`."""
    passes = SparsePasses(model, block_rows)
    bench = Bench(passes, tokens)
    for thresholds in settings.values():
        bench.check(thresholds)
    each = min(bench.seconds(PAST) for _ in range(4))
    found = measure(bench, settings, rounds_in(seconds, RUN * (len(settings) + 2), each))
    for one in found.values():
        one["read_sites"], one["read_all"] = read_shares(model, one["live"])
    widths = bench.widths(rounds_in(seconds / 4, 2 * sum((1, *WIDTHS)), each))
    passes.use(None)
    bench.seq.close()
    return {
        "settings": found, "widths": {str(n): t for n, t in widths.items()}, "threads": model.loaded.threads,
        "block_rows": sorted({int(w.struct.block_rows) for w in passes.matrices}),
        "extra_bytes": sum(w.stored.size for w in passes.matrices),
    }  # fmt: skip
