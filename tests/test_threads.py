"""Many threads, queues, cancelling, closing: what a program with windows does to a model. Counts, not clocks."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_llama_gguf
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import edgellm
from edgellm import clib
from edgellm.worker import Worker

ROOT = Path(__file__).resolve().parent.parent
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HELLO = [{"role": "user", "content": "hello"}]
GREEDY = {"temperature": 0, "ignore_eos": True}
LONG = [3 + i * 7 % 200 for i in range(1500)]
PATIENCE = 60  # seconds, for what comes at once if all is well


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("threads")
    keys = {"tokenizer.chat_template": CHATML}
    return tiny_llama_gguf(folder / "chat.gguf", type="Q8_0", n_ctx=2048, dim=128, ffn=256, **keys)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return tiny_llama_gguf(tmp_path_factory.mktemp("threads") / "other.gguf", type="F16", n_ctx=512, seed=1)


# ---- the queue ----------------------------------------------------------------------------------------------------


class Held:
    """A job that runs until it is told to end."""

    def __init__(self, worker: Worker, ran: list[int], number: int) -> None:
        self.begun, self.go = threading.Event(), threading.Event()

        def run(job):
            ran.append(number)
            self.begun.set()
            assert self.go.wait(PATIENCE)
            return number

        self.number, self.job = number, worker.submit(run)


class Queue(RuleBasedStateMachine):
    """A worker against a list: who runs, who waits, who is refused."""

    LIMIT = 3

    def __init__(self) -> None:
        super().__init__()
        self.worker, self.ran, self.count = Worker("queue", max_queue=self.LIMIT), [], 0
        self.running: Held | None = None
        self.waiting: list[Held] = []
        self.expected: list[int] = []

    @rule()
    def submit(self):
        if len(self.waiting) == self.LIMIT:
            with pytest.raises(edgellm.QueueFullError) as caught:
                self.worker.submit(lambda job: None)
            assert (caught.value.n_waiting, caught.value.limit) == (self.LIMIT, self.LIMIT)
            return
        held = Held(self.worker, self.ran, self.count)
        self.count += 1
        if self.running is None:
            self._begins(held)
        else:
            self.waiting.append(held)

    def _begins(self, held: Held) -> None:
        assert held.begun.wait(PATIENCE)
        self.running = held
        self.expected.append(held.number)

    @precondition(lambda self: self.running)
    @rule()
    def end(self):
        self.running.go.set()
        assert self.running.job.wait() == self.running.number
        self.running = None
        if self.waiting:
            self._begins(self.waiting.pop(0))
        else:
            self.worker.call(lambda job: None)  # it is idle again

    @precondition(lambda self: self.waiting)
    @rule(choice=st.integers(0, LIMIT - 1))
    def cancel_one_that_waits(self, choice):
        """It ends at once, whatever is before it, and its place is free."""
        held = self.waiting.pop(choice % len(self.waiting))
        held.job.stop(keep=False)
        with pytest.raises(edgellm.Cancelled):
            held.job.wait()

    @invariant()
    def in_order(self):
        assert self.ran == self.expected

    def teardown(self):
        for held in [self.running, *self.waiting]:
            if held is not None:
                held.go.set()
        self.worker.close()


TestQueue = Queue.TestCase
TestQueue.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


@pytest.mark.parametrize("limit", [-1, 1.5, True, "2"])
def test_bad_limits(path, limit):
    with pytest.raises(edgellm.InvalidArgumentError, match="max_queue"):
        edgellm.load(path, max_queue=limit)


def test_a_full_queue_of_a_model(path):
    """Closing a session is never refused: it gives pages back."""
    with edgellm.load(path, max_queue=1, overflow="sink") as model:
        session = model.session()
        running = model.generate("hello", stream=True, **GREEDY)
        next(running)
        waiting = model.generate("hello", stream=True, **GREEDY)
        for call in (lambda: model.generate("hello"), lambda: model.chat(HELLO), lambda: model.logits([1])):
            with pytest.raises(edgellm.QueueFullError, match="max_queue allows 1"):
                call()
        closing = threading.Thread(target=session.close)
        closing.start()
        waiting.cancel()
        running.stop()
        closing.join(PATIENCE)
        assert session.closed and not closing.is_alive()
        assert model.generate("hello", max_tokens=2, **GREEDY).token_ids
    with edgellm.load(path, max_queue=0) as model:
        for _ in range(20):  # idle: nothing has to wait
            model.generate("hello", max_tokens=1, **GREEDY)


def test_a_cancelled_call_does_not_wait_for_its_turn(path):
    with edgellm.load(path, overflow="sink") as model:
        running = model.generate("hello", stream=True, **GREEDY)  # without end
        waiting = model.generate("hello", stream=True, **GREEDY)
        waiting.cancel()
        with pytest.raises(edgellm.Cancelled):
            _ = waiting.result
        assert not running._job.ended
        running.cancel()


# ---- threads -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not clib.available(), reason="one pool of native threads")
def test_two_models_share_one_pool(path, other):
    """Two models that work at once do not start more threads than one of them wants."""
    code = (
        "import sys, edgellm; from concurrent.futures import ThreadPoolExecutor; from edgellm import clib\n"
        "models = [edgellm.load(p, threads=3) for p in sys.argv[1:]]\n"
        "ask = lambda m: m.generate('hello', max_tokens=60, temperature=0, ignore_eos=True)\n"
        "with ThreadPoolExecutor(8) as pool: list(pool.map(ask, models * 4))\n"
        "print(len(clib.pool_chunks()))"
    )
    command = [sys.executable, "-c", code, str(path), str(other)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("3\n", "")


@pytest.mark.skipif(not clib.available(), reason="threads of the native pool")
@pytest.mark.parametrize(("value", "answer"), [("0", "0"), ("250", "250"), ("", "60"), ("x", None), ("-1", None)])
def test_how_long_threads_wait_awake(value, answer):
    code = (
        "import edgellm\nfrom edgellm import clib\n"
        "try:\n"
        "    print(clib.pool_poll())\n"
        "    edgellm.load(threads=2).generate('hello', max_tokens=3)\n"
        "except edgellm.InvalidArgumentError as error:\n"
        "    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60,
        env={**os.environ, "EDGELLM_POLL": value},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{answer}\n" if answer else "EDGELLM_POLL is" in done.stdout


def test_random_calls_from_many_threads(path, other):
    """Each with the answer that it has alone. `make stress` does this for a minute, on larger models."""
    with edgellm.load(path) as model, edgellm.load(other) as second:
        cases = [case for m in (model, second) for case in calls(m)]
        right = [call() for call in cases]

        def work(seed: int) -> list[int]:
            rng, wrong = random.Random(seed), []
            for _ in range(8):
                i = rng.randrange(len(cases))
                if cases[i]() != right[i]:
                    wrong.append(i)
            return wrong

        with ThreadPoolExecutor(16) as pool:
            assert [wrong for wrong in pool.map(work, range(16)) if wrong] == []
        for m in (model, second):
            engine = m._loaded.engine
            m._worker.call(lambda job, e=engine: (e._sweep(), e.tree.clear()))
            assert not m._loaded.pool.refs.any()


def calls(model):
    """Functions that ask in one way each, and give something that can be compared."""

    def stopped():
        seen = []
        stream = model.generate("once", stream=True, max_tokens=200, **GREEDY)
        for event in stream:
            seen.append(event.token)
            if len(seen) == 3:
                stream.stop()
        reason = stream.result.finish_reason
        return [token for token in seen if token is not None][:3], reason in ("cancelled", "length")

    def cancelled():
        stream = model.generate("once upon", stream=True, max_tokens=200, **GREEDY)
        next(stream)
        stream.cancel()
        try:
            return len(stream.result.token_ids) == 200  # it was too late
        except edgellm.Cancelled:
            return True

    def talk():
        with model.session(max_tokens=4, seed=3, **{"temperature": 0}) as session:
            return session.send("hello").token_ids, session.send("again").token_ids

    asks = [
        lambda: model.generate("hello", max_tokens=10, **GREEDY).token_ids,
        lambda: model.generate("time", max_tokens=6, temperature=1.0, seed=4, ignore_eos=True).token_ids,
        lambda: model.logits([5, 6, 7], exact=True).tobytes(),
        lambda: model.tokenize("once upon a time é"),
        stopped, cancelled, talk,
    ]  # fmt: skip
    if model.chat_template:
        asks.append(lambda: model.chat(HELLO, max_tokens=6, **GREEDY).token_ids)
    return asks


@pytest.mark.parametrize("when", ["prefill", "decode"])
@pytest.mark.parametrize("how", ["stop", "cancel"])
def test_after_a_stop_the_next_call_is_as_the_first(path, when, how):
    """Stopped from another thread in the middle, at many moments: what follows has the bits of a fresh model's call."""
    with edgellm.load(path) as fresh:
        right, rows = fresh.generate(LONG, max_tokens=5, **GREEDY).token_ids, fresh.logits(LONG[:70])
    with edgellm.load(path) as model:
        for moment in range(6):
            reached = threading.Event()
            options = {"on_prefill": lambda p, reached=reached: reached.set()} if when == "prefill" else {}
            prompt = [*LONG[: 1400 - moment], 7 + moment]
            stream = model.generate(prompt, stream=True, **options, **GREEDY)
            if when == "prefill":
                assert reached.wait(PATIENCE)
            else:
                for _ in range(moment + 1):
                    next(stream)
            thread = threading.Thread(target=getattr(stream, how))
            thread.start()
            if how == "stop":
                assert stream.result.finish_reason == "cancelled"
            else:
                with pytest.raises(edgellm.Cancelled):
                    _ = stream.result
            thread.join()
            assert model.generate(LONG, max_tokens=5, **GREEDY).token_ids == right
            np.testing.assert_array_equal(model.logits(LONG[:70]), rows)


# ---- closing, and what callbacks raise ------------------------------------------------------------------------------


def test_a_closed_model_says_so_everywhere(path):
    model = edgellm.load(path)
    session = model.session()
    session.send("hello", max_tokens=2)
    running = model.generate("hello", stream=True, overflow="sink", **GREEDY)
    next(running)
    errors: list[BaseException] = []

    def waits():
        try:
            model.generate("hello", max_tokens=2)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=waits) for _ in range(4)]
    for thread in threads:
        thread.start()
    model.close()
    for thread in threads:
        thread.join(PATIENCE)
    assert [type(error) for error in errors] == [edgellm.ModelClosedError] * 4
    uses = [
        lambda: running.result, lambda: model.generate("x"), lambda: model.generate("x", stream=True),
        lambda: model.chat(HELLO), lambda: model.logits([1]), lambda: model.session(), model.__enter__,
        lambda: session.send("x"), session.undo, session.clear, session.fork, lambda: session.save("x"),
        lambda: model.agenerate("x"), lambda: model.achat(HELLO), lambda: edgellm.Session.load(model, "x"),
    ]  # fmt: skip
    for use in uses:
        with pytest.raises(edgellm.ModelClosedError):
            use()
    session.close()
    model.close()
    assert session.closed and model.closed


@pytest.mark.parametrize("error", [edgellm.Cancelled, ValueError])
def test_a_call_that_failed_holds_nothing(path, error):
    """What was raised leads to the frames that waited, and these to the stream: all of it can be collected."""
    with edgellm.load(path) as model:

        def fails():
            stream = model.generate("hello", stream=True, on_token=lambda e: int("x") if error is ValueError else None,
                                    max_tokens=200, **GREEDY)  # fmt: skip
            if error is edgellm.Cancelled:
                stream.cancel()
            with pytest.raises(error):
                _ = stream.result
            return weakref.ref(stream), weakref.ref(stream._job)

        held = [fails() for _ in range(3)]
        model.generate("hello", max_tokens=1)
        gc.collect()
        assert [ref() for pair in held for ref in pair] == [None] * 6


class Oops(Exception):
    pass


def raises(*args):
    raise Oops("from a callback")


@pytest.mark.parametrize("option", ["on_token", "on_prefill", "dispatch"])  # on_done: tests/test_calls.py
def test_what_a_callback_raises_reaches_the_caller(path, option):
    options = {option: raises} | ({"on_token": print} if option == "dispatch" else {})
    with edgellm.load(path) as model:
        right = model.generate("hello", max_tokens=4, **GREEDY).token_ids
        session = model.session()
        for call in (
            lambda: model.generate("hello", max_tokens=4, **options, **GREEDY),
            lambda: list(model.generate("hello", max_tokens=4, stream=True, **options, **GREEDY)),
            lambda: model.chat(HELLO, max_tokens=4, **options, **GREEDY),
            lambda: session.send("hello", max_tokens=4, **options),
        ):
            with pytest.raises(Oops, match="from a callback"):
                call()
        assert not session.messages
        assert model.generate("hello", max_tokens=4, **GREEDY).token_ids == right


def test_what_progress_raises_reaches_the_caller(path):
    with pytest.raises(Oops):
        edgellm.load(path, progress=raises)


@pytest.mark.parametrize(
    "end", ["", "sys.exit(0)", "del model; gc.collect()", "del model, stream; gc.collect()", "model.close()"]
)
def test_the_end_in_the_middle_of_a_call_is_quiet(path, end):
    code = (
        "import gc, sys, edgellm\n"
        "model = edgellm.load(sys.argv[1], overflow='sink')\n"
        "stream = model.generate('hello', stream=True, ignore_eos=True)\n"
        "waiting = model.generate('hello', stream=True, ignore_eos=True)\n"
        "talk = model.session()\n"
        "next(stream)\n" + end
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
