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
from ring_sequence import streamed
from tiny_families import FAMILIES, tiny_family_gguf

from edgellm.backends.compare import nmse
from edgellm.cache import Span
from edgellm.convert import convert
from edgellm.ops import Op
from edgellm.plan import Plan

BACKENDS = ALL
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
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_family(tmp_path: Path, family: str, backend: str) -> None:
    """Past the context of 256 tokens; layers with windows of their own, with softcaps, without positions."""
    with opened(tiny_family_gguf(tmp_path / "m.gguf", family)) as (plan, weights):
        ids = some_ids(plan, 300)
        for name, (spans, visible) in cases(300).items():
            wanted = streaming_model.logits(plan, weights, ids, visible)
            got = streamed(backend, plan, weights, ids, spans, columns=(2, 6))
            assert nmse(wanted, got) <= TOLERANCE, name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window", [30, 64, 75, 100, 140, 500])
def test_windows_of_layers_that_end_in_the_head(tmp_path: Path, backend: str, window: int) -> None:
    """Such a window counts over the gap: behind 66 tokens of tail it sees the last ones of the head."""
    with opened(tiny_llama_gguf(tmp_path / "m.gguf", head_dim=24)) as (plan, weights):
        plan, ids = with_window(plan, window), some_ids(plan, 300)
        for name, (spans, visible) in cases(300).items():
            wanted = streaming_model.logits(plan, weights, ids, visible)
            for chunk in (64,) if backend == "reference" else (1, 64):
                got = streamed(backend, plan, weights, ids, spans, chunk=chunk, columns=(2, 6))
                assert nmse(wanted, got) <= TOLERANCE, (name, chunk)


@pytest.mark.parametrize("backend", BACKENDS)
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
            for backend in BACKENDS:
                assert nmse(wanted, streamed(backend, plan, weights, ids, spans)) <= TOLERANCE, backend


def test_the_straight_model_without_drops(tmp_path: Path) -> None:
    """The twin itself: unrotated keys at their positions are what rope steps make of them."""
    with opened(tiny_family_gguf(tmp_path / "m.gguf", "gemma3")) as (plan, weights):
        ids = some_ids(plan, 60)
        wanted = logits("reference", plan, weights, ids)
        assert nmse(wanted, streaming_model.logits(plan, weights, ids, streaming_model.everything(60))) <= 1e-12
