"""`Call`: what was asked of one answer, checked once and in one place for `generate`, `chat` and `Session.send`.

`CallOptions` lists every option for type checkers, `gather` checks what was given, `submit` runs the answer on the
model's worker thread with its callbacks, its `cancel` event and its time limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypedDict

from edgellm.cache import Overflow
from edgellm.callbacks import Dispatch, Hooks, TappedJob, Watch
from edgellm.errors import InvalidArgumentError, one_line
from edgellm.generate import Request
from edgellm.prompt import AnyTool, Tool
from edgellm.results import Result, Stats, Usage
from edgellm.sampling import Constraint, Processor, Sampling
from edgellm.speculate import checked_kind

if TYPE_CHECKING:
    import threading

    from edgellm.model import Model
    from edgellm.results import Context, Event, Progress
    from edgellm.tokenizers import Tokenizer
    from edgellm.toolcalls import ToolReader
    from edgellm.toolcalls.formats import ToolFormat
    from edgellm.worker import Job, StopReason, Worker

ToolChoice = str | Mapping[str, Any]
_CHOICES = ("auto", "none", "required")


class SamplingOptions(TypedDict, total=False):
    """The fields of `Sampling` as keywords of a call; each replaces that field for this call."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repeat_penalty: float
    repeat_last_n: int
    presence_penalty: float
    frequency_penalty: float
    seed: int | None
    top_n_sigma: float
    xtc_probability: float
    xtc_threshold: float
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_penalty_last_n: int
    dry_sequence_breakers: Sequence[str]
    dynatemp_range: float
    dynatemp_exponent: float
    mirostat: int
    mirostat_tau: float
    mirostat_eta: float
    logit_bias: Mapping[int | str, float]
    samplers: str | Sequence[str]


class AnswerOptions(SamplingOptions, total=False):
    """The options of every call that makes an answer.

    Length and form: `max_tokens`, `sampling`, `stop`, `exact`, `ignore_eos` (end tokens do not end the answer),
    `processors` (`edgellm.sampling.Processor`s, which change the logits before a token is chosen), and at most one of
    `response_format` (OpenAI's shape or a JSON schema), `grammar` (GBNF or Lark text), `regex`. `speculate` ("auto",
    "off", "suffix", "self", "draft": see `edgellm.load`) changes the speed only.
    Tools: `tools` (OpenAI's shape, or Python functions), `tool_choice` ("auto", "none", "required", or a mapping that
    names one), `tool_format` ("hermes", "llama3", "mistral": how the model writes calls; None: as its template says).
    From outside: `cancel` (an event; setting it drops the answer), `timeout` (seconds from the call on; what was said
    until then is kept), `on_token` and `on_prefill` (callbacks on the worker thread), `on_done` (gets the result or the
    error, once), `dispatch` (gets a function without arguments per callback, to call where it likes: a GUI's thread).
    """

    max_tokens: int | None
    sampling: Sampling | None
    stop: str | Sequence[str]
    exact: bool | None
    speculate: str | None
    ignore_eos: bool
    processors: Sequence[Processor]
    response_format: Any
    grammar: str | None
    regex: str | None
    tools: Sequence[AnyTool] | None
    tool_choice: ToolChoice | None
    tool_format: str | None
    cancel: threading.Event | None
    timeout: float | None
    on_token: Callable[[Event], Any] | None
    on_prefill: Callable[[Progress], Any] | None
    on_done: Callable[[Result | BaseException], Any] | None
    dispatch: Dispatch | None


class CallOptions(AnswerOptions, total=False):
    """Also `overflow`, which a session has chosen when it was made (see `edgellm.load`)."""

    overflow: Overflow | str | None


_SAMPLERS = frozenset(Sampling.__dataclass_fields__) - {"stop"}
_CALLBACKS = ("on_token", "on_prefill", "on_done", "dispatch")
_OPTIONS = CallOptions.__optional_keys__ - SamplingOptions.__optional_keys__


@dataclass(frozen=True)
class Defaults:
    """What holds where a call does not say otherwise."""

    sampling: Sampling
    max_tokens: int | None
    exact: bool
    overflow: Overflow
    tools: Sequence[AnyTool] | None = None
    template: str | None = None  # the model's chat template, which tells how it writes calls of tools
    speculate: str = "auto"
    fixed: bool = False  # a session's: calls may not choose another overflow policy


@dataclass(frozen=True)
class Call:
    """The checked options of one answer. `make_constraint` is called once, on the worker thread; `tools` None: none."""

    sampling: Sampling
    max_tokens: int | None
    exact: bool
    overflow: Overflow
    speculate: str = "auto"
    ignore_eos: bool = False
    processors: tuple[Processor, ...] = ()
    make_constraint: Callable[[], Constraint] | None = None
    tools: tuple[Tool, ...] | None = None
    tool_choice: ToolChoice = "auto"
    tool_format: ToolFormat | None = None  # where there are tools
    cancel: threading.Event | None = None
    timeout: float | None = None
    on_token: Callable[[Event], Any] | None = None
    on_prefill: Callable[[Progress], Any] | None = None
    on_done: Callable[[Result | BaseException], Any] | None = None
    dispatch: Dispatch | None = None

    def request(self, ids: list[int], tokenizer: Tokenizer, job: TappedJob, **more: Any) -> Request:
        """The generation that makes this answer to `ids`; `more` are further fields of the `Request`."""
        return Request(
            ids=ids,
            sampling=more.pop("sampling", self.sampling),
            max_tokens=self.max_tokens,
            stop_ids=frozenset() if self.ignore_eos else frozenset(tokenizer.eog_ids),
            exact=self.exact,
            speculate=self.speculate,
            on_prefill=job.on_prefill,
            processors=self.processors,
            constraint=None if self.make_constraint is None else self.make_constraint(),
            reader=self._reader(tokenizer),
            **more,
        )

    def _reader(self, tokenizer: Tokenizer) -> ToolReader | None:
        if self.tools is None or self.tool_format is None:
            return None
        from edgellm.toolcalls import ToolReader

        return ToolReader(self.tool_format, [tool["function"]["name"] for tool in self.tools], tokenizer)

    def finish(self, result: Result, request: Request) -> Result:
        """The result as the caller gets it, with the calls of tools that were read from the answer to `request`."""
        if request.reader is None or not request.reader.calls:
            return result
        reason = "tool_calls" if result.finish_reason == "stop" else result.finish_reason
        return replace(result, tool_calls=tuple(request.reader.calls), finish_reason=reason)


def gather(options: Mapping[str, Any], defaults: Defaults, tokenizer: Tokenizer, lazy: bool = False) -> Call:
    """Check the options of a call. `lazy`: a grammar is compiled on the worker thread, not here.

    Raises InvalidArgumentError that names the option, GrammarError.
    """
    given = {name: value for name, value in options.items() if name in _OPTIONS}
    samplers = {name: value for name, value in options.items() if name not in _OPTIONS}
    if defaults.fixed and "overflow" in given:
        raise InvalidArgumentError("a session's overflow is chosen when it is made: model.session(overflow=...)")
    base = given.get("sampling") or defaults.sampling
    overflow, exact, tools = given.get("overflow"), given.get("exact"), given.get("tools")
    forms = {name: given.get(name) for name in ("response_format", "grammar", "regex")}
    tools = _checked_tools(defaults.tools if tools is None else tools)
    choice = _checked_choice(given.get("tool_choice"), tools)
    tools = None if choice == "none" else tools
    form = None if tools is None else _tool_format(given.get("tool_format"), defaults.template)
    make = _constraint_maker(forms, tokenizer, lazy)
    if form is not None and choice != "auto":
        make = _forced_call(form, tools or (), choice, tokenizer, make)
    return Call(
        sampling=chosen_sampling(base, given.get("stop", ()), samplers),
        max_tokens=checked_limit(given.get("max_tokens", defaults.max_tokens)),
        exact=defaults.exact if exact is None else bool(exact),
        overflow=defaults.overflow if overflow is None else Overflow.parse(overflow),
        speculate=checked_kind(given.get("speculate") or defaults.speculate),
        ignore_eos=bool(given.get("ignore_eos", False)),
        processors=_checked_processors(given.get("processors", ())),
        make_constraint=make,
        tools=tools,
        tool_choice=choice,
        tool_format=form,
        cancel=_checked_event(given.get("cancel")),
        timeout=_checked_timeout(given.get("timeout")),
        **{name: _checked_callable(name, given.get(name)) for name in _CALLBACKS},
    )


def chosen_sampling(base: Sampling, stop: str | Iterable[str], samplers: Mapping[str, Any]) -> Sampling:
    """`base` with single fields replaced and stop strings added. Raises InvalidArgumentError for an unknown field."""
    unknown = sorted(set(samplers) - _SAMPLERS)
    if unknown:
        raise InvalidArgumentError(unknown_option(unknown, _SAMPLERS | _OPTIONS))
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    return replace(base, **samplers, stop=(*base.stop, *stops))


def unknown_option(names: Sequence[str], known: Iterable[str]) -> str:
    """The message about options that there are not, with the nearest one that there is."""
    from difflib import get_close_matches

    near = get_close_matches(str(names[0]), known, 1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"unknown option '{', '.join(map(one_line, names))}'; {hint}options are {', '.join(sorted(known))}"


def checked_limit(max_tokens: Any) -> int | None:
    """`max_tokens`, 0 or more, or None for no limit. Raises InvalidArgumentError."""
    if max_tokens is None:
        return None
    if isinstance(max_tokens, bool) or not hasattr(max_tokens, "__index__") or max_tokens.__index__() < 0:
        raise InvalidArgumentError(
            f"max_tokens is {one_line(max_tokens)}; choose a whole number, 0 or more, or None for no limit"
        )
    return int(max_tokens.__index__())


def _checked_timeout(timeout: Any) -> float | None:
    if timeout is None:
        return None
    good = isinstance(timeout, (int, float)) and not isinstance(timeout, bool) and timeout >= 0
    if not good:
        raise InvalidArgumentError(f"timeout is {one_line(timeout)}; choose 0 or more seconds, or None")
    return float(timeout)


def _checked_event(cancel: Any) -> Any:
    if cancel is not None and not (hasattr(cancel, "is_set") and hasattr(cancel, "wait")):
        raise InvalidArgumentError(f"cancel must be a threading.Event, not {one_line(cancel)}")
    return cancel


def _checked_callable(name: str, value: Any) -> Any:
    if value is not None and not callable(value):
        raise InvalidArgumentError(f"{name} must be a function, not {one_line(value)}")
    return value


def _checked_processors(processors: Any) -> tuple[Processor, ...]:
    found = (processors,) if callable(processors) else tuple(processors or ())
    for processor in found:
        _checked_callable("each of processors", processor)
    return found


def _checked_tools(tools: Any) -> tuple[Tool, ...] | None:
    """Tools in OpenAI's shape, functions made into such; None where there are none."""
    if tools is None:
        return None
    if isinstance(tools, (str, Mapping)) or not isinstance(tools, Iterable):
        raise InvalidArgumentError("tools must be a list of mappings in OpenAI's shape")
    from edgellm.toolcalls.functions import as_tool

    found = tuple(map(as_tool, tools))
    for i, tool in enumerate(found):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise InvalidArgumentError(
                f"tool {i} must be {{'type': 'function', 'function': {{'name': ..., 'parameters': a JSON schema}}}}"
            )
    return found or None


def _checked_choice(choice: Any, tools: tuple[Tool, ...] | None) -> ToolChoice:
    """A tool choice that goes with the tools: a word, or a mapping that names one of them."""
    if choice is None:
        return "auto"
    if isinstance(choice, str):
        if choice not in _CHOICES:
            raise InvalidArgumentError(f"tool_choice is '{one_line(choice)}'; choose {', '.join(_CHOICES)} or a tool")
    else:
        function = choice.get("function") if isinstance(choice, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        names = [tool["function"]["name"] for tool in tools or ()]
        if name not in names:
            known = ", ".join(names) or "none"
            raise InvalidArgumentError(f"tool_choice names '{one_line(name)}'; the tools are {known}")
    if tools is None and choice not in ("auto", "none"):
        raise InvalidArgumentError("tool_choice asks for a tool, but there are no tools")
    found: ToolChoice = choice
    return found


def _tool_format(name: Any, template: str | None) -> ToolFormat:
    from edgellm.toolcalls import find_format

    return find_format(name, template)


def _forced_call(
    form: ToolFormat, tools: tuple[Tool, ...], choice: ToolChoice, tokenizer: Tokenizer, other: Any
) -> Callable[[], Constraint]:
    """What makes the constraint of an answer that must be a call."""
    from edgellm.toolcalls.forced import forced_call

    if other is not None:
        raise InvalidArgumentError("an answer that must be a call of a tool cannot have another form as well")
    return forced_call(form, tools, None if isinstance(choice, str) else choice["function"]["name"], tokenizer)


def _constraint_maker(forms: Mapping[str, Any], tokenizer: Tokenizer, lazy: bool) -> Callable[[], Constraint] | None:
    """What makes the constraint of one answer: the one place where `edgellm.grammar` is called."""
    given = [name for name, value in forms.items() if value is not None]
    if len(given) > 1:
        raise InvalidArgumentError(f"choose one of {' and '.join(given)}: an answer has one form")
    if not given or forms["response_format"] == {"type": "text"}:
        return None

    def compiled() -> Callable[[], Constraint]:
        make: Callable[[], Constraint] = _part("grammar", given[0]).compile_constraint(tokenizer, **forms)
        return make

    return (lambda: compiled()()) if lazy else compiled()


def _part(name: str, option: str) -> Any:
    """A part of edgellm that a build may lack."""
    try:
        return import_module(f"edgellm.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"edgellm.{name}":
            raise
        raise InvalidArgumentError(f"{option} needs edgellm.{name}, which this build of edgellm has not got") from None


def nothing_said(model: Model, call: Call, context: Context, reason: StopReason) -> Result:
    """The result of an answer that was stopped before anything was done for it."""
    stats = Stats(0.0, 0.0, 0.0, 0.0, 0.0, 0, model.threads, model.backend, model.isa)
    return Result("", (), reason, Usage(0, 0), stats, context, call.sampling.seed or 0)


def submit(
    call: Call,
    worker: Worker,
    answer: Callable[[TappedJob], Result],
    nothing: Callable[[StopReason], Result],
    whole: bool = False,
) -> Job:
    """Queue an answer, with its callbacks and what may end it. Raises ModelClosedError.

    `nothing` makes the result where it is stopped before its turn has come.

    `whole`: where it is stopped before its first word there is nothing to keep, and it ends like a cancelled one.
    """
    hooks = Hooks(call.on_token, call.on_prefill, call.on_done, call.dispatch)
    watch = Watch(call.cancel, call.timeout)

    def run(job: Job) -> Result:
        try:
            return answer(TappedJob(job, hooks, whole))
        finally:
            watch.end()

    def told(end: Result | BaseException) -> None:
        with worker.outside():
            hooks.done(end)

    job = worker.submit(run, on_end=None if call.on_done is None else told)
    job.unbegun = nothing
    watch.start(job)
    return job
