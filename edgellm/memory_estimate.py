"""What a model will take of memory, from the header of its file: the answer before anything is loaded.

Peak memory of a process that loads the model and uses all of its context, beside what Python itself takes. Pages of the
file that stay mapped count too: the system may drop them, but reads them again for every token.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from edgellm.errors import InvalidArgumentError, NotEnoughMemoryError

if TYPE_CHECKING:
    from edgellm.gguf import GGUFFile
    from edgellm.plan import Plan
    from edgellm.weights import Weights

MARGIN = 32 << 20  # bytes left for the text itself, page tables and whatever else the process does
_SMALLER = ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K")  # quantisations to suggest, largest first
_TOKENIZER_SHARE = {True: 6, False: 13}  # bytes of memory per byte of the vocabulary's strings; in C, in Python
_SAMPLER_BYTES = 32  # per token of the vocabulary: el_sample_scratch_bytes


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a model takes, by part, and whether they are there. Made by `edgellm.estimate`.

    - `mapped`: of the file, used where it is mapped; `panels`: weights that are copied (packed, or decoded).
    - `cache`: keys and values of one sequence of `n_ctx` tokens in `kv_type`. (The pool keeps what earlier calls left,
      up to as much again where that is free, for prompts that begin alike.)
    - `scratch`: buffers of passes and of the sampler; `tokenizer`: the vocabulary; `runtime`: Numba, where it is used.
    - `draft`: all of that for the draft model, where there is one.
    - `total`: all of them; `available`: what this process may take now, container limits counted.
    - `fits`: `total` and a margin of 32 MiB are available; `largest_n_ctx`: the longest context that does (0: none).
    - `suggestions`: what would fit, where this does not.
    """

    path: str
    backend: str
    threads: int
    n_ctx: int
    n_ctx_train: int
    kv_type: str
    mapped: int
    panels: int
    cache: int
    scratch: int
    tokenizer: int
    runtime: int
    total: int
    available: int
    fits: bool
    largest_n_ctx: int
    suggestions: tuple[str, ...]
    draft: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"suggestions": list(self.suggestions)}

    def check(self) -> None:
        """Raises NotEnoughMemoryError, with what would fit, unless `fits`."""
        if not self.fits:
            what = f"the model with a context of {self.n_ctx} tokens"
            raise NotEnoughMemoryError(self.total + MARGIN, self.available, self.suggestions, what=what)


def estimate(
    path: str | os.PathLike[str] | None = None,
    *,
    n_ctx: int | None = None,
    kv_type: str | tuple[str, str] = "auto",
    threads: int | str = "auto",
    backend: str = "auto",
    pack: bool = True,
    huge_pages: bool = False,
    mmap: bool = True,
    offline: bool | None = None,
    speculate: str | os.PathLike[str] = "auto",
) -> MemoryEstimate:
    """What `edgellm.load` with these options would take. Only the file's header is read, and a few rows of its matrices
    (of pruned ones all), because zero tiles are not stored. `path` as for `load`.

    `n_ctx` None stands for what `load` would choose: what the model was trained for, or less where memory is short.
    `speculate` counts where it names a draft model. Raises the errors of the reader and of the model families,
    InvalidArgumentError for an option, DraftModelError; never NotEnoughMemoryError.
    """
    from edgellm.cache import resolve_kv_type
    from edgellm.gguf import open_gguf
    from edgellm.hub import resolve
    from edgellm.machine import resolve_threads
    from edgellm.models import build_plan, read_config
    from edgellm.speculate.choice import resolve_speculation
    from edgellm.weights import Weights

    n_threads, draft = resolve_threads(threads).n, resolve_speculation(speculate, offline=offline)[1]
    with open_gguf(resolve(path, offline=offline)) as file:
        config = read_config(file)
        plan = build_plan(config, file)
        weights = Weights(file, plan)
        kv_type = resolve_kv_type(kv_type, weights.matrix_types)
        stored = {"pack": pack, "huge_pages": huge_pages, "mmap": mmap}
        extra = None if draft is None else draft_costs(file, draft, backend, n_threads, **stored)
        costs = Costs(plan, weights, backend, n_threads, **stored, draft=extra)
        return costs.estimate(n_ctx, trained_context(plan, config.n_ctx_train, n_ctx), kv_type)


def draft_costs(
    model: GGUFFile, path: str | os.PathLike[str], backend: str, n_threads: int, **stored: Any
) -> DraftCosts:
    """What the draft model in the file `path` takes beside `model`; `stored` are the options of `Costs`.

    Raises DraftModelError where the two do not go together, and the errors of the reader and of the model families.
    """
    from edgellm.cache import resolve_kv_type
    from edgellm.gguf import open_gguf
    from edgellm.models import build_plan, read_config
    from edgellm.speculate.vocabulary import check_draft_vocabulary
    from edgellm.weights import Weights

    with open_gguf(path) as file, file.reading():
        config = read_config(file)
        check_draft_vocabulary(model, file)
        plan = build_plan(config, file)
        plan.result()  # an encoder says nothing
        weights = Weights(file, plan)
        costs = Costs(plan, weights, backend, n_threads, **stored)
        return DraftCosts(costs, config.n_ctx_train, resolve_kv_type("auto", weights.matrix_types))


class DraftCosts:
    """What a draft model takes beside its model, whose tokenizer serves both."""

    def __init__(self, costs: Costs, n_ctx_train: int, kv_type: str) -> None:
        self._costs, self._n_ctx_train, self._kv_type = costs, n_ctx_train, kv_type

    def window(self, n_ctx: int) -> int:
        """Its context window beside a model with one of `n_ctx` tokens: never longer than what it was trained for."""
        return min(n_ctx, self._n_ctx_train)

    def total(self, n_ctx: int) -> int:
        """Bytes beside a model with a context window of `n_ctx` tokens."""
        return self._costs.total(self.window(n_ctx), self._kv_type) - self._costs.tokenizer


class Costs:
    """What one plan takes in one backend, for any context and page type, with its draft model where there is one.

    Raises InvalidArgumentError (backend), BackendError (it cannot run here).
    """

    def __init__(
        self, plan: Plan, weights: Weights, backend: str, n_threads: int, *, pack: bool = True,
        huge_pages: bool = False, mmap: bool = True, draft: DraftCosts | None = None,
    ) -> None:  # fmt: skip
        from edgellm.backends import NAMES
        from edgellm.backends.sizes import resolve, runtime_bytes, scratch_sizer, weight_sizes
        from edgellm.engine import PREFILL_CHUNK

        if backend not in NAMES:
            raise InvalidArgumentError(f"backend is '{backend}'; choose {', '.join(NAMES)}")
        self._plan, self._weights, self._threads, self._draft = plan, weights, n_threads, draft
        self._backend = resolve(backend)
        mapped, self._panels = weight_sizes(self._backend, plan, weights, n_threads, pack, huge_pages)
        self._mapped = mapped + _header_bytes(weights.file)
        if not mmap:  # the file is read into memory of the process, all of it
            self._mapped, self._panels = 0, self._panels + weights.file.n_bytes
        self._scratch = scratch_sizer(self._backend, plan, weights, n_threads, PREFILL_CHUNK, pack)
        self._runtime = runtime_bytes(self._backend)
        self.tokenizer = _tokenizer_bytes(weights.file)

    def estimate(self, n_ctx: int | None, trained: int, kv_type: str) -> MemoryEstimate:
        """The estimate for `n_ctx` tokens (None: as many as fit, at most `trained`). Raises InvalidArgumentError."""
        from edgellm.machine import memory

        check_n_ctx(n_ctx)
        have = memory().available
        room = have - MARGIN
        largest = _largest(lambda n: self.total(n, kv_type) <= room, max(trained, n_ctx or 0))
        chosen = n_ctx if n_ctx is not None else largest or min(trained, 64)
        parts = self._parts(chosen, kv_type)
        total = sum(parts.values())
        fits = total <= room
        return MemoryEstimate(
            path=str(self._weights.file.path), backend=self._backend, threads=self._threads, n_ctx=chosen,
            n_ctx_train=trained, kv_type=kv_type, **parts, total=total, available=have, fits=fits,
            largest_n_ctx=largest, suggestions=() if fits else self._suggestions(chosen, kv_type, largest, room),
        )  # fmt: skip

    def _parts(self, n_ctx: int, kv_type: str) -> dict[str, int]:
        from edgellm.cache import cache_bytes

        scratch = self._scratch(n_ctx) + _SAMPLER_BYTES * self._plan.n_vocab
        return {
            "mapped": self._mapped,
            "panels": self._panels,
            "cache": cache_bytes(self._plan.kv, kv_type, n_ctx),
            "scratch": scratch,
            "tokenizer": self.tokenizer,
            "runtime": self._runtime,
            "draft": 0 if self._draft is None else self._draft.total(n_ctx),
        }

    def total(self, n_ctx: int, kv_type: str) -> int:
        """Bytes of all parts together, for `n_ctx` tokens."""
        return sum(self._parts(n_ctx, kv_type).values())

    def _suggestions(self, n_ctx: int, kv_type: str, largest: int, room: int) -> tuple[str, ...]:
        """What would fit instead: a shorter context, smaller pages, a smaller quantisation; the most first."""
        found = [f"n_ctx={largest}"] if largest >= 64 else []
        smaller = next((t for t in self._smaller_pages(kv_type) if self.total(n_ctx, t) <= room), None)
        found += [f"kv_type='{smaller}'"] if smaller else []
        found += self._smaller_file(self.total(n_ctx if found else 64, kv_type), room)
        return (*found, "a smaller model") if not found else tuple(found)

    def _smaller_pages(self, kv_type: str) -> list[str]:
        """Page types that take less than `kv_type`, the largest first."""
        from edgellm.cache import KV_TYPES, page_bytes

        sizes = {}
        for name in KV_TYPES:
            try:
                sizes[name] = page_bytes(self._plan.kv, name)
            except InvalidArgumentError:  # heads of a size that such pages cannot hold
                continue
        now = page_bytes(self._plan.kv, kv_type)
        return sorted((t for t in sizes if sizes[t] < now), key=sizes.__getitem__, reverse=True)

    def _smaller_file(self, total: int, room: int) -> list[str]:
        """The largest usual quantisation with which `total` would be at most `room`, where it is smaller than this."""
        from math import prod

        from edgellm.blocks import BY_NAME

        shapes = self._plan.weights
        matrices = [n for n in self._weights.names if len(shapes[n]) > 1]
        now = sum(self._weights.span(name)[1] for name in matrices)
        numbers = sum(prod(shapes[name]) for name in matrices)
        for kind in (BY_NAME[name] for name in _SMALLER):
            size = numbers * kind.type_size // kind.block_size
            if size < now and total - now + size <= room:
                return [f"the model in {kind.name} (about {size / 2**20:.0f} MiB)"]
        return []


def check_n_ctx(n_ctx: Any) -> None:
    """Raises InvalidArgumentError unless `n_ctx` is None or a number of tokens."""
    if n_ctx is not None and (isinstance(n_ctx, bool) or not isinstance(n_ctx, int) or not 1 <= n_ctx < 2**31):
        raise InvalidArgumentError(f"n_ctx is {n_ctx!r}; choose 1 to {2**31 - 1}, or None")


def trained_context(plan: Plan, trained: int, n_ctx: int | None) -> int:
    """The longest context that a plan is for: what it was trained for; the text of an encoder is one pass.

    Raises InvalidArgumentError for an encoder that is asked for more.
    """
    from edgellm.engine import PREFILL_CHUNK

    if plan.causal:
        return trained
    most = min(trained, PREFILL_CHUNK)
    if n_ctx is not None and n_ctx > most:
        raise InvalidArgumentError(f"n_ctx is {n_ctx}; this encoder takes texts of up to {most} tokens")
    return most


def _largest(fits: Callable[[int], bool], limit: int) -> int:
    """The largest n of 1 .. limit with fits(n), a multiple of 64 unless it is `limit`; 0: none. `fits` never rises."""
    if fits(limit):
        return limit
    low, high = 0, -(-limit // 64)  # in pages of 64: low fits, high does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(64 * middle) else (low, middle)
    return 64 * low


def _header_bytes(file: GGUFFile) -> int:
    """Bytes of the file before its first tensor."""
    return min((t.offset for t in file.tensors.values()), default=file.n_bytes)


def _tokenizer_bytes(file: GGUFFile) -> int:
    """Memory of the vocabulary, from the bytes of its strings."""
    from edgellm import clib

    keys = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges")
    metadata = file.metadata
    n_bytes = sum(metadata.ends[k] - metadata.offsets[k] for k in keys if k in metadata.ends)
    return _TOKENIZER_SHARE[clib.available()] * n_bytes
