"""Which parts of a model's layers its drafts may leave out: `edgellm draft`.

A set is as good as the tokens that it promises per time: how often the most probable token without those parts is the
model's own (measured, on text that the model writes), against the bytes that are still read (counted). Parts are tried
alone first, then added in the order of harm per byte, then single parts are put in and taken out at random (SWIFT, Xia
et al. 2024, arXiv:2410.06916, searches the same space). The same seed gives the same set.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .cache import PagePool, Sequence
from .calibrate import chunks_of
from .convert.pipeline import check_output
from .errors import InvalidArgumentError, OutputError
from .gguf import GGUFFile, GGUFWriter
from .gguf.constants import DEFAULT_ALIGNMENT
from .loader import Loaded
from .progress import Meter, ProgressCallback
from .quantize import copied
from .sampling import Sampler, Sampling
from .speculate import SkipSet
from .speculate.control import best_length
from .speculate.skipping import PREFIX, bytes_read, layer_parts, plan_without

WINDOW = 256  # tokens of a stretch of text; the model has written the second half of it
POSITIONS = 128  # where drafts are compared with the model, for each set
ROUNDS = 48  # single changes that are tried in the end
WORST = 0.2  # sets that are right less often are not taken any further

Part = tuple[int, str]


@dataclass(frozen=True)
class Trial:
    """A set that was tried: how often it is right, what a token of a draft reads (share of the model's bytes), the best
    length of a draft by that, and tokens for the time of a plain pass with such drafts."""

    skip: SkipSet
    cost: float
    length: int
    gain: float

    @property
    def acceptance(self) -> float:
        return self.skip.acceptance


@dataclass(frozen=True)
class DraftReport:
    """What was found. `best`: its acceptance was measured at other positions than those it was chosen by. `steps`: the
    best sets on the way, by the number of parts left out. `path`: the file that says so now, None: none was written."""

    path: str | None
    best: Trial
    steps: tuple[Trial, ...]
    n_layers: int
    n_tried: int
    n_positions: int
    seconds: float
    notes: tuple[str, ...] = ()


def find_skip_set(
    src: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    text: str | None = None,
    dry_run: bool = False,
    positions: int = POSITIONS,
    rounds: int = ROUNDS,
    seed: int = 0,
    threads: int | str = "auto",
    backend: str = "auto",
    overwrite: bool = True,
    progress: ProgressCallback | None = None,
) -> DraftReport:
    """The best set for the model at `src`, and a copy of the file at `out` that says it (None: the file itself gets it,
    through a temporary one). `dry_run`: nothing is written.

    The model goes on with stretches of `text`; without one with nothing. `progress` gets a `Progress` and may return
    False to stop. Raises InvalidArgumentError (arguments, models that are built otherwise), Cancelled, OutputError, and
    the errors of loading a model; no file is left or changed then.
    """
    start = time.perf_counter()
    _check(positions, rounds)
    loaded = Loaded(
        src, n_ctx=WINDOW, threads=threads, backend=backend, kv_type="auto", chat_template=None, seed=None,
        progress=None,
    )  # fmt: skip
    try:
        path = None if dry_run else _target(loaded.file, out, overwrite)
        layer_parts(loaded.plan)
        with loaded.file.reading(), _Agreement(loaded, text, positions, seed, progress) as agreement:
            search = _Search(loaded, agreement, rounds, random.Random(seed), progress)
            best, steps = search.run()
            best = search.trial(best.skip.parts, fresh=True)
        notes = (
            () if best.gain >= 1.05 else ("drafts like that promise nothing; `auto` will leave them alone",)
        )
        if path is not None:
            write_skip_set(loaded.file, path, best.skip, progress)
        n_layers = loaded.plan.kv.n_layers
    finally:
        loaded.close()
    seconds = time.perf_counter() - start
    return DraftReport(path, best, tuple(steps), n_layers, search.n_tried, positions, seconds, notes)


def _check(positions: int, rounds: int) -> None:
    for name, value, least in (("positions", positions, 8), ("rounds", rounds, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 1 << 20:
            raise InvalidArgumentError(f"{name} is {value!r}; choose {least} or more")


def _target(file: GGUFFile, out: str | os.PathLike[str] | None, overwrite: bool) -> str:
    """Where the set is written. Raises OutputError, InvalidArgumentError, before anything is measured."""
    if file.packed is not None:
        raise OutputError("a packed file is sealed; run this on the file that it was made from", path=file.path)
    if out is not None:
        return check_output(out, file.paths, overwrite)
    if len(file.paths) > 1 or os.path.islink(file.path):
        raise OutputError("this file cannot be changed in its place; give -o OUT", path=file.path)
    return os.fspath(file.path)


# ---- how often a draft is right --------------------------------------------------------------------------------------


@dataclass
class _Window:
    """A stretch of text with the model's keys and values, and its most probable next token at some positions."""

    ids: list[int]
    seq: Sequence
    said: dict[int, int]  # position -> the token


class _Agreement:
    """Compares drafts of one token with the model, at fixed positions of texts that the model has written."""

    def __init__(
        self, loaded: Loaded, text: str | None, positions: int, seed: int, progress: ProgressCallback | None
    ) -> None:
        self._loaded, self._seed = loaded, seed
        size = WINDOW
        beginnings = _beginnings(loaded, text, size // 2)
        self._half = size // 2 if text is not None else 8  # where what the model wrote begins
        each = 2 * positions // max(1, (n := min(8, max(2, 2 * positions // 64))))
        blocks = (n + 2) * (-(-size // 64)) * loaded.plan.kv.n_layers
        self._pool = PagePool(loaded.plan.kv, loaded.pool.kv_type, blocks)
        meter = Meter(progress, "writing text", n * size, "tokens")
        rng = random.Random(seed)
        self._windows = []
        for i in range(n):
            window = self._write(beginnings[i % len(beginnings)], size, seed + i, meter)
            at = sorted(rng.sample(range(self._half, size - 1), min(each, size - 1 - self._half)), reverse=True)
            window.said = {p: window.said[p] for p in at}
            self._windows.append(window)

    def _write(self, ids: list[int], size: int, seed: int, meter: Meter) -> _Window:
        """A window that begins with `ids`; the rest the model says, with everyday sampling."""
        loaded, seq = self._loaded, Sequence(self._pool, WINDOW)
        sampler = Sampler(Sampling(seed=seed), loaded.tokenizer.n_vocab, loaded.tokenizer)
        ids, said, none = list(ids), dict[int, int](), None
        logits = loaded.engine.forward(seq, ids, [len(ids) - 1], none)[0]
        while True:
            logits = logits[: loaded.tokenizer.n_vocab]
            said[seq.length - 1] = int(logits.argmax())
            meter.advance(1 if len(said) > 1 else len(ids))
            if len(ids) == size:
                return _Window(ids, seq, said)
            ids.append(sampler.sample(logits))
            logits = loaded.engine.forward(seq, [ids[-1]], [0], none)[0]

    def rate(self, forward: Callable[..., np.ndarray], fresh: bool, tick: Callable[[], Any]) -> float:
        """The share of positions where the most probable token of `forward` (of a backend) is the model's. `fresh`: of
        the positions that sets are not chosen by.

        From the last position to the first, so that no pass sees what the one before it left in the cache.
        """
        n_vocab, right, n = self._loaded.tokenizer.n_vocab, 0, 0
        outputs = np.zeros(1, np.int32)
        for window in self._windows:
            with window.seq.fork() as seq:
                for position, token in list(window.said.items())[int(fresh) :: 2]:
                    seq.rewind(position)
                    seq.ensure(position + 1)
                    logits = forward(np.array([window.ids[position]], np.int32), position, outputs, seq)
                    right, n = right + (int(logits[0, :n_vocab].argmax()) == token), n + 1
            tick()
        return right / n

    @property
    def n_windows(self) -> int:
        return len(self._windows)

    def __enter__(self) -> _Agreement:
        return self

    def __exit__(self, *exc: object) -> None:
        for window in self._windows:
            window.seq.close()
        self._pool.close()


def _beginnings(loaded: Loaded, text: str | None, size: int) -> list[list[int]]:
    """What the model goes on with: stretches of `size` tokens, or what a text begins with."""
    if text is None:
        plain = loaded.tokenizer.encode("", add_special=True) if loaded.tokenizer.kind != "missing" else []
        return [plain or [0]]
    found = [chunk.tolist() for chunk in chunks_of(loaded.tokenizer, text, size)]
    if not found:
        raise InvalidArgumentError(f"the text has not even {size} tokens; take a longer one, or none")
    step = max(1, len(found) // 8)
    return found[::step]


# ---- the search ------------------------------------------------------------------------------------------------------


@dataclass
class _Search:
    """Tries sets; `run` once."""

    loaded: Loaded
    agreement: _Agreement
    rounds: int
    random: random.Random
    progress: ProgressCallback | None
    _known: dict[frozenset[Part], Trial] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._all = sorted(layer_parts(self.loaded.plan))
        self._whole = bytes_read(self.loaded.plan, self.loaded.weights)
        n = (2 * len(self._all) + self.rounds + 1) * self.agreement.n_windows
        self._meter = Meter(self.progress, "trying layers", n, "stretches", "nothing was written")
        self._n_left = n

    @property
    def n_tried(self) -> int:
        return len(self._known)

    def run(self) -> tuple[Trial, list[Trial]]:
        """(the best set, the best sets on the way)"""
        nothing = self.trial(frozenset())
        alone = {part: self.trial({part}) for part in self._all}
        harm = {part: (nothing.acceptance - t.acceptance + 1e-3) / (1.0 - t.cost) for part, t in alone.items()}
        best, steps, parts = nothing, [], set[Part]()
        for part in sorted(self._all, key=lambda p: (harm[p], p)):
            parts.add(part)
            trial = self.trial(parts)
            steps.append(trial)
            best = max(best, trial, key=lambda t: t.gain)
            if trial.acceptance < WORST:
                break
        for _ in range(self.rounds):
            changed = best.skip.parts ^ set(self.random.sample(self._all, self.random.choice((1, 2))))
            best = max(best, self.trial(changed), key=lambda t: t.gain)
        if not best.skip.parts:  # nothing can go: at least the least harmful part, so that there is something to store
            best = max(alone.values(), key=lambda t: t.gain)
        return best, steps

    def trial(self, parts: Set[Part], fresh: bool = False) -> Trial:
        """Measures a set, once. `fresh`: again, at other positions."""
        key = frozenset(parts)
        if key not in self._known or fresh:
            self._known[key] = self._measured(key, fresh)
        return self._known[key]

    def _measured(self, parts: frozenset[Part], fresh: bool) -> Trial:
        plan = plan_without(self.loaded.plan, SkipSet.of(parts))
        backend = self.loaded.runner.sibling(plan, 1)
        try:
            acceptance = self.agreement.rate(backend.forward, fresh, lambda: self._meter.advance(1))
        finally:
            backend.close()
        cost = bytes_read(plan, self.loaded.weights) / self._whole
        return Trial(SkipSet.of(parts, acceptance), cost, *best_length(acceptance, cost))


# ---- the file --------------------------------------------------------------------------------------------------------


def write_skip_set(file: GGUFFile, path: str, skip: SkipSet, progress: ProgressCallback | None = None) -> None:
    """A copy of `file` whose metadata say `skip`. `path` may be its own: it is replaced when all is written."""
    alignment = file.get("general.alignment", int, DEFAULT_ALIGNMENT)
    with GGUFWriter(path, None, alignment) as writer, file.reading():
        for key in file.metadata:
            if not key.startswith((PREFIX, "split.")):
                writer.add_raw(key, file.metadata.raw(key))
        for key, (value, kind) in skip.metadata().items():
            writer.add(key, value, kind)
        for t in file.tensors.values():
            writer.add_tensor_info(t.name, t.shape, t.type)
        n_bytes = sum(t.n_bytes for t in file.tensors.values())
        meter = Meter(progress, "writing", n_bytes, left="nothing was written")
        for t in file.tensors.values():
            writer.write_tensor(t.name, copied(file, t, meter))
        file.check_unchanged()
