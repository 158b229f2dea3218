"""The native backend: same bits whatever the threads, fusing, packing and width; one call per pass; honest errors."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_llama_gguf

from edgellm import blocks, clib
from edgellm.backends.lowering import lower
from edgellm.cache import PagePool, Sequence
from edgellm.errors import Cancelled, InvalidArgumentError, NonFiniteError
from edgellm.gguf import open_gguf
from edgellm.models import build_plan, read_config
from edgellm.weights import Weights

pytestmark = pytest.mark.skipif(not clib.available(), reason="the compiled library was not built")
if clib.available():
    from edgellm.backends.native import NativeBackend
from edgellm.backends.reference import ReferenceBackend  # noqa: E402

TYPES = [block.name for block in blocks.ALL]
BLOCKS_OF_256 = [block.name for block in blocks.ALL if block.block_size == 256]


@contextmanager
def opened(path: Path) -> Iterator[tuple]:
    """(plan, weights) of a model file."""
    with open_gguf(path) as file:
        plan = build_plan(read_config(file), file)
        yield plan, Weights(file, plan)


def run(backend, plan, ids, *, kv_type="f32", chunk=None, n_ctx=2048) -> np.ndarray:
    """Logits (n, n_vocab) of all positions, in passes of `chunk` tokens."""
    pool = PagePool.for_tokens(plan.kv, kv_type, n_ctx)
    chunk = chunk or len(ids)
    out = []
    with Sequence(pool, n_ctx) as seq:
        for start in range(0, len(ids), chunk):
            part = np.asarray(ids[start : start + chunk], dtype=np.int32)
            seq.ensure(start + part.size)
            out.append(backend.forward(part, start, np.arange(part.size, dtype=np.int32), seq).copy())
            seq.commit(start + part.size)
    return np.concatenate(out)


def nmse(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sum((a - b) ** 2, dtype=np.float64) / np.sum(b.astype(np.float64) ** 2))


def some_ids(n: int, n_vocab: int) -> list[int]:
    return np.random.default_rng(5).integers(3, n_vocab, n).tolist()


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("tied", [False, True])
def test_close_to_reference(tmp_path: Path, kind: str, tied: bool) -> None:
    sizes = {"dim": 256, "ffn": 256} if kind in BLOCKS_OF_256 else {"dim": 64, "ffn": 96}
    path = tiny_llama_gguf(tmp_path / "m.gguf", type=kind, tied=tied, biases=True, **sizes)
    with opened(path) as (plan, weights):
        native, reference = NativeBackend(plan, weights, n_threads=2), ReferenceBackend(plan, weights)
        ids = some_ids(40, plan.n_vocab)
        error = nmse(run(native, plan, ids), run(reference, plan, ids))
        native.close()
        assert error <= (1e-11 if kind in ("F32", "F16", "BF16") else 3e-3)


@pytest.mark.parametrize("kind", ["F32", "Q4_0", "Q8_0", "Q5_1", "Q2_K", "Q4_K", "Q5_K", "Q6_K"])
@pytest.mark.parametrize("kv_type", ["f32", "f16", "q8_0", "q8_0:q4_0"])
def test_same_bits_for_threads_batches_panels_and_fusing(tmp_path: Path, kind: str, kv_type: str) -> None:
    sizes = {"dim": 256, "n_heads": 8, "ffn": 512} if kind in BLOCKS_OF_256 else {"dim": 96, "n_heads": 6, "ffn": 160}
    path = tiny_llama_gguf(tmp_path / "m.gguf", type=kind, n_kv_heads=2, n_ctx=2048, **sizes)
    with opened(path) as (plan, weights):
        ids = some_ids(150, plan.n_vocab)
        first = NativeBackend(plan, weights, n_threads=1)
        want = run(first, plan, ids, kv_type=kv_type)
        assert np.array_equal(want, run(first, plan, ids, kv_type=kv_type, chunk=1)), "batch width"
        assert np.array_equal(want, run(first, plan, ids, kv_type=kv_type, chunk=7)), "batch width"
        first.close()
        for options in ({"n_threads": 2}, {"n_threads": 4}, {"n_threads": 3, "pack": False}):
            other = NativeBackend(plan, weights, **options)
            assert np.array_equal(want, run(other, plan, ids, kv_type=kv_type, chunk=33)), options
            other.close()


def test_long_context_splits_are_merged_in_order(tmp_path: Path) -> None:
    """Beyond 512 positions decode cuts attention into splits for the threads; prefill does not: same bits."""
    path = tiny_llama_gguf(tmp_path / "m.gguf", n_layers=1, n_ctx=2048)
    with opened(path) as (plan, weights):
        ids = some_ids(1200, plan.n_vocab)
        one, four = NativeBackend(plan, weights, n_threads=1), NativeBackend(plan, weights, n_threads=4)
        pools = [PagePool.for_tokens(plan.kv, "f16", 2048) for _ in range(2)]
        sequences = [Sequence(p, 2048) for p in pools]
        last = np.zeros(1, dtype=np.int32)
        results = []
        for backend, seq in zip((one, four), sequences, strict=True):
            for start in range(0, 1190, 119):
                seq.ensure(start + 119)
                part = np.asarray(ids[start : start + 119], dtype=np.int32)
                backend.forward(part, start, last[:0], seq)
                seq.commit(start + 119)
            tail = []
            for p in range(1190, 1200):
                seq.ensure(p + 1)
                tail.append(backend.forward(np.asarray(ids[p : p + 1], np.int32), p, last, seq).copy())
                seq.commit(p + 1)
            results.append(np.concatenate(tail))
        whole = run(one, plan, ids, kv_type="f16", chunk=400)[1190:]
        assert np.array_equal(results[0], results[1])
        assert np.array_equal(results[0], whole)


def test_one_call_per_pass_and_every_worker_works(tmp_path: Path) -> None:
    path = tiny_llama_gguf(tmp_path / "m.gguf", type="Q4_0", dim=256, n_heads=8, n_kv_heads=4, ffn=1024)
    with opened(path) as (plan, weights):
        backend = NativeBackend(plan, weights, n_threads=3)
        before = clib.pool_chunks() + [0] * 3
        ids = some_ids(64, plan.n_vocab)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:  # on a busy machine a helper starts late, and may be put aside for a while
            run(backend, plan, ids)
            after = clib.pool_chunks() + [0] * 3
            if all(after[i] > before[i] for i in range(3)):
                break
        assert all(after[i] > before[i] for i in range(3))
        calls = backend.calls
        run(backend, plan, ids[:9], chunk=1)
        assert backend.calls == calls + 9


def test_lowering_fuses_a_llama_layer(tmp_path: Path) -> None:
    with opened(tiny_llama_gguf(tmp_path / "m.gguf", n_layers=3)) as (plan, _):
        steps = lower(plan)
        per_layer = [s.op for s in steps if s.label.startswith("blk.1.")]
        want = ["rmsnorm", "linear", "rope", "attention", "linear", "rmsnorm", "linear_gated", "linear"]
        assert per_layer == want
        assert [len(s.weights) for s in steps if s.op == "linear" and s.label.startswith("blk.1.")] == [3, 1, 1]
        assert [s.last for s in steps] == sorted({s.last for s in steps}) and steps[-1].last == len(plan.steps) - 1
        assert len(lower(plan, fuse=False)) == len(plan.steps)


def test_step_by_step_equals_the_fused_pass(tmp_path: Path) -> None:
    with opened(tiny_llama_gguf(tmp_path / "m.gguf", type="Q8_0", biases=True)) as (plan, weights):
        backend = NativeBackend(plan, weights, n_threads=2)
        ids = some_ids(20, plan.n_vocab)
        want = run(backend, plan, ids)
        with Sequence(PagePool.for_tokens(plan.kv, "f32", 64), 64) as seq:
            seq.ensure(len(ids))
            backend.begin(np.asarray(ids, np.int32), 0, np.arange(len(ids), dtype=np.int32), seq)
            for i in range(len(plan.steps)):
                backend.run_step(i)
            assert np.array_equal(want, backend.read(plan.logits))


def test_compare_finds_no_difference_to_the_reference(tmp_path: Path) -> None:
    from edgellm.backends.compare import compare

    with opened(tiny_llama_gguf(tmp_path / "m.gguf")) as (plan, weights):
        assert compare(plan, weights, some_ids(12, plan.n_vocab), a="reference", b="native") is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_names_the_first_bad_step(tmp_path: Path, bad: float) -> None:
    path = tiny_llama_gguf(tmp_path / "m.gguf")
    with open_gguf(path) as file:
        offset = file.tensors["blk.1.attn_output.weight"].offset
    with open(path, "r+b") as f:
        f.seek(offset)
        f.write(np.float32(bad).tobytes())
    with opened(path) as (plan, weights):
        backend = NativeBackend(plan, weights, n_threads=2)
        with pytest.raises(NonFiniteError) as e:
            run(backend, plan, some_ids(5, plan.n_vocab))
        assert "blk.1.attn_output" in str(e.value)


def test_cancel_stops_a_prefill_soon_and_the_next_pass_is_right(tmp_path: Path) -> None:
    size = {"dim": 512, "n_heads": 8, "n_kv_heads": 8, "ffn": 2048, "n_layers": 8, "n_ctx": 1024}
    path = tiny_llama_gguf(tmp_path / "m.gguf", type="Q8_0", **size)
    with opened(path) as (plan, weights):
        backend = NativeBackend(plan, weights, n_threads=2)
        ids = np.asarray(some_ids(512, plan.n_vocab), np.int32)
        want = run(backend, plan, ids[:20])
        cancel = np.zeros(1, dtype=np.int32)
        with Sequence(PagePool.for_tokens(plan.kv, "f32", 1024), 1024) as seq:
            seq.ensure(512)
            timer = threading.Timer(0.02, lambda: cancel.__setitem__(0, 1))
            timer.start()
            started = time.perf_counter()
            with pytest.raises(Cancelled):
                for _ in range(1000):  # until the flag is seen, however fast the machine
                    backend.forward(ids, 0, np.arange(512, dtype=np.int32), seq, cancel)
            assert time.perf_counter() - started < 5
        assert np.array_equal(want, run(backend, plan, ids[:20]))


def test_passes_of_two_models_from_two_threads(tmp_path: Path) -> None:
    paths = [tiny_llama_gguf(tmp_path / f"{k}.gguf", type=k, seed=i) for i, k in enumerate(("Q4_0", "F32"))]
    with opened(paths[0]) as (plan_a, weights_a), opened(paths[1]) as (plan_b, weights_b):
        # of different widths: helpers of the wide one may meet chunks of the narrow one
        sizes = ((plan_a, weights_a, 4), (plan_b, weights_b, 2))
        models = [(NativeBackend(p, w, n_threads=n), p) for p, w, n in sizes]
        ids = some_ids(30, plan_a.n_vocab)
        want = [run(b, p, ids) for b, p in models]
        wrong: list[int] = []

        def repeat(i: int) -> None:
            for _ in range(30):
                if not np.array_equal(want[i], run(*models[i], ids, chunk=5)):
                    wrong.append(i)

        threads = [threading.Thread(target=repeat, args=(i,)) for i in range(2)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(60)
        assert not wrong and not any(t.is_alive() for t in threads)


def test_arguments_are_checked(tmp_path: Path) -> None:
    with opened(tiny_llama_gguf(tmp_path / "m.gguf")) as (plan, weights):
        backend = NativeBackend(plan, weights, max_tokens=8)
        with Sequence(PagePool.for_tokens(plan.kv, "f32", 64), 64) as seq:
            seq.ensure(8)
            one = np.zeros(1, np.int32)
            for tokens, position, outputs in (
                (one + plan.n_vocab, 0, one),
                (one - 1, 0, one),
                (np.zeros(9, np.int32), 0, one),
                (one, 64, one),
                (one, -1, one),
                (one, 0, one + 1),
            ):
                with pytest.raises(InvalidArgumentError):
                    backend.forward(tokens, position, outputs, seq)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_the_child_of_a_fork_makes_its_own_pool(tmp_path: Path) -> None:
    with opened(tiny_llama_gguf(tmp_path / "m.gguf", type="Q8_0")) as (plan, weights):
        backend = NativeBackend(plan, weights, n_threads=3)
        ids = some_ids(30, plan.n_vocab)
        want = run(backend, plan, ids)
        child = os.fork()
        if child == 0:
            os._exit(0 if np.array_equal(want, run(backend, plan, ids)) else 1)
        deadline = time.monotonic() + 30
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done or time.monotonic() > deadline:
                break
            time.sleep(0.01)
        if not done:
            os.kill(child, 9)
            os.waitpid(child, 0)
        assert done and os.waitstatus_to_exitcode(status) == 0
        assert np.array_equal(want, run(backend, plan, ids)), "the parent goes on"
