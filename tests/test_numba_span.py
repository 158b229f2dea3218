"""The Numba backend on sequences that have lost tokens: its bits (test_span_attention.py: what they must come to)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from family_runs import opened
from helpers import tiny_llama_gguf
from ring_sequence import streamed

from edgellm import clib
from edgellm.backends.numba_kernels import span as compiled
from edgellm.backends.numba_kernels.jit import INT, i64s, kernel
from edgellm.cache import Span
from edgellm.plan import Plan


@kernel(INT, i64s, INT, INT, i64s)
def seen(stretch, place, t, window, out):
    low, high = compiled.seen(stretch, place, t, window)
    out[0] = low
    out[1] = high


def some_ids(plan: Plan, n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(3, plan.n_vocab, n).astype(np.int32)


@pytest.mark.parametrize("span", [Span(), Span(4, 0, 9), Span(0, 0, 7), Span(5, 20), Span(3, 11, 6), Span(9, 9)])
def test_compiled_spans_are_spans(span: Span) -> None:
    place, out = np.array([0, 1, span.keep, span.first, span.window], np.int64), np.zeros(2, np.int64)
    for t in range(span.first, span.first + 40):
        for window in (0, 1, 5, 12, 100):
            for stretch, wanted in enumerate((span.head_seen(t, window), span.tail_seen(t, window))):
                seen(stretch, place, t, window, out)
                assert range(*out) == wanted, (stretch, t, window)


@pytest.mark.parametrize("kv_type", ["f32", "f16", "q8_0"])
def test_threads_and_passes_change_no_bit(tmp_path: Path, kv_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgellm.backends.numba_._CHUNK_WORK", 64)
    with opened(tiny_llama_gguf(tmp_path / "m.gguf", n_layers=1)) as (plan, weights):
        ids, span = some_ids(plan, 1500), Span(600, 0, 600)  # several splits of both stretches
        options = {"kv_type": kv_type, "columns": (10, 18)}
        wanted = streamed("numba", plan, weights, ids, span, chunk=512, **options)
        for n_threads, chunk in ((2, 512), (4, 33), (1, 7)):
            got = streamed("numba", plan, weights, ids, span, chunk=chunk, n_threads=n_threads, **options)
            assert np.array_equal(wanted, got), (n_threads, chunk)


@pytest.mark.skipif(not clib.available(), reason="the compiled library was not built")
@pytest.mark.parametrize("kv_type", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("span", [Span(4, 0, 700), Span(600, 0, 70)])
def test_same_bits_as_native(tmp_path: Path, kv_type: str, span: Span) -> None:
    with opened(tiny_llama_gguf(tmp_path / "m.gguf")) as (plan, weights):
        ids = some_ids(plan, 1000)
        wanted, got = (
            streamed(name, plan, weights, ids, span, kv_type=kv_type, chunk=50, columns=(10, 14))
            for name in ("native", "numba")
        )
        assert np.array_equal(wanted, got)


def test_tokens_that_lost_nothing_keep_their_bits(tmp_path: Path) -> None:
    with opened(tiny_llama_gguf(tmp_path / "m.gguf")) as (plan, weights):
        ids = some_ids(plan, 300)
        wanted = streamed("numba", plan, weights, ids, Span(), chunk=100)
        got = streamed("numba", plan, weights, ids, Span(4, 0, 150), chunk=100)
        assert np.array_equal(wanted[:154], got[:154]), "the second pass holds tokens of both kinds"
        assert not np.array_equal(wanted[154], got[154])
