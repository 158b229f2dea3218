"""Overflow policies: their text and their rules, bad numbers, and what a long text becomes under each."""

from __future__ import annotations

import pytest
from helpers import tiny_llama_gguf
from hypothesis import given
from hypothesis import strategies as st

import edgellm
from edgellm import Overflow
from edgellm.cache import PASS_TOKENS, PagePool, Sequence, Span
from edgellm.errors import ContextOverflowError, EdgeLLMError, InvalidArgumentError
from edgellm.plan import KVShape


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        (None, Overflow()),
        ("error", Overflow("error")),
        ("sink", Overflow("sink", 4, None)),
        ("sink:0", Overflow("sink", 0)),
        ("sink:4:2048", Overflow("sink", 4, 2048)),
        ("shift", Overflow("shift")),
        ("shift:100", Overflow("shift", keep=100)),
        ("drop-turns", Overflow("drop-turns")),
        ("drop-turns:0", Overflow("drop-turns", keep=0)),
    ],
)
def test_text_form(text, policy):
    assert Overflow.parse(text) == policy == Overflow.parse(policy)
    assert Overflow.parse(str(policy)) == policy


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slide", "'slide'; choose error, sink, shift, drop-turns"),
        ("", "choose error"),
        ("Sink", "choose error"),
        ("sink:", "n_sinks.*''.*number"),
        ("sink:four", "n_sinks.*'four'"),
        ("sink:-1", "n_sinks.*-1; choose 0 to"),
        ("sink:4:-5", "window.*-5; choose 1 to"),
        ("sink:4:0", "window.*0; choose 1 to"),
        ("sink:8:7", "window of 7 tokens is smaller than its 8 sinks"),
        ("sink:2147483648", "n_sinks.*2147483648; choose 0 to 2\\^31 - 1"),
        ("sink:4:" + "9" * 30, "window"),
        ("sink:4:٣", "window"),
        ("sink:1:2:3", "3 numbers; the form is 'sink:N_SINKS:WINDOW'"),
        ("shift:1:2", "2 numbers; the form is 'shift:KEEP'"),
        ("error:1", "1 numbers"),
        (7, "overflow is 7"),
        (b"sink", "overflow is b'sink'"),
    ],
)
def test_bad_text(text, message):
    with pytest.raises(InvalidArgumentError, match=message):
        Overflow.parse(text)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "error", "window": 10}, {"kind": "shift", "window": 10}, {"kind": "sink", "keep": 3},
        {"kind": "error", "keep": 3}, {"kind": "sink", "n_sinks": True}, {"kind": "sink", "n_sinks": 4.0},
        {"kind": "sink", "window": "64"}, {"kind": "shift", "keep": -1}, {"kind": "shift", "keep": 2**31},
    ],
)  # fmt: skip
def test_bad_fields(fields):
    with pytest.raises(InvalidArgumentError):
        Overflow(**fields)


@pytest.mark.parametrize(
    ("policy", "n_ctx", "message"),
    [
        ("sink", 0, "n_ctx is 0"),
        ("sink", -1, "n_ctx is -1"),
        ("sink", 2**31, "n_ctx is 2147483648"),
        ("error", True, "n_ctx is True"),
        ("sink", 7, "4 sinks and 4 tokens behind them do not fit"),
        ("sink:0:65", 64, "0 sinks and a window of 65 tokens are more than n_ctx 64; choose a window up to 64"),
        ("sink:10:60", 64, "choose a window up to 54"),
        ("sink:100", 64, "n_ctx 64: 100 sinks"),
        ("shift:63", 64, "63 kept tokens"),
        ("drop-turns:64", 64, "64 kept tokens"),
        ("drop-turns", 5, "4 kept tokens and 2 tokens behind them do not fit"),
    ],
)
def test_numbers_that_do_not_go_with_the_context(policy, n_ctx, message):
    with pytest.raises(InvalidArgumentError, match=message):
        Overflow.parse(policy).fit(n_ctx)
    with pytest.raises(InvalidArgumentError, match=message):
        Sequence(PagePool(KVShape(1, 1, 2), "f32", 1), n_ctx, policy)


def test_numbers_are_filled_in():
    assert Overflow.parse("sink").fit(100) == Overflow("sink", 4, 96)
    assert Overflow.parse("sink").fit(8).span() == Span(4, 0, 4)
    assert Overflow.parse("sink:0").fit(8).span() == Span(0, 0, 8)
    assert Overflow.parse("shift").fit(100) == Overflow("shift", keep=4)
    assert Overflow.parse("error").fit(1).span() == Span()


kinds = st.sampled_from(["error", "sink", "shift", "drop-turns"])
numbers = st.one_of(st.none(), st.integers(-3, 200), st.sampled_from([2**31, 2**62, -(2**31)]))


@given(kinds, numbers, numbers, numbers, st.integers(-2, 200))
def test_a_policy_is_refused_or_works(kind, n_sinks, window, keep, n_ctx):
    """Whatever the numbers: an error that says which, or a policy whose sequence takes any number of tokens."""
    try:
        policy = Overflow(kind, 4 if n_sinks is None else n_sinks, window, keep).fit(n_ctx)
    except InvalidArgumentError:
        return
    same = Overflow.parse(str(policy))
    assert (same.kind, same.head, same.window) == (kind, policy.head, policy.window)
    span, length, turns = policy.span(), 0, range(0, 2000, 7)
    step = policy.pass_tokens(n_ctx)
    assert 1 <= step <= PASS_TOKENS
    for _ in range(20):
        try:
            span = policy.room(span, length, length + step, n_ctx, turns)
        except ContextOverflowError:
            assert kind in ("error", "drop-turns")
            return
        length += step
        assert length - span.shift(length - 1) <= n_ctx
        assert span.first == 0 or span.keep < span.first <= length - step


def test_room_of_shift_drops_the_older_half():
    policy = Overflow.parse("shift:10").fit(100)
    assert policy.room(Span(10), 99, 100, 100) == Span(10)
    assert policy.room(Span(10), 100, 101, 100) == Span(10, 55), "45 of the 90 tokens behind the head"
    assert policy.room(Span(10, 55), 145, 146, 100) == Span(10, 100)


def test_room_of_turns():
    policy = Overflow.parse("drop-turns:10").fit(100)
    turns = [10, 30, 60, 95]
    assert policy.room(Span(10), 99, 100, 100, turns) == Span(10)
    assert policy.room(Span(10), 100, 101, 100, turns) == Span(10, 30)
    assert policy.room(Span(10), 100, 150, 100, turns) == Span(10, 60)
    assert policy.room(Span(10), 100, 185, 100, turns) == Span(10, 95)
    for bad in ([], [10], [10, 105]):
        with pytest.raises(ContextOverflowError) as error:
            policy.room(Span(10), 100, 101, 100, bad)
        assert (error.value.n_prompt, error.value.n_ctx) == (101, 100)
    policy.check(1000, 100, [10, 910])
    with pytest.raises(ContextOverflowError, match="101 tokens"):
        policy.check(1000, 100, [10, 909])


# ---- whole texts -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny_llama_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", n_ctx=128)


@pytest.fixture(scope="module", params=["reference", "native"])
def model(request, path):
    from edgellm import clib

    if request.param == "native" and not clib.available():
        pytest.skip("the compiled library was not built")
    with edgellm.load(path, backend=request.param, threads=1) as model:
        yield model


def endless(model, prompt, policy, n, **options):
    return model.generate(prompt, max_tokens=n, temperature=0, ignore_eos=True, overflow=policy, **options)


@pytest.mark.parametrize(
    ("policy", "used"), [("sink", 128), ("sink:4:64", 68), ("sink:0:70", 70), ("sink:70:58", None), ("shift", None)]
)
def test_an_answer_without_end(model, policy, used):
    free = model._loaded.pool.n_pages
    if policy == "sink:70:58":
        with pytest.raises(InvalidArgumentError, match="smaller than its 70 sinks"):
            endless(model, [1, 300], policy, 1)
        return
    result = endless(model, [1, 300, 304], policy, 500)
    context = result.context
    assert result.finish_reason == "length" and len(result.token_ids) == 500
    assert (context.used, context.used + context.dropped) == (used or context.used, 502)
    assert context.used <= context.n_ctx == 128 and context.policy == policy.split(":")[0]
    pool = model._loaded.pool
    assert pool.n_free + len(set(model._loaded.engine.tree.pages.tolist())) == free, "nothing leaks"


@pytest.mark.parametrize("policy", ["sink:4:64", "sink", "shift:10"])
def test_a_prompt_without_end(model, policy):
    """A prompt longer than the window is read as a stream would be, token by token."""
    ids = [1, *(260 + i * 7 % 90 for i in range(399))]
    with model._loaded.engine.new_sequence(Overflow.parse(policy)) as seq:
        rows = model._worker.call(lambda job: [feed(model, seq, [token]) for token in ids])
    whole = endless(model, ids, policy, 1)
    if policy.startswith("sink"):  # shift drops by passes, so its windows differ
        assert whole.token_ids == (int(rows[-1].argmax()),)
    assert whole.usage.prompt_tokens == 400 and whole.context.dropped == 400 - whole.context.used


def feed(model, seq, tokens):
    return model._loaded.engine.forward(seq, tokens, [len(tokens) - 1], None)[0][: model.tokenizer.n_vocab].copy()


@pytest.mark.parametrize("policy", ["error", "drop-turns"])
def test_policies_that_end(model, policy):
    result = endless(model, [1, 300, 304], policy, None)
    assert (result.finish_reason, result.context.used, result.context.dropped) == ("length", 128, 0)
    with pytest.raises(ContextOverflowError):
        endless(model, [1] * 129, policy, 1)


def test_nothing_that_depends_on_dropped_tokens_is_used_again(model):
    prompt = [1, 301, 302, 303]
    endless(model, prompt, "sink:4:64", 300)
    fresh = endless(model, prompt, "error", 100)
    assert fresh.context.reused <= 3, "what was run under a window that had slid is not kept"
    model._loaded.engine.tree.clear()
    assert endless(model, prompt, "error", 100).token_ids == fresh.token_ids


def test_before_the_window_is_full_all_policies_are_one(model):
    texts = {endless(model, [1, 300, 304], p, 60).token_ids for p in ("error", "sink:4:64", "shift:9", "drop-turns")}
    assert len(texts) == 1


def test_the_calls_policy_wins(path):
    with edgellm.load(path, backend="reference", overflow="sink:4:60") as model:
        assert endless(model, [1, 300], None, 200).context.policy == "sink"
        assert endless(model, [1, 300], "error", 200).context.policy == "error"
    with edgellm.load(path, backend="reference") as model:
        assert endless(model, [1, 300], None, 200).context.policy == "error"


@pytest.mark.parametrize("bad", ["sink:4:125", "shift:127", "slide", "sink:-1", 5])
def test_bad_policies_of_calls(path, bad):
    with pytest.raises(EdgeLLMError):
        edgellm.load(path, backend="reference", overflow=bad)
    with edgellm.load(path, backend="reference") as model, pytest.raises(InvalidArgumentError):
        model.generate([1, 2], max_tokens=1, overflow=bad)
    with pytest.raises(InvalidArgumentError, match="n_ctx"):
        edgellm.load(path, backend="reference", overflow="sink", n_ctx=0)
