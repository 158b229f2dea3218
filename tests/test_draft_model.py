"""A second model that makes drafts: which may, what its passes give, and that answers stay what they are."""

from __future__ import annotations

import os
import random
import shutil
import sys
import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from family_runs import FAST
from helpers import tiny_llama_gguf, tiny_vocab
from tiny_families import tiny_family_gguf

import edgellm
from edgellm.convert import convert
from edgellm.errors import (
    DraftModelError,
    InvalidArgumentError,
    ModelFileNotFoundError,
    NonFiniteError,
    NotEnoughMemoryError,
)
from edgellm.quantize import quantize
from edgellm.speculate import Control
from edgellm.speculate.draft_model import DraftModelPasses

HF_TINY = Path(__file__).resolve().parents[2] / "shared" / "data" / "hf-tiny"
PROMPT = [1, 300, 304, 310, 300, 304, 310, 311, 300, 304]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`model.gguf`, and `draft.gguf`: another one of the same tokens."""
    folder = tmp_path_factory.mktemp("draft")
    tiny_llama_gguf(folder / "model.gguf", n_ctx=400, type="Q8_0")
    tiny_llama_gguf(folder / "draft.gguf", n_ctx=400, type="Q8_0", n_layers=1, seed=3)
    return folder


# ---- which models may ------------------------------------------------------------------------------------------------


def other_vocab(change):
    pieces, scores, types = (list(part) for part in tiny_vocab())
    change(pieces, types)
    return pieces, scores, types


def test_other_tokens_are_refused(folder, tmp_path):
    """The error names both files and the first id that differs."""

    def text(pieces, types):
        pieces[270] = "zzz"  # as long as what stands there

    def longer(pieces, types):
        pieces[275] = "a longer one"

    def kind(pieces, types):
        types[280] = 3

    for change, token in ((text, 270), (longer, 275), (kind, 280)):
        path = tiny_llama_gguf(tmp_path / f"{token}.gguf", vocab=other_vocab(change))
        with pytest.raises(DraftModelError, match=f"{token}.gguf: cannot draft for .*model.gguf.* token {token} ") as e:
            edgellm.load(folder / "model.gguf", speculate=path)
        assert e.value.token == token and e.value.exit_code == 3
        with pytest.raises(DraftModelError):
            edgellm.estimate(folder / "model.gguf", speculate=path)
    path = tiny_llama_gguf(tmp_path / "eos.gguf", **{"tokenizer.ggml.eos_token_id": 9})
    with pytest.raises(DraftModelError, match="the eos token is 9 in the draft model and 2 in the model"):
        edgellm.load(folder / "model.gguf", speculate=path)


def test_a_head_may_be_longer(folder, tmp_path):
    """One file knows further tokens behind those of the other: either may draft for the other."""
    pieces, scores, types = tiny_vocab()
    more = (pieces + ["further", "words"], scores + [-1.0] * 2, types + [1] * 2)
    path = tiny_llama_gguf(tmp_path / "more.gguf", vocab=more, n_ctx=400)
    for model, draft in ((folder / "model.gguf", path), (path, folder / "draft.gguf")):
        with edgellm.load(model, backend=FAST[0], speculate=draft) as loaded:
            draft = loaded._loaded.draft.engine
            draft.gate = nullcontext()  # this is not the worker's thread
            passes = DraftModelPasses(draft, loaded.n_vocab, 0.1)
            passes.begin(PROMPT)
            row = passes.run([])
            assert np.isfinite(row[: len(pieces)]).all()
            assert row.size == len(pieces) + 2 and (row[len(pieces) :] == -np.inf).all() == (model == path)
            passes.end()


def test_options(folder):
    path = folder / "model.gguf"
    for word in ("sufix", "draft", ""):
        with pytest.raises(InvalidArgumentError, match=f"speculate is '{word}'; choose auto, off, .* or a draft model"):
            edgellm.load(path, speculate=word)
    for value in (3, None, ["auto"]):
        with pytest.raises(InvalidArgumentError, match="choose auto, off"):
            edgellm.load(path, speculate=value)
    for name in ("missing.gguf", folder / "missing", "some/where"):
        with pytest.raises(ModelFileNotFoundError):
            edgellm.load(path, speculate=name)
    with edgellm.load(path, speculate=str(folder / "draft.gguf")) as model:
        draft = model._loaded.draft
        assert model.speculate == "auto" and draft.n_ctx == model.n_ctx and draft.tokenizer is model.tokenizer
    assert draft.__dict__.get("engine") is None, "closed with the model"
    with edgellm.load(path) as model:
        assert model._loaded.draft is None
        with pytest.raises(InvalidArgumentError, match=r"no draft model was loaded: edgellm.load\(MODEL, speculate="):
            model.generate(PROMPT, speculate="draft")


def test_memory_is_counted(folder, monkeypatch):
    from edgellm import memory_estimate

    path, other = folder / "model.gguf", folder / "draft.gguf"
    alone, both = edgellm.estimate(path, n_ctx=300), edgellm.estimate(path, n_ctx=300, speculate=other)
    beside = edgellm.estimate(other, n_ctx=300)
    assert alone.draft == 0 and both.draft == beside.total - beside.tokenizer > 0
    assert both.total == alone.total + both.draft
    import edgellm.machine as machine

    room = alone.total + memory_estimate.MARGIN + 1000
    real = machine.memory()
    monkeypatch.setattr(machine, "memory", lambda: type(real)(**(real.__dict__ | {"available": room})))
    assert edgellm.estimate(path, n_ctx=300).fits and not edgellm.estimate(path, n_ctx=300, speculate=other).fits
    with pytest.raises(edgellm.NotEnoughMemoryError):
        edgellm.load(path, n_ctx=300, speculate=other)


# ---- its passes ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(folder):
    with edgellm.load(folder / "draft.gguf", backend=FAST[0], n_ctx=200, exact=True) as model:
        model._loaded.engine.gate = nullcontext()  # no worker thread here
        yield model._loaded.engine


def expected(engine, ids):
    """Logits (n_vocab,) behind `ids`, from a sequence of their own."""
    with engine.new_sequence() as seq:
        seq.rewind(0)
        return engine.forward(seq, ids, [len(ids) - 1], None)[0].copy()


@pytest.mark.parametrize("seed", range(6))
def test_the_sequence_keeps_in_step(engine, seed):
    """Whatever came true, and whenever drafts were asked for: each row is that of the text and the draft before it."""
    chance = random.Random(seed)
    some = lambda n: [chance.randrange(3, 300) for _ in range(n)]  # noqa: E731
    passes = DraftModelPasses(engine, 300, 0.1)
    text: list[int] = []
    lengths = []
    for _ in range(4):  # answers: some go on with the text before, some begin anew
        text = text[: chance.choice([0, len(text), len(text) // 2])] + some(9)
        passes.begin(text)
        for _ in range(14):
            draft = some(chance.randrange(8))
            if chance.random() < 0.5:
                passes.catch_up()
            for i in range(len(draft) + 1 if chance.random() < 0.8 else 0):
                assert np.array_equal(passes.run(draft[:i]), expected(engine, [*text, *draft[:i]]))
            new = (draft[: chance.randrange(len(draft) + 1)] + some(chance.randrange(3))) or some(1)
            passes.accept(new)
            text += new
        lengths.append(len(text))
        passes.end()
    assert max(lengths) > 64, "more than a page"
    engine.tree.clear()
    assert engine.pool.n_free == engine.pool.n_pages, "it has given everything back"


def test_what_was_run_is_not_run_again(engine):
    """The next turn of a chat begins with what the answer before has left, and true guesses are not run twice."""
    passes, rows = DraftModelPasses(engine, 300, 0.1), []
    real = engine.forward

    def forward(seq, tokens, *rest, **more):
        rows.append(len(tokens))
        return real(seq, tokens, *rest, **more)

    engine.forward = forward
    try:
        text = list(range(3, 83))
        passes.begin(text)
        for draft in ([], [5], [5, 6], [5, 6, 7]):
            passes.run(draft)
        passes.accept([5, 6, 7, 8, 9])
        passes.run([])
        assert rows == [80, 1, 1, 1, 2]
        passes.end()
        rows.clear()
        passes.begin([*text, 5, 6, 7, 8, 9, 10, 11])
        passes.run([])
        assert rows == [2]
        passes.end()
    finally:
        del engine.forward
        engine.tree.clear()


def test_a_window_that_is_full_slides(folder):
    """The text goes on for ever; a turn behind it goes on where it was, though nothing is kept in the tree."""
    with edgellm.load(folder / "draft.gguf", backend=FAST[0], n_ctx=100) as model:
        engine = model._loaded.engine
        engine.gate = nullcontext()
        passes, chance = DraftModelPasses(engine, 300, 0.1), random.Random(1)
        text = [chance.randrange(3, 300) for _ in range(50)]
        passes.begin(text)
        for _ in range(200):
            passes.run([])
            passes.run([4])
            new = [4, chance.randrange(3, 300)]
            passes.accept(new)
            text += new
        passes.end()
        runs = engine.passes
        seen = text[:4] + text[-70:] + [7, 8]  # as a model's own window may have it
        passes.begin(seen)
        row = passes.run([]).copy()
        assert engine.passes == runs + 1 and np.isfinite(row).all()
        passes.end()
        passes.begin([5] * 300)  # longer than what it will ever see
        assert len(passes._pending) == 50
        passes.run([])
        passes.end()
        passes.begin([6, 7])
        passes.end()
        engine.tree.clear()
        assert engine.pool.n_free == engine.pool.n_pages


# ---- answers ---------------------------------------------------------------------------------------------------------

ANSWERS = {
    "greedy": {"temperature": 0.0},
    "plain": {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
    "defaults": {},
    "penalties": {"repeat_penalty": 1.3, "presence_penalty": 0.5},
    "biases": {"logit_bias": {300: 3.0, 301: float("-inf")}},
}


@pytest.fixture
def always(monkeypatch):
    """Drafts are made and checked whether they pay or not."""
    monkeypatch.setattr(Control, "goes_on", lambda self, source, classes: True)
    monkeypatch.setattr(Control, "promise", lambda self, draft: (len(draft), 2.0))


def told(result):
    """All of a result but what depends on time and on what the cache held."""
    context = replace(result.context, reused=0)
    return (result.text, result.token_ids, result.finish_reason, result.usage, context, result.seed)


def both(model, prompt=PROMPT, **options):
    """(plain, fast): the same answer, without and with guesses of the draft model."""
    options = {"max_tokens": 60, "ignore_eos": True, "seed": 11} | options
    plain = model.generate(prompt, speculate="off", **options)
    fast = model.generate(prompt, speculate="draft", **options)
    assert told(fast) == told(plain)
    return plain, fast


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("name", ANSWERS)
def test_a_model_that_drafts_for_itself_is_always_right(folder, always, name, backend):
    path = folder / "model.gguf"
    with edgellm.load(path, backend=backend, threads=1, speculate=path) as model:
        plain, fast = both(model, **ANSWERS[name])
        stats = fast.stats
        assert stats.drafts == (("draft", stats.draft_tokens, stats.draft_accepted),)
        assert stats.draft_tokens == stats.draft_accepted == 60 - stats.passes
        assert plain.stats.passes == 60 and stats.passes == 9, "the prompt, and eight with seven guesses each"


@pytest.mark.parametrize("name", ANSWERS)
def test_another_model_is_sometimes_right(folder, always, name):
    """Two random models agree now and then, where few tokens can be chosen."""
    few = {"logit_bias": {i: 50.0 for i in range(300, 304)}} | ANSWERS[name]
    with edgellm.load(folder / "model.gguf", backend=FAST[0], speculate=folder / "draft.gguf") as model:
        _, fast = both(model, max_tokens=150, **few)
        assert 0 < fast.stats.draft_accepted < fast.stats.draft_tokens
        assert fast.stats.passes < 150


def test_the_built_in_model_drafts_for_itself(always):
    with edgellm.load(n_ctx=512, speculate="builtin") as model:
        for options in ({"temperature": 0}, {"temperature": 0.8}):
            _, fast = both(model, "Once upon a time", max_tokens=80, **options)
            assert fast.stats.draft_accepted == fast.stats.draft_tokens > 60


@pytest.mark.parametrize("family", ["gemma2", "mixtral", "phi3", "qwen3"])
def test_families(tmp_path, always, family):
    """Layers with windows of their own, experts, other vocabularies."""
    path = tiny_family_gguf(tmp_path / "model.gguf", family)
    with edgellm.load(path, backend=FAST[0], n_ctx=200, speculate=path) as model:
        for options in ({"temperature": 0}, {"temperature": 0.8}):
            _, fast = both(model, max_tokens=150, **options)
            assert fast.stats.draft_accepted == fast.stats.draft_tokens > 100


@pytest.mark.skipif(not HF_TINY.exists(), reason=f"needs {HF_TINY}")
def test_a_copy_in_four_bits(tmp_path, always):
    """A trained vocabulary, and a draft model that nearly says the same: most guesses come true, not all."""
    convert(HF_TINY / "llama", tmp_path / "model.gguf", outtype="f32")
    quantize(tmp_path / "model.gguf", tmp_path / "draft.gguf", "Q4_0")
    ids = list(range(20, 50))
    with edgellm.load(tmp_path / "model.gguf", backend=FAST[0], speculate=tmp_path / "draft.gguf") as model:
        for options in ({"temperature": 0}, {"temperature": 0.8}):
            _, fast = both(model, ids, max_tokens=100, **options)
            assert 0 < fast.stats.draft_accepted < fast.stats.draft_tokens


def test_what_pays_decides(folder, caplog):
    """With the real control, whatever it finds: the same answers, and "auto" uses the draft model of a small model."""
    path = folder / "model.gguf"
    with edgellm.load(path, backend=FAST[0], speculate=path) as model:
        engine = model._loaded.engine
        assert engine.speculation("auto") == "auto" and list(engine.draft_makers) == ["draft"]
        both(model, max_tokens=100)
        plain = model.generate(PROMPT, speculate="off", max_tokens=100, ignore_eos=True, seed=11)
        assert told(model.generate(PROMPT, max_tokens=100, ignore_eos=True, seed=11)) == told(plain)
    assert not caplog.records


def test_drafts_of_which_a_part_is_checked(folder, always, monkeypatch, caplog):
    """What was drafted and not checked may be what comes: it was run then, and is the end of the text."""
    path = folder / "model.gguf"
    for n_checked in (1, 3):
        monkeypatch.setattr(Control, "promise", lambda self, draft, n=n_checked: (min(n, len(draft)), 2.0))
        with edgellm.load(path, backend=FAST[0], speculate=path) as model:
            _, fast = both(model)
            assert fast.stats.draft_accepted == fast.stats.draft_tokens > 20
    assert not caplog.records


@pytest.mark.parametrize("policy", ["error", "sink:4:40", "shift:4", "drop-turns"])
def test_overflow(folder, always, policy):
    """The draft model's own window slides, whatever the model's does."""
    path = folder / "model.gguf"
    with edgellm.load(path, backend=FAST[0], n_ctx=64, speculate=path) as model:
        _, fast = both(model, max_tokens=200, overflow=policy)
        assert fast.stats.draft_accepted > 10
        _, again = both(model, max_tokens=20, overflow=policy)
        assert again.stats.draft_accepted > 10


def test_sessions(always):
    """Turns, undo, forks: the draft model reads what is new only."""

    def talk(model, speculate):
        with model.session(system="Be brief.", seed=7, max_tokens=30) as chat:
            said = [told(chat.send(text, speculate=speculate)) for text in ("hello", "the cat and the cat")]
            chat.undo()
            said.append(told(chat.send("once upon a time", speculate=speculate)))
            with chat.fork() as fork:
                said.append(told(fork.send("and then?", speculate=speculate, seed=1)))
            return said, chat.messages, chat.context

    with edgellm.load(n_ctx=512, speculate="builtin") as model:
        assert talk(model, "draft") == talk(model, "off")
        pool = model._loaded.draft.pool
        model._worker.call(lambda job: model._loaded.draft.engine.tree.clear())
        assert pool.n_free == pool.n_pages
        assert model.generate("a", max_tokens=3).token_ids


def test_the_next_turn_uses_what_was_run(folder, always):
    path = folder / "model.gguf"
    with edgellm.load(path, backend=FAST[0], speculate=path) as model:
        model.generate(PROMPT, speculate="draft", max_tokens=2)  # the first answer warms the draft model up
        rows = []
        engine = model._loaded.draft.engine
        real = engine.forward
        engine.forward = lambda seq, tokens, *rest, **more: rows.append(len(tokens)) or real(seq, tokens, *rest, **more)
        first = model.generate(list(range(3, 103)), speculate="draft", max_tokens=20, ignore_eos=True, seed=1)
        assert rows[:2] == [100, 1], "the prompt, then the first token of the answer"
        rows.clear()
        prompt = [*range(3, 103), *first.token_ids, 7, 8, 9]
        model.generate(prompt, speculate="draft", max_tokens=20, ignore_eos=True, seed=1)
        assert 4 <= rows[0] < 16, "what was new: the end of the answer, the question, the first token"
        del engine.forward


# ---- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [NonFiniteError("step"), NotEnoughMemoryError(2, 1), RuntimeError("a fault")])
@pytest.mark.parametrize("at", [0, 3])
def test_a_draft_model_that_fails_does_not_fail_the_answer(folder, always, caplog, error, at):
    """It is switched off for that answer, and the next one tries again."""
    path = folder / "model.gguf"
    with edgellm.load(path, backend=FAST[0], speculate=path) as model:
        model.generate(PROMPT[:2], speculate="draft", max_tokens=2)  # the first answer warms the draft model up
        engine, calls = model._loaded.draft.engine, []
        real = engine.backend.forward

        def forward(*args):
            calls.append(args)
            if len(calls) > at:
                raise error
            return real(*args)

        engine.backend.forward = forward
        _, fast = both(model)
        assert len(calls) == at + 1 and fast.stats.draft_tokens == max(0, at - 1), "one has read the prompt"
        assert len(caplog.records) == 1 and str(error) in caplog.text
        assert "the draft model makes no more guesses for this answer" in caplog.text
        del engine.backend.forward
        _, fast = both(model)
        assert fast.stats.draft_accepted > 40


def test_tokens_that_the_draft_model_does_not_know(tmp_path, folder, always, caplog):
    """A text with such a token is not one that it can go on with."""
    pieces, scores, types = tiny_vocab()
    more = (pieces + ["further"], scores + [-1.0], types + [1])
    path = tiny_llama_gguf(tmp_path / "more.gguf", vocab=more, n_ctx=400, type="Q8_0")
    with edgellm.load(path, backend=FAST[0], speculate=folder / "draft.gguf") as model:
        _, fast = both(model)
        assert fast.stats.draft_tokens > 0 and not caplog.records
        _, fast = both(model, logit_bias={len(pieces): 100.0})
        assert fast.stats.draft_accepted == 0 and "outside the vocabulary" in caplog.text


def test_cancelling_while_the_draft_model_reads(folder, always):
    path = folder / "model.gguf"
    with edgellm.load(path, backend=FAST[0], speculate=path) as model:
        engine, cancel = model._loaded.draft.engine, threading.Event()
        real = engine.backend.forward

        def forward(*args):
            cancel.set()
            while not args[4][0]:
                time.sleep(0.001)
            return real(*args)

        engine.backend.forward = forward
        with pytest.raises(edgellm.Cancelled):
            model.generate(list(range(3, 103)), speculate="draft", max_tokens=20, cancel=cancel)
        del engine.backend.forward
        both(model)
        engine.tree.clear()
        assert engine.pool.n_free == engine.pool.n_pages


@pytest.mark.skipif(sys.platform == "win32", reason="a mapped file cannot be replaced there")
def test_a_draft_file_that_changes(folder, tmp_path, always, caplog):
    """Where its weights are read from the mapped file: no guesses any more, the same answers."""
    path = tmp_path / "draft.gguf"
    shutil.copy(folder / "model.gguf", path)
    with edgellm.load(folder / "model.gguf", backend=FAST[0], speculate=path, pack=False) as model:
        assert both(model)[1].stats.draft_accepted > 40
        os.utime(path, ns=(1, 1))
        with open(path, "r+b") as file:
            file.seek(-4, os.SEEK_END)
            file.write(b"xxxx")
        assert both(model)[1].stats.draft_tokens == 0
        assert "changed while it was open" in caplog.text


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_fork_while_the_draft_model_works(folder, always):
    """In the middle of an answer: the child answers as the parent does."""
    path = folder / "model.gguf"
    with edgellm.load(path, backend=FAST[0], speculate=path) as model:
        plain, _ = both(model)
        main = os.getpid()
        try:
            stream = model.generate(
                PROMPT, stream=True, speculate="draft", max_tokens=60, ignore_eos=True, seed=11
            )
            next(iter(stream))
            pid = os.fork()
            if pid == 0:
                answer = model.generate(PROMPT, speculate="draft", max_tokens=60, ignore_eos=True, seed=11)
                os._exit(0 if answer.token_ids == plain.token_ids and answer.stats.draft_accepted > 40 else 1)
            assert os.waitpid(pid, 0)[1] == 0
            assert stream.result.token_ids == plain.token_ids
        finally:
            if os.getpid() != main:
                os._exit(2)
