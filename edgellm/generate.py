"""The generation loop: prompt in chunks, then one backend pass per token.

It runs on the model's worker thread. What it may touch is gathered in `Engine`; several tokens may come from one pass
(`edgellm.speculate`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.clock import Clock
from edgellm.errors import Cancelled
from edgellm.results import Context, Event, FinishReason, Result, Usage
from edgellm.sampling.constraint import check_processed

if TYPE_CHECKING:
    from edgellm.cache import Overflow, Sequence
    from edgellm.callbacks import TappedJob
    from edgellm.engine import Engine
    from edgellm.sampling import Constraint, Processor, Sampling
    from edgellm.speculate import Decoding
    from edgellm.toolcalls import ToolReader
    from edgellm.worker import Job

@dataclass(frozen=True)
class Request:
    """One generation: prompt ids, how to choose tokens, when to stop. `stop_ids` end the answer and are no text.
    `speculate`: a name of `edgellm.speculate.KINDS`.

    For a sequence that the engine makes: `overflow` (None: the engine's), `find_turns`, which is called when the window
    is full and gives the positions in `ids` where turns begin, and `dropped`, the tokens that were left out of `ids`.
    `processors` change each row of logits, one after the other, then `constraint` says which tokens may be chosen.
    """

    ids: list[int]
    sampling: Sampling
    max_tokens: int | None
    stop_ids: frozenset[int]
    exact: bool = False
    on_prefill: Callable[[int, int], Any] | None = None
    overflow: Overflow | None = None
    find_turns: Callable[[], list[int]] | None = None
    dropped: int = 0
    processors: tuple[Processor, ...] = ()
    constraint: Constraint | None = None  # made for this generation
    speculate: str = "off"
    reader: ToolReader | None = None  # takes calls of tools out of the text; made for this generation


class Generation:
    """One run of the loop: prompt, then tokens until something ends it.

    Without `seq` the prompt starts from what the engine has of it, and what was run stays there for later calls. With
    `seq`, the caller's own, `request.ids` are added to its end; when the call fails or is cancelled, it is as it was
    before (or empty, where memory was too short to hold both).
    """

    def __init__(self, engine: Engine, request: Request, job: Job | TappedJob, seq: Sequence | None = None) -> None:
        from edgellm.sampling import Sampler
        from edgellm.tokenizers import StopMatcher, StreamDecoder

        self.engine, self.request, self.job, self._seq, self.own = engine, request, job, seq, seq is None
        # A head may have more rows than there are pieces (padding): those can be no text and are never chosen.
        self.n_vocab = engine.tokenizer.n_vocab
        self.sampler = Sampler(request.sampling, self.n_vocab, engine.tokenizer)
        self.decoder: StreamDecoder | None = None
        if engine.tokenizer.kind != "missing":  # ids go in and out of a model whose vocabulary cannot be read
            # After a prompt of nothing but special tokens a text begins, else the first token's space belongs to it.
            before = [] if seq is None else seq.ids
            at_start = all(engine.tokenizer.is_control(token) for token in (*before, *request.ids))
            self.decoder = StreamDecoder(engine.tokenizer, skip_special=True, at_start=at_start)
            if request.constraint is not None:
                request.constraint.begin(at_start)
        self.matcher = StopMatcher(request.sampling.stop)
        self.text: list[str] = []
        self.tokens: list[int] = []
        self.clock = Clock()

    def run(self) -> Result:
        """The whole generation. Raises Cancelled when it was stopped without keeping the text."""
        self.engine.set_exact(self.request.exact)
        backup = self.engine.backup = None if self._seq is None else self._seq.fork()
        try:
            with self.engine.undoing(lambda: self._undo(backup)):
                self.engine.check_file()
                result = self._run(self._begin())
                self.engine.check_file()
        except BaseException:
            self._undo(backup)
            raise
        finally:
            self.engine.backup = None
        if self.own:
            self.engine.keep(self.seq)
            self.seq.close()
        elif backup is not None:
            backup.close()
        return result

    @property
    def seq(self) -> Sequence:
        """The sequence that the answer goes to."""
        assert self._seq is not None  # made before anything asks
        return self._seq

    def _begin(self) -> list[int]:
        """Makes the sequence ready; the ids that are to be run. Raises ContextOverflowError."""
        engine, request = self.engine, self.request
        if self._seq is None:
            self._seq = engine.new_sequence(request.overflow, request.ids[:-1])  # one is run: its logits are needed
            ids = request.ids[self.seq.length :]
        else:
            ids = self._exactly()
        self.seq.overflow.check(self.seq.length + len(ids), engine.n_ctx, self.seq.turns)
        return ids

    def _exactly(self) -> list[int]:
        """The ids to run at the end of the caller's sequence. What an exact call cannot use again is run once more."""
        seq = self.seq
        again: list[int] = []
        if self.engine.backend.exact and seq.exact < seq.length and not seq.dropped:
            again = seq.ids[seq.exact :]
            if seq.can_rewind(seq.exact):
                seq.rewind(seq.exact)
            else:
                again = seq.ids
                seq.rewind(0)
        return again + self.request.ids

    def _run(self, ids: list[int]) -> Result:
        engine, seq, passes = self.engine, self.seq, self.engine.passes
        reused = seq.length - seq.dropped
        history = seq.ids + ids
        request = self.request
        steps = engine.decoding(seq, self.job.flag, request.speculate, self.sampler, request.stop_ids)
        try:
            reason = self._loop(ids, history, steps)
        except Cancelled:
            if not self.job.keep:
                raise
            reason = self.job.why
        finally:
            steps.close()
        if self.job.stopped and not self.job.keep:
            raise Cancelled()
        steps.end()
        self._flush()
        return Result(
            text="".join(self.text),
            token_ids=tuple(self.tokens),
            finish_reason=reason,
            usage=Usage(len(history), len(self.tokens)),
            stats=self.clock.stats(
                len(ids), len(self.tokens), engine.passes - passes, threads=engine.threads,
                backend=engine.backend.name, isa=engine.isa, draft_tokens=steps.n_drafted,
                draft_accepted=steps.n_accepted, draft_gain=steps.gain, drafts=steps.drafts,
            ),
            context=Context(
                used=seq.length - seq.dropped, n_ctx=engine.n_ctx, reused=reused,
                dropped=seq.dropped + self.request.dropped, policy=seq.overflow.kind,
            ),
            seed=self.sampler.seed,
        )  # fmt: skip

    def _undo(self, backup: Sequence | None) -> None:
        """The sequence goes back to where it was."""
        if self.own:
            if self._seq is not None:
                self._seq.close()
        elif backup is None or backup.closed:
            self.seq.rewind(0)
        else:
            self.seq.restore(backup)

    def _loop(self, ids: list[int], history: list[int], steps: Decoding) -> FinishReason:
        request, job = self.request, self.job
        logits = self.engine.prefill(self.seq, ids, job, request.on_prefill)
        self.clock.prompt_end = time.perf_counter()
        self.sampler.accept(history)
        steps.begin(history)
        while True:
            if request.max_tokens is not None and len(self.tokens) >= request.max_tokens:
                return "length"
            token = self._choose(logits[: self.n_vocab], history)
            self.clock.last = time.perf_counter()
            self.clock.first = self.clock.first or self.clock.last
            self.tokens.append(token)
            if token in request.stop_ids:
                return "stop"
            if self._emit(token) or (request.constraint is not None and request.constraint.finished):
                return "stop"
            if request.max_tokens is not None and len(self.tokens) >= request.max_tokens:
                return "length"
            if job.stopped:
                raise Cancelled()
            if not self._has_room():
                return "length"
            logits = steps.next(token, None if request.max_tokens is None else request.max_tokens - len(self.tokens))

    def _choose(self, logits: np.ndarray, prompt: list[int]) -> int:
        """The next token, for logits (n_vocab,)."""
        processors, constraint = self.request.processors, self.request.constraint
        if processors or constraint is not None:
            logits = np.array(logits)  # the row belongs to the backend
        for process in processors:
            process([*prompt, *self.tokens], logits)
            check_processed(process, logits)
        if constraint is not None:
            np.copyto(logits, -np.inf, where=~constraint.mask())
        token = self.sampler.sample(logits)
        if constraint is not None:
            constraint.accept(token)
        return token

    def _has_room(self) -> bool:
        """Whether the sequence can hold one token more, after dropping what its policy allows."""
        if self.seq.has_room():
            return True
        if self.request.find_turns is None or self.seq.turns:
            return False
        self.seq.turns = self.request.find_turns()
        return self.seq.has_room()

    def _emit(self, token: int) -> bool:
        """Hand on the text of one token; True when a stop string is complete."""
        if self.decoder is None:
            with self.engine.gate:
                self.job.put(Event("", token))
            return False
        text, reader = self.decoder.push(token), self.request.reader
        self._put(self.matcher.push(text if reader is None else reader.push(text, token)), token)
        return self.matcher.stopped is not None

    def _flush(self) -> None:
        """Hand on what was held back: an unfinished character or the start of a stop string that did not come."""
        if self.decoder is not None:
            text, reader = self.decoder.flush(), self.request.reader
            if reader is not None:
                text = reader.push(text) + reader.flush()
            self._put(self.matcher.push(text) + self.matcher.flush(), None)

    def _put(self, text: str, token: int | None) -> None:
        if text:
            self.text.append(text)
            with self.engine.gate:
                self.job.put(Event(text, token))
