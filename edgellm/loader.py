"""From a file to something that can run: header, plan, memory check, weights, backend, cache, tokenizer."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgellm.errors import (
    BackendError,
    InvalidArgumentError,
    ModelFormatError,
    NotEnoughMemoryError,
    TokenizerError,
    one_line,
)
from edgellm.progress import Meter, ProgressCallback, tell
from edgellm.results import Progress
from edgellm.speculate import DraftModelPasses, LayerDrafts, checked_kind, read_skip_set

if TYPE_CHECKING:
    from edgellm.cache import Overflow, PagePool
    from edgellm.gguf import GGUFFile
    from edgellm.memory_estimate import DraftCosts, MemoryEstimate
    from edgellm.plan import Plan
    from edgellm.weights import Weights

_log = logging.getLogger("edgellm")


class Loaded:
    """What `Model` stands on: the open file and everything made from it. `close()` frees it all.

    `draft` is the file of a model that makes drafts for this one: the attribute `draft` is then a `Loaded`, too.
    `tokenizer`: that of a model with the same tokens; None: the file's own.

    Raises the errors of the reader, of the model families and of the backends, DraftModelError, NotEnoughMemoryError.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        n_ctx: int | None,
        threads: int | str,
        backend: str,
        kv_type: str | tuple[str, str],
        chat_template: str | None,
        seed: int | None,
        progress: ProgressCallback | None,
        pack: bool = True,
        huge_pages: bool = False,
        exact: bool = False,
        speculate: str = "auto",
        draft: str | os.PathLike[str] | None = None,
        overflow: Overflow | str | None = None,
        cache_bytes: int | None = None,
        mmap: bool = True,
        mlock: bool = False,
        tokenizer: Any = None,
    ) -> None:
        from edgellm.cache import Overflow
        from edgellm.gguf import open_gguf
        from edgellm.machine import resolve_threads

        start = time.perf_counter()
        self.seed, self.exact, self.speculate = seed, exact, checked_kind(speculate)
        self.tokenizer: Any = tokenizer
        self.draft: Loaded | None = None
        self._draft_costs: DraftCosts | None = None
        self.identity: str | None = None  # of the file (edgellm.identity), once somebody asked
        self._mmap = bool(mmap)
        self.overflow, self._cache_bytes = Overflow.parse(overflow), cache_bytes
        choice = resolve_threads(threads)
        self.threads, self.thread_reason = choice.n, choice.reason
        self.file = open_gguf(path)
        try:
            self.path, self.metadata = self.file.path, self.file.metadata
            with self.file.reading():
                self._prepare(
                    n_ctx, backend, kv_type, chat_template, progress, draft, pack=pack, huge_pages=huge_pages
                )
            if mlock:
                self._lock()
            if draft is not None:
                self._load_draft(draft, backend, progress, pack=pack, huge_pages=huge_pages, mmap=mmap, mlock=mlock)
        except BaseException:
            self.close()
            raise
        self.load_seconds = time.perf_counter() - start

    def _prepare(
        self,
        n_ctx: int | None,
        backend: str,
        kv_type: str | tuple[str, str],
        chat_template: str | None,
        progress: ProgressCallback | None,
        draft: str | os.PathLike[str] | None,
        **weight_options: bool,
    ) -> None:
        from edgellm.backends import NAMES, create
        from edgellm.cache import resolve_kv_type
        from edgellm.engine import PREFILL_CHUNK, Engine
        from edgellm.memory_estimate import MARGIN, draft_costs
        from edgellm.models import build_plan, read_config
        from edgellm.weights import Weights

        if backend not in NAMES:
            raise InvalidArgumentError(f"backend is '{backend}'; choose {', '.join(NAMES)}")
        config = read_config(self.file)
        self.config, self.arch, self.name, self.n_ctx_train = config, config.arch, config.name, config.n_ctx_train
        self.plan = build_plan(config, self.file)
        weights = Weights(self.file, self.plan)
        self.kv_type = resolve_kv_type(kv_type, weights.matrix_types)
        stored = {"mmap": self._mmap} | weight_options
        if draft is not None:
            self._draft_costs = draft_costs(self.file, draft, backend, self.threads, **stored)
        found = fit(
            n_ctx, config.n_ctx_train, self.plan, weights, self.kv_type, backend, self.threads, draft=self._draft_costs,
            **stored,
        )
        self.n_ctx = self._within_budget(found.n_ctx, n_ctx is None)
        self.overflow.fit(self.n_ctx)
        self.plan = build_plan(config, self.file, self.n_ctx)  # the window may change the angles of the rotation
        if not self._mmap:
            self.file.read_in(Meter(progress, "reading", self.file.n_bytes).advance)
        aside = _Aside(lambda: _tokenizer(self.file, self.plan.n_vocab) if self.tokenizer is None else self.tokenizer)
        self.sampling_defaults = _sampling_defaults(self.file)
        self.chat_template = chat_template if chat_template is not None else _own_template(self.file)
        meter, n_bytes = Meter(progress, "loading", weights.n_bytes), weights.n_bytes
        self.runner = create(
            backend, self.plan, weights, n_threads=self.threads, max_tokens=PREFILL_CHUNK,
            progress=None if progress is None else lambda done, of: meter.reach(min(done * n_bytes // of, n_bytes - 1)),
            **weight_options,
        )  # fmt: skip
        self.tokenizer = aside.result(lambda: meter.reach(n_bytes - 1))
        meter.reach(n_bytes)
        if hasattr(self.runner, "prepare"):  # compiles its kernels: seconds, the first time
            self.runner.prepare(self.kv_type, lambda n, of: tell(progress, Progress("compiling", n, of, "kernels")))
        self.weights = weights
        self.backend_name = self.runner.name
        self.isa = backend_isa(self.runner)
        self.pool = self._pool(found.available - MARGIN - found.total + found.cache)
        self.engine = Engine(
            self.runner, self.pool, self.tokenizer, self.n_ctx, self.threads, self.isa, self.exact, self.overflow,
            source=self.file if self.runner.reads_file else None, weight_bytes=weights.n_bytes,
        )  # fmt: skip
        self._add_drafts()

    def _add_drafts(self) -> None:
        """What the file has for speculation. Raises ModelFormatError for layers that are none."""
        skip = read_skip_set(self.file, self.plan.kv.n_layers)
        if skip is not None:
            self.engine.draft_makers["self"] = LayerDrafts(self.runner, self.plan, self.weights, skip)

    def _load_draft(
        self, path: str | os.PathLike[str], backend: str, progress: ProgressCallback | None, **stored: Any
    ) -> None:
        """The draft model in the file `path`, whose tokens are this model's: it needs no tokenizer of its own."""
        self.plan.result()  # an encoder says nothing that could be guessed
        assert self._draft_costs is not None  # `draft` was looked at before this model was loaded
        self.draft = Loaded(
            path, n_ctx=self._draft_costs.window(self.n_ctx), threads=self.threads, backend=backend, kv_type="auto",
            chat_template=None, seed=None, progress=progress, speculate="off", tokenizer=self.tokenizer, **stored,
        )  # fmt: skip
        share = self.draft.weights.n_bytes / max(1, self.weights.n_bytes)  # of what a pass reads, and so of its time
        self.engine.draft_makers["draft"] = DraftModelPasses(self.draft.engine, self.tokenizer.n_vocab, share)

    def _lock(self) -> None:
        """Keep the weights in memory. Raises NotEnoughMemoryError where the system does not allow so much."""
        from edgellm.machine import lock_limit, lock_memory

        ranges = [self.runner.arena] if self.runner.arena[1] else []
        if self.runner.reads_file:
            ranges += [(view.ctypes.data, view.size) for view in self.file.maps()]
        if not all(lock_memory(address, n) for address, n in ranges):
            advice = ["a higher limit of locked memory (`ulimit -l`)", "mlock=False"]
            raise NotEnoughMemoryError(
                sum(n for _, n in ranges), lock_limit() or 0, advice, what="locking the weights in memory"
            )

    def _within_budget(self, n_ctx: int, may_shrink: bool) -> int:
        """The context window whose pages `cache_bytes` holds. Raises InvalidArgumentError where that is not `n_ctx`."""
        from edgellm.cache import largest_n_ctx, pool_pages

        budget, shape = self._cache_bytes, self.plan.kv
        if budget is None:
            return n_ctx
        if may_shrink and isinstance(budget, int):
            return largest_n_ctx(n_ctx, shape, self.kv_type, budget)
        pool_pages(shape, self.kv_type, n_ctx, 0, budget)
        return n_ctx

    def _pool(self, free: int) -> PagePool:
        """The pages; `free` bytes of memory are left for them."""
        from edgellm.cache import PagePool, pool_pages

        shape, kv_type = self.plan.kv, self.kv_type
        return PagePool(shape, kv_type, pool_pages(shape, kv_type, self.n_ctx, free, self._cache_bytes))

    def close(self) -> None:
        """Free everything, last made first; what was not made yet is skipped."""
        for name in ("engine", "draft", "pool", "runner", "file"):
            part = self.__dict__.pop(name, None)
            if part is not None:
                part.close()
        self.__dict__.pop("weights", None)


def check_gpu_layers(gpu_layers: int | str) -> int:
    """How many layers a GPU runs: none, in this build. Raises InvalidArgumentError, BackendError for more than that."""
    if gpu_layers == "auto":
        return 0
    if isinstance(gpu_layers, bool) or not isinstance(gpu_layers, int) or gpu_layers < 0:
        raise InvalidArgumentError(f"gpu_layers is {one_line(gpu_layers)}; choose 0 or more, or 'auto'")
    if gpu_layers:
        raise BackendError("this build of edgellm has no GPU backend; choose gpu_layers=0, or 'auto', which is 0 here")
    return 0


class _Aside:
    """What `run` returns, from a thread of its own: the tokenizer is Python's work, while the weights are C's."""

    def __init__(self, run: Callable[[], Any]) -> None:
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(run,), name="edgellm-load", daemon=True)
        self._thread.start()

    def _run(self, run: Callable[[], Any]) -> None:
        try:
            self._value = run()
        except BaseException as error:  # raised where the result is wanted
            self._error = error

    def result(self, waiting: Callable[[], Any]) -> Any:
        """The value, or the error of `run`. Calls `waiting` every 50 ms until then; what that raises ends the wait."""
        while self._thread.is_alive():
            waiting()
            self._thread.join(0.05)
        if self._error is not None:
            raise self._error
        return self._value


def backend_isa(runner: Any) -> str:
    """Instruction set level of a backend's kernels; "numpy" or "llvm" where others choose the instructions."""
    if runner.name != "native":
        return "numpy" if runner.name == "reference" else "llvm"
    from edgellm import clib

    return clib.isa()


def fit(
    n_ctx: int | None, trained: int, plan: Plan, weights: Weights, kv_type: str, backend: str, threads: int,
    draft: DraftCosts | None = None, **stored: bool,
) -> MemoryEstimate:  # fmt: skip
    """What the model takes with the context window asked for, else with min(trained, what memory allows).

    Raises InvalidArgumentError, or NotEnoughMemoryError with what would fit (`edgellm.estimate`).
    """
    from edgellm.memory_estimate import Costs, check_n_ctx, trained_context

    check_n_ctx(n_ctx)
    trained = trained_context(plan, trained, n_ctx)
    found = Costs(plan, weights, backend, threads, draft=draft, **stored).estimate(n_ctx, trained, kv_type)
    found.check()
    if found.n_ctx > trained:
        _log.warning("n_ctx=%d is more than the %d tokens that the model was trained for", found.n_ctx, trained)
    return found


def _tokenizer(file: GGUFFile, n_vocab: int) -> Any:
    """The file's tokenizer; `n_vocab` are the rows of the embedding. One of a kind that cannot be read stops only those
    calls that need text (rule V7)."""
    from edgellm.tokenizers import Tokenizer
    from edgellm.tokenizers.missing import MissingTokenizer

    try:
        tokenizer = Tokenizer.from_gguf(file)
    except TokenizerError as error:
        if error.rule != "V7":
            raise
        _log.info("%s; the model runs on token ids only", error)  # who needs text gets the error itself
        return MissingTokenizer(n_vocab, error)
    _check_vocabulary(file, tokenizer.n_vocab, n_vocab)
    return tokenizer


def _check_vocabulary(file: GGUFFile, pieces: int, rows: int) -> None:
    """Every piece must have a row of the embedding; some models have a few rows more than pieces."""
    if pieces > rows:
        raise ModelFormatError(
            "the vocabulary has more pieces than the model has embedding rows",
            path=file.path, field="tokenizer.ggml.tokens", value=pieces, limit=rows, rule="V6",
        )  # fmt: skip


# Keys in which a file may bring the sampling that suits it (llama.cpp writes them) -> field of Sampling.
_SAMPLING_KEYS: dict[str, tuple[str, type]] = {
    "sequence": ("samplers", str),
    "temp": ("temperature", float),
    "top_k": ("top_k", int),
    "top_p": ("top_p", float),
    "min_p": ("min_p", float),
    "xtc_probability": ("xtc_probability", float),
    "xtc_threshold": ("xtc_threshold", float),
    "penalty_last_n": ("repeat_last_n", int),
    "penalty_repeat": ("repeat_penalty", float),
    "mirostat": ("mirostat", int),
    "mirostat_tau": ("mirostat_tau", float),
    "mirostat_eta": ("mirostat_eta", float),
}


def _sampling_defaults(file: GGUFFile) -> dict[str, Any]:
    """Fields of Sampling that the file sets. Raises WrongKeyTypeError, ModelFormatError for a value out of range."""
    from edgellm.sampling import Sampling

    found: dict[str, Any] = {}
    for key, (field, kind) in _SAMPLING_KEYS.items():
        value = file.get(f"general.sampling.{key}", kind, None)
        if value is None or (field == "mirostat" and value == 1):  # advice that cannot be followed does no harm
            continue
        if field == "samplers":
            value = _known_samplers(value)
        try:
            Sampling(**{field: value})
        except InvalidArgumentError as error:
            raise ModelFormatError(str(error), path=file.path, field=f"general.sampling.{key}", value=value) from None
        found[field] = value
    return found


def _known_samplers(sequence: str) -> tuple[str, ...]:
    """The samplers of a file's order that exist here, each once; llama.cpp also leaves out what it does not know."""
    from edgellm.sampling.order import sampler_name

    names = (sampler_name(name) for name in sequence.split(";"))
    return tuple(dict.fromkeys(name for name in names if name is not None))


def _own_template(file: GGUFFile) -> str | None:
    template = file.get("tokenizer.chat_template", str, None)
    return template or None
