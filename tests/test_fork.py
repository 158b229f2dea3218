"""fork while models work: the child answers as a fresh process would, and the parent notices nothing.

Each test runs a script in a process of its own; a child that hangs is ended after a while, and the test fails.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")

PRELUDE = """
import os, signal, sys, threading, time, traceback, warnings
import numpy as np
sys.path[:0] = ["tests", "."]
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on fork with threads: that is what this is about
import edgellm
from helpers import tiny_llama_gguf

folder, backend = sys.argv[1], sys.argv[2]
GREEDY = dict(temperature=0, ignore_eos=True)
LONG = [3 + i * 7 % 200 for i in range(900)]

def load(name="model.gguf", **options):
    path = os.path.join(folder, name)
    if not os.path.exists(path):
        tiny_llama_gguf(path, type="Q8_0", dim=256, ffn=512, n_layers=4, n_ctx=2048)
    return edgellm.load(path, backend=backend, threads=2, **options)

def answer(model, prompt="hello", n=8):
    return model.generate(prompt, max_tokens=n, **GREEDY).token_ids

def consistent(model, *sessions):
    # What the pool thinks is in use is what the tree and the sessions hold.
    pool, engine = model._loaded.pool, model._loaded.engine
    engine._sweep()
    held = [engine.tree.pages, *(s._place.seq.table for s in sessions if s._place.seq is not None)]
    held = np.concatenate([np.asarray(t).reshape(-1) for t in held])
    counts = np.bincount(held[held >= 0], minlength=pool.n_pages)
    assert (counts == pool.refs).all(), (counts.sum(), pool.refs.sum())
    assert engine.backup is None and not engine._undo

def child(work, leave=os._exit):
    # `work()` in a forked child; fails if that fails or takes too long.
    pid = os.fork()
    if pid == 0:
        signal.alarm(50)
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            leave(code)
    end = time.monotonic() + 60
    while (done := os.waitpid(pid, os.WNOHANG)) == (0, 0) and time.monotonic() < end:
        time.sleep(0.005)
    if done == (0, 0):
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        raise AssertionError("the child hangs")
    assert done[1] == 0, f"the child ended with {done[1]}"
"""


def check(folder: Path, script: str, backend: str = "native") -> None:
    if backend == "native":
        from edgellm import clib

        if not clib.available():
            backend = "numba"
    command = [sys.executable, "-c", PRELUDE + textwrap.dedent(script), str(folder), backend]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


IN_DECODE = """
with load() as model:
    right, long_answer = answer(model), answer(model, "once", 300)
    rows = model.logits([1, 2, 3])
    for at in (0, 3, 50):
        stream = model.generate("once", max_tokens=300, stream=True, **GREEDY)
        for _ in range(at):
            next(stream)
        waiting = model.generate("the", max_tokens=3, stream=True, **GREEDY)
        n_cancelled = []
        def work():
            for other, whole in ((stream, long_answer), (waiting, None)):  # the parent's: they end here
                list(other)
                try:
                    assert other.result.token_ids == (whole or other.result.token_ids)  # it had ended before
                except edgellm.Cancelled:
                    n_cancelled.append(1)
            assert n_cancelled or at == 50
            consistent(model)
            for _ in range(2):
                assert answer(model) == right
                assert (model.logits([1, 2, 3]) == rows).all()
            assert answer(model, "once", 300) == long_answer
            consistent(model)
            model.close()
            try:
                model.generate("hello")
            except edgellm.ModelClosedError:
                return
            raise AssertionError("open")
        child(work)
        assert stream.result.token_ids == long_answer
        assert len(waiting.result.token_ids) == 3
        consistent(model)
"""


@pytest.mark.parametrize("backend", ["native", "numba", "reference"])
def test_in_decode(tmp_path, backend):
    check(tmp_path, IN_DECODE.replace("300", "60" if backend != "native" else "300"), backend)


def test_in_prefill_at_any_moment(tmp_path):
    """Passes are not waited for, so most of these forks come in the middle of one."""
    check(
        tmp_path,
        """
        with load(exact=True) as model:
            right, long_answer = answer(model), answer(model, LONG, 2)
            rng = np.random.default_rng(0)
            n_running = 0
            for _ in range(12):
                model._worker.call(lambda job: model._loaded.engine.tree.clear())  # or there is nothing to do
                stream = model.generate(LONG, max_tokens=2, stream=True, **GREEDY)
                time.sleep(rng.uniform(0, 0.1))
                n_running += not stream._job.ended
                def work():
                    consistent(model)
                    assert answer(model) == right
                    assert answer(model, LONG, 2) == long_answer
                    consistent(model)
                child(work)
                assert stream.result.token_ids == long_answer
                consistent(model)
            assert n_running > 2
        """,
    )


def test_a_callback_forks(tmp_path):
    check(
        tmp_path,
        """
        with load() as model:
            right, forks = answer(model), []
            def fork(_):
                if len(forks) < 2:
                    forks.append(1)
                    def work():
                        assert answer(model) == right  # on a thread of the child
                    child(work)
            for options in (dict(on_prefill=fork), dict(on_token=fork)):
                forks.clear()
                assert model.generate("hello", max_tokens=8, **options, **GREEDY).token_ids == right
                assert len(forks) == 2
            consistent(model)
        """,
    )


def test_sessions(tmp_path):
    """The child asks the question that the parent is answering, and others."""
    check(
        tmp_path,
        """
        with load(n_ctx=1024) as model:
            talk, other = model.session(max_tokens=40, seed=5), model.session(max_tokens=40, seed=6)
            talk.send("hello"), other.send("once")
            twin, length = talk.fork(), len(talk.messages)
            right = twin.send("again", seed=9).token_ids
            consistent(model, talk, other, twin)
            stream = talk.send("again", seed=9, stream=True)
            next(stream)
            def work():
                consistent(model, talk, other, twin)
                assert len(talk.messages) == length
                assert talk.send("again", seed=9).token_ids == right
                talk.undo()
                assert talk.send("again", seed=9).token_ids == right
                other.send("and")
                consistent(model, talk, other, twin)
                talk.close()
                consistent(model, other, twin)
            child(work)
            assert stream.result.token_ids == right
            consistent(model, talk, other, twin)
        """,
    )


def test_in_load(tmp_path):
    """Another thread is loading: that load is the parent's, the child makes its own."""
    check(
        tmp_path,
        """
        with load() as model:
            right = answer(model)
            for at in range(3):
                reached, go_on, found = threading.Event(), threading.Event(), []
                def progress(p):
                    progress.n += 1
                    if progress.n == at:
                        reached.set()
                        go_on.wait(60)
                progress.n = 0
                def loading():
                    with load(progress=progress) as second:
                        found.append(answer(second))
                thread = threading.Thread(target=loading)
                thread.start()
                reached.wait(1)
                def work():
                    assert answer(model) == right
                    with load() as third:
                        assert answer(third) == right
                child(work)
                go_on.set()
                thread.join()
                assert found == [right]
        """,
    )


def test_children_exit_as_processes_do(tmp_path):
    """multiprocessing, and a child that leaves through the interpreter's end, with models open and a call running."""
    check(
        tmp_path,
        """
        import multiprocessing
        model, second = load(), load()
        right = answer(model)
        long_answer = answer(second, "once", 300)
        stream = second.generate("once", max_tokens=300, stream=True, **GREEDY)
        next(stream)
        def work():
            assert answer(model) == right and answer(second) == right
        process = multiprocessing.get_context("fork").Process(target=work)
        process.start()
        process.join(60)
        assert process.exitcode == 0
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map(str, range(4)) == list("0123")
        def pass_on():
            child(work)  # a child of a child
            work()
        child(pass_on)
        child(work, leave=sys.exit)
        assert stream.result.token_ids == long_answer
        """,
    )


def test_threads_that_fork_at_once(tmp_path):
    check(
        tmp_path,
        """
        with load() as model, load() as second:
            right = answer(model)
            assert answer(second) == right
            stop, errors = threading.Event(), []
            def busy(m):
                while not stop.is_set():
                    if answer(m) != right:
                        errors.append("busy")
            def fork():
                try:
                    for _ in range(3):
                        child(lambda: (answer(model) == right and answer(second) == right) or os._exit(3))
                except BaseException as error:
                    errors.append(error)
            workers = [threading.Thread(target=busy, args=(m,)) for m in (model, second)]
            forkers = [threading.Thread(target=fork) for _ in range(3)]
            for thread in workers + forkers:
                thread.start()
            for thread in forkers:
                thread.join()
            stop.set()
            for thread in workers:
                thread.join()
            assert not errors, errors
            consistent(model), consistent(second)
        """,
    )


def test_a_fork_that_could_not_wait(tmp_path):
    """The state was changing for longer than a fork waits: the child says so, the parent goes on."""
    check(
        tmp_path,
        """
        import edgellm.worker as worker
        worker._FORK_WAIT = 0.05
        with load() as model:
            right = answer(model)
            inside, leave = threading.Event(), threading.Event()
            job = model._worker.submit(lambda job: (inside.set(), leave.wait(60)))
            inside.wait()
            def work():
                try:
                    answer(model)
                except edgellm.BackendError as error:
                    assert "load the model again" in str(error)
                else:
                    raise AssertionError("it answers")
                with load() as again:
                    assert answer(again) == right
            child(work)
            leave.set()
            job.wait()
            assert answer(model) == right
        """,
    )
