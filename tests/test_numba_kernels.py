"""The Numba kernels one by one: exact against NumPy, and the machinery around them (cache, threads)."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numba
import numpy as np
import pytest

from edgellm import blocks
from edgellm.backends.numba_kernels import attention, jit, linear, pool, vector
from edgellm.backends.numba_kernels.intrinsics import at, f16_to_f32, f32_to_f16, put
from edgellm.backends.numba_kernels.jit import INT, Kernel, f32s, kernel, u16s
from edgellm.backends.numba_kernels.pages import views
from edgellm.blocks import ALL, BlockType
from edgellm.cache import KV_TYPES, PagePool
from edgellm.plan import KVShape
from edgellm.quants import dequantize, quantize

NONE, GO = np.empty(0, np.float32), np.zeros(1, np.int32)


@kernel(u16s, f32s, INT)
def halves_to_floats(x, y, n):
    for i in range(n):
        put(y, i, f16_to_f32(at(x, i)))


@kernel(f32s, u16s, INT)
def floats_to_halves(x, y, n):
    for i in range(n):
        put(y, i, f32_to_f16(at(x, i)))


@kernel(f32s, f32s, INT)
def exps(x, y, n):
    for i in range(n):
        put(y, i, vector.exp32(at(x, i)))


# ---- numbers ---------------------------------------------------------------------------------------------------------


def test_every_half_float_is_read_exactly() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    got = np.empty(bits.size, np.float32)
    halves_to_floats(bits, got, bits.size)
    wanted = bits.view(np.float16).astype(np.float32)
    nan = np.isnan(wanted)
    assert np.array_equal(got[~nan].view(np.uint32), wanted[~nan].view(np.uint32))
    assert np.isnan(got[nan]).all()


def test_floats_round_to_halves_as_numpy_does() -> None:
    rng = np.random.default_rng(0)
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middles = (halves[:-1].astype(np.float64) + halves[1:]) / 2  # ties, exact in float32
    near = [np.nextafter(middles.astype(np.float32), np.float32(s), dtype=np.float32) for s in (0, np.inf)]
    special = np.array([0, -0.0, np.inf, -np.inf, 65504, 65519.996, 65520, 1e30, 1e-30, 5.96e-8, 2.98e-8], np.float32)
    values = [halves, middles.astype(np.float32), *near, special, rng.standard_normal(1000).astype(np.float32)]
    x = np.concatenate([*values, *(-v for v in values)])
    got = np.empty(x.size, np.uint16)
    floats_to_halves(x, got, x.size)
    with np.errstate(over="ignore"):
        assert np.array_equal(got, x.astype(np.float16).view(np.uint16))
    floats_to_halves(np.array([np.nan], np.float32), got, 1)
    assert np.isnan(got[:1].view(np.float16)[0])


def test_exp() -> None:
    x = np.linspace(-110, 95, 200_001, dtype=np.float32)
    y = np.empty_like(x)
    exps(x, y, x.size)
    with np.errstate(over="ignore"):
        wanted = np.exp(x.astype(np.float64))
    normal = (wanted > 1.2e-38) & (wanted < 3.4e38)
    assert np.max(np.abs(y[normal] / wanted[normal] - 1)) < 3e-7
    assert (y[wanted > 3.5e38] == np.inf).all() and (y[wanted < 7e-46] == 0).all()
    special = np.array([np.nan, np.inf, -np.inf, 0], np.float32)
    exps(special, y, 4)
    assert np.isnan(y[0]) and list(y[1:4]) == [np.inf, 0, 1]


# ---- matrices --------------------------------------------------------------------------------------------------------


def quantised(x: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Columns x (n, k) as int8 (n, k), scales (n, k / group), sums (n, k / 32 or / 16): the definition, in NumPy."""
    groups = x.reshape(-1, group)
    top = np.abs(groups).max(axis=1, keepdims=True)  # (groups, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(top > 0, np.float32(127) / top, np.float32(0))
    q = np.rint(groups * inverse).astype(np.int8)
    return q, (top / np.float32(127))[:, 0], q.reshape(-1, 32 if group == 32 else 16).sum(axis=1, dtype=np.int32)


@pytest.mark.parametrize(("kernel", "group"), [(linear.quantize_q8_32, 32), (linear.quantize_q8_256, 256)])
def test_activations_are_rounded_as_defined(kernel: Kernel, group: int) -> None:
    x = np.random.default_rng(1).standard_normal((3, 512)).astype(np.float32)
    x[0, :group] = 0
    q, d, s = np.empty(x.size, np.int8), np.empty(x.size // group, np.float32), np.empty(x.size // 16, np.int32)
    kernel(x.reshape(-1), 0, 3, 512, q, d, s)
    wanted = quantised(x, group)
    assert np.array_equal(q, wanted[0].reshape(-1)) and np.array_equal(d, wanted[1])
    assert np.array_equal(s[: wanted[2].size], wanted[2])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_activations_that_are_not_finite_stay_visible(bad: float) -> None:
    x = np.ones(64, np.float32)
    x[5] = bad
    q, d, s = np.empty(64, np.int8), np.empty(2, np.float32), np.empty(2, np.int32)
    linear.quantize_q8_32(x, 0, 1, 64, q, d, s)
    assert not np.isfinite(d[0]) and np.isfinite(d[1])


@pytest.mark.parametrize("type", [t for t in ALL if t.id in linear.LINEAR], ids=lambda t: t.name)
@pytest.mark.parametrize("n_cols", [1, 5])
def test_linear(type: BlockType, n_cols: int) -> None:
    """Against float64 on the decoded weights and the rounded activations: what is left is float32 addition."""
    rng = np.random.default_rng(2)
    rows, k, first, last = 37, 768 if type.block_size > 1 else 83, 5, 30
    w = quantize(rng.standard_normal((rows, k), dtype=np.float32), type).reshape(-1)
    w.flags.writeable = False  # as a mapped file is
    x = rng.standard_normal((n_cols, k), dtype=np.float32)
    bias, residual = rng.standard_normal(rows, dtype=np.float32), rng.standard_normal(n_cols * rows, dtype=np.float32)
    inputs, seen = (x.reshape(-1),), x.astype(np.float64)
    if type.activation != "f32":
        group = 32 if type.activation == "q8_32" else 256
        q, d, s = quantised(x, group)
        inputs, seen = (q.reshape(-1), d, s), (q * d[:, None].astype(np.float64)).reshape(n_cols, k)
    y = np.zeros(n_cols * rows, np.float32)
    linear.LINEAR[type.id](w, k, first, last, *inputs, n_cols, bias, residual, y, rows, GO)
    y = y.reshape(n_cols, rows)
    wanted = seen @ dequantize(w, type, (rows, k)).T.astype(np.float64) + bias + residual.reshape(n_cols, rows)
    wanted[:, :first], wanted[:, last:] = 0, 0  # other rows are not touched
    assert np.abs(y - wanted).max() < 1e-4
    assert np.sum((y - wanted) ** 2) < 1e-12 * np.sum(wanted**2)


def test_extreme_codes() -> None:
    """The largest integers that a block can sum to, in the widest format: nothing wraps."""
    type = blocks.Q6_K
    block = np.zeros(16, type.dtype)
    block["scales"], block["d"], block["ql"], block["qh"] = -128, 1, 0, 0  # codes -32: each product is 4096
    q, d, s = np.full(256, 127, np.int8), np.ones(1, np.float32), np.full(16, 16 * 127, np.int32)
    y = np.zeros(16, np.float32)
    linear.LINEAR[type.id](block.view(np.uint8), 256, 0, 16, q, d, s, 1, NONE, NONE, y, 16, GO)
    assert (y == 4096 * 127 * 256).all()


# ---- the cache of machine code ---------------------------------------------------------------------------------------


def double(x, y, n):
    for i in range(n):
        y[i] = x[i] * 2


_signature = numba.types.void(f32s, f32s, INT)


def doubles(k: Kernel) -> bool:
    x, y = np.arange(3, dtype=np.float32), np.zeros(3, np.float32)
    k(x, y, 3)
    return list(y) == [0, 2, 4]


def test_cache_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    assert doubles(Kernel(double, _signature))
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert any("double" in p.name for p in files)
    again = Kernel(double, _signature)
    assert doubles(again) and sum(again._compiled.stats.cache_hits.values()) == 1


def test_a_damaged_cache_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    assert doubles(Kernel(double, _signature))
    for p in tmp_path.rglob("*.nb?"):
        p.write_bytes(b"damaged")
    assert doubles(Kernel(double, _signature))
    again = Kernel(double, _signature)
    assert doubles(again) and sum(again._compiled.stats.cache_hits.values()) == 1


def test_code_of_other_sources_is_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upgrade of the package: any file that kernels are made of has changed."""
    source = tmp_path / "source.py"
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(jit, "_SOURCES", (source,))
    hits = []
    for text in ("a = 1", "a = 1", "a = 2"):
        source.write_text(text)
        jit._stamp.cache_clear()
        k = Kernel(double, _signature)
        assert doubles(k)
        hits.append(sum(k._compiled.stats.cache_hits.values()))
    jit._stamp.cache_clear()
    assert hits == [0, 1, 0]


@pytest.mark.parametrize("change", ["CPU_NAME", "version"])
def test_code_for_another_processor_or_numba_is_stale(monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    jit._stamp.cache_clear()
    before = jit._stamp()
    if change == "version":
        monkeypatch.setattr(numba, "__version__", "0.0")
    else:
        codegen = numba.core.registry.cpu_target.target_context.codegen()
        monkeypatch.setattr(type(codegen), "magic_tuple", lambda self: ("triple", "another", "+features"))
    jit._stamp.cache_clear()
    assert jit._stamp() != before
    jit._stamp.cache_clear()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """The test has to log exactly one line, about the cache."""
    monkeypatch.setattr(jit, "_told", set())
    monkeypatch.setattr(jit, "_cache_failed", False)
    yield
    lines = [r.getMessage() for r in caplog.get_records("call") if r.name == "edgellm"]
    assert len(lines) == 1 and "NUMBA_CACHE_DIR" in lines[0]


@pytest.mark.usefixtures("told")
def test_no_folder_for_the_cache() -> None:
    """Code without a file beside which a cache could lie, as in a frozen application."""
    names: dict = {}
    exec("def double(x, y, n):\n    for i in range(n):\n        y[i] = x[i] * 2\n", names)
    for _ in range(2):
        assert doubles(Kernel(names["double"], _signature))


@pytest.mark.usefixtures("told")
def test_no_home_for_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert doubles(Kernel(double, _signature))
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("told")
def test_a_full_disk_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    tried = []

    def full(*args: object) -> None:
        tried.append(args)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(numba.core.caching.IndexDataCacheFile, "save", full)
    for _ in range(2):
        assert doubles(Kernel(double, _signature))
    assert len(tried) == 1, "it is not compiled twice each time"


def test_a_folder_that_cannot_be_written_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(numba.core.caching.InTreeCacheLocator, "from_function", classmethod(lambda *args: None))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert doubles(Kernel(double, _signature))
    assert list((tmp_path / "user").rglob("*double-*.nbi")), "the user's cache folder took it"


def test_one_compilation_for_all_threads() -> None:
    k = Kernel(double, _signature)
    got = []
    threads = [threading.Thread(target=lambda: got.append(k.compile())) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(got) == 4 and len(set(map(id, got))) == 1


# ---- threads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_threads", [1, 2, 4])
@pytest.mark.parametrize("n_chunks", [0, 1, 2, 97])
def test_each_chunk_runs_once(n_threads: int, n_chunks: int) -> None:
    for _ in range(20):
        seen: list[int] = []
        pool.run(seen.append, n_chunks, n_threads)
        assert sorted(seen) == list(range(n_chunks))


def test_an_exception_reaches_the_caller_and_drops_the_rest() -> None:
    seen: list[int] = []

    def work(chunk: int) -> None:
        seen.append(chunk)
        if chunk == 3:
            raise ValueError("three")

    for n_threads in (1, 3):
        seen.clear()
        with pytest.raises(ValueError, match="three"):
            pool.run(work, 10_000, n_threads)
        assert len(seen) < 10_000
        done: list[int] = []
        pool.run(done.append, 50, n_threads)
        assert sorted(done) == list(range(50)), "the pool goes on working"


def test_ctrl_c_waits_for_helpers_and_leaves_the_pool_whole() -> None:
    """KeyboardInterrupt in the caller while a helper is inside a chunk: it is raised after that chunk has ended."""
    inside, ended = threading.Event(), threading.Event()
    caller = threading.current_thread()

    def work(chunk: int) -> None:
        if threading.current_thread() is caller:
            assert inside.wait(10)
            threading.Timer(0.05, ended.set).start()
            raise KeyboardInterrupt
        inside.set()
        assert ended.wait(10)

    with pytest.raises(KeyboardInterrupt):
        pool.run(work, 100, 2)
    assert ended.is_set()
    done: list[int] = []
    pool.run(done.append, 50, 2)
    assert sorted(done) == list(range(50))


def test_jobs_inside_jobs() -> None:
    total = []
    pool.run(lambda a: pool.run(lambda b: total.append((a, b)), 5, 3), 5, 3)
    assert sorted(total) == [(a, b) for a in range(5) for b in range(5)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_has_threads_of_its_own() -> None:
    pool.run(lambda c: None, 10, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        seen: list[int] = []
        pool.run(seen.append, 100, 3)
        os._exit(0 if sorted(seen) == list(range(100)) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("kv_type", list(KV_TYPES))
@pytest.mark.parametrize("dim", [2, 14, 16, 48, 90])
def test_stored_bytes_are_those_of_the_definition(kv_type: str, dim: int) -> None:
    heads, n, rng = 2, 70, np.random.default_rng(dim)
    wanted, got = (PagePool(KVShape(1, heads, dim), kv_type, 2) for _ in range(2))
    for page_pool in (wanted, got):
        assert page_pool.allocate(2) == [0, 1]
    k = rng.standard_normal((n, heads, dim)).astype(np.float32)
    v = rng.standard_t(3, (n, heads, dim)).astype(np.float32)
    k[3], v[4], v[5] = 0, v[4] * 1e-9, v[5] * 1e4
    for token in range(n):
        for head in range(heads):
            wanted.store(token // 64, head, token % 64, k[token, head], v[token, head])
    place = np.array([0, 2, 0, 0, 0], np.int64)
    table = np.array([0, 1], np.int32)
    store = attention.kernels(kv_type, kv_type)[0]
    store(k.reshape(-1), v.reshape(-1), *views(got), table, place, heads, dim, 0, n)
    assert np.array_equal(wanted.arena, got.arena)


def test_store_writes_only_its_own_lanes() -> None:
    """Tokens at positions 62 .. 65 of a cache whose blocks lie on pages 2 and 0."""
    heads, dim, size = 2, 3, 2 * 2 * 3 * 64
    arena, table = np.full(3 * size, 9, np.float32), np.array([2, 0], np.int32)
    place = np.array([0, 2, 0, 0, 0], np.int64)
    k, v = np.arange(4 * 6, dtype=np.float32), -np.arange(4 * 6, dtype=np.float32)
    store, half = attention.kernels("f32", "f32")[0], 4 * dim * 64
    cache = (arena.view(np.int8), arena.view(np.uint16), arena, 4 * size, half, 2 * half)
    store(k, v, *cache, table, place, heads, dim, 62, 4)
    pages = arena.reshape(3, heads, 2, dim * 64)
    for token, (page, lane) in enumerate([(2, 62), (2, 63), (0, 0), (0, 1)]):
        for head in range(heads):
            own = slice((token * heads + head) * dim, (token * heads + head + 1) * dim)
            assert np.array_equal(pages[page, head, 0].reshape(dim, 64)[:, lane], k[own])
            assert np.array_equal(pages[page, head, 1].reshape(64, dim)[lane], v[own])
    assert np.count_nonzero(arena == 9) >= arena.size - 2 * k.size - 2, "nothing else was written"
