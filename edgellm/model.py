"""The Python API: `load` a file, ask the `Model`, read the `Result`.

    with edgellm.load("model.gguf") as model:
        for event in model.chat([{"role": "user", "content": "hi"}], stream=True):
            print(event.text, end="", flush=True)

All methods may be called from any thread; a model answers one call after the other, in order.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from edgellm.cache import Overflow
from edgellm.callbacks import TappedJob
from edgellm.calls import Call, Defaults, chosen_sampling, gather, nothing_said, submit
from edgellm.embeddings import Embeds
from edgellm.errors import InvalidArgumentError, ModelClosedError
from edgellm.generate import Generation
from edgellm.prompt import AnyTool, ChatPrompt, Message
from edgellm.results import Context, Result
from edgellm.sampling import Sampling
from edgellm.stream import Stream
from edgellm.worker import Worker

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Unpack

    from edgellm.async_stream import AsyncStream
    from edgellm.calls import CallOptions, SamplingOptions
    from edgellm.loader import Loaded
    from edgellm.progress import ProgressCallback
    from edgellm.session import Session
    from edgellm.tokenizers import Tokenizer
    from edgellm.worker import Job

Prompt = str | Sequence[int]
Fields = dict[str, Any]  # fields of a Request


def load(
    path: str | os.PathLike[str] | None = None, *, n_ctx: int | None = None, threads: int | str = "auto",
    backend: str = "auto", kv_type: str | tuple[str, str] = "auto", chat_template: str | None = None,
    seed: int | None = None, exact: bool = False, progress: ProgressCallback | None = None, pack: bool = True,
    huge_pages: bool = False, overflow: Overflow | str | None = None, cache_bytes: int | None = None,
    mmap: bool = True, mlock: bool = False, gpu_layers: int | str = 0, offline: bool | None = None,
    max_queue: int | None = None, speculate: str | os.PathLike[str] = "auto",
) -> Model:  # fmt: skip
    """Load a model: the path of a GGUF file, a model of Hugging Face's hub as `hf:owner/repo:Q4_K_M`, an alias, or None
    for the small built-in one.

    - `n_ctx`: context window in tokens. None: what the model was trained for, or less if memory does not hold that.
      Models with LongRoPE (Phi 3 and 4 mini with long contexts) also choose by it, once and for all positions, whether
      their short or long factors hold: `edgellm show` tells the limit.
    - `threads`: number of threads, or "auto": one per fast core that this process may use.
    - `backend`: "native" (compiled), "numba", "reference" (slow NumPy), or "auto": the fastest that is there.
    - `kv_type`: how the KV cache keeps its numbers: "f32", "f16", "q8_0" (8 bits), "q4_0" (4 bits, costs some quality),
      or "auto": f32 where the weights are F32, else f16. ("q8_0", "q4_0") or "q8_0:q4_0" are those of K and of V.
    - `chat_template`: Jinja template to use instead of the one in the file.
    - `seed`: used by every call that brings none; None: a new random one each time (`Result.seed` tells it).
    - `exact`: logits do not depend, to the bit, on how a prompt is cut into passes (slower on AMX); calls may choose.
    - `progress`: called with a `Progress`; when it returns False, loading ends with `Cancelled`.
    - `pack`: False reads the weights straight from the mapped file, for machines short of memory: slower, but memory
      that the system can take back at any time, and the same logits. A packed file (`edgellm pack`) is used in place.
    - `huge_pages`: True copies the weights of a packed file into memory of 2 MB pages, for long answers: loading takes
      longer, each token is a little faster. Other files are always packed into such memory.
    - `overflow`: what happens when a text is longer than the context window; calls may choose. "error" (the default):
      a longer prompt is refused and an answer ends there. "sink" or "sink:4:2048": the first 4 tokens and a window of
      the last 2048 stay, for ever. "shift" or "shift:100": when the window is full, the older half behind the first 100
      tokens goes. "drop-turns": whole oldest turns of a chat go, the system message stays. Or an `edgellm.Overflow`.
    - `cache_bytes`: memory for the KV cache, in which finished texts stay as long as there is room. None: two contexts
      of `n_ctx` tokens, or what memory allows, one at least.
    - `mmap`: False reads the file into memory before anything else, so that it may be moved or deleted afterwards, and
      a slow drive is read once from end to end. That takes its size in memory, beside the packed weights.
    - `mlock`: True keeps the weights in memory: the system never moves them to disk. Where it does not allow that
      (`ulimit -l`), NotEnoughMemoryError says how much is needed, and nothing is loaded.
    - `gpu_layers`: 0, or "auto". There is no GPU backend in this build: more raises BackendError.
    - `offline`: True never touches the network, and neither does HF_HUB_OFFLINE=1. Else a model of the hub that is not
      on this machine yet is downloaded (`edgellm.pull`); for one that is, there is no request either.
    - `speculate`: "auto" guesses tokens and checks several in one pass: the same answers, sooner. "off", "suffix" and
      "self" are other kinds, which calls may choose, too; or a draft model, named as `path` is ("draft" in calls).
    - `max_queue`: how many calls may wait behind the one that runs; one more raises QueueFullError. None: any number.

    Raises ModelFileNotFoundError, ModelFormatError and its subclasses (a file that is damaged or not supported),
    DraftModelError (other tokens), NotEnoughMemoryError, BackendError, InvalidArgumentError, Cancelled, and for the hub
    the errors of `edgellm.pull`.
    """
    from edgellm.hub import resolve
    from edgellm.loader import Loaded, check_gpu_layers
    from edgellm.speculate import resolve_speculation

    check_gpu_layers(gpu_layers)
    kind, draft = resolve_speculation(speculate, offline=offline, progress=progress)
    loaded = Loaded(
        resolve(path, offline=offline, progress=progress), n_ctx=n_ctx,
        threads=threads, backend=backend, kv_type=kv_type,
        chat_template=chat_template, seed=seed, exact=exact, progress=progress, pack=pack, huge_pages=huge_pages,
        overflow=overflow, cache_bytes=cache_bytes, mmap=mmap, mlock=mlock, speculate=kind, draft=draft,
    )  # fmt: skip
    return Model(loaded, max_queue)


class Model(Embeds):
    """A loaded model. Made by `load`; use it as a context manager, or `close()` it.

    Attributes: `path`, `arch`, `name`, `n_ctx`, `n_vocab`, `tokenizer` (`edgellm.Tokenizer`), `chat_template` (text or
    None), `metadata` (the file's keys), `plan`, `backend`, `isa`, `kv_type`, `threads` (with `thread_reason`), `exact`,
    `speculate`.
    """

    def __init__(self, loaded: Loaded, max_queue: int | None = None) -> None:
        self.path, self.metadata, self.arch, self.name = loaded.path, loaded.metadata, loaded.arch, loaded.name
        self.n_ctx, self.n_ctx_train, self.kv_type = loaded.n_ctx, loaded.n_ctx_train, loaded.kv_type
        self.tokenizer: Tokenizer = loaded.tokenizer
        self.chat_template, self.plan = loaded.chat_template, loaded.plan
        self.threads, self.thread_reason = loaded.threads, loaded.thread_reason
        self.load_seconds, self.seed, self.exact = loaded.load_seconds, loaded.seed, loaded.exact
        self.speculate = loaded.speculate
        self._loaded, self._prompt = loaded, ChatPrompt(loaded.chat_template, loaded.tokenizer, loaded.path)
        self._worker = Worker(f"edgellm-{loaded.name}", max_queue)
        self._worker.on_fork, loaded.engine.gate = loaded.engine.undo_all, self._worker.gate
        if loaded.draft is not None:
            loaded.draft.engine.gate = self._worker.gate
        # The finalizer must not hold the model itself, or it would never be collected.
        self._close = weakref.finalize(self, _close, self._worker, loaded)

    # ---- generation

    @overload
    def generate(
        self, prompt: Prompt, *, stream: Literal[False] = ..., special: bool = ..., **options: Unpack[CallOptions]
    ) -> Result: ...
    @overload
    def generate(
        self, prompt: Prompt, *, stream: Literal[True], special: bool = ..., **options: Unpack[CallOptions]
    ) -> Stream: ...
    @overload
    def generate(
        self, prompt: Prompt, *, stream: bool, special: bool = ..., **options: Unpack[CallOptions]
    ) -> Result | Stream: ...

    def generate(
        self, prompt: Prompt, *, stream: bool = False, special: bool = False, **options: Any
    ) -> Result | Stream:
        """Continue `prompt`, a text or token ids.

        A text gets the beginning-of-text token where the file asks for it; control tokens spelled out in it stay text
        unless `special`. With `stream=True` a `Stream` comes back at once. The options, all by keyword:

        - `max_tokens`: at most so many; None goes on until an end token, a stop string or a full context window.
        - `sampling`: a `Sampling`; or its fields as keywords (`temperature=0.7, seed=1`). `stop`: strings that end the
          text. `ignore_eos`: end tokens do not end it. `exact`, `overflow`, `speculate`: as in `load`, for this
          call.
        - `cancel`: a `threading.Event`; setting it drops the answer and raises `Cancelled`. `timeout`: seconds from
          now, waiting for other calls included; what was said until then is kept (`finish_reason` "timeout").
        - `on_token` gets each `Event`, and ends the answer by returning False; `on_prefill` gets a `Progress` before
          and after each chunk of the prompt; `on_done` gets the `Result`, or the error that ended the call, once. They
          run on the worker thread (`on_done` on the thread that stops a call before its turn), and what they raise
          ends the call; or `dispatch` gets each as a function without arguments, to call where it likes (a GUI's
          thread). What this method raises at once, `on_done` does not hear of.
        - `response_format` (OpenAI's shape, or a JSON schema), `grammar` (GBNF or Lark), `regex`: the answer's form.
        - `processors`: functions of (ids so far, logits float32 (n_vocab,)) that change the logits in place.

        Raises ContextOverflowError (no room for the prompt), InvalidArgumentError, GrammarError, Cancelled,
        ModelClosedError, NonFiniteError; KeyboardInterrupt cancels the call.
        """
        self._check_open()
        call = self._gather(options, chat=False)
        fields = self._text(prompt, special, call)
        job = self._submit(call, lambda: fields)
        return Stream(self, job) if stream else job.wait()

    def agenerate(self, prompt: Prompt, *, special: bool = False, **options: Unpack[CallOptions]) -> AsyncStream:
        """`generate` for asyncio: `async for event in model.agenerate(...)`, or await it for the `Result`.

        The prompt is prepared on the worker thread, so what is wrong with it is raised where the answer is waited for.
        """
        from edgellm.async_stream import AsyncStream

        self._check_open()
        if not isinstance(prompt, str):
            prompt = _ids(prompt)
        call = self._gather(options, chat=False, lazy=True)
        return AsyncStream(self, self._submit(call, lambda: self._text(prompt, special, call)))

    @overload
    def chat(
        self, messages: Sequence[Message], *, stream: Literal[False] = ..., **options: Unpack[CallOptions]
    ) -> Result: ...
    @overload
    def chat(self, messages: Sequence[Message], *, stream: Literal[True], **options: Unpack[CallOptions]) -> Stream: ...
    @overload
    def chat(self, messages: Sequence[Message], *, stream: bool, **options: Unpack[CallOptions]) -> Result | Stream: ...

    def chat(self, messages: Sequence[Message], *, stream: bool = False, **options: Any) -> Result | Stream:
        """Answer `messages`: a list of `{"role": "system" | "user" | "assistant" | "tool", "content": text}`.

        They are put into the form that the model was trained on with the chat template of its file; text of the
        messages never becomes a control token. What the previous turn left in the cache is used again. `tools`, in
        OpenAI's shape, are shown to the model; calls that it asks for are in `Result.tool_calls`; `tool_choice` is
        "auto", "none", "required" or a mapping that names one. Other options and errors as in `generate`; TemplateError
        where the file has no template or refuses the messages.
        """
        self._check_open()
        call = self._gather(options)
        fields = self._turn(messages, call)
        job = self._submit(call, lambda: fields)
        return Stream(self, job) if stream else job.wait()

    def achat(self, messages: Sequence[Message], **options: Unpack[CallOptions]) -> AsyncStream:
        """`chat` for asyncio: `async for event in model.achat(...)`, or await it for the `Result` (see `agenerate`)."""
        from edgellm.async_stream import AsyncStream

        self._check_open()
        call, messages = self._gather(options, lazy=True), list(messages)
        return AsyncStream(self, self._submit(call, lambda: self._turn(messages, call)))

    def _gather(self, options: Mapping[str, Any], chat: bool = True, lazy: bool = False) -> Call:
        """The checked options of a call. Raises InvalidArgumentError (also for an encoder), GrammarError."""
        self.plan.result()
        if not chat and ("tools" in options or "tool_choice" in options):
            raise InvalidArgumentError("tools go through the chat template: use chat(tools=...)")
        template = self.chat_template
        defaults = Defaults(
            self.sampling(), None, self.exact, self._loaded.overflow, template=template, speculate=self.speculate
        )
        call = gather(options, defaults, self.tokenizer, lazy)
        self._overflow(call.overflow)
        return call if call.sampling.seed is not None else replace(call, sampling=self.sampling(call.sampling))

    def _overflow(self, overflow: Overflow | str | None) -> Overflow:
        """A policy for this context window. Raises InvalidArgumentError."""
        policy = self._loaded.overflow if overflow is None else Overflow.parse(overflow)
        policy.fit(self.n_ctx)
        return policy

    def _text(self, prompt: Prompt, special: bool, call: Call) -> Fields:
        ids = self.tokenizer.encode(prompt, parse_special=special) if isinstance(prompt, str) else _ids(prompt)
        self._check_ids(ids, call.overflow)
        return {"ids": ids, "overflow": call.overflow}

    def _turn(self, messages: Sequence[Message], call: Call) -> Fields:
        prompt = self._prompt.with_tools(call.tools)
        if call.overflow.kind == "drop-turns":
            fitted = prompt.fit(messages, self.n_ctx, call.overflow)
            self._check_ids(fitted.ids, fitted.overflow)
            fields = {"overflow": fitted.overflow, "find_turns": fitted.turns, "dropped": fitted.dropped}
            return {"ids": fitted.ids, **fields}
        ids = prompt.ids(messages)
        self._check_ids(ids, call.overflow)
        return {"ids": ids, "overflow": call.overflow}

    def _submit(self, call: Call, prepare: Callable[[], Fields]) -> Job:
        """Queue an answer. `prepare`, on the worker thread: the fields of its `Request` that the prompt decides."""
        loaded, tokenizer = self._loaded, self.tokenizer

        def answer(job: TappedJob) -> Result:
            request = call.request(tokenizer=tokenizer, job=job, **prepare())
            result = Generation(loaded.engine, request, job).run()
            return call.finish(result, request)

        context = Context(0, self.n_ctx, 0, 0, call.overflow.kind)
        return submit(call, self._worker, answer, lambda why: nothing_said(self, call, context, why))

    def session(
        self, system: str | None = None, *, overflow: Overflow | str | None = None, max_tokens: int | None = None,
        sampling: Sampling | None = None, stop: str | Sequence[str] = (), exact: bool | None = None,
        tools: Sequence[AnyTool] | None = None, **samplers: Unpack[SamplingOptions],
    ) -> Session:  # fmt: skip
        """A conversation that keeps its place in the cache: `send`, `undo`, `fork`, `save` (see `edgellm.Session`).

        `system` is its system message, `tools` are shown to the model with every question; the other options hold for
        all its answers. Raises InvalidArgumentError.
        """
        from edgellm.session import Session

        self.plan.result()
        return Session(self, system, overflow, max_tokens, sampling, stop, exact, tools, **samplers)

    def sampling(
        self, sampling: Sampling | None = None, stop: str | Sequence[str] = (), **samplers: Unpack[SamplingOptions]
    ) -> Sampling:
        """The sampling that a call with these arguments uses.

        Without a `Sampling` the file's own defaults count (keys `general.sampling.*`), else those of the class. Fields
        given as keywords replace its fields, stop strings add up. Raises InvalidArgumentError.
        """
        base = sampling if sampling is not None else Sampling(**self._loaded.sampling_defaults)
        chosen = chosen_sampling(base, stop, samplers)
        return chosen if chosen.seed is not None else replace(chosen, seed=self.seed)

    # ---- text

    def tokenize(self, text: str, special: bool = False, add_special: bool = False) -> list[int]:
        """Token ids of `text`; with `special`, control tokens spelled out in it count as such.

        `add_special` adds the beginning-of-text token where the file asks for it.
        """
        return self.tokenizer.encode(text, add_special=add_special, parse_special=special)

    def detokenize(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """The text of token ids."""
        return self.tokenizer.decode(ids, skip_special=skip_special)

    def apply_template(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, tools: Sequence[AnyTool] | None = None
    ) -> str:
        """`messages` (and `tools`) as the text that the model gets. Raises TemplateError, InvalidArgumentError."""
        return str(self._prompt.with_tools(tools).render(messages, add_generation_prompt))

    def chat_ids(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, tools: Sequence[AnyTool] | None = None
    ) -> list[int]:
        """`messages` as the token ids that the model gets, the beginning-of-text token included once."""
        return self._prompt.with_tools(tools).ids(messages, add_generation_prompt)

    # ---- numbers

    def logits(self, ids: Sequence[int], first: int = 0, exact: bool | None = None) -> np.ndarray:
        """Logits float32 (n - first, n_vocab) of each position of `ids` from `first` on. Else as `generate`."""
        self._check_open()
        self.plan.result()
        checked = _ids(ids)
        self._check_ids(checked, Overflow())
        engine, exact = self._loaded.engine, self.exact if exact is None else exact
        if not 0 <= first < len(checked):
            raise InvalidArgumentError(f"first is {first}; there are positions 0 to {len(checked) - 1}")
        return self._worker.call(lambda job: engine.logits(checked, job, first, exact))

    def _check_ids(self, ids: list[int], overflow: Overflow) -> None:
        if not ids:
            raise InvalidArgumentError("the prompt is empty, and this model has no token that begins a text")
        overflow.check(len(ids), self.n_ctx)
        low, high = min(ids), max(ids)
        if low < 0 or high >= self.n_vocab:
            bad = low if low < 0 else high
            raise InvalidArgumentError(f"token id {bad} is outside the vocabulary (0 to {self.n_vocab - 1})")

    # ---- what it is

    @property
    def n_vocab(self) -> int:
        """Number of tokens the model chooses from."""
        return self.plan.n_vocab

    @property
    def backend(self) -> str:
        """Name of the backend that runs the model: native, numba or reference."""
        return self._loaded.backend_name

    @property
    def isa(self) -> str:
        """Instruction set level of the kernels, empty where the backend has none."""
        return self._loaded.isa

    @property
    def closed(self) -> bool:
        return not self._close.alive

    def close(self) -> None:
        """End the running call, free the memory, unmap the file. Calling it again does nothing."""
        self._close()

    def _check_open(self) -> None:
        if self.closed:
            raise ModelClosedError()

    def __enter__(self) -> Model:
        self._check_open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        state = ", closed" if self.closed else ""
        path = os.fspath(self.path)
        return f"Model({path!r}, arch={self.arch!r}, n_ctx={self.n_ctx}, backend={self.backend!r}{state})"


def _ids(prompt: Sequence[int]) -> list[int]:
    try:
        return [token.__index__() for token in prompt]
    except (AttributeError, TypeError):
        raise InvalidArgumentError("a prompt must be a text or a list of token ids") from None


def _close(worker: Worker, loaded: Any) -> None:
    worker.close(after=loaded.close)
