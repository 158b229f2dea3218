"""The generation loop: what ends it, what it reports, what it leaves in the cache."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest
from helpers import tiny_llama_gguf

import edgellm
from edgellm.errors import Cancelled, ContextOverflowError, InvalidArgumentError, NonFiniteError
from edgellm.generate import Generation, Request
from edgellm.worker import Worker

EOS = 2


class Scripted:
    """A backend in place of the real one: says the tokens of `script` one after the other, and counts passes."""

    name = "scripted"
    has_prefill, exact, any_width = False, True, False  # it says the next token of the script for every row

    def __init__(self, n_vocab: int, script: list[int]) -> None:
        self.n_vocab, self.script, self.said = n_vocab, script, 0
        self.passes: list[tuple[int, int, int]] = []  # (tokens, position, outputs) of each pass
        self.pause = 0.0  # seconds that a pass takes; it polls the cancel flag meanwhile
        self.entered = threading.Event()
        self.fail: Exception | None = None

    def forward(self, tokens, position, outputs, seq, cancel=None, hidden=False):
        self.entered.set()
        end = time.monotonic() + self.pause
        while time.monotonic() < end:
            if cancel is not None and cancel[0]:
                raise Cancelled()
            time.sleep(0.002)
        if self.fail is not None:
            raise self.fail
        self.passes.append((len(tokens), int(position), len(outputs)))
        logits = np.zeros((len(outputs), self.n_vocab), np.float32)
        for row in logits:
            row[self.script[self.said % len(self.script)]] = 10.0
            self.said += 1
        return logits

    def close(self):
        pass


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny_llama_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", n_ctx=1200)


@pytest.fixture
def model(path):
    with edgellm.load(path, backend="reference", threads=1) as model:
        yield model


def scripted(model, text_or_ids, then=EOS):
    """Put a scripted backend into `model`."""
    ids = model.tokenize(text_or_ids) if isinstance(text_or_ids, str) else text_or_ids
    backend = Scripted(model.n_vocab, [*ids, then] if then is not None else list(ids))
    model._loaded.engine.backend = backend
    return backend


def greedy(model, prompt="hello", **options):
    return model.generate(prompt, temperature=0, **options)


# ---- what ends a generation ------------------------------------------------------------------------


def test_end_token(model):
    scripted(model, "world")
    result = greedy(model)
    assert (result.text, result.finish_reason) == (" world", "stop")
    assert result.token_ids[-1] == EOS, "the end token was chosen, so it is among the ids"
    assert result.usage.completion_tokens == len(result.token_ids)


def test_ignore_eos(model):
    scripted(model, "world")
    result = greedy(model, ignore_eos=True, max_tokens=5)
    assert result.finish_reason == "length" and len(result.token_ids) == 5 and EOS in result.token_ids


@pytest.mark.parametrize("n", [0, 1, 3])
def test_max_tokens(model, n):
    backend = scripted(model, "the and the and the and the")
    result = greedy(model, max_tokens=n)
    assert (len(result.token_ids), result.finish_reason) == (n, "length")
    assert len(backend.passes) == max(1, n), "the prompt gives the first token, each further one takes one pass"


def test_context_window_ends_with_length(path):
    with edgellm.load(path, backend="reference", n_ctx=10) as model:
        scripted(model, [300], then=None)
        prompt = [1, 300, 304]
        result = greedy(model, prompt)
        assert result.finish_reason == "length"
        assert result.context.used == 10
        assert len(result.token_ids) == 10 - len(prompt) + 1, "the last token needs no place in the cache"
        with pytest.raises(ContextOverflowError, match="11 tokens.*holds 10") as caught:
            greedy(model, [1] * 11)
        assert (caught.value.n_prompt, caught.value.n_ctx) == (11, 10)
        assert len(greedy(model, [1] * 10).token_ids) == 1


@pytest.mark.parametrize(
    ("stop", "text"),
    [("wor", "hello "), (["zzz", "lo w"], "hel"), ("zzz", "hello world"), (["world", "wor"], "hello ")],
)
def test_stop_strings_are_not_shown(model, stop, text):
    scripted(model, "hello world")
    stream = greedy(model, [1], stop=stop, stream=True)
    pieces = [event.text for event in stream]
    assert "".join(pieces) == text == stream.result.text
    assert stream.result.finish_reason == "stop"


def test_no_half_characters(model):
    scripted(model, "é🙂日本é")
    pieces = [event.text for event in greedy(model, [1], stream=True)]
    assert "".join(pieces) == "é🙂日本é"
    assert not any("\ufffd" in piece for piece in pieces)


def test_an_unfinished_character_comes_out_at_the_end(model):
    half = model.tokenize("🙃")[1:-1]  # the character is no piece, so it is four bytes; take some of them
    scripted(model, half)
    assert "\ufffd" in greedy(model, [1]).text


# ---- passes and cache ------------------------------------------------------------------------------


def test_one_pass_per_token_and_chunks_of_512(model):
    backend = scripted(model, [300], then=None)
    result = greedy(model, [1] + [300] * 1099, max_tokens=4)
    assert backend.passes == [(512, 0, 0), (512, 512, 0), (76, 1024, 1), (1, 1100, 1), (1, 1101, 1), (1, 1102, 1)]
    assert result.stats.passes == 6


def test_prefix_is_reused(model):
    backend = scripted(model, [300], then=None)
    first = [1, 304, 305, 306]
    result = greedy(model, first, max_tokens=3)  # cached afterwards: first + 300 + 300
    backend.passes.clear()
    result = greedy(model, [*first, 300, 300, 300, 310], max_tokens=1)
    assert result.context.reused == 6 and backend.passes == [(2, 6, 1)]
    backend.passes.clear()
    result = greedy(model, [*first[:3], 9], max_tokens=1)
    assert result.context.reused == 3 and backend.passes == [(1, 3, 1)]
    backend.passes.clear()
    result = greedy(model, [*first[:3], 9], max_tokens=1)
    assert result.context.reused == 3, "one token is always run: its logits are needed"
    assert result.usage.prompt_tokens == 4


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_reuse_changes_nothing(path, backend):
    if backend == "native" and not _native():
        pytest.skip("the compiled library was not built")
    prompt = [1, 300, 304, 270, 271, 290, 300, 299]
    with edgellm.load(path, backend=backend) as model:
        fresh = greedy(model, prompt, max_tokens=20).token_ids
        assert greedy(model, prompt, max_tokens=20).token_ids == fresh
        greedy(model, [1, 300, 304, 9, 9, 9], max_tokens=20)
        again = greedy(model, prompt, max_tokens=20)
        assert again.context.reused == 7 and again.token_ids == fresh
        other = [1, 300, 304, 9, 9, 10]
        branch = greedy(model, other, max_tokens=20)
        model._loaded.engine.tree.clear()
        assert branch.context.reused == 5 and greedy(model, other, max_tokens=20).token_ids == branch.token_ids


def _native():
    from edgellm import clib

    return clib.available()


def test_greedy_follows_the_logits(model):
    """The loop against the obvious way: all logits again for each token."""
    prompt = [1, 300, 304]
    ids = list(prompt)
    for _ in range(12):
        ids.append(int(model.logits(ids)[-1, : model.tokenizer.n_vocab].argmax()))
    assert list(greedy(model, prompt, max_tokens=12, ignore_eos=True).token_ids) == ids[3:]


def test_seeds(model):
    first = model.generate("hello", max_tokens=12)
    again = model.generate("hello", max_tokens=12, seed=first.seed)
    assert first.token_ids == again.token_ids and again.seed == first.seed
    others = {model.generate("hello", max_tokens=12).token_ids for _ in range(5)}
    assert len(others) > 1, "without a seed each call draws anew"


# ---- errors and stopping ---------------------------------------------------------------------------


def test_an_error_in_a_pass_reaches_the_caller_and_the_model_stays_usable(model):
    backend = scripted(model, "world")
    backend.fail = NonFiniteError("blk.1.ffn_down")
    with pytest.raises(NonFiniteError, match="blk.1.ffn_down"):
        greedy(model)
    stream = greedy(model, stream=True)
    with pytest.raises(NonFiniteError):
        list(stream)
    backend.fail = None
    assert greedy(model).text == " world"


def test_stop_keeps_and_cancel_drops(model):
    backend = scripted(model, [300], then=None)
    backend.pause = 0.01
    stream = greedy(model, stream=True)
    next(stream)
    next(stream)
    stream.stop()
    list(stream)
    assert stream.result.finish_reason == "cancelled" and stream.result.text.startswith(" hello hello")

    pool, tree = model._loaded.pool, model._loaded.engine.tree
    kept, free = sorted(tree.pages.tolist()), pool.n_free
    stream = greedy(model, "hello the", stream=True)
    next(stream)
    stream.cancel()
    list(stream)
    with pytest.raises(Cancelled):
        _ = stream.result
    assert (sorted(tree.pages.tolist()), pool.n_free) == (kept, free), "nothing of the cancelled call stays"


@pytest.mark.parametrize("keep", [True, False])
def test_stopping_in_a_long_prefill_is_quick(model, keep):
    backend = scripted(model, "world")
    backend.pause = 30
    stream = greedy(model, [1] * 1000, stream=True)
    assert backend.entered.wait(5)
    start = time.monotonic()
    (stream.stop if keep else stream.cancel)()
    list(stream)
    assert time.monotonic() - start < 1
    if keep:
        assert (stream.result.text, stream.result.finish_reason) == ("", "cancelled")
    backend.pause = 0
    assert greedy(model).text == " world"


def test_an_abandoned_stream_ends(model):
    backend = scripted(model, [300], then=None)
    backend.pause = 0.02
    stream = greedy(model, stream=True)
    next(stream)
    del stream
    start = time.monotonic()
    assert greedy(model, max_tokens=1).usage.completion_tokens == 1
    assert time.monotonic() - start < 2


def test_progress_of_the_prefill(model):
    scripted(model, "world")
    seen = []
    greedy(model, [1] * 1100, on_prefill=lambda p: seen.append((p.stage, p.done, p.total, p.unit)))
    assert seen == [("prefill", n, 1100, "tokens") for n in (0, 512, 1024, 1100)]


def test_an_error_in_a_callback_reaches_the_caller(model):
    scripted(model, "world")

    def broken(progress):
        raise ZeroDivisionError("in the callback")

    with pytest.raises(ZeroDivisionError, match="in the callback"):
        greedy(model, on_prefill=broken)
    scripted(model, "world")
    assert greedy(model).text == " world"


def test_a_callback_cannot_wait_for_its_own_model(model):
    scripted(model, "world")
    with pytest.raises(InvalidArgumentError, match="same model"):
        greedy(model, on_prefill=lambda p: model.generate("hello"))


@pytest.mark.skipif(os.name == "nt", reason="signals work in another way there")
def test_ctrl_c_in_a_long_prefill(model):
    backend = scripted(model, "world")
    backend.pause = 30
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        greedy(model, [1] * 1000)
    assert time.monotonic() - start < 1.5
    backend.pause = 0
    assert greedy(model).text == " world"


# ---- the worker ------------------------------------------------------------------------------------


def test_worker_runs_in_order_and_starts_late():
    worker = Worker("test")
    assert threading.active_count() == 1 or not any(t.name == "test" for t in threading.enumerate())
    seen: list[int] = []
    jobs = [worker.submit(lambda job, i=i: seen.append(i)) for i in range(50)]
    for job in jobs:
        job.wait()
    assert seen == list(range(50))
    worker.close()
    assert not any(t.name == "test" for t in threading.enumerate())
    worker.close()
    with pytest.raises(edgellm.ModelClosedError):
        worker.submit(lambda job: None)


def test_closing_cancels_what_runs_and_refuses_what_waits():
    worker = Worker("test")
    started = threading.Event()

    def forever(job):
        started.set()
        while not job.stopped:
            time.sleep(0.001)
        raise Cancelled()

    running, waiting = worker.submit(forever), worker.submit(lambda job: 1)
    assert started.wait(5)
    worker.close()
    with pytest.raises(edgellm.ModelClosedError, match="during the call"):
        running.wait()
    with pytest.raises(edgellm.ModelClosedError):
        waiting.wait()


def test_closing_from_its_own_thread_frees_only_at_the_end():
    worker, order = Worker("test"), []

    def job(job):
        worker.close(after=lambda: order.append("freed"))
        order.append("still working")
        return "done"

    running = worker.submit(job)
    thread = worker._thread
    assert running.wait() == "done"
    thread.join(5)
    assert order == ["still working", "freed"]


def test_items_of_a_job_come_in_order_and_all():
    worker = Worker("test")

    def count(job):
        for i in range(1000):
            job.put(i)
        return "end"

    job = worker.submit(count)
    assert list(job.items()) == list(range(1000))
    assert job.outcome == "end" and list(job.items()) == []
    worker.close()


@pytest.mark.parametrize("bad", [-1, 10**9, "x"])
def test_bad_ids(model, bad):
    with pytest.raises(InvalidArgumentError):
        greedy(model, [1, bad])
    with pytest.raises(InvalidArgumentError):
        model.logits([1, bad])


class _Digits:
    """A constraint: three tokens out of a set."""

    def __init__(self, n_vocab: int, allowed: list[int]) -> None:
        self.left, self.allowed, self.n_vocab = 3, allowed, n_vocab
        self.seen: list[int] = []
        self.begun: list[bool] = []

    def begin(self, at_start: bool) -> None:
        self.begun.append(at_start)

    def mask(self) -> np.ndarray:
        mask = np.zeros(self.n_vocab, bool)
        mask[self.allowed] = True
        return mask

    def accept(self, token: int) -> None:
        self.seen.append(token)
        self.left -= 1

    @property
    def finished(self) -> bool:
        return self.left == 0


def test_a_constraint_and_processors_stand_before_the_choice(model):
    """Processors see the ids so far and change the row; the constraint has the last word and ends the answer."""
    rows = []

    def prefer(ids, logits):
        rows.append(list(ids))
        logits[9] += 50.0

    def run(job, constraint):
        request = Request(ids=[1, 5], sampling=edgellm.Sampling(temperature=0), max_tokens=10, stop_ids=frozenset(),
                          processors=(prefer,), constraint=constraint)  # fmt: skip
        return Generation(model._loaded.engine, request, job).run()

    free = model._worker.call(lambda job: run(job, None))
    assert free.token_ids == (9,) * 10 and free.finish_reason == "length"
    rows.clear()
    constraint = _Digits(model.n_vocab, [7, 8])
    bound = model._worker.call(lambda job: run(job, constraint))
    assert set(bound.token_ids) <= {7, 8} and len(bound.token_ids) == 3 and bound.finish_reason == "stop"
    assert constraint.seen == list(bound.token_ids) and constraint.begun == [False]
    assert rows == [[1, 5, *bound.token_ids[:n]] for n in range(3)]


@pytest.mark.parametrize("value", [-np.inf, np.nan, np.inf])
def test_a_processor_that_leaves_nothing_is_named(model, value):
    scripted(model, [300], then=None)

    def spoil(ids, logits):
        logits[:] = value

    with pytest.raises(InvalidArgumentError, match="spoil"):
        greedy(model, processors=[spoil], max_tokens=2)
    assert greedy(model, max_tokens=1).token_ids == (300,), "the model stays usable"


def test_biases_by_text_and_an_order_of_samplers(model):
    scripted(model, [300], then=None)
    hello, the = model.tokenize(" hello")[-1], model.tokenize(" the")[-1]
    assert greedy(model, max_tokens=2, logit_bias={300: False, the: 500.0}).token_ids == (the,) * 2
    with pytest.raises(InvalidArgumentError, match="outside the vocabulary"):
        greedy(model, logit_bias={10**6: 1.0})
    assert hello != the and greedy(model, max_tokens=1, samplers="top_k;temp").token_ids == (300,)
