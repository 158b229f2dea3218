"""Speculation changes no answer: every sampler, policy and end, with drafts that are right, wrong, and both."""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from family_runs import FAST
from helpers import tiny_llama_gguf
from tiny_families import FAMILIES, tiny_family_gguf

import edgellm
from edgellm import clib
from edgellm import engine as engine_module
from edgellm.engine import Engine
from edgellm.errors import InvalidArgumentError, NonFiniteError
from edgellm.generate import Generation, Request
from edgellm.sampling import Sampling
from edgellm.speculate import Control, Decoding, Draft
from edgellm.speculate.control import PassCosts

PROMPT = [1, 300, 304, 310, 300, 304, 310, 311, 300, 304]


class Oracle:
    """A proposer that knows the answer. Each guess is wrong with probability `wrong`."""

    source, priors, cost = "oracle", (0.9,), 0.0

    def __init__(self, answer: tuple[int, ...], n_vocab: int, wrong: float, seed: int) -> None:
        self.answer, self.n_vocab, self.wrong, self.random = answer, n_vocab, wrong, random.Random(seed)
        self.said = 0

    def begin(self, ids):
        self.said = 0

    def accept(self, tokens):
        assert tuple(tokens) == self.answer[self.said : self.said + len(tokens)], "what was said is what was drawn"
        self.said += len(tokens)

    def propose(self, k):
        guess = list(self.answer[self.said : self.said + k])
        guess += [7] * (k - len(guess))
        tokens = [(t + 1) % self.n_vocab if self.random.random() < self.wrong else t for t in guess]
        return Draft(tuple(tokens), (0,) * k, self.source)

    def end(self):
        pass


@pytest.fixture(autouse=True)
def no_model_is_small(monkeypatch):
    """"auto" speculates with these tests' models, too."""
    monkeypatch.setattr(engine_module, "SMALL_MODEL", 0)


@pytest.fixture
def guess(monkeypatch):
    """guess(model, answer, wrong, seed): from now on, drafts of seven tokens, all of them checked."""

    def set_up(model, answer, wrong=0.3, seed=0, length=None):
        made = Oracle(answer, model.n_vocab, wrong, seed)
        monkeypatch.setattr(engine_module, "make_proposer", lambda kind, *a, **b: None if kind == "off" else made)
        monkeypatch.setattr(Control, "length", lambda self, draft: length or len(draft))
        monkeypatch.setattr(type(model._loaded.engine.backend), "any_width", True)  # the reference too

    return set_up


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny_llama_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", n_ctx=400, type="Q8_0")


@pytest.fixture(scope="module")
def model(path):
    """On the fastest backend there is."""
    with edgellm.load(path, backend=FAST[0], threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def toy():
    """The built-in model, which speaks in words."""
    with edgellm.load(n_ctx=512) as model:
        yield model


def told(result):
    """All of a result but what depends on time and on what the cache held."""
    context = replace(result.context, reused=0)
    return (result.text, result.token_ids, result.finish_reason, result.usage, context, result.seed)


def check(model, guess, prompt=PROMPT, plain=None, **options):
    """The same answer for several kinds of drafts; returns it."""
    options = {"max_tokens": 60, "ignore_eos": True, "seed": 11} | options
    plain = model.generate(prompt, speculate="off", **options)
    assert plain.stats.draft_tokens == 0
    for seed, wrong in enumerate((0.0, 0.2, 0.6, 1.0)):
        guess(model, plain.token_ids, wrong, seed)
        result = model.generate(prompt, speculate="suffix", **options)
        assert told(result) == told(plain), wrong
        if len(plain.token_ids) > 8:
            assert result.stats.draft_tokens > 0 and (result.stats.draft_accepted > 0) == (wrong < 1.0)
            assert result.stats.passes < plain.stats.passes or wrong > 0.5
    return plain


# ---- the same tokens -------------------------------------------------------------------------------------------------

SAMPLERS = {
    "greedy": {"temperature": 0.0},
    "plain": {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
    "defaults": {},
    "penalties": {"repeat_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.2},
    "greedy, penalties": {"temperature": 0.0, "repeat_penalty": 1.3, "repeat_last_n": -1},
    "dry": {"dry_multiplier": 0.8, "dry_penalty_last_n": -1},
    "xtc": {"xtc_probability": 0.5, "xtc_threshold": 0.05},
    "mirostat": {"mirostat": 2},
    "dynamic temperature": {"dynatemp_range": 0.5, "top_n_sigma": 2.0, "typical_p": 0.9},
    "biases": {"logit_bias": {300: 3.0, 301: float("-inf")}},
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers(model, guess, name):
    check(model, guess, **SAMPLERS[name])


@pytest.mark.parametrize("backend", [*FAST, "reference"])
def test_backends(path, guess, backend):
    with edgellm.load(path, backend=backend, threads=2) as model:
        check(model, guess, temperature=0)
        check(model, guess, temperature=1.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_families(tmp_path, guess, family):
    path = tiny_family_gguf(tmp_path / "model.gguf", family)
    with edgellm.load(path, backend=FAST[0], threads=2, n_ctx=200) as model:
        check(model, guess, temperature=0)
        check(model, guess, temperature=0.8)


@pytest.mark.parametrize("kv_type", ["f32", "f16", "q8_0", "q4_0"])
def test_page_types(path, guess, kv_type):
    with edgellm.load(path, backend=FAST[0], kv_type=kv_type) as model:
        check(model, guess, max_tokens=150)


def test_suffix_drafts_on_real_text(toy):
    """Whatever the control decides, by clocks that nobody controls."""
    cat = "the cat sat on the mat. " * 3
    prompts = ["Once upon a time", cat, "1 2 3 4 1 2 3 4 1 2"]
    accepted = 0
    for prompt in prompts:
        for options in ({"temperature": 0}, {"temperature": 0.7}, {"repeat_penalty": 1.2}):
            plain = toy.generate(prompt, max_tokens=120, seed=5, speculate="off", **options)
            fast = toy.generate(prompt, max_tokens=120, seed=5, speculate="suffix", **options)
            assert told(fast) == told(plain)
            accepted += fast.stats.draft_accepted
    assert accepted > 0


# ---- ends ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", range(12))
def test_max_tokens(model, guess, n):
    result = check(model, guess, max_tokens=n)
    assert (len(result.token_ids), result.finish_reason) == (n, "length")


@pytest.mark.parametrize("n_ctx", [16, 17, 23, 64, 65])
def test_the_window_ends_the_answer(path, guess, n_ctx):
    with edgellm.load(path, backend=FAST[0], n_ctx=n_ctx) as model:
        result = check(model, guess, max_tokens=None)
        assert (result.context.used, result.finish_reason) == (n_ctx, "length")


def test_end_tokens_and_stop_strings(model, guess):
    whole = model.generate(PROMPT, speculate="off", max_tokens=60, ignore_eos=True, seed=11)
    for at in (1, 3, 4, 9):
        stop = model.detokenize(whole.token_ids[at : at + 2])
        if stop.strip():
            assert check(model, guess, stop=stop).finish_reason == "stop"
    model.tokenizer.eog_ids = frozenset([*model.tokenizer.eog_ids, whole.token_ids[5]])
    try:
        ended = check(model, guess, ignore_eos=False)
    finally:
        model.tokenizer.eog_ids = frozenset([2])
    assert ended.finish_reason == "stop" and len(ended.token_ids) <= 6


def test_no_guess_behind_an_end_token(model, guess):
    whole = model.generate(PROMPT, speculate="off", max_tokens=30, ignore_eos=True, seed=11).token_ids
    ran = []
    guess(model, whole, 0.0)
    request = Request(PROMPT, Sampling(seed=11), 30, frozenset([whole[9]]), speculate="suffix")
    engine = model._loaded.engine
    real = engine.forward

    def forward(seq, tokens, *rest, **more):
        ran.extend(tokens)
        return real(seq, tokens, *rest, **more)

    engine.forward = forward
    try:
        model._worker.call(lambda job: Generation(engine, request, job).run())
    finally:
        del engine.forward
    assert whole[9] not in ran[len(PROMPT) - 1 :] or whole[9] in whole[:9]


@pytest.mark.parametrize("n", range(1, 10))
def test_a_stream_that_is_stopped_holds_what_it_said(model, guess, n):
    """Also in the middle of what one pass gave: the sequence has the tokens that were said, and no more."""
    whole = model.generate(PROMPT, speculate="off", max_tokens=40, ignore_eos=True, seed=11).token_ids

    def stopped(speculate):
        count = [0]

        def on_token(event):
            count[0] += 1
            return count[0] < n

        result = model.generate(
            PROMPT, max_tokens=40, ignore_eos=True, seed=11, on_token=on_token, speculate=speculate
        )
        return told(result)

    plain = stopped("off")
    guess(model, whole, 0.1)
    assert stopped("suffix") == plain


# ---- forms -----------------------------------------------------------------------------------------------------------


def test_processors_see_the_same(model, guess):
    """Each is called once per token, with the ids so far, in order."""
    seen: list[list[tuple[int, ...]]] = []

    def processor(ids, logits):
        seen[-1].append(tuple(ids))
        logits[ids[-1]] -= 1.0

    options = {"max_tokens": 30, "ignore_eos": True, "seed": 4, "processors": [processor]}
    seen.append([])
    plain = model.generate(PROMPT, speculate="off", **options)
    guess(model, plain.token_ids)
    seen.append([])
    assert told(model.generate(PROMPT, speculate="suffix", **options)) == told(plain)
    assert seen[0] == seen[1] and len(seen[0]) == 30


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_constraints(toy, guess, temperature):
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer"}, "maxItems": 4}}}
    check(toy, guess, "Once", response_format=schema, temperature=temperature, ignore_eos=False)


def test_logprobs(model, guess):
    from edgellm.sampling.logprobs import LogprobRecorder

    records = []
    whole = model.generate(PROMPT, speculate="off", max_tokens=20, ignore_eos=True, seed=1)
    guess(model, whole.token_ids)
    for speculate in ("off", "suffix"):
        recorder = LogprobRecorder(2)
        result = model.generate(
            PROMPT, max_tokens=20, ignore_eos=True, seed=1, processors=[recorder], speculate=speculate
        )
        records.append(recorder.tokens(result.token_ids))
    assert records[0] == records[1] and len(records[0]) == 20


# ---- the sequence ----------------------------------------------------------------------------------------------------

POLICIES = ["error", "sink:4:40", "sink:0:8", "shift:4", "drop-turns"]


def run_on(model, policy, speculate, n=150):
    """(what was told, what the sequence is, the logits of a token behind it) of an answer in a sequence of its own."""
    engine = model._loaded.engine

    def run(job):
        with engine.new_sequence(edgellm.Overflow.parse(policy)) as seq:
            if policy == "drop-turns":
                seq.turns = list(range(5, 200, 3))
            request = Request(PROMPT, Sampling(seed=3), n, frozenset(), speculate=speculate)
            free = engine.pool.n_free
            result = Generation(engine, request, job, seq=seq).run()
            state = (seq.ids, seq.length, seq.exact, seq.span, seq.turns, seq.dropped, seq.n_pages, seq.table >= 0)
            used = free - engine.pool.n_free
            after = engine.forward(seq, [9], [0], None)[0].copy() if seq.has_room() else None
            return told(result), state, used, after

    return model._worker.call(run)


@pytest.mark.parametrize("n_ctx", [64, 100])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_overflow(tmp_path, guess, family, policy, n_ctx):
    """The window is the same at each token: nothing is dropped earlier, and nothing else is held in the end."""
    path = tiny_family_gguf(tmp_path / "model.gguf", family)
    with edgellm.load(path, backend=FAST[0], n_ctx=n_ctx) as model:
        plain = run_on(model, policy, "off")
        for wrong in (0.0, 0.3):
            guess(model, plain[0][1], wrong)
            fast = run_on(model, policy, "suffix")
            assert fast[0] == plain[0] and fast[2] == plain[2]
            for mine, theirs in zip(fast[1], plain[1], strict=True):
                assert np.array_equal(mine, theirs)
            assert (fast[3] is None) == (plain[3] is None)
            assert fast[3] is None or np.array_equal(fast[3], plain[3])


def test_a_full_pool_is_no_fuller(path, guess):
    """Guesses ask nobody for pages: what the tree keeps stays, and a pool with no page to spare is enough."""
    for n_guesses in (0.0, 0.5):
        kept = []
        for speculate in ("off", "suffix"):
            with edgellm.load(path, backend=FAST[0], n_ctx=128) as model:
                engine = model._loaded.engine
                hold = model._worker.call(lambda job, e=engine: e.pool.allocate(e.pool.n_free - 5))
                plain = model.generate(PROMPT, max_tokens=100, ignore_eos=True, seed=2, speculate="off")
                other = model.generate([1, *range(300, 320)], max_tokens=2, ignore_eos=True, speculate="off")
                assert other.token_ids and len(hold)
                guess(model, plain.token_ids, n_guesses)
                result = model.generate(PROMPT, max_tokens=100, ignore_eos=True, seed=2, speculate=speculate)
                assert told(result) == told(plain)
                again = model.generate([1, *range(300, 320)], max_tokens=1, ignore_eos=True, speculate="off")
                kept.append((again.context.reused, engine.pool.n_free))
        assert kept[0] == kept[1] and kept[0][0] > 0


def test_sessions(tmp_path, toy, guess):
    """Turns, undo, forks, files: a session that speculates is the one that does not."""

    def talk(speculate):
        with toy.session(system="Be brief.", seed=7, max_tokens=40) as chat:
            said = [told(chat.send(text, speculate=speculate)) for text in ("hello", "the cat and the cat")]
            chat.undo()
            said.append(told(chat.send("once upon a time", speculate=speculate)))
            fork = chat.fork()
            said.append(told(fork.send("and then?", speculate=speculate, seed=1)))
            said.append(told(chat.send("and then?", speculate=speculate, seed=1)))
            chat.save(tmp_path / f"{speculate}.edgesession")
            with edgellm.Session.load(toy, tmp_path / f"{speculate}.edgesession") as later:
                said.append(told(later.send("more", speculate=speculate, seed=2)))
            seq = chat._place.seq
            fork.close()
            return said, chat.messages, chat.context, seq.ids, seq.length, seq.exact, seq.n_pages

    plain, fast = talk("off"), talk("suffix")
    assert plain[0] == fast[0]
    assert plain[1:] == fast[1:]


# ---- faults that must be seen ----------------------------------------------------------------------------------------


def accept_always(monkeypatch):
    monkeypatch.setattr(Decoding, "_is_next", lambda self, token: self._n_true < self._n_checked)


def off_by_one(monkeypatch):
    real = Decoding._row
    monkeypatch.setattr(Decoding, "_row", lambda self, i: real(self, max(0, i - 1)))


def one_too_many(monkeypatch):
    """A guess too many counts as true."""
    real = Decoding._is_next

    def is_next(self, token):
        before = self._n_true
        return real(self, token) or (0 < before < self._n_checked and not real(self, token))

    monkeypatch.setattr(Decoding, "_is_next", is_next)


def stale_cache(monkeypatch):
    """The sequence keeps the positions of guesses that did not come true."""
    real = Engine.forward

    def forward(self, seq, tokens, outputs, cancel, hidden=False, n_kept=None):
        return real(self, seq, tokens, outputs, cancel, hidden)

    monkeypatch.setattr(Engine, "forward", forward)


def unwritten_cache(monkeypatch):
    """What came true is counted, but the next pass begins a position too late: a stale one is in between."""
    real = Engine.commit

    def commit(self, seq, tokens):
        real(self, seq, tokens)
        if seq.length > 20 and len(tokens) == 1 and seq._blocks * 64 > seq.length + 1:
            real(self, seq, [0])

    monkeypatch.setattr(Engine, "commit", commit)


@pytest.mark.parametrize("fault", [accept_always, off_by_one, one_too_many, stale_cache, unwritten_cache])
def test_planted_faults_are_seen(path, guess, monkeypatch, fault):
    with edgellm.load(path, backend=FAST[0]) as model:
        plain = model.generate(PROMPT, speculate="off", max_tokens=60, ignore_eos=True, temperature=0)
        guess(model, plain.token_ids, 0.4, length=3)
        monkeypatch.setattr(Oracle, "accept", lambda self, tokens: setattr(self, "said", self.said + len(tokens)))
        fault(monkeypatch)
        try:
            fast = model.generate(PROMPT, speculate="suffix", max_tokens=60, ignore_eos=True, temperature=0)
        except InvalidArgumentError:
            return
        assert fast.token_ids != plain.token_ids


class Fake:
    """Passes whose logits say the position, and that fail behind a token 13."""

    def __init__(self):
        self.passes = []

    def forward(self, seq, tokens, outputs, cancel, hidden=False, n_kept=None):
        self.passes.append(list(tokens))
        if 13 in tokens[1:]:
            raise NonFiniteError("a step")
        seq.length += n_kept
        return np.array([[seq.length + i] for i in range(len(tokens))], np.float32)

    def commit(self, seq, tokens):
        seq.length += len(tokens)


class FakeSequence:
    length = 0

    def spare(self, most):
        return most

    def trim(self):
        pass


def test_numbers_behind_a_wrong_guess_do_no_harm(monkeypatch):
    """A guess behind which there is no finite number ends nothing: without it that would not be run."""
    monkeypatch.setattr(Control, "length", lambda self, draft: len(draft))
    engine, seq = Fake(), FakeSequence()
    steps = Decoding(engine, seq, None, proposer=Oracle((5, 13, 6, 7, 8), 100, 0.0, 0))
    steps.begin([1])
    steps._proposer.said = 0
    assert steps.next(5) == [1.0] and engine.passes == [[5, 13, 6, 7, 8, 7, 7, 7], [5]]
    assert seq.length == 1 and steps.n_drafted == 0


# ---- control ---------------------------------------------------------------------------------------------------------


def control(prior=0.5):
    made = Control()
    made.begin(SimpleNamespace(source="test", priors=(prior, 0.1), cost=0.0))
    made.costs.note(1, 1.0)
    return made


def draft(*classes):
    return Draft(tuple(range(len(classes))), classes, "test")


def test_a_draft_is_as_long_as_it_pays():
    """Against every length, by the formula."""
    for prior, costs in [(0.9, [1, 1.05, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6]), (0.5, [1, 1.1, 1.2, 1.6, 2, 2.4, 2.8, 3])]:
        one = control(prior)
        for n, seconds in enumerate(costs, 1):
            one.costs.note(n, seconds)
        expected = [sum(prior**i for i in range(k + 1)) / costs[k] for k in range(8)]
        assert one.length(draft(*[0] * 7)) == int(np.argmax(expected))
        assert one.length(draft(0)) == (1 if expected[1] > 1.05 else 0)


def test_off_where_the_gain_is_small():
    one = control()
    one.costs.note(2, 1.4)
    assert one.length(draft(0)) == 1, "1.5 tokens in the time of 1.4"
    one.costs.note(2, 1.45)
    one.costs.note(2, 1.45)
    assert one.length(draft(0)) == 0, "1.5 / 1.45 is less than 5 %"
    assert one.length(draft()) == 0


def test_classes_learn_and_forget():
    one = control()
    for _ in range(200):
        one.note(draft(0, 1), 1, 2)
    rates = one._sources["test"]
    assert rates.rate(0) > 0.95 and rates.rate(1) < 0.05
    for _ in range(200):
        one.note(draft(0, 1), 0, 2)
    assert rates.rate(0) < 0.06 and rates.rate(1) < 0.05, "what stands behind a wrong guess says nothing of its class"
    before = rates.rate(0)
    one.begin(SimpleNamespace(source="test", priors=(0.5, 0.1), cost=0.0))
    assert rates.rate(0) > before, "another text begins nearer to the prior"


def test_off_and_on_again(monkeypatch):
    """Wrong drafts are soon not checked any more, are still looked at, and are checked again when they come true."""
    monkeypatch.setattr(PassCosts, "note", lambda self, columns, seconds: None)

    class One(Oracle):
        def accept(self, tokens):
            self.said += len(tokens)

        def propose(self, k):
            return Draft((9,), (0,), "oracle")

    engine, seq = Fake(), FakeSequence()
    steps = Decoding(engine, seq, None, proposer=One((), 100, 0.0, 0))
    steps.begin([1])
    for _ in range(200):
        steps.next(8)
    assert [len(p) for p in engine.passes[-20:]] == [1] * 20
    for _ in range(200):
        steps.next(9)
    assert [len(p) for p in engine.passes[-10:]] == [2] * 10


def test_costs_of_passes():
    costs = PassCosts()
    assert [costs.ratio(n) for n in (1, 2, 8)] == pytest.approx([1.0, 1.04, 1.28]), "before anything is known"
    for seconds in (2.0, 2.0, 50.0):  # one that something else held up
        costs.note(1, seconds)
    costs.note(4, 3.2)
    assert [costs.ratio(n) for n in (1, 2, 3, 4, 6)] == pytest.approx([1.0, 1.2, 1.4, 1.6, 2.0])
    assert costs.plain() == 2.0
    costs.note(8, 1.0)
    assert costs.ratio(8) == 1.0, "no pass is cheaper than a plain one"
    for _ in range(600):
        costs.note(1, 2.0)
    assert costs.ratio(4) == pytest.approx(1.12), "old times are forgotten, so that a draft is tried again"


def test_memory_is_counted_for_the_widest_pass():
    from edgellm.backends.sizes import LOGITS_ROWS
    from edgellm.speculate.control import MAX_COLUMNS
    from edgellm.speculate.suffix_reference import MAX_DRAFT

    assert LOGITS_ROWS == MAX_COLUMNS and MAX_DRAFT >= MAX_COLUMNS - 1


# ---- options ---------------------------------------------------------------------------------------------------------


def test_options(path):
    with pytest.raises(InvalidArgumentError, match="speculate is 'sufix'; choose auto, off, suffix, self"):
        edgellm.load(path, speculate="sufix")
    text = [1, *[300, 301, 302, 303, 304, 305] * 6]
    bias = {"logit_bias": {304: 100.0}, "temperature": 0, "max_tokens": 40}
    with edgellm.load(path, backend=FAST[0], speculate="off") as model:
        assert model.generate(text, **bias).stats.draft_tokens == 0
        fast = model.generate(text, speculate="suffix", **bias).stats
        assert fast.draft_tokens >= fast.draft_accepted > 0 and fast.passes < 40 and fast.draft_gain > 0
        with pytest.raises(InvalidArgumentError, match="choose auto, off, suffix, self"):
            model.generate(text, speculate="drafts", **bias)
    with edgellm.load(path, backend=FAST[0]) as model:
        assert model.speculate == "auto" and (model.generate(text, **bias).stats.draft_tokens > 0) == clib.available()
        assert model.generate(text, speculate="off", **bias).stats.draft_tokens == 0
        with model.session(max_tokens=30) as chat:
            assert chat.send("hello", speculate="off").stats.draft_tokens == 0


def test_auto_leaves_small_models_alone(path, monkeypatch):
    """A token of theirs takes less time than looking for guesses."""
    monkeypatch.setattr(engine_module, "SMALL_MODEL", 1 << 30)
    with edgellm.load(path, backend=FAST[0]) as model:
        engine = model._loaded.engine
        assert [engine.speculation(kind) for kind in ("auto", "suffix", "off")] == ["off", "suffix", "off"]
        assert engine.weight_bytes == sum(info.n_bytes for info in model._loaded.file.tensors.values())


def test_without_a_compiled_library(monkeypatch):
    from edgellm import speculate

    monkeypatch.setattr(clib, "available", lambda: False)
    def make(kind):
        return speculate.make_proposer(kind, None, None, sampler=None, control=Control(), makers={})

    assert make("auto") is None and make("off") is None
    made = make("suffix")
    made.begin([1, 2, 3, 4, 1, 2, 3])
    assert made.propose(1).tokens == (4,)


def test_the_reference_backend_does_without(path):
    """NumPy rounds otherwise in wider passes, and its passes are no faster."""
    with edgellm.load(path, backend="reference", speculate="suffix") as model:
        result = model.generate([1, *[300, 301, 302] * 5], logit_bias={301: 100.0}, max_tokens=10, temperature=0)
        assert (result.stats.draft_tokens, result.stats.draft_gain) == (0, 1.0)
