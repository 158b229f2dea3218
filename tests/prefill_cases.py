"""Tests of passes through prefill kernels, for a library that has some: tests/emulated_tiles.py runs this file."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_llama_gguf
from test_native import nmse, opened, run, some_ids

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

from sparse_files import write_with_zeros

import edgellm
from edgellm import blocks, clib
from edgellm.backends.native import NativeBackend
from edgellm.backends.reference import ReferenceBackend

PANELS = ["Q4_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]
TYPES = [*PANELS, "F16", "BF16"]
FROM = 32  # columns from which on a prefill kernel serves


def product(kind: str, w: np.ndarray, x: np.ndarray, prefill: bool) -> tuple[np.ndarray, np.ndarray]:
    """(x @ w^T through the kernel, the same in float64 with the weights that the type holds); w (rows, k), x (n, k)."""
    ffi, lib = clib.library()
    block = {b.name: b for b in blocks.ALL}[kind]
    data = clib.quantize(w, block)
    rows, k = w.shape
    source, layout = ffi.from_buffer(data), 0
    if kind in PANELS:
        panels = np.zeros(lib.el_panel_bytes(block.id, rows, k) + 64, np.uint8)
        panels = panels[-panels.ctypes.data % 64 :]
        clib.check(lib.el_pack_panels(block.id, source, ffi.from_buffer(panels), rows, k, 0, rows), "packing")
        source, layout = ffi.from_buffer(panels), 1
    y = np.full((len(x), rows), np.nan, np.float32)
    call = lib.el_prefill_test if prefill else lib.el_linear_test
    given, target = ffi.from_buffer("float[]", x), ffi.from_buffer("float[]", y)
    clib.check(call(block.id, layout, source, rows, k, 0, rows, given, len(x), target, rows), kind)
    return y, x.astype(np.float64) @ clib.dequantize(data, block, w.shape).astype(np.float64).T


def llama_cpp_error(kind: str, x: np.ndarray, w: np.ndarray) -> float:
    """NMSE of llama.cpp's method for x (n, k) and weights that are exact: what it does to activations, then exact sums.

    Blocks of 32 (256) in int8 with a scale of max |x| / 127, rounded to f16 for blocks of 32; f16 and bf16 columns for
    weights of that type.
    """
    if kind == "F16":
        rounded = x.astype(np.float16).astype(np.float64)
    elif kind == "BF16":
        u = x.view(np.uint32)
        rounded = ((u + 0x7FFF + (u >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32).astype(np.float64)
    else:
        n = 32 if kind in ("Q4_0", "Q8_0") else 256
        parts = x.reshape(len(x), -1, n)
        d = np.abs(parts).max(axis=2, keepdims=True) / 127
        stored = d.astype(np.float16).astype(np.float64) if n == 32 else d
        rounded = (np.rint(parts / d) * stored).reshape(x.shape)
    return nmse(rounded @ w.T.astype(np.float64), x.astype(np.float64) @ w.T.astype(np.float64))


def test_the_level_is_there() -> None:
    assert clib.levels()["amx"] == "usable" and clib.isa() == "amx"
    served = {b.name for b in blocks.ALL if clib.prefill_level(b, panels=b.has_panel)}
    assert served == set(TYPES)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("outliers", [False, True])
def test_error_is_no_larger_than_that_of_llama_cpp(kind: str, outliers: bool) -> None:
    rng = np.random.default_rng(7)
    w = rng.normal(0, 0.02, (48, 1024)).astype(np.float32)
    x = rng.normal(0, 1, (33, 1024)).astype(np.float32)
    if outliers:  # a few channels that are 20 times as large, as language models have them
        x[:, rng.choice(1024, 12, replace=False)] *= 20
    got, exact = product(kind, w, x, prefill=True)
    peer = llama_cpp_error(kind, x, exact_weights(kind, w))
    assert nmse(got, exact) <= 1.1 * peer
    assert nmse(got, exact) <= (1e-5 if kind != "F16" else 1e-9)


def exact_weights(kind: str, w: np.ndarray) -> np.ndarray:
    block = {b.name: b for b in blocks.ALL}[kind]
    return clib.dequantize(clib.quantize(w, block), block, w.shape)


@pytest.mark.parametrize("kind", TYPES)
def test_odd_sizes(kind: str) -> None:
    """Rows and columns that are no multiple of 16, k = 32 mod 64, odd k; more than a block of k, rows and columns."""
    rng = np.random.default_rng(8)
    k = {"F16": 555, "BF16": 555, "Q4_0": 544, "Q8_0": 544}.get(kind, 768)
    for rows, n in [(1, 1), (17, 15), (271, 33)] + ([(16, 530)] if kind == "Q4_0" else []):
        w, x = rng.normal(0, 1, (rows, k)).astype(np.float32), rng.normal(0, 1, (n, k)).astype(np.float32)
        got, exact = product(kind, w, x, prefill=True)
        size = np.abs(x).astype(np.float64) @ np.abs(exact_weights(kind, w)).astype(np.float64).T
        assert np.all(np.abs(got - exact) <= (2.0**-8 if kind != "F16" else 2.0**-15) * size), (rows, n)


@pytest.mark.parametrize("where", ["weights", "column"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_so(where: str, bad: float) -> None:
    w, x = np.ones((20, 64), np.float32), np.ones((40, 64), np.float32)
    if where == "column":
        x[7, 9] = bad
        got, _ = product("Q8_0", w, x, prefill=True)
        assert not np.isfinite(got[7]).any() and np.isfinite(np.delete(got, 7, axis=0)).all()
        return
    block = {b.name: b for b in blocks.ALL}["Q8_0"]
    ffi, lib = clib.library()
    data = clib.quantize(w, block)
    data[3, 0:2] = np.frombuffer(np.uint16(0x7FFF if np.isnan(bad) else 0x7C00).tobytes(), np.uint8)  # a scale of row 3
    panels = np.zeros(lib.el_panel_bytes(block.id, 20, 64) + 64, np.uint8)
    panels = panels[-panels.ctypes.data % 64 :]
    clib.check(lib.el_pack_panels(block.id, ffi.from_buffer(data), ffi.from_buffer(panels), 20, 64, 0, 20), "packing")
    y = np.zeros((40, 20), np.float32)
    args = (block.id, 1, ffi.from_buffer(panels), 20, 64, 0, 20, ffi.from_buffer("float[]", x), 40)
    clib.check(lib.el_prefill_test(*args, ffi.from_buffer("float[]", y), 20), "the product")
    assert not np.isfinite(y[:, 3]).any() and np.isfinite(np.delete(y, 3, axis=1)).all()


SIZES = {"n_layers": 1, "n_ctx": 2048}


@pytest.mark.parametrize("kind", TYPES)
def test_passes_of_a_model(tmp_path: Path, kind: str) -> None:
    """Near the reference; another rounding than exact passes have; the same bits for all threads, widths and chunks."""
    big = {"dim": 256, "n_heads": 4, "ffn": 256} if kind.endswith("_K") else {"dim": 96, "n_heads": 6, "ffn": 160}
    path = tiny_llama_gguf(tmp_path / "m.gguf", type=kind, biases=True, **SIZES, **big)
    with opened(path) as (plan, weights):
        ids = some_ids(99, plan.n_vocab)
        wanted = run(ReferenceBackend(plan, weights), plan, ids)
        one = NativeBackend(plan, weights, n_threads=1)
        assert one.has_prefill
        fast = run(one, plan, ids)
        assert nmse(fast, wanted) <= (3e-3 if kind in PANELS else 1e-4)
        assert np.array_equal(fast, run(one, plan, ids, chunk=FROM + 1)), "99 = 3 * 33: all chunks go through tiles"
        narrow = run(one, plan, ids, chunk=FROM - 1)
        assert not np.array_equal(fast, narrow), "chunks of 31 columns do not go through tiles"
        one.exact = True
        exact = run(one, plan, ids)
        one.close()
        assert np.array_equal(exact, narrow)
        three = NativeBackend(plan, weights, n_threads=3)
        assert np.array_equal(fast, run(three, plan, ids)), "threads"
        three.exact = True
        for chunk in (1, 7, 64):
            assert np.array_equal(exact, run(three, plan, ids, chunk=chunk)), chunk
        three.close()


@pytest.mark.parametrize("kind", PANELS)
def test_sparse_panels_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The same bits as dense panels with the same zeros, through tiles and beside them."""
    big = {"dim": 256, "n_heads": 4, "ffn": 768} if kind.endswith("_K") else {"dim": 96, "n_heads": 6, "ffn": 416}
    path = tmp_path / "zeros.gguf"
    write_with_zeros(tiny_llama_gguf(tmp_path / "m.gguf", type=kind, biases=True, **SIZES, **big), path, 0.5, head=True)
    with opened(path) as (plan, weights):
        ids, found = some_ids(70, plan.n_vocab), []
        for sparse in (True, False):
            if not sparse:
                monkeypatch.setattr("edgellm.backends.sparse.find_sparse", lambda *_: {})
            backend = NativeBackend(plan, weights, n_threads=2)
            assert backend.has_prefill and ({2} <= {backend._table.structs[i].layout for i in range(8)}) == sparse
            found.append((run(backend, plan, ids), run(backend, plan, ids, chunk=9)))
            backend.close()
        assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))
        assert not np.array_equal(*found[0]), "the first pass goes through tiles"


def test_types_without_prefill_kernels_keep_their_bits(tmp_path: Path) -> None:
    path = tiny_llama_gguf(tmp_path / "m.gguf", type="Q5_1", **SIZES)
    with opened(path) as (plan, weights):
        backend = NativeBackend(plan, weights)
        ids = some_ids(70, plan.n_vocab)
        assert not backend.has_prefill
        assert np.array_equal(run(backend, plan, ids), run(backend, plan, ids, chunk=1))
        backend.close()


def test_exact_in_the_python_interface(tmp_path: Path) -> None:
    """Calls choose for themselves, and what prefill kernels left in the cache is not used by an exact call."""
    path = tiny_llama_gguf(tmp_path / "m.gguf", type="Q4_0", **SIZES)
    ids = some_ids(80, 60)
    options = {"max_tokens": 2, "temperature": 0.0, "ignore_eos": True}
    with edgellm.load(path) as model, edgellm.load(path, exact=True) as other:
        fast, exact = model.logits(ids), model.logits(ids, exact=True)
        assert not np.array_equal(fast, exact)
        assert np.array_equal(exact, other.logits(ids)) and np.array_equal(fast, other.logits(ids, exact=False))
        longer = [*ids, 5, 6, 7]
        model.generate(longer, **options)
        assert model.generate(longer, exact=True, **options).context.reused == 0
        assert model.generate([*longer, 8], exact=True, **options).context.reused == len(longer)
        assert model.generate([*longer, 8, 9], **options).context.reused > len(longer)
        model.generate([9, *longer], **options)
        assert model.generate([9, *longer], exact=True, **options).context.reused == 0
        assert model.generate([9, *longer], **options).context.reused == len(longer), "all but the last of the prompt"
