"""Drafts by the model's own layers: the same answers with good and with hopeless ones, nothing of a draft is ever read
again, and what they cost is bounded."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import numpy as np
import pytest
from family_runs import FAST
from helpers import tiny_llama_gguf
from test_speculate import (
    POLICIES,
    PROMPT,
    SAMPLERS,
    Fake,
    FakeSequence,
    accept_always,
    off_by_one,
    one_too_many,
    run_on,
    stale_cache,
    told,
    unwritten_cache,
)
from tiny_families import FAMILIES, tiny_family_gguf

import edgellm
from edgellm.cache import PAGE_TOKENS
from edgellm.engine import Engine
from edgellm.errors import InvalidArgumentError, PlanError
from edgellm.sampling import Sampler, Sampling
from edgellm.speculate import Chain, Control, Decoding, Draft, LayerDrafts, SkipSet, layers
from edgellm.speculate.skipping import layer_parts, plan_without

GOOD, HALF, HOPELESS = SkipSet((1,), ()), SkipSet((1,), (1,)), SkipSet((0, 1), (0, 1))


def set_up(model: edgellm.Model, skip: SkipSet) -> None:
    """From now on the model has self-drafts without the parts of `skip`."""
    loaded = model._loaded
    loaded.runner.any_width = True  # the reference too
    old = loaded.engine.draft_makers.pop("self", None)
    if old is not None:
        old.close()
    loaded.engine.draft_makers["self"] = LayerDrafts(loaded.runner, loaded.plan, loaded.weights, skip)


@pytest.fixture
def eager(monkeypatch):
    """Drafts are always made, and checked to their full length."""
    monkeypatch.setattr(Control, "goes_on", lambda self, source, classes: len(classes) < 5)
    monkeypatch.setattr(Control, "length", lambda self, draft: len(draft))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny_llama_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", n_ctx=400, type="Q8_0")


@pytest.fixture(scope="module")
def model(path):
    """On the fastest backend there is."""
    with edgellm.load(path, backend=FAST[0], threads=1) as model:
        yield model


def check(model, skips=(GOOD, HALF, HOPELESS), prompt=PROMPT, kinds=("self", "auto"), **options):
    """The same answer with each set of layers, alone and beside the suffix index; returns it."""
    options = {"max_tokens": 60, "ignore_eos": True, "seed": 11} | options
    plain = model.generate(prompt, speculate="off", **options)
    for skip in skips:
        set_up(model, skip)
        for kind in kinds:
            result = model.generate(prompt, speculate=kind, **options)
            assert told(result) == told(plain), (skip, kind)
            if len(plain.token_ids) > 8:
                assert result.stats.draft_tokens > 0
    return plain


@pytest.fixture(autouse=True)
def no_model_is_small(monkeypatch):
    from edgellm import engine

    monkeypatch.setattr(engine, "SMALL_MODEL", 0)


# ---- the same tokens -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers(model, eager, name):
    check(model, **SAMPLERS[name])


@pytest.mark.parametrize("backend", [*FAST, "reference"])
def test_backends(path, eager, backend):
    with edgellm.load(path, backend=backend, threads=2) as model:
        for temperature in (0.0, 1.0):
            check(model, (HALF,), temperature=temperature, max_tokens=25)


@pytest.mark.parametrize("family", FAMILIES)
def test_families(tmp_path, eager, family):
    path = tiny_family_gguf(tmp_path / "model.gguf", family)
    with edgellm.load(path, backend=FAST[0], threads=2, n_ctx=200) as model:
        check(model, (SkipSet((0,), (1,)), HOPELESS), temperature=0.8)


def test_a_set_that_leaves_nothing_out_is_always_right(model, eager):
    """The sibling is then the model: every guess comes true, greedy and drawn."""
    for options in SAMPLERS.values():
        if "mirostat" in options:  # the surprise at drafted tokens is not counted
            continue
        set_up(model, SkipSet((), ()))
        stats = model.generate(PROMPT, max_tokens=40, ignore_eos=True, seed=1, speculate="self", **options).stats
        assert stats.drafts == (("self", stats.draft_tokens, stats.draft_tokens),) and stats.draft_tokens > 25


def test_whatever_the_control_decides(model):
    """By clocks that nobody controls."""
    for skip in (SkipSet((), ()), GOOD, HOPELESS):
        set_up(model, skip)
        for options in ({"temperature": 0.0}, {"temperature": 1.0}):
            results = [
                model.generate(PROMPT, max_tokens=80, ignore_eos=True, seed=3, speculate=kind, **options)
                for kind in ("off", "self", "auto")
            ]
            assert told(results[0]) == told(results[1]) == told(results[2])


@pytest.mark.parametrize("n", [1, 2, 5, 6, 7])
def test_ends(model, eager, n):
    assert len(check(model, (GOOD,), max_tokens=n).token_ids) == n
    whole = model.generate(PROMPT, speculate="off", max_tokens=30, ignore_eos=True, seed=11)

    def stopped(kind):
        count = [0]

        def on_token(event):
            count[0] += 1
            return count[0] < n

        return told(model.generate(PROMPT, max_tokens=30, ignore_eos=True, seed=11, on_token=on_token, speculate=kind))

    assert stopped("self") == stopped("off") and stopped("self")[1] == whole.token_ids[:n]


# ---- the sequence ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_overflow(tmp_path, eager, family, policy):
    """Nothing is dropped earlier than without drafts, and nothing else is held in the end."""
    path = tiny_family_gguf(tmp_path / "model.gguf", family)
    with edgellm.load(path, backend=FAST[0], n_ctx=64) as model:
        plain = run_on(model, policy, "off")
        for skip in (SkipSet((0,), (1,)), HOPELESS):
            set_up(model, skip)
            fast = run_on(model, policy, "self")
            assert fast[0] == plain[0] and fast[2] == plain[2]
            for mine, theirs in zip(fast[1], plain[1], strict=True):
                assert np.array_equal(mine, theirs)
            assert (fast[3] is None) == (plain[3] is None)
            assert fast[3] is None or np.array_equal(fast[3], plain[3])


def spoil(seq, first, end):
    """NaN in all keys and values of positions [first, end) that lie in pages of this sequence alone; how many."""
    pool, n = seq.pool, 0
    nothing = np.full(pool.shape.head_dim, np.nan, np.float32)
    for position in range(first, end):
        for page in seq.table[:, seq.column(position // PAGE_TOKENS)].tolist():
            if page >= 0 and pool.refs[page] == 1:
                for head in range(pool.shape.n_kv_heads):
                    pool.store(page, head, position % PAGE_TOKENS, nothing, nothing)
                n += 1
    return n


def test_what_a_draft_wrote_is_never_read_again(path, eager, monkeypatch):
    """All that draft passes leave in the cache becomes NaN before the draft is checked: nobody sees it."""
    with edgellm.load(path, backend=FAST[0], kv_type="f32") as model:
        plain = model.generate(PROMPT, speculate="off", max_tokens=150, ignore_eos=True, seed=2)
        set_up(model, HALF)
        real, spoilt = Engine.forward, []

        def forward(self, seq, tokens, outputs, cancel, hidden=False, n_kept=None):
            if len(tokens) < 10:
                spoilt.append(spoil(seq, seq.length, min(seq.length + 10, seq._blocks * PAGE_TOKENS)))
            return real(self, seq, tokens, outputs, cancel, hidden, n_kept)

        monkeypatch.setattr(Engine, "forward", forward)
        assert told(model.generate(PROMPT, speculate="self", max_tokens=150, ignore_eos=True, seed=2)) == told(plain)
        assert sum(spoilt) > 1000


def test_sessions(tmp_path, eager):
    """Turns, undo, forks, files, of the built-in model."""
    with edgellm.load(n_ctx=512) as model:
        set_up(model, HALF)
        plain = talk(model, tmp_path, "off")
        assert talk(model, tmp_path, "self") == plain and talk(model, tmp_path, "auto") == plain


def talk(model, folder, kind):
    with model.session(system="Be brief.", seed=7, max_tokens=30) as chat:
        said = [told(chat.send(text, speculate=kind)) for text in ("hello", "the cat and the cat")]
        chat.undo()
        said.append(told(chat.send("once upon a time", speculate=kind)))
        fork = chat.fork()
        said.append(told(fork.send("and then?", speculate=kind, seed=1)))
        said.append(told(chat.send("and then?", speculate=kind, seed=1)))
        chat.save(folder / f"{kind}.edgesession")
        with edgellm.Session.load(model, folder / f"{kind}.edgesession") as later:
            said.append(told(later.send("more", speculate=kind, seed=2)))
        seq = chat._place.seq
        fork.close()
        return said, seq.ids, seq.length, seq.exact, seq.n_pages


@pytest.mark.parametrize("fault", [accept_always, off_by_one, one_too_many, stale_cache, unwritten_cache])
def test_planted_faults_are_seen(path, eager, monkeypatch, fault):
    with edgellm.load(path, backend=FAST[0]) as model:
        set_up(model, GOOD)
        plain = model.generate(PROMPT, speculate="off", max_tokens=60, ignore_eos=True, temperature=0)
        fault(monkeypatch)
        try:
            fast = model.generate(PROMPT, speculate="self", max_tokens=60, ignore_eos=True, temperature=0)
        except InvalidArgumentError:
            return
        assert fast.token_ids != plain.token_ids


def test_a_draft_at_the_wrong_position_is_only_slow(path, eager, monkeypatch):
    """A fault on the side of the drafts costs time and changes nothing."""
    with edgellm.load(path, backend=FAST[0]) as model:
        set_up(model, GOOD)
        plain = model.generate(PROMPT, speculate="off", max_tokens=60, ignore_eos=True, temperature=0)
        monkeypatch.setattr(layers.LayerPasses, "accept", lambda self, tokens: setattr(self, "_last", 9))
        fast = model.generate(PROMPT, speculate="self", max_tokens=60, ignore_eos=True, temperature=0)
        assert fast.token_ids == plain.token_ids


# ---- looking ahead ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("name", SAMPLERS)
def test_peek_foretells_and_changes_nothing(name, native):
    from edgellm import clib

    if native and not clib.available():
        native = None
    rng = np.random.default_rng(4)
    make = functools.partial(Sampler, Sampling(seed=5, **SAMPLERS[name]), 400, native=native)
    one, other = make(), make()
    for sampler in (one, other):
        sampler.accept([3, 300, 7] * 30)
    rows = rng.normal(0, 3, (24, 400)).astype(np.float32)
    for start in range(0, 24, 4):
        drafted: list[int] = []
        for row in rows[start : start + 4]:
            drafted.append(one.peek(row, drafted))
        said = [one.sample(row) for row in rows[start : start + 4]]
        assert said == [other.sample(row) for row in rows[start : start + 4]], "draws are as if nobody had looked"
        assert drafted[0] == said[0]
        if "mirostat" not in name:
            assert drafted == said


# ---- plans -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_plans_without_parts(tmp_path, family):
    """The hidden states behind a plan without a part are those of the whole plan where the part adds zeros."""
    path = tiny_family_gguf(tmp_path / "model.gguf", family)
    with edgellm.load(path, backend="reference", n_ctx=64) as model:
        plan, runner, pool = model._loaded.plan, model._loaded.runner, model._loaded.pool
        tokens, outputs = np.array([5, 9, 11], np.int32), np.arange(3, dtype=np.int32)
        for key, steps in layer_parts(plan).items():
            small = runner.sibling(plan_without(plan, SkipSet.of({key})), 8)
            with edgellm.cache.Sequence(pool, 64) as seq:
                seq.ensure(3)
                found = small.forward(tokens, 0, outputs, seq).copy()
                runner.begin(tokens, 0, outputs, seq)
                for i, step in enumerate(plan.steps):
                    if step is steps[-1]:
                        added = step.inputs[1]
                        runner.write(added, np.zeros_like(runner.read(added)))
                    runner.run_step(i)
                assert np.array_equal(found, runner.read(plan.logits))


def test_a_whole_plan_uses_every_layer(model):
    from dataclasses import replace

    small = plan_without(model._loaded.plan, HALF)
    with pytest.raises(PlanError, match="not each used"):
        replace(small, partial=False)
    double = [step for step in small.steps if step.label == "blk.0.attn"]
    with pytest.raises(PlanError, match="do not each use one"):
        replace(small, steps=(*small.steps, *double))


# ---- control ---------------------------------------------------------------------------------------------------------


def test_drafts_that_do_not_pay_are_rare(path):
    """Passes of hopeless drafts take a share of the model's that is bounded, however long the text."""
    control = Control()
    control.begin(SimpleNamespace(source="self", priors=(0.6,) * 8, cost=0.5))
    drafting = 0.0
    for step in range(6000):
        control.costs.note(1, 1.0)
        classes: list[int] = []
        while len(classes) < 7 and control.goes_on("self", classes):
            classes.append(2)
            control.drew("self", 2, 0.5)
            drafting += 0.5 if step >= 1000 else 0.0
        if classes:
            control.note(Draft((1,) * len(classes), tuple(classes), "self"), 0, 1)
    assert 0 < drafting < 0.02 * 5000
    for _ in range(300):  # and they are made again when they come true
        control.costs.note(1, 1.0)
        if control.goes_on("self", []):
            control.drew("self", 7, 0.05)
            control.note(Draft((1,), (7,), "self"), 1, 1)
    assert control.expected("self") > 1.2


def test_no_set_no_drafts(path):
    with edgellm.load(path, backend=FAST[0]) as model:
        with pytest.raises(InvalidArgumentError, match="edgellm draft"):
            model.generate(PROMPT, speculate="self", max_tokens=3)
        assert len(model.generate(PROMPT, speculate="auto", max_tokens=3, ignore_eos=True).token_ids) == 3


# ---- several proposers -----------------------------------------------------------------------------------------------


class Says:
    """A proposer of always the same draft, of class 0; `cost` for each of its tokens."""

    def __init__(self, source, tokens, prior, cost=0.0):
        self.source, self.tokens, self.priors, self.cost, self.asked = source, tokens, (prior,), cost, 0

    def begin(self, ids):
        pass

    def accept(self, tokens):
        pass

    def propose(self, k):
        self.asked += 1
        n = min(k, len(self.tokens))
        return Draft(self.tokens[:n], (0,) * n, self.source, n_passes=n if self.cost else 0)

    def end(self):
        pass


def chained(*proposers):
    """(the chain, its control), for passes that all take as long as a plain one."""
    control = Control()
    for n in range(1, 9):
        control.costs.note(n, 1.0)
    chain = Chain(proposers, control)
    chain.begin([1])
    return chain, control


def test_what_is_free_and_good_is_enough():
    dear, free = Says("dear", (8, 8), 0.7, 0.3), Says("free", (9, 9, 9), 0.9)
    chain, _ = chained(dear, free)
    assert chain.propose(7).source == "free" and dear.asked == 0


def test_what_costs_is_asked_where_the_free_one_says_little():
    for said, prior, n_watched in (((), 0.9, 0), ((9,), 0.15, 1)):
        dear, free = Says("dear", (8, 8), 0.9, 0.1), Says("free", said, prior)
        draft = chained(free, dear)[0].propose(7)
        assert (draft.source, draft.tokens) == ("dear", (8, 8))
        assert [other.tokens for other in draft.watched] == [(9,)] * n_watched


def test_a_draft_that_was_made_and_lost_is_watched():
    dear, free = Says("dear", (8,), 0.2, 0.05), Says("free", (9, 9), 0.25)
    draft = chained(dear, free)[0].propose(7)
    assert draft.source == "free" and [other.source for other in draft.watched] == ["dear"] * dear.asked


def test_watched_drafts_teach():
    """The tokens that come are those of the free proposer, whose drafts are not checked: it is noticed."""
    dear, free = Says("dear", (8, 8), 0.9, 0.1), Says("free", (9,), 0.15)
    chain, control = chained(free, dear)
    steps = Decoding(Fake(), FakeSequence(), None, proposer=chain, control=control)
    steps.begin([1])
    for _ in range(60):
        steps.next(9)
    assert control._sources["free"].rate(0) > 0.8 and control._sources["dear"].rate(0) < 0.3
    counts = {source: (n, true) for source, n, true in steps.drafts}
    assert counts["dear"][1] == 0 and counts["free"][1] > 10


def test_lines_name_the_sources():
    from edgellm.chat.lines import guesses

    stats = SimpleNamespace(draft_tokens=5, draft_accepted=3, draft_gain=1.2, drafts=(("suffix", 3, 2), ("self", 2, 1)))
    assert guesses(stats) == ", 3 of 5 guessed tokens right (suffix 2 of 3, self 1 of 2): 1.20 x"
    stats.drafts = stats.drafts[:1]
    assert "(" not in guesses(stats)


def test_passes_are_timed_before_the_first_guess(path):
    with edgellm.load(path, backend=FAST[0]) as model:
        engine = model._loaded.engine
        free = engine.pool.n_free
        model.generate(PROMPT, speculate="off", max_tokens=1)
        assert engine.control.costs.plain() is None
        model._worker.call(lambda job: engine._time_passes())
        timed = {n for n, seconds in enumerate(engine.control.costs._seconds) if seconds}
        assert engine.control.costs.plain() and {1, 2, 4, 8} <= timed
        engine.tree.clear()
        assert engine.pool.n_free >= free
