"""`Session`: a conversation with a place of its own in the cache.

    with model.session(system="Answer in one line.", overflow="drop-turns") as chat:
        print(chat.send("Why is the sky blue?").text)
        chat.save("sky.edgesession")

Everything that changes a session happens on the model's worker thread, one thing after the other, so its methods may be
called from any thread. A question that fails or is cancelled leaves no trace.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from edgellm.cache import Overflow, Sequence
from edgellm.callbacks import TappedJob
from edgellm.calls import Call, Defaults, checked_limit, gather, nothing_said, submit
from edgellm.errors import Cancelled, InvalidArgumentError, ModelClosedError
from edgellm.generate import Generation
from edgellm.prompt import AnyTool, Message, Renderer
from edgellm.results import Context, Result
from edgellm.sampling import Sampling
from edgellm.session_state import Options, turn_seed
from edgellm.stream import Stream
from edgellm.transcript import Cached, Prompt, Transcript, plain_message, plain_question

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Unpack

    from edgellm.async_stream import AsyncStream
    from edgellm.calls import AnswerOptions
    from edgellm.model import Model
    from edgellm.worker import Job, StopReason


T = TypeVar("T")
Question = str | Message | SequenceOf[Message]


class _Place:
    """Where the conversation is in the cache; `seq` None: nowhere, yet or any more."""

    def __init__(self) -> None:
        self.seq: Sequence | None = None


class Session:
    """A conversation with a model: made by `Model.session` and `Session.load`. A context manager, or `close()` it.

    `model`; `overflow`: the `edgellm.Overflow` that holds; `options`: an `Options`, may be replaced between calls, and
    so may `tools`, which no file keeps;
    `seed` and `n_sent`, the number of answers so far, make the seed of the next answer. With a model that has no chat
    template, what is sent is continued as it stands, each text behind the one before.
    """

    def __init__(
        self, model: Model, system: str | None = None, overflow: Overflow | str | None = None,
        max_tokens: int | None = None, sampling: Sampling | None = None, stop: str | SequenceOf[str] = (),
        exact: bool | None = None, tools: SequenceOf[AnyTool] | None = None, **samplers: Any,
    ) -> None:  # fmt: skip
        model._check_open()
        self.model = model
        self.overflow = model._overflow(overflow)
        self._render = Renderer(model._prompt)
        self._said = Transcript(model.tokenizer, self._render if model.chat_template is not None else None)
        if not self._said.is_chat and self.overflow.kind == "drop-turns":
            raise InvalidArgumentError(
                "this model has no chat template, so there are no turns to drop; choose overflow sink, shift or error"
            )
        self.system = system
        chosen = model.sampling(sampling, stop, **samplers)
        self.options = Options(chosen, checked_limit(max_tokens), model.exact if exact is None else bool(exact))
        self.tools = tools
        self.seed, self.n_sent = int.from_bytes(os.urandom(4), "little"), 0
        self._place = _Place()
        self._job: Job | None = None  # the latest answer
        self.context = Context(0, model.n_ctx, 0, 0, self.overflow.kind)
        self._end = weakref.finalize(self, _abandon, self._place, model._loaded.engine)
        self._end.atexit = False

    # ---- a question

    @overload
    def send(self, message: Question, *, stream: Literal[False] = ..., **options: Unpack[AnswerOptions]) -> Result: ...
    @overload
    def send(self, message: Question, *, stream: Literal[True], **options: Unpack[AnswerOptions]) -> Stream: ...
    @overload
    def send(self, message: Question, *, stream: bool, **options: Unpack[AnswerOptions]) -> Result | Stream: ...

    def send(self, message: Question, *, stream: bool = False, **options: Any) -> Result | Stream:
        """Ask, and get the answer; only what is new goes through the model.

        `message` is a text, or a mapping with `role` and `content`; or what tools gave that the model asked for, one
        message of the role "tool" or a list of them. Its text never becomes a control token. With `stream=True` a
        `Stream` comes back at once. The options are those of `Model.chat`, but `overflow`; they count for this answer
        only and default to those of the session.

        Setting the event `cancel` drops question and answer; after `timeout` seconds the answer ends there and is kept.
        One that ends before its first word, by the timeout or `Stream.stop`, leaves the session as it was.

        Raises ContextOverflowError (no room under the session's overflow), TemplateError, InvalidArgumentError,
        GrammarError, Cancelled, ModelClosedError, NotEnoughMemoryError, NonFiniteError; the session is then as it was.
        """
        job = self._ask(message, options)
        return Stream(self, job) if stream else job.wait()

    def asend(self, message: Question, **options: Unpack[AnswerOptions]) -> AsyncStream:
        """`send` for asyncio: `async for event in chat.asend(...)`, or await it for the `Result`."""
        from edgellm.async_stream import AsyncStream

        return AsyncStream(self, self._ask(message, options, lazy=True))

    def _ask(self, message: Question, options: Mapping[str, Any], lazy: bool = False) -> Job:
        """Queue a question."""
        self._check_open()
        plain = plain_question(message)
        own = self.options
        defaults = Defaults(
            own.sampling, own.max_tokens, own.exact, self.overflow, self.tools, self.model.chat_template,
            self.model.speculate, fixed=True,
        )  # fmt: skip
        call = gather(options, defaults, self.model.tokenizer, lazy)
        if "seed" not in options and getattr(options.get("sampling"), "seed", None) is None:
            call = replace(call, sampling=replace(call.sampling, seed=None))  # the session's next one counts
        self._job = job = submit(
            call, self.model._worker, lambda job: self._answer(job, plain, call),
            lambda why: self._nothing(call, why), whole=True,
        )  # fmt: skip
        return job

    # ---- on the worker thread

    def _answer(self, job: TappedJob, question: list[dict[str, Any]], call: Call) -> Result:
        self._check_open()
        model = self.model
        engine = model._loaded.engine
        engine.set_exact(call.exact)
        self._render.tools = call.tools
        prompt = self._said.prompt(question, self._cached(), model.n_ctx, self._by_turns)
        model._check_ids(prompt.ids, Overflow("sink"))  # how much fits, the sequence knows
        seed, base = call.sampling.seed, self.options.sampling.seed
        if seed is None:
            seed = turn_seed(self.seed if base is None else base, self.n_sent)
        seq, ids = self._begin(prompt)
        try:
            request = call.request(
                ids,
                model.tokenizer,
                job,
                sampling=replace(call.sampling, seed=seed),
                dropped=max(0, prompt.gone - seq.dropped),
            )
            with engine.undoing(lambda: self._give_up(seq, prompt.base)):
                result = Generation(engine, request, job, seq=seq).run()
            result = call.finish(result, request)
        except BaseException as error:
            self._give_up(seq, prompt.base)
            if isinstance(error, Cancelled) and job.job.keep:  # stopped, but there is nothing to keep
                return self._nothing(replace(call, sampling=replace(call.sampling, seed=seed)), job.why)
            raise
        self._take_in(seq, prompt, result, request.stop_ids)
        return replace(result, context=self.context)

    @property
    def _by_turns(self) -> bool:
        return self.overflow.kind == "drop-turns"

    def _cached(self) -> Cached:
        seq = self._place.seq
        return Cached() if seq is None else Cached(seq.ids, seq.span.keep, seq.dropped, seq.can_rewind)

    def _begin(self, prompt: Prompt) -> tuple[Sequence, list[int]]:
        """The sequence that the prompt goes to, and the ids that it has not got. Only the one that holds the session
        now is left for later: any other belongs to this call."""
        engine, seq = self.model._loaded.engine, self._place.seq
        if seq is None or prompt.base < 0:
            policy, n_ctx = self.overflow, self.model.n_ctx
            if self._by_turns and policy.keep is None:  # the system message
                policy = replace(policy, keep=max(0, min(prompt.keep, n_ctx - 2)))
            seq = engine.new_sequence(policy, prompt.ids[:-1])
            ids = prompt.ids[seq.length :]
        elif prompt.base < seq.length:
            seq, ids = seq.fork(), prompt.ids
            seq.rewind(prompt.base)
        else:
            ids = prompt.ids
        if self._by_turns:
            seq.turns = [turn.start for turn in prompt.turns if turn.start >= seq.span.keep]
        return seq, ids

    def _give_up(self, seq: Sequence, base: int) -> None:
        """The call failed: its own sequence goes, the session's is what it was."""
        if seq is not self._place.seq:
            seq.close()
        elif seq.length != base:  # there was no memory to go back to where it was
            self._leave_cache()

    def _take_in(self, seq: Sequence, prompt: Prompt, result: Result, stop_ids: frozenset[int]) -> None:
        """Question and answer belong to the session now."""
        begin = seq.length - max(0, len(result.token_ids) - 1)  # of the answer; its last token has not been run
        kept = self._said.accept(prompt, result, stop_ids, seq.span.first if self._by_turns else 0)
        if begin + kept < seq.length:  # a stop string, say: it is in the cache, but not in the text
            if seq.can_rewind(begin + kept):
                seq.rewind(begin + kept)
            else:
                self._said.forget()
        if seq is not self._place.seq:
            self._leave_cache(forget=False)
            self._place.seq = seq
        if self.n_sent == 0:
            self.model._loaded.engine.keep(seq)  # other sessions begin with the same system message
        self.n_sent += 1
        self._measure(result.context.reused)

    def _leave_cache(self, forget: bool = True) -> None:
        seq, self._place.seq = self._place.seq, None
        if seq is not None:
            seq.close()
        if forget:
            self._said.forget()

    def _nothing(self, call: Call, reason: StopReason) -> Result:
        return nothing_said(self.model, call, self.context, reason)

    # ---- what was said

    @property
    def is_chat(self) -> bool:
        """Whether the model has a chat template."""
        return self._said.is_chat

    @property
    def messages(self) -> list[dict[str, Any]]:
        """Everything that was said, also what is no longer in the context window; copies."""
        return [dict(message) for message in self._said.messages]

    @property
    def dropped_messages(self) -> int:
        """So many of `messages`, from the first on, have left the context window with their turns."""
        return self._said.first

    @property
    def system(self) -> str | None:
        """The system message; a new one counts from the next question on."""
        return self._said.system

    @system.setter
    def system(self, text: str | None) -> None:
        if text and not self.is_chat:
            raise InvalidArgumentError("this model has no chat template, so it takes no system message")
        self._said.system = None if not text else plain_message({"role": "system", "content": text})["content"]

    def undo(self) -> dict[str, Any] | None:
        """The last question and its answer leave; the question (its first message), or None where there is none.

        Where their pages are still there nothing is computed; else the next question reads the conversation again.
        """
        return self._call(self._undo)

    def _undo(self, job: Job) -> dict[str, Any] | None:
        if not self._said.turns:
            return None
        question = self._said.messages[self._said.turns[-1].message]
        turn, seq = self._said.turns[-1], self._place.seq
        self._said.undo()
        if turn.length > 0 and self._said.text is not None and seq is not None and seq.can_rewind(turn.length):
            seq.rewind(turn.length)
        elif self._said.messages:
            self._said.forget()  # what is there still may serve
        else:
            self._leave_cache()
        self._measure()
        return question

    def clear(self) -> None:
        """Forget what was said. The system message and the options stay."""

        def clear(job: Job) -> None:
            self._leave_cache()
            render = self._render if self.is_chat else None
            self._said = Transcript(self.model.tokenizer, render, self._said.system)
            self._measure()

        self._call(clear)

    def _measure(self, reused: int = 0) -> None:
        seq, n_ctx = self._place.seq, self.model.n_ctx
        used, dropped = (0, 0) if seq is None else (seq.length - seq.dropped, seq.dropped)
        self.context = Context(used, n_ctx, reused, max(dropped, self._said.gone), self.overflow.kind)

    def fork(self) -> Session:
        """Another session that says the same so far and shares its pages. Without a seed in its options it goes on with
        a seed of its own."""
        other = Session(self.model, self.system, self.overflow, tools=self.tools)

        def fork(job: Job) -> None:
            other.options, other.n_sent, other.context = self.options, self.n_sent, self.context
            other._said = self._said.copy(other._render if self.is_chat else None)
            if self._place.seq is not None:
                other._place.seq = self._place.seq.fork()

        self._call(fork)
        return other

    # ---- on disk

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the session to a file, or leave the old file as it was. Raises OutputError, InvalidArgumentError."""
        from edgellm.session_store import save

        self._call(lambda job: save(self, path))

    @classmethod
    def load(cls, model: Model, path: str | os.PathLike[str]) -> Session:
        """The session in a file, which goes on as if it had never stopped. Nothing in the file is trusted.

        Raises SessionFileError (damaged, or of another model), ModelFileNotFoundError, NotEnoughMemoryError; the model
        and its other sessions are as they were.
        """
        from edgellm.session_store import load

        session = cls(model)
        try:
            session._call(lambda job: load(session, path))
        except BaseException:
            session.close()
            raise
        return session

    # ---- its end

    def _call(self, work: Callable[[Job], T]) -> T:
        """Do something on the worker thread, behind what it is doing."""

        def run(job: Job) -> T:
            self._check_open()
            return work(job)

        self._check_open()
        return self.model._worker.call(run)

    @property
    def closed(self) -> bool:
        return not self._end.alive or self.model.closed

    def close(self) -> None:
        """End the running answer and give the pages back. Calling it again does nothing."""
        if self.closed:
            return
        if self._job is not None:
            self._job.stop(keep=False)

        def end(job: Job) -> None:
            if self._end.detach() and self._place.seq is not None:
                self.model._loaded.engine.keep(self._place.seq)  # as long as there is room
                self._leave_cache()

        with contextlib.suppress(ModelClosedError):  # it was closed meanwhile, and all pages with it
            self.model._worker.call(end, always=True)

    def _check_open(self) -> None:
        if self.closed:
            raise ModelClosedError("the session is closed" if not self.model.closed else "the model is closed")

    def __enter__(self) -> Session:
        self._check_open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Session({len(self._said.messages)} messages, context {self.context.used}/{self.context.n_ctx})"


def _abandon(place: _Place, engine: Any) -> None:
    """A session was forgotten without `close`: its pages go back when the engine next makes a sequence."""
    if place.seq is not None:
        engine.abandoned.append(place.seq)
