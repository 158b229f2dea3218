"""The options of a call: checked in one place, the same for generate, chat and send."""

from __future__ import annotations

import gc
import threading
import time

import numpy as np
import pytest
from helpers import tiny_llama_gguf

import edgellm
from edgellm.calls import AnswerOptions, CallOptions, Defaults, SamplingOptions, gather
from edgellm.results import ToolCall
from edgellm.sampling import Sampling

CHATML = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HELLO = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tiny_llama_gguf(tmp_path_factory.mktemp("calls") / "chat.gguf", **{"tokenizer.chat_template": CHATML})
    with edgellm.load(path, backend="reference") as model:
        yield model


def defaults() -> Defaults:
    return Defaults(Sampling(seed=3), 9, False, edgellm.Overflow())


def ways(model):
    """The calls that make an answer, with the same interface."""
    session = model.session()
    return {
        "generate": lambda **options: model.generate("hello", **options),
        "chat": lambda **options: model.chat(HELLO, **options),
        "send": lambda **options: session.send("hello", **options),
    }


@pytest.fixture(params=["generate", "chat", "send"])
def ask(model, request):
    return ways(model)[request.param]


def test_type_checkers_know_every_sampler():
    """`SamplingOptions` is what a user's type checker sees of `Sampling`."""
    assert set(SamplingOptions.__optional_keys__) == set(Sampling.__dataclass_fields__) - {"stop"}
    assert set(CallOptions.__optional_keys__) - set(AnswerOptions.__optional_keys__) == {"overflow"}


def test_what_is_not_said_comes_from_the_defaults(model):
    call = gather({}, defaults(), model.tokenizer)
    assert (call.sampling.seed, call.max_tokens, call.exact, call.tools) == (3, 9, False, None)
    told = {"temperature": 0.5, "max_tokens": None, "exact": True, "stop": "x", "overflow": "sink"}
    call = gather(told, defaults(), model.tokenizer)
    assert (call.sampling.temperature, call.sampling.seed, call.sampling.stop) == (0.5, 3, ("x",))
    assert (call.max_tokens, call.exact, call.overflow.kind) == (None, True, "sink")


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": -1}, {"max_tokens": 1.5}, {"max_tokens": True}, {"timeout": -1}, {"timeout": float("nan")},
        {"timeout": "soon"}, {"cancel": True}, {"on_token": 3}, {"on_prefill": "f"}, {"on_done": []}, {"dispatch": 1},
        {"processors": [1]}, {"temperatur": 0.5}, {"temperature": -1}, {"regex": "a", "grammar": "b"},
    ],
    ids=str,
)  # fmt: skip
def test_bad_options_are_named(ask, options):
    with pytest.raises(edgellm.InvalidArgumentError, match=next(iter(options))):
        ask(**options)


def test_the_nearest_option_is_named(model):
    with pytest.raises(edgellm.InvalidArgumentError, match="did you mean 'temperature'"):
        model.generate("x", tempature=1)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"tools": "weather"}, "tools must be"), ({"tools": [{"name": "x"}]}, "tool 0 must be"),
        ({"tools": [TOOL], "tool_choice": "weather"}, "tool_choice is 'weather'"),
        ({"tools": [TOOL], "tool_choice": {"function": {"name": "rain"}}}, "the tools are weather"),
        ({"tool_choice": "required"}, "there are no tools"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_tools_are_named(model, options, words):
    with pytest.raises(edgellm.InvalidArgumentError, match=words):
        model.chat(HELLO, **options)


def test_tools_need_a_template_and_a_session_its_overflow(model):
    with pytest.raises(edgellm.InvalidArgumentError, match="chat"):
        model.generate("hello", tools=[TOOL])
    with model.session() as session, pytest.raises(edgellm.InvalidArgumentError, match="overflow"):
        session.send("hello", overflow="sink")


def test_an_event_drops_the_answer(ask):
    event = threading.Event()
    with pytest.raises(edgellm.Cancelled):
        ask(cancel=event, on_token=lambda e: event.set(), ignore_eos=True, timeout=60)
    assert ask(max_tokens=3, ignore_eos=True).usage.completion_tokens == 3


def test_a_timeout_keeps_what_was_said(ask):
    result = ask(timeout=0.3, on_token=lambda e: time.sleep(0.01), ignore_eos=True)
    assert result.finish_reason == "timeout" and result.text


def test_no_time_at_all(ask):
    result = ask(timeout=0, on_prefill=lambda progress: time.sleep(0.1))
    assert (result.finish_reason, result.text) == ("timeout", "")


def test_what_an_answer_says_of_itself(ask, model):
    result = ask(max_tokens=5, ignore_eos=True)
    stats = result.stats
    assert stats.ttft >= stats.prompt_seconds > 0 and stats.generation_tps > 0 and stats.passes >= 5
    assert (stats.threads, stats.backend, stats.isa) == (model.threads, "reference", "numpy")
    assert stats.peak_rss > 20 << 20  # NumPy alone takes that much
    assert result.usage.prompt_tokens <= result.context.used <= result.usage.prompt_tokens + 4  # half a character goes
    assert result.context.n_ctx == model.n_ctx


def test_a_timeout_ends_a_call_whose_turn_has_not_come(ask, model):
    """The one that runs goes on only after the other has ended: were that one to wait for its turn, nobody would."""
    began, go = threading.Event(), threading.Event()

    def hold(progress):
        began.set()
        assert go.wait(60)

    running = model.generate("hello", on_prefill=hold, max_tokens=2, ignore_eos=True, stream=True)
    assert began.wait(60)
    result = ask(timeout=0.05)
    stopped = model.generate("hello", stream=True)
    stopped.stop()
    assert (stopped.result.finish_reason, stopped.result.text) == ("cancelled", "")
    assert (result.finish_reason, result.text, result.usage.total_tokens) == ("timeout", "", 0)
    go.set()
    assert running.result.usage.completion_tokens == 2
    assert ask(max_tokens=2, ignore_eos=True).usage.completion_tokens == 2


def test_callbacks_hear_everything_and_may_end_it(ask):
    events, prefill = [], []
    result = ask(on_token=events.append, on_prefill=prefill.append, max_tokens=8, ignore_eos=True, seed=1)
    assert "".join(e.text for e in events) == result.text
    assert prefill[-1].stage == "prefill" and prefill[-1].done == prefill[-1].total > 0
    result = ask(on_token=lambda e: False, max_tokens=8, ignore_eos=True)
    assert result.finish_reason == "cancelled" and 1 <= len(result.token_ids) < 8


def test_what_a_callback_raises_reaches_the_caller(ask):
    def on_token(event):
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        ask(on_token=on_token, max_tokens=8, ignore_eos=True)


def test_dispatch_gets_functions(ask):
    waiting, events = [], []
    result = ask(dispatch=waiting.append, on_token=events.append, max_tokens=8, ignore_eos=True)
    assert not events and waiting
    for call in waiting:
        call()
    assert "".join(e.text for e in events) == result.text


def test_on_done_gets_the_result_before_the_caller_does(ask):
    ends = []
    result = ask(on_done=ends.append, max_tokens=4, ignore_eos=True)
    assert len(ends) == 1 and ends[0] is result and result.usage.completion_tokens == 4
    stream = ask(on_done=ends.append, max_tokens=4, ignore_eos=True, stream=True)
    assert stream.result is ends[1] and len(ends) == 2
    stopped = ask(on_token=lambda e: False, on_done=ends.append, max_tokens=8, ignore_eos=True)
    assert ends[2] is stopped and stopped.finish_reason == "cancelled"


def test_on_done_gets_the_error(ask):
    ends, event = [], threading.Event()

    def on_token(event):
        raise LookupError("mine")

    with pytest.raises(LookupError) as raised:
        ask(on_token=on_token, on_done=ends.append, max_tokens=8, ignore_eos=True)
    assert ends == [raised.value]
    with pytest.raises(edgellm.Cancelled):
        ask(cancel=event, on_token=lambda e: event.set(), on_done=ends.append, ignore_eos=True, timeout=60)
    assert len(ends) == 2 and isinstance(ends[1], edgellm.Cancelled)
    with pytest.raises(edgellm.InvalidArgumentError):
        ask(on_done=ends.append, max_tokens=-1)
    assert len(ends) == 2, "what the call raises at once is told once"


def test_on_done_goes_through_dispatch_behind_all_text(ask):
    waiting, heard = [], []
    result = ask(dispatch=waiting.append, on_token=heard.append, on_done=heard.append, max_tokens=8, ignore_eos=True)
    assert not heard
    for call in waiting:
        call()
    assert heard[-1] is result and "".join(e.text for e in heard[:-1]) == result.text


def test_what_on_done_raises_reaches_the_caller_but_not_over_another_error(ask):
    def fails(end):
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        ask(on_done=fails, max_tokens=2)
    with pytest.raises(ValueError, match="first"):
        ask(on_done=fails, processors=[lambda ids, logits: int("first")], max_tokens=2)
    assert ask(max_tokens=2, ignore_eos=True).usage.completion_tokens == 2


def test_a_call_that_never_began_is_told_once(ask):
    """Stopped, cancelled or refused before its turn: on the thread that does it."""
    go, ends = threading.Event(), []
    running = ask(on_token=lambda e: go.wait(10), max_tokens=2, ignore_eos=True, stream=True)
    cancelled = ask(on_done=lambda end: ends.append((end, threading.get_ident())), stream=True)
    cancelled.cancel()
    stopped = ask(on_done=lambda end: ends.append((end, threading.get_ident())), stream=True)
    stopped.stop()
    go.set()
    assert running.result.usage.completion_tokens == 2
    (first, here), (second, also_here) = ends
    assert isinstance(first, edgellm.Cancelled) and here == also_here == threading.get_ident()
    assert second is stopped.result and second.text == ""


def test_a_stream_that_on_done_waits_for_goes_on_when_it_is_forgotten(ask):
    ends, over = [], threading.Event()
    ask(on_done=lambda end: (ends.append(end), over.set()), max_tokens=30, ignore_eos=True, stream=True)
    gc.collect()
    assert over.wait(60) and ends[0].finish_reason == "length"


def test_on_done_may_ask_the_stream_itself(ask):
    found, over, ready = [], threading.Event(), threading.Event()

    def done(end):
        ready.wait(10)
        found.append(stream.result is end)
        over.set()

    stream = ask(on_done=done, max_tokens=2, ignore_eos=True, stream=True)
    ready.set()
    assert over.wait(10) and found == [True]


def test_closing_the_model_tells_on_done(tmp_path):
    ends = []
    path = tiny_llama_gguf(tmp_path / "m.gguf")
    with edgellm.load(path, backend="reference", overflow="sink") as model:
        streams = [model.generate("hello", on_done=ends.append, ignore_eos=True, stream=True) for _ in range(2)]
        next(streams[0])
    assert [type(end) for end in ends] == [edgellm.ModelClosedError] * 2


def test_processors_change_the_choice(ask, model):
    seen = []

    def only(ids, logits):
        seen.append(len(ids))
        logits[:] = -np.inf
        logits[300] = 0.0

    result = ask(processors=[only], max_tokens=4)
    assert result.token_ids == (300,) * 4
    assert seen == list(range(seen[0], seen[0] + 4))


def test_a_tool_call_as_a_message():
    stats = edgellm.Stats(0, 0, 0, 0, 0, 0, 1, "reference", "numpy")
    context = edgellm.Context(1, 2, 0)
    call = ToolCall("a1", "weather", {"city": "Köln"})
    result = edgellm.Result("", (1,), "tool_calls", edgellm.Usage(1, 1), stats, context, 0, (call,))
    function = {"name": "weather", "arguments": '{"city": "Köln"}'}
    said = {"role": "assistant", "content": "", "tool_calls": [{"id": "a1", "type": "function", "function": function}]}
    assert result.message == said
    assert result.to_dict()["tool_calls"] == [{"id": "a1", "name": "weather", "arguments": {"city": "Köln"}}]


def test_the_template_sees_tools(model):
    assert '"weather"' in model.apply_template(HELLO, tools=[TOOL])
    assert "weather" not in model.apply_template(HELLO)
    assert model.chat_ids(HELLO, tools=[TOOL]) != model.chat_ids(HELLO)
    assert model.chat(HELLO, tools=[TOOL], tool_choice="none", max_tokens=1).usage.prompt_tokens == len(
        model.chat_ids(HELLO)
    )
