"""Attention where a sequence has dropped tokens, on every backend against StreamingLLM as its paper defines it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import streaming_model
from family_runs import ALL, logits, opened
from helpers import tiny_llama_gguf
from ring_sequence import RingSequence, streamed
from tiny_families import FAMILIES, tiny_family_gguf

from edgellm import clib
from edgellm.backends import create
from edgellm.backends import native as native_backend
from edgellm.backends.compare import nmse
from edgellm.cache import PagePool, Span
from edgellm.convert import convert
from edgellm.errors import EdgeLLMError, InvalidArgumentError
from edgellm.ops import Op
from edgellm.plan import Plan

TOLERANCE = 1e-8  # of the logits, f32 pages; float32 beside float64 gives 1e-13
HF = ["gemma2", "gemma3", "granite", "llama", "llama3-rope", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "qwen3moe",
      "smollm3"]  # fmt: skip


def some_ids(plan: Plan, n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(3, plan.n_vocab, n).astype(np.int32)


def with_window(plan: Plan, window: int) -> Plan:
    """The plan with another window of its layers' own."""
    params = [{**s.params, "window": window} if s.op is Op.ATTENTION else s.params for s in plan.steps]
    return dataclasses.replace(
        plan, steps=tuple(dataclasses.replace(s, params=p) for s, p in zip(plan.steps, params, strict=True))
    )


def cases(n: int) -> dict[str, tuple[Any, streaming_model.Visible]]:
    """Spans and what they leave of n >= 300 tokens: sinks, a plain window, a long head, halves dropped twice, turns."""
    return {
        "dense": (Span(), streaming_model.everything(n)),
        "sinks": (Span(4, 0, 150), streaming_model.sinks(n, 4, 150)),
        "window": (Span(0, 0, 70), streaming_model.sinks(n, 0, 70)),
        "head": (Span(70, 0, 66), streaming_model.sinks(n, 70, 66)),
        "one": (Span(1, 0, 1), streaming_model.sinks(n, 1, 1)),
        "shift": (
            {0: Span(4), 100: Span(4, 52), 200: Span(4, 130)},
            streaming_model.drops(n, 4, {100: 48, 200: 78}),
        ),
        "turns": (
            {0: Span(65), 128: Span(65, 66), 199: Span(65, 198)},
            streaming_model.drops(n, 65, {128: 1, 199: 132}),
        ),
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(tmp_path: Path, family: str) -> None:
    """Past the context of 256 tokens; layers with windows of their own, with softcaps, without positions."""
    with opened(tiny_family_gguf(tmp_path / "m.gguf", family)) as (plan, weights):
        ids = some_ids(plan, 300)
        for name, (spans, visible) in cases(300).items():
            wanted = streaming_model.logits(plan, weights, ids, visible)
            for backend in ALL:
                got = streamed(backend, plan, weights, ids, spans, columns=(2, 6))
                assert nmse(wanted, got) <= TOLERANCE, (name, backend)


@pytest.mark.parametrize("window", [30, 64, 75, 100, 140, 500])
def test_windows_of_layers_that_end_in_the_head(tmp_path: Path, window: int) -> None:
    """Such a window counts over the gap: behind 66 tokens of tail it sees the last ones of the head."""
    with opened(tiny_llama_gguf(tmp_path / "m.gguf", head_dim=24)) as (plan, weights):
        plan, ids = with_window(plan, window), some_ids(plan, 300)
        for name, (spans, visible) in cases(300).items():
            wanted = streaming_model.logits(plan, weights, ids, visible)
            for backend in ALL:
                for chunk in (64,) if backend == "reference" else (1, 64):
                    got = streamed(backend, plan, weights, ids, spans, chunk=chunk, columns=(2, 6))
                    assert nmse(wanted, got) <= TOLERANCE, (name, backend, chunk)


@pytest.mark.parametrize("backend", ALL)
def test_a_fresh_run_on_what_is_left(tmp_path: Path, backend: str) -> None:
    """Keys and values of a single layer depend on their own tokens only: nothing that was dropped is left in them."""
    with opened(tiny_llama_gguf(tmp_path / "m.gguf", n_layers=1)) as (plan, weights):
        ids = some_ids(plan, 300)
        for name, (spans, visible) in cases(300).items():
            got = streamed(backend, plan, weights, ids, spans, columns=(2, 6))
            for t in (150, 215, 299):
                fresh = logits(backend, plan, weights, ids[visible[t]])[-1]
                assert nmse(fresh, got[t]) <= TOLERANCE, (name, t)


@pytest.mark.parametrize("name", HF)
def test_checkpoints(shared_data: Path, tmp_path: Path, name: str) -> None:
    """Models of transformers, with sinks and a window of more than two pages, past their training context."""
    folder = shared_data / "hf-tiny" / name
    convert(folder, tmp_path / "m.gguf", outtype="f32")
    with opened(tmp_path / "m.gguf") as (plan, weights):
        ids = some_ids(plan, 400)
        for spans, visible in (
            (Span(4, 0, 150), streaming_model.sinks(400, 4, 150)),
            ({0: Span(8), 256: Span(8, 136), 320: Span(8, 270)}, streaming_model.drops(400, 8, {256: 128, 320: 134})),
        ):
            wanted = streaming_model.logits(plan, weights, ids, visible)
            for backend in ALL:
                assert nmse(wanted, streamed(backend, plan, weights, ids, spans)) <= TOLERANCE, backend


def test_the_straight_model_without_drops(tmp_path: Path) -> None:
    """The twin itself: unrotated keys at their positions are what rope steps make of them."""
    with opened(tiny_family_gguf(tmp_path / "m.gguf", "gemma3")) as (plan, weights):
        ids = some_ids(plan, 60)
        wanted = logits("reference", plan, weights, ids)
        assert nmse(wanted, streaming_model.logits(plan, weights, ids, streaming_model.everything(60))) <= 1e-12


# ---- to the bit ------------------------------------------------------------------------------------------------------

native = pytest.mark.skipif(not clib.available(), reason="the compiled library was not built")


@native
@pytest.mark.parametrize("kv_type", ["f32", "q8_0"])
@pytest.mark.parametrize("own", [0, 700])
def test_same_bits_for_widths_threads_and_instruction_sets(tmp_path: Path, kv_type: str, own: int) -> None:
    """Over several splits of head and tail, which share a page; splits are work items where there are threads."""
    spans = {0: Span(590, 0, 530), 1250: Span(590, 1000, 530)}
    ffi, lib = clib.library()
    best = ffi.string(lib.el_isa())
    levels = [lib.el_level_name(i) for i in range(lib.el_n_levels()) if lib.el_level_usable(i) == 1]
    sizes = {"head_dim": 24, "n_heads": 3, "n_kv_heads": 1, "dim": 32, "ffn": 32, "n_layers": 1, "n_ctx": 2048}
    with opened(tiny_llama_gguf(tmp_path / "m.gguf", **sizes)) as (plan, weights):
        plan, ids = with_window(plan, own), some_ids(plan, 1300)
        many: dict[str, Any] = {"kv_type": kv_type, "columns": (10, 14)}
        wanted = streamed("native", plan, weights, ids, spans, chunk=97, **many)
        for n_threads, chunk in ((1, 1), (2, 1), (3, 8), (4, 150)):
            got = streamed("native", plan, weights, ids, spans, chunk=chunk, n_threads=n_threads, **many)
            assert np.array_equal(wanted, got), (n_threads, chunk)
        try:
            for level in levels:
                lib.el_set_isa(level)
                got = streamed("native", plan, weights, ids, spans, chunk=150, **many)
                assert np.array_equal(wanted, got), ffi.string(level)
        finally:
            lib.el_set_isa(best)
        if kv_type == "f32":
            exact = streamed("reference", plan, weights, ids, spans, chunk=97, **many)
            assert nmse(exact, wanted) <= 1e-11


@native
def test_tokens_without_a_shift_keep_their_bits(tmp_path: Path) -> None:
    """Whatever becomes of later tokens of their pass."""
    with opened(tiny_llama_gguf(tmp_path / "m.gguf")) as (plan, weights):
        ids = some_ids(plan, 300)
        for own, window in ((0, 200), (100, 60)):
            changed = with_window(plan, own)
            dense = logits("native", changed, weights, ids)
            cut = streamed("native", changed, weights, ids, Span(9, 0, window), chunk=100, columns=(1, 8))
            first = 9 + window  # the first token that has lost another one
            assert np.array_equal(dense[:first], cut[:first])
            assert not np.array_equal(dense[first], cut[first])


# ---- bad tables and spans --------------------------------------------------------------------------------------------


@native
@pytest.mark.parametrize(
    "changes",
    [
        {"head_blocks": -1}, {"head_blocks": 2**62}, {"head_blocks": 2}, {"ring": 0}, {"ring": -5}, {"ring": 2**62},
        {"ring": 1}, {"table_stride": 0}, {"table_stride": 2**62}, {"keep": -1}, {"keep": 2**63 - 1, "first": 150},
        {"keep": 200, "first": 160}, {"first": -1}, {"first": 151}, {"first": 2**63 - 1}, {"window": -1},
        {"window": 2**63 - 1}, {"n_pages": 2}, {"n_layers": 0}, {"first": 64, "ring": 1},
    ],
)  # fmt: skip
def test_native_code_refuses_spans_that_read_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, int]
) -> None:
    """A pass at position 150 over a head block and a ring of 3: none of these must be read, or written, anywhere."""
    with opened(tiny_llama_gguf(tmp_path / "m.gguf", n_layers=1)) as (plan, weights):
        backend, ids = create("native", plan, weights), some_ids(plan, 160)
        seq = RingSequence(PagePool(plan.kv, "f32", 4), plan, 1, 3, Span())
        seq.ensure(160)
        nothing = np.zeros(0, np.int32)
        backend.forward(ids[:150], 0, nothing, seq)
        backend.forward(ids[150:], 150, nothing, seq)  # as it is, it runs
        before, made = seq.pool.arena.copy(), native_backend._kv_struct

        def spoiled(*args: Any) -> Any:
            kv = made(*args)
            for name, value in changes.items():
                setattr(kv, name, value)
            return kv

        monkeypatch.setattr(native_backend, "_kv_struct", spoiled)
        with pytest.raises(EdgeLLMError):
            backend.forward(ids[150:], 150, nothing, seq)
        assert np.array_equal(before, seq.pool.arena)
        backend.close()


@native
@pytest.mark.parametrize("rotation", [{"rotary_dims": 3}, {"rotary_dims": 99}, {"rotary_dims": -2}, {"table": 1},
                                      {"table": -1}, {"rotary_dims": 8}])  # fmt: skip
def test_native_code_refuses_rotations_that_no_table_has(tmp_path: Path, rotation: dict[str, int]) -> None:
    with opened(tiny_llama_gguf(tmp_path / "m.gguf", n_layers=1)) as (plan, weights):
        for step in plan.steps:
            if step.op is Op.ATTENTION:
                step.params.update(rotation)  # behind the back of `verify`
        with pytest.raises(EdgeLLMError):
            create("native", plan, weights)


@pytest.mark.parametrize("backend", ALL)
def test_pages_that_are_missing_are_named(tmp_path: Path, backend: str) -> None:
    with opened(tiny_llama_gguf(tmp_path / "m.gguf", n_layers=2)) as (plan, weights):
        runner, ids = create(backend, plan, weights), some_ids(plan, 200)
        seq = RingSequence(PagePool(plan.kv, "f32", 12), plan, 1, 5, Span(4, 0, 100))
        seq.ensure(200)
        for column in (0, 1, 2, 3):  # the head, two blocks that the first tokens see, their own
            page, seq.table[1, column] = seq.table[1, column], -1
            with pytest.raises(InvalidArgumentError, match="no pages"):
                runner.forward(ids[150:], 150, np.zeros(0, np.int32), seq)
            seq.table[1, column] = page
        seq.ring = 2  # the third block behind the head has taken the column of the first
        with pytest.raises(InvalidArgumentError, match="no pages"):
            runner.forward(ids[150:], 150, np.zeros(0, np.int32), seq)
        runner.close()
