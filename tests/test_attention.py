"""Attention on the fast backends: every shape against NumPy, the same bits for widths, threads and instruction sets."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_runs import FAST, logits, opened
from helpers import tiny_llama_gguf

from edgellm import clib
from edgellm.ops import Op
from edgellm.plan import Plan

KV_TYPES = ["f32", "f16", "q8_0", "q4_0", "f16:q4_0", "q8_0:f32"]


def nmse(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sum((a - b) ** 2, dtype=np.float64) / np.sum(b.astype(np.float64) ** 2))


def changed(plan: Plan, **params: Any) -> Plan:
    """The plan with other parameters of its attention steps."""
    steps = [
        dataclasses.replace(s, params={**s.params, **params}) if s.op is Op.ATTENTION else s for s in plan.steps
    ]
    return dataclasses.replace(plan, steps=tuple(steps))


def ids_of(plan: Plan, n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(3, plan.n_vocab, n).astype(np.int32)


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize(
    ("head_dim", "group", "n_kv", "window", "softcap"),
    [
        (2, 1, 1, 0, 0), (6, 2, 2, 0, 5), (8, 3, 2, 70, 0), (10, 4, 1, 1, 0), (24, 5, 1, 64, 0), (40, 6, 2, 0, 0),
        (64, 7, 1, 65, 3), (72, 8, 1, 0, 0), (80, 1, 2, 100, 0), (96, 2, 1, 0, 0), (112, 3, 1, 0, 9),
        (128, 4, 1, 130, 0), (136, 9, 1, 0, 0), (256, 2, 1, 3, 0),
    ],
)  # fmt: skip
def test_shapes(
    tmp_path: Path, name: str, kv_type: str, head_dim: int, group: int, n_kv: int, window: int, softcap: float
) -> None:
    sizes = {"head_dim": head_dim, "n_heads": group * n_kv, "n_kv_heads": n_kv, "dim": 32, "ffn": 32, "n_layers": 1}
    with opened(tiny_llama_gguf(tmp_path / "m.gguf", **sizes)) as (plan, weights):
        plan, ids = changed(plan, window=window, softcap=float(softcap)), ids_of(plan, 200)
        wanted = logits("reference", plan, weights, ids, kv_type=kv_type)
        got = logits(name, plan, weights, ids, kv_type=kv_type, chunk=83)
        # a number on the border of two steps of 8, or 4, bits may fall to either side
        assert nmse(got, wanted) <= (1e-5 if "q4_0" in kv_type else 1e-6 if "q8_0" in kv_type else 1e-10)


@pytest.mark.skipif(not clib.available(), reason="the compiled library was not built")
@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize(("head_dim", "group"), [(12, 3), (64, 4), (72, 8), (128, 1)])
def test_same_bits_for_widths_threads_and_instruction_sets(
    tmp_path: Path, kv_type: str, head_dim: int, group: int
) -> None:
    """Over two splits of the cache, with a window that starts in the middle of a page."""
    sizes = {"head_dim": head_dim, "n_heads": group, "n_kv_heads": 1, "dim": 32, "ffn": 32, "n_layers": 1}
    ffi, lib = clib.library()
    best = ffi.string(lib.el_isa())
    levels = [lib.el_level_name(i) for i in range(lib.el_n_levels()) if lib.el_level_usable(i) == 1]
    with opened(tiny_llama_gguf(tmp_path / "m.gguf", n_ctx=2048, **sizes)) as (plan, weights):
        for part in (plan, changed(plan, window=333)):
            ids = ids_of(plan, 600)
            wanted = logits("native", part, weights, ids, kv_type=kv_type)
            for n_threads, chunk in ((1, 1), (2, 1), (3, 8), (2, 3), (4, 100)):
                got = logits("native", part, weights, ids, kv_type=kv_type, chunk=chunk, n_threads=n_threads)
                assert np.array_equal(wanted, got), (n_threads, chunk)
            try:
                for level in levels:
                    lib.el_set_isa(level)
                    got = logits("native", part, weights, ids, kv_type=kv_type, chunk=300)
                    assert np.array_equal(wanted, got), ffi.string(level)
            finally:
                lib.el_set_isa(best)


@pytest.mark.parametrize("name", FAST)
def test_fewer_bits_cost_little(tmp_path: Path, name: str) -> None:
    with opened(tiny_llama_gguf(tmp_path / "m.gguf", head_dim=64, dim=64)) as (plan, weights):
        ids = ids_of(plan, 150)
        exact = logits(name, plan, weights, ids)
        kinds = ("q8_0", "q8_0:q4_0", "q4_0")
        q8, mixed, q4 = (nmse(logits(name, plan, weights, ids, kv_type=t), exact) for t in kinds)
        assert 1e-8 < q8 < 1e-4
        assert q8 < mixed < q4 < 1e-2


