"""The builder's book-keeping and the printed page."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_llama_gguf

from edgellm.errors import PlanError
from edgellm.gguf import open_gguf
from edgellm.models import build_plan, read_config
from edgellm.ops import Op
from edgellm.plan import KVShape, Plan, PlanBuilder, RopeTable


def llama_plan(tmp_path: Path, **options: object) -> Plan:
    with open_gguf(tiny_llama_gguf(tmp_path / "m.gguf", **options)) as file:
        return build_plan(read_config(file), file)


def test_a_role_has_one_buffer(tmp_path: Path) -> None:
    plan = llama_plan(tmp_path, n_layers=3)
    assert [b.id for b in plan.buffers] == list(range(len(plan.buffers)))
    names = [b.name for b in plan.buffers]
    assert len(set(names)) == len(names)
    assert names == [b.name for b in llama_plan(tmp_path, n_layers=1).buffers]  # layers cost no buffers


def test_one_role_cannot_have_two_shapes() -> None:
    b = PlanBuilder("p", KVShape(1, 1, 4), 5)
    x = b.embed("e", 6)
    b.linear(x, "a", 8, out="q")
    with pytest.raises(PlanError, match="'q'"):
        b.linear(x, "b", 9, out="q")


def test_one_tensor_cannot_have_two_shapes() -> None:
    b = PlanBuilder("p", KVShape(1, 1, 4), 5)
    x = b.embed("e", 6)
    with pytest.raises(PlanError, match="tensor 'e'"):
        b.linear(x, "e", 7, out="q")


def test_optional_names_only_what_is_there() -> None:
    b = PlanBuilder("p", KVShape(1, 1, 4), 5, tensors=["a.bias"])
    assert b.optional("a.bias") == "a.bias"
    assert b.optional("b.bias") is None


def test_rope_tables_are_numbered() -> None:
    b = PlanBuilder("p", KVShape(1, 1, 4), 5)
    assert [b.rope_table(RopeTable(np.ones(2))) for _ in range(3)] == [0, 1, 2]


def test_only_wanted_rows_reach_the_head(tmp_path: Path) -> None:
    plan = llama_plan(tmp_path)
    take = [s.op for s in plan.steps].index(Op.TAKE_ROWS)
    assert take == len(plan.steps) - 3
    assert all(plan.buffers[s.outputs[0]].rows == "outputs" for s in plan.steps[take:])


def test_the_page_names_every_step_once_and_folds_equal_layers(tmp_path: Path) -> None:
    plan = llama_plan(tmp_path, n_layers=3, biases=True)
    page = plan.print().splitlines()
    numbered = [line for line in page if re.match(r" *\d+ ", line)]
    assert any("blk.1 .. blk.2: the same steps (2 times)" in line for line in page)
    assert len(numbered) == len(plan.steps) - 2 * (len(plan.steps) - 4) // 3
    assert any("linear(h, blk.0.attn_q.weight (64, 64), blk.0.attn_q.bias (64,))" in line for line in numbered)
    assert all(len(line) <= 140 for line in numbered)

    full = plan.print(full=True)
    assert all(name in full for name in plan.weights)
    assert len(re.findall(r"^ *\d+ ", full, re.M)) == len(plan.steps)


def test_layers_that_differ_are_both_shown() -> None:
    b = PlanBuilder("p", KVShape(2, 1, 4), 5)
    x = b.embed("e", 4)
    for layer in range(2):
        q, k, v = (b.linear(x, f"blk.{layer}.{r}", 4, out=r) for r in "qkv")
        a = b.attention(q, k, v, layer=layer, scale=0.5, window=7 * layer, label=f"blk.{layer}.attn")
        x = b.add(x, a, label=f"blk.{layer}.residual")
    page = b.build(b.linear(b.take_rows(x), "e", 5, out="logits")).print()
    assert "window=0" in page
    assert "window=7" in page
    assert "the same steps" not in page
