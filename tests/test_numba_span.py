"""The Numba backend on sequences that have lost tokens: two stretches, pages on a ring."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_runs import opened
from helpers import tiny_llama_gguf

from edgellm.backends.compare import nmse
from edgellm.backends.numba_ import NumbaBackend
from edgellm.cache import PagePool, Sequence, Span
from edgellm.ops import Op
from edgellm.plan import Plan

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

from stream_model import StreamModel


class Kept(StreamModel):
    """From token `at` on tokens [keep, first) are gone; a layer sees the last `own` places of a cache (0: all)."""

    def __init__(self, path: Path, keep: int, first: int, at: int, own: int = 0) -> None:
        super().__init__(path, 0, 0)
        self.keep, self.first, self.at, self.own = keep, first, at, own

    def cache(self, t: int) -> np.ndarray:
        row = np.arange(t + 1)
        row = row if t < self.at else np.concatenate([row[: self.keep], row[self.first :]])
        return row[-self.own :]


class Ring(Sequence):
    """A sequence without end: all pages are there from the start, those of the ring are written again and again."""

    def __init__(self, pool: PagePool, head_blocks: int, span: Span) -> None:
        super().__init__(pool, 2**31 - 1 if span.window else 4096)
        columns = pool.n_pages // pool.shape.n_layers
        self.head_blocks, self.ring, self.span = head_blocks, columns - head_blocks, span
        self.table = np.array(pool.allocate(pool.n_pages), np.int32).reshape(-1, columns)


def passes(backend: Any, seq: Sequence, ids: np.ndarray, start: int, end: int, chunk: int) -> np.ndarray:
    """Logits (end - start, n_vocab) of tokens [start, end) in passes of `chunk` tokens."""
    out = []
    for first in range(start, end, chunk):
        part = ids[first : min(first + chunk, end)]
        out.append(backend.forward(part, first, np.arange(part.size, dtype=np.int32), seq).copy())
    return np.concatenate(out)


def run(backend: Any, plan: Plan, ids: np.ndarray, chunk: int, span: Span, kv_type: str = "f32") -> np.ndarray:
    """Logits (n, n_vocab) in passes of `chunk` tokens, on as few pages as these need."""
    head = -(-span.keep // 64)
    tail = -(-(span.window + chunk) // 64) + 1 if span.window else -(-len(ids) // 64)
    seq = Ring(PagePool(plan.kv, kv_type, plan.kv.n_layers * (head + tail)), head, span)
    return passes(backend, seq, ids, 0, len(ids), chunk)


def changed(plan: Plan, **params: Any) -> Plan:
    """The plan with other parameters of its attention steps."""
    steps = [dataclasses.replace(s, params={**s.params, **params}) if s.op is Op.ATTENTION else s for s in plan.steps]
    return dataclasses.replace(plan, steps=tuple(steps))


def some_ids(n: int, n_vocab: int) -> np.ndarray:
    return np.random.default_rng(n).integers(3, n_vocab, n).astype(np.int32)


@pytest.mark.parametrize(
    ("n_sinks", "window", "chunk"),
    [(4, 60, 1), (4, 200, 17), (1, 64, 512), (64, 130, 40), (70, 65, 33), (0, 100, 20), (3, 1, 5), (600, 600, 300)],
)
def test_sinks_are_streaming_llm(tmp_path: Path, n_sinks: int, window: int, chunk: int) -> None:
    path = tiny_llama_gguf(tmp_path / "m.gguf")
    with opened(path) as (plan, weights):
        ids = some_ids(n_sinks + 3 * window + 150, plan.n_vocab)
        wanted = np.concatenate(list(StreamModel(path, n_sinks, window).logits(ids)))
        got = run(NumbaBackend(plan, weights), plan, ids, chunk, Span(n_sinks, 0, window))
        assert nmse(wanted, got) <= 1e-9


@pytest.mark.parametrize(("keep", "first", "own"), [(4, 90, 0), (0, 64, 0), (100, 130, 0), (4, 90, 50), (70, 140, 150)])
@pytest.mark.parametrize("chunk", [1, 37])
def test_dropped_tokens_are_gone(tmp_path: Path, keep: int, first: int, own: int, chunk: int) -> None:
    path, at = tiny_llama_gguf(tmp_path / "m.gguf"), 160
    with opened(path) as (plan, weights):
        ids = some_ids(at + 200, plan.n_vocab)
        backend = NumbaBackend(changed(plan, window=own), weights)
        seq = Ring(PagePool(plan.kv, "f32", 6 * plan.kv.n_layers), 0, Span())
        before = passes(backend, seq, ids, 0, at, chunk)
        seq.span = Span(keep, first)
        got = np.concatenate([before, passes(backend, seq, ids, at, len(ids), chunk)])
        assert nmse(np.concatenate(list(Kept(path, keep, first, at, own).logits(ids))), got) <= 1e-9


@pytest.mark.parametrize("kv_type", ["f32", "f16", "q8_0"])
def test_threads_and_passes_change_no_bit(tmp_path: Path, kv_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgellm.backends.numba_._CHUNK_WORK", 64)
    with opened(tiny_llama_gguf(tmp_path / "m.gguf", n_layers=1)) as (plan, weights):
        ids, span = some_ids(1500, plan.n_vocab), Span(600, 0, 600)  # several splits of both stretches
        wanted = run(NumbaBackend(plan, weights), plan, ids, 512, span, kv_type)
        for n_threads, chunk in ((2, 512), (4, 33), (1, 7)):
            backend = NumbaBackend(plan, weights, n_threads=n_threads)
            assert np.array_equal(wanted, run(backend, plan, ids, chunk, span, kv_type))


def test_tokens_that_lost_nothing_keep_their_bits(tmp_path: Path) -> None:
    with opened(tiny_llama_gguf(tmp_path / "m.gguf")) as (plan, weights):
        ids, backend = some_ids(300, plan.n_vocab), NumbaBackend(plan, weights)
        wanted = run(backend, plan, ids, 100, Span())
        got = run(backend, plan, ids, 100, Span(4, 0, 150))
        assert np.array_equal(wanted[:154], got[:154]), "the second pass holds tokens of both kinds"
        assert not np.array_equal(wanted[154], got[154])
