"""The Numba backend: the native backend's bits, close to the reference; the same for any threads and passes."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_llama_gguf

from edgellm import clib
from edgellm.backends import create, numba_
from edgellm.backends.compare import compare, nmse
from edgellm.backends.numba_ import NumbaBackend
from edgellm.backends.numba_choice import kernels_of
from edgellm.backends.numba_kernels import linear
from edgellm.backends.numba_kernels.jit import Kernel
from edgellm.backends.numba_matrix import Matrix, linear_rows
from edgellm.blocks import BY_NAME
from edgellm.cache import PagePool, Sequence
from edgellm.errors import BackendError, Cancelled, InvalidArgumentError, NonFiniteError
from edgellm.gguf import open_gguf
from edgellm.models import build_plan, read_config
from edgellm.ops import Op
from edgellm.plan import Plan
from edgellm.quants import quantize
from edgellm.weights import Weights

TYPES = [name for name in BY_NAME if BY_NAME[name].id in linear.LINEAR]
FLOATS = ("F32", "F16", "BF16")


@contextmanager
def opened(path: Path) -> Iterator[tuple[Plan, Weights]]:
    with open_gguf(path) as file:
        plan = build_plan(read_config(file), file)
        yield plan, Weights(file, plan)


def tiny(tmp_path: Path, type: str = "F32", **options) -> Path:
    dim = 256 if BY_NAME[type].block_size == 256 else 96
    options = {"dim": dim, "n_heads": 4, "n_kv_heads": 2, "ffn": 256, "n_ctx": 2048, "biases": True} | options
    return tiny_llama_gguf(tmp_path / "m.gguf", type=type, **options)


def some_ids(n: int, n_vocab: int, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, n_vocab, n).astype(np.int32)


def run(backend, plan: Plan, ids: np.ndarray, *, kv_type: str = "f32", chunk: int = 512) -> np.ndarray:
    """Logits (n, n_vocab) of all positions, in passes of `chunk` tokens."""
    pages = PagePool.for_tokens(plan.kv, kv_type, len(ids))
    out = []
    with Sequence(pages, len(ids)) as seq:
        for start in range(0, len(ids), chunk):
            part = ids[start : start + chunk]
            seq.ensure(start + part.size)
            out.append(backend.forward(part, start, np.arange(part.size, dtype=np.int32), seq).copy())
            seq.commit(start + part.size)
    return np.concatenate(out)


def logits(name: str, plan: Plan, weights: Weights, ids: np.ndarray, n_threads: int = 1, **options) -> np.ndarray:
    backend = create(name, plan, weights, n_threads=n_threads)
    try:
        return run(backend, plan, ids, **options)
    finally:
        backend.close()


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models are worth no second thread; here any work is."""
    monkeypatch.setattr(numba_, "_CHUNK_WORK", 64)


# ---- the same answer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type", TYPES)
def test_close_to_the_reference(tmp_path: Path, type: str) -> None:
    with opened(tiny(tmp_path, type)) as (plan, weights):
        ids = some_ids(90, plan.n_vocab)
        error = nmse(logits("reference", plan, weights, ids), logits("numba", plan, weights, ids))
        assert error <= (1e-11 if type in FLOATS else 2e-3)


@pytest.mark.skipif(not clib.available(), reason="the compiled library was not built")
@pytest.mark.parametrize("type", TYPES)
def test_same_bits_as_native(tmp_path: Path, type: str) -> None:
    with opened(tiny(tmp_path, type, n_layers=1)) as (plan, weights):
        ids = some_ids(530, plan.n_vocab)  # more than one split of the cache
        for kv_type in ("f32", "f16", "q8_0", "q4_0"):
            wanted = logits("native", plan, weights, ids, kv_type=kv_type)
            assert np.array_equal(wanted, logits("numba", plan, weights, ids, kv_type=kv_type))


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("type", ["F16", "Q4_0", "Q6_K"])
def test_threads_and_passes_change_no_bit(tmp_path: Path, type: str) -> None:
    with opened(tiny(tmp_path, type)) as (plan, weights):
        ids = some_ids(100, plan.n_vocab)
        wanted = logits("numba", plan, weights, ids, kv_type="f16")
        for n_threads, chunk in ((1, 1), (2, 7), (2, 100), (4, 33)):
            assert np.array_equal(wanted, logits("numba", plan, weights, ids, n_threads, kv_type="f16", chunk=chunk))


@pytest.mark.parametrize("options", [{"dim": 72, "ffn": 100, "n_heads": 6, "n_kv_heads": 6}, {"head_dim": 40}])
def test_odd_sizes(tmp_path: Path, options: dict) -> None:
    with opened(tiny(tmp_path, "F16", **options)) as (plan, weights):
        ids = some_ids(20, plan.n_vocab)
        assert nmse(logits("reference", plan, weights, ids), logits("numba", plan, weights, ids, 2)) <= 1e-11


def changed(plan: Plan, op: Op, **params) -> Plan:
    """The plan with other parameters in all steps of one op; how rope turns, attention must know too."""
    ops = (op, Op.ATTENTION) if op is Op.ROPE else (op,)
    steps = [dataclasses.replace(s, params={**s.params, **params}) if s.op in ops else s for s in plan.steps]
    return dataclasses.replace(plan, steps=tuple(steps))


@pytest.mark.parametrize(
    ("op", "params"),
    [
        (Op.ATTENTION, {"window": 1}),
        (Op.ATTENTION, {"window": 70}),
        (Op.ATTENTION, {"window": 550}),
        (Op.GATED, {"activation": "gelu_tanh"}),
        (Op.ROPE, {"style": "halves"}),
    ],
)
def test_other_parameters(tmp_path: Path, op: Op, params: dict) -> None:
    with opened(tiny(tmp_path, n_layers=1)) as (plan, weights):
        plan = changed(plan, op, **params)
        ids = some_ids(1100, plan.n_vocab)
        wanted = logits("reference", plan, weights, ids)
        assert nmse(wanted, logits("numba", plan, weights, ids)) <= 1e-11
        assert nmse(wanted, logits("numba", plan, weights, ids, chunk=201)) <= 1e-11


def test_a_type_without_a_kernel_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tiny(tmp_path, "Q5_1")) as (plan, weights):
        ids = some_ids(40, plan.n_vocab)
        monkeypatch.delitem(linear.LINEAR, BY_NAME["Q5_1"].id)
        assert nmse(logits("reference", plan, weights, ids), logits("numba", plan, weights, ids)) <= 1e-11


def test_step_by_step(tmp_path: Path) -> None:
    with opened(tiny(tmp_path, "Q8_0")) as (plan, weights):
        assert compare(plan, weights, some_ids(20, plan.n_vocab), "reference", "numba") is None


@pytest.mark.parametrize("kind", ["f16", "Q8_0", "Q4_0", "Q6_K"])
def test_files_of_llama_cpp(shared_data: Path, kind: str) -> None:
    """Not further from the float answer than llama.cpp itself, within a tenth."""
    ids = np.load(shared_data / "hf-tiny" / "llama" / "reference.npz")["input_ids"].astype(np.int32)
    peer = np.load(shared_data / "gguf-foreign" / f"llama-{kind}.llamacpp.npz")["logits"]
    with opened(shared_data / "gguf-foreign" / f"llama-{kind}.gguf") as (plan, weights):
        exact = logits("reference", plan, weights, ids)
        assert nmse(exact, logits("numba", plan, weights, ids, 2)) <= 1.1 * nmse(exact, peer)


@pytest.mark.parametrize("type", ["F16", "Q4_0", "Q6_K"])
def test_prepare_names_all_kernels_that_a_pass_calls(
    tmp_path: Path, type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: set[str] = set()
    real = Kernel.__call__

    def spy(self: Kernel, *args: object) -> object:
        called.add(self.name)
        return real(self, *args)

    with opened(tiny(tmp_path, type)) as (plan, weights):
        backend = NumbaBackend(plan, weights)
        steps: list[tuple[int, int]] = []
        backend.prepare("f16", lambda done, total: steps.append((done, total)))
        kernels = kernels_of(backend._fused, backend._matrices, "f16")
        assert all(kernel.ready for kernel in kernels)
        assert steps == [(i, len(steps) - 1) for i in range(len(steps))]
        monkeypatch.setattr(Kernel, "__call__", spy)
        run(backend, plan, some_ids(20, plan.n_vocab), kv_type="f16", chunk=15)
        assert called == {kernel.name for kernel in kernels}


def test_matrices_of_a_few_rows(tmp_path: Path) -> None:
    """Kernels read 16 rows at a time; matrices may have fewer, parts of taller ones too."""
    rng = np.random.default_rng(7)
    kind = BY_NAME["Q8_0"]
    for rows, parts in ((8, 1), (5, 1), (10, 2), (60, 3)):
        w = rng.standard_normal((rows, 64), dtype=np.float32)
        data = quantize(w, kind).reshape(-1)
        whole = Matrix(kind, data, rows, 64)
        assert np.array_equal(whole.by_row.reshape(-1), data) and whole.data.size >= 16 * 68
        x = rng.standard_normal(64, dtype=np.float32)
        for i in range(parts):
            part = whole.part(i, parts)
            y = np.full(part.rows + 1, 9, np.float32)
            q, d, s = np.zeros(64, np.int8), np.zeros(2, np.float32), np.zeros(2, np.int32)
            linear.quantize_q8_32(x, 0, 1, 64, q, d, s)
            none = np.empty(0, np.float32)
            linear_rows(part, 0, part.rows, (q, d, s), (1, none, none, y, part.rows, np.zeros(1, np.int32)))
            wanted = w[i * part.rows : (i + 1) * part.rows] @ x
            assert np.allclose(y[:-1], wanted, atol=0.2) and y[-1] == 9


# ---- passes ----------------------------------------------------------------------------------------------------------


def test_weights_are_not_copied(tmp_path: Path) -> None:
    with opened(tiny(tmp_path, "Q4_0")) as (plan, weights):
        backend = NumbaBackend(plan, weights)
        names = [name for name in plan.weights if len(plan.weights[name]) == 2]
        assert all(np.shares_memory(backend._matrices[name].data, weights.data(name)) for name in names)
        backend.close()


def test_only_wanted_rows_come_back(tmp_path: Path) -> None:
    with opened(tiny(tmp_path, "Q8_0")) as (plan, weights):
        ids = some_ids(12, plan.n_vocab)
        whole = logits("numba", plan, weights, ids)
        backend = NumbaBackend(plan, weights)
        with Sequence(PagePool.for_tokens(plan.kv, "f32", 12), 12) as seq:
            seq.ensure(12)
            some = backend.forward(ids, 0, np.array([3, 11], np.int32), seq)
            assert np.array_equal(some, whole[[3, 11]])
            assert backend.forward(ids, 0, np.empty(0, np.int32), seq).shape == (0, plan.n_vocab)
            with pytest.raises(InvalidArgumentError, match="outside the vocabulary"):
                backend.forward(np.array([plan.n_vocab], np.int32), 0, np.array([0], np.int32), seq)


@pytest.mark.usefixtures("small_chunks")
def test_two_python_threads_at_once(tmp_path: Path) -> None:
    with opened(tiny(tmp_path, "Q4_0")) as (plan, weights):
        ids = [some_ids(60, plan.n_vocab, seed) for seed in range(2)]
        wanted = [logits("numba", plan, weights, i) for i in ids]
        got: list[list[np.ndarray]] = [[], []]
        start = threading.Barrier(2)

        def work(k: int) -> None:
            start.wait()
            for _ in range(5):
                got[k].append(logits("numba", plan, weights, ids[k], 3, chunk=13))

        threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for k in range(2):
            assert len(got[k]) == 5 and all(np.array_equal(g, wanted[k]) for g in got[k])


def test_cancel_stops_between_and_inside_steps(tmp_path: Path) -> None:
    with opened(tiny(tmp_path, "Q4_0")) as (plan, weights):
        backend = NumbaBackend(plan, weights)
        ids, flag = some_ids(8, plan.n_vocab), np.ones(1, np.int32)
        with Sequence(PagePool.for_tokens(plan.kv, "f32", 8), 8) as seq:
            seq.ensure(8)
            with pytest.raises(Cancelled):
                backend.forward(ids, 0, np.array([7], np.int32), seq, flag)
            flag[0] = 0
            assert np.isfinite(backend.forward(ids, 0, np.array([7], np.int32), seq, flag)).all()
    y, none = np.full(4, 7, np.float32), np.empty(0, np.float32)
    w, x = np.zeros(4 * 16 * 4, np.uint8), np.zeros(16, np.float32)
    flag[0] = 1
    linear.LINEAR[0](w, 16, 0, 4, x, 1, none, none, y, 4, flag)
    assert (y == 7).all(), "a kernel that finds the flag set leaves"


class _Spoiled:
    """Weights in which one value of one vector is replaced."""

    def __init__(self, weights: Weights, name: str, value: float) -> None:
        self._weights, self._name, self._value = weights, name, value

    def __getattr__(self, name: str):
        return getattr(self._weights, name)

    def float32(self, name: str) -> np.ndarray:
        values = self._weights.float32(name)
        if name == self._name:
            values[0] = self._value
        return values


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("type", ["F32", "Q4_0"])
def test_the_first_step_that_is_not_finite_is_named(tmp_path: Path, type: str, value: float) -> None:
    with opened(tiny(tmp_path, type)) as (plan, weights):
        backend = NumbaBackend(plan, _Spoiled(weights, "blk.1.ffn_norm.weight", value))
        with pytest.raises(NonFiniteError) as caught:
            run(backend, plan, some_ids(5, plan.n_vocab))
        assert caught.value.step == "blk.1.ffn_norm"


def test_a_closed_backend_says_so(tmp_path: Path) -> None:
    with opened(tiny(tmp_path)) as (plan, weights):
        backend = NumbaBackend(plan, weights)
        backend.close()
        backend.close()
        with pytest.raises(BackendError, match="closed"):
            run(backend, plan, some_ids(3, plan.n_vocab))


def test_stories_text(shared_data: Path, tmp_path: Path) -> None:
    convert = pytest.importorskip("edgellm.convert")
    import edgellm

    folder = shared_data / "stories260K"
    target = tmp_path / "s.gguf"
    convert.convert(folder / "stories260K.bin", target, outtype="f32", tokenizer=folder / "tok512.bin")
    wanted = (folder / "greedy-200.txt").read_text()
    for threads in (1, 2):
        with edgellm.load(target, backend="numba", threads=threads) as model:
            text = model.generate("", max_tokens=200, sampling=edgellm.Sampling(temperature=0)).text
        assert text.strip() == wanted.strip()


def test_without_a_compiled_library_numba_runs_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(clib, "available", lambda: False)
    monkeypatch.setattr("edgellm.backends._told", set())
    with opened(tiny(tmp_path)) as (plan, weights):
        for _ in range(2):
            backend = create("auto", plan, weights)
            assert backend.name == "numba"
            backend.close()
    assert [r.getMessage() for r in caplog.records if r.name == "edgellm"] == [
        "no compiled library found: running the slower Numba backend (see `edgellm doctor`)"
    ]


def test_without_numba_either_the_reference_runs_and_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(clib, "available", lambda: False)
    monkeypatch.setattr("edgellm.backends._told", set())
    monkeypatch.setattr("edgellm.backends.sizes.find_spec", lambda name: None)
    with opened(tiny(tmp_path)) as (plan, weights):
        backend = create("auto", plan, weights)
        assert backend.name == "reference"
        backend.close()
    (line,) = [r.getMessage() for r in caplog.records if r.name == "edgellm"]
    assert "edgellm[numba]" in line and "slow" in line


def test_import_starts_no_thread_and_compiles_nothing() -> None:
    code = (
        "import threading, edgellm.backends.numba_ as n\n"
        "from edgellm.backends.numba_kernels import linear, vector\n"
        "assert threading.active_count() == 1\n"
        "assert all(k._compiled is None for k in [*linear.LINEAR.values(), vector.add, vector.rmsnorm])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_helpers_take_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two threads the chunks of a pass are seen by a second thread. (A helper may need a moment to start.)"""
    monkeypatch.setattr(numba_, "_CHUNK_WORK", 64)
    seen: set[str] = set()
    real = numba_.linear_rows

    def spy(*args) -> None:
        seen.add(threading.current_thread().name)
        real(*args)

    monkeypatch.setattr(numba_, "linear_rows", spy)
    with opened(tiny(tmp_path, "Q8_0", dim=256)) as (plan, weights):
        backend = NumbaBackend(plan, weights, n_threads=2)
        for _ in range(50):
            run(backend, plan, some_ids(64, plan.n_vocab))
            if len(seen) > 1:
                break
    assert len(seen) == 2
