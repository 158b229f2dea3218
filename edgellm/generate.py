"""The generation loop: prompt in chunks, then one backend pass per token.

It runs on the model's worker thread. What it may touch is gathered in `Engine`, which owns the cache of the last
sequence, so a following call that starts with the same tokens (the next turn of a chat) works only on what is new.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.cache import Sequence
from edgellm.errors import Cancelled, ContextOverflowError
from edgellm.results import Context, Event, FinishReason, Result, Stats, Usage

if TYPE_CHECKING:
    from edgellm.backends import Backend
    from edgellm.cache import PagePool
    from edgellm.sampling import Sampling
    from edgellm.worker import Job

PREFILL_CHUNK = 512  # prompt tokens per pass


@dataclass(frozen=True)
class Request:
    """One generation: prompt ids, how to choose tokens, when to stop. `stop_ids` end the answer and are no text."""

    ids: list[int]
    sampling: Sampling
    max_tokens: int | None
    stop_ids: frozenset[int]
    exact: bool = False
    on_prefill: Callable[[int, int], Any] | None = None


class Engine:
    """A backend with one cached sequence. Only the worker thread uses it."""

    def __init__(
        self, backend: Backend, pool: PagePool, tokenizer: Any, n_ctx: int, threads: int, isa: str, exact: bool = False
    ) -> None:
        self.backend, self.pool, self.tokenizer = backend, pool, tokenizer
        self.n_ctx, self.threads, self.isa = n_ctx, threads, isa
        self.set_exact(exact)
        self.passes = 0
        self.cached: list[int] = []  # ids whose keys and values are in the cache, in order
        self._exact_cached = 0  # so many of them, from the first on, are what exact passes make of them
        self._seq = Sequence(pool, n_ctx)

    def set_exact(self, exact: bool) -> None:
        """Whether the following passes keep to kernels whose bits do not depend on how tokens are cut into passes."""
        self.backend.exact = exact

    def rewind(self, n: int) -> None:
        """Keep the first `n` cached tokens."""
        self._seq.rewind(n)
        del self.cached[n:]
        self._exact_cached = min(self._exact_cached, n)

    def reuse(self, ids: SequenceOf[int]) -> int:
        """Keep the longest cached prefix of `ids` (at least one token stays to be run); its length.

        While passes are exact, only what exact passes have made is used again.
        """
        limit = min(len(ids) - 1, self._exact_cached if self.backend.exact else len(self.cached))
        n = 0
        while n < limit and ids[n] == self.cached[n]:
            n += 1
        self.rewind(n)
        return n

    def forward(self, tokens: SequenceOf[int], outputs: SequenceOf[int], cancel: np.ndarray | None) -> np.ndarray:
        """One pass over `tokens` after what is cached; logits (len(outputs), vocab). A failed pass changes nothing."""
        position, end = len(self.cached), len(self.cached) + len(tokens)
        try:
            self._seq.ensure(end)
            logits = self.backend.forward(
                np.asarray(tokens, np.int32), position, np.asarray(outputs, np.int32), self._seq, cancel
            )
        except BaseException:
            self._seq.rewind(position)
            raise
        self._seq.commit(end)
        self.passes += 1
        if self._exact_cached == position and (self.backend.exact or not self.backend.has_prefill):
            self._exact_cached = end
        self.cached.extend(tokens)
        return logits

    def prefill(self, ids: SequenceOf[int], job: Job, on_chunk: Callable[[int, int], Any] | None = None) -> np.ndarray:
        """Run `ids` in chunks; logits (vocab,) after the last one."""
        logits = None
        if on_chunk is not None:
            on_chunk(0, len(ids))
        for start in range(0, len(ids), PREFILL_CHUNK):
            chunk = ids[start : start + PREFILL_CHUNK]
            last = start + len(chunk) == len(ids)
            if job.stopped:
                raise Cancelled()
            logits = self.forward(chunk, [len(chunk) - 1] if last else [], job.flag)
            if on_chunk is not None:
                on_chunk(start + len(chunk), len(ids))
        assert logits is not None
        return logits[-1]

    def logits(self, ids: SequenceOf[int], job: Job, first: int = 0, exact: bool = False) -> np.ndarray:
        """Logits (n - first, vocab) float32 of every position from `first` on, on an empty cache."""
        self.set_exact(exact)
        self.rewind(0)
        rows = []
        for start in range(0, len(ids), PREFILL_CHUNK):
            chunk = ids[start : start + PREFILL_CHUNK]
            rows.append(np.array(self.forward(chunk, range(max(0, first - start), len(chunk)), job.flag)))
        return np.concatenate(rows)

    def close(self) -> None:
        """Give the cache back. The backend is closed by its owner."""
        self._seq.close()
        self.cached.clear()


class _Clock:
    """Moments of one generation, for its statistics."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.prompt_end = self.first = self.last = 0.0

    def stats(self, engine: Engine, worked: int, n_tokens: int, passes: int) -> Stats:
        now = time.perf_counter()
        prompt = (self.prompt_end or now) - self.start
        generation = (self.last or now) - self.first if self.first else 0.0
        return Stats(
            ttft=(self.first or now) - self.start,
            prompt_seconds=prompt,
            prompt_tps=worked / prompt if prompt > 0 and self.prompt_end else 0.0,
            generation_seconds=generation,
            generation_tps=(n_tokens - 1) / generation if n_tokens > 1 and generation > 0 else 0.0,
            passes=passes,
            threads=engine.threads,
            backend=engine.backend.name,
            isa=engine.isa,
        )


class Generation:
    """One run of the loop: prompt, then tokens until something ends it."""

    def __init__(self, engine: Engine, request: Request, job: Job) -> None:
        from edgellm.sampling import Sampler
        from edgellm.tokenizers import StopMatcher, StreamDecoder

        if len(request.ids) > engine.n_ctx:
            raise ContextOverflowError(len(request.ids), engine.n_ctx)
        self.engine, self.request, self.job = engine, request, job
        # A head may have more rows than there are pieces (padding): those can be no text and are never chosen.
        self.n_vocab = engine.tokenizer.n_vocab
        self.sampler = Sampler(request.sampling, self.n_vocab)
        self.decoder: StreamDecoder | None = None
        if engine.tokenizer.kind != "missing":  # ids go in and out of a model whose vocabulary cannot be read
            # After a prompt of nothing but special tokens a text begins, else the first token's space belongs to it.
            at_start = all(engine.tokenizer.is_control(token) for token in request.ids)
            self.decoder = StreamDecoder(engine.tokenizer, skip_special=True, at_start=at_start)
        self.matcher = StopMatcher(request.sampling.stop)
        self.text: list[str] = []
        self.tokens: list[int] = []
        self.clock = _Clock()

    def run(self) -> Result:
        """The whole generation. Raises Cancelled when it was stopped without keeping the text."""
        engine, passes = self.engine, self.engine.passes
        engine.set_exact(self.request.exact)
        reused = engine.reuse(self.request.ids)
        before = len(engine.cached)
        try:
            reason = self._loop(reused)
        except Cancelled:
            if not self.job.keep:
                raise
            reason = "cancelled"
        finally:
            if self.job.stopped and not self.job.keep:
                engine.rewind(min(before, len(engine.cached)))
        self._flush()
        worked = len(self.request.ids) - reused
        return Result(
            text="".join(self.text),
            token_ids=tuple(self.tokens),
            finish_reason=reason,
            usage=Usage(len(self.request.ids), len(self.tokens)),
            stats=self.clock.stats(engine, worked, len(self.tokens), engine.passes - passes),
            context=Context(len(engine.cached), engine.n_ctx, reused),
            seed=self.sampler.seed,
        )

    def _loop(self, reused: int) -> FinishReason:
        request, engine, job = self.request, self.engine, self.job
        logits = engine.prefill(request.ids[reused:], job, request.on_prefill)
        self.clock.prompt_end = time.perf_counter()
        self.sampler.accept(request.ids)
        while True:
            if request.max_tokens is not None and len(self.tokens) >= request.max_tokens:
                return "length"
            token = self.sampler.sample(logits[: self.n_vocab])
            self.clock.last = time.perf_counter()
            self.clock.first = self.clock.first or self.clock.last
            self.tokens.append(token)
            if token in request.stop_ids:
                return "stop"
            if self._emit(token):
                return "stop"
            if request.max_tokens is not None and len(self.tokens) >= request.max_tokens:
                return "length"
            if len(engine.cached) >= engine.n_ctx:
                return "length"
            if job.stopped:
                raise Cancelled()
            logits = engine.forward([token], [0], job.flag)[0]

    def _emit(self, token: int) -> bool:
        """Hand on the text of one token; True when a stop string is complete."""
        if self.decoder is None:
            self.job.put(Event("", token))
            return False
        self._put(self.matcher.push(self.decoder.push(token)), token)
        return self.matcher.stopped is not None

    def _flush(self) -> None:
        """Hand on what was held back: an unfinished character or the start of a stop string that did not come."""
        if self.decoder is not None:
            self._put(self.matcher.push(self.decoder.flush()) + self.matcher.flush(), None)

    def _put(self, text: str, token: int | None) -> None:
        if text:
            self.text.append(text)
            self.job.put(Event(text, token))
