"""The op table and `verify`: every rule that a plan may break has a plan here that breaks it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from edgellm.backends.reference import ACTIVATIONS as BODIES_OF_ACTIVATIONS
from edgellm.backends.reference import BODIES
from edgellm.errors import PlanError
from edgellm.ops import ACTIVATIONS, OPS, Op, verify
from edgellm.plan import KVShape, Plan, PlanBuilder, RopeTable, Step


def small_plan() -> Plan:
    """One layer with every op: 2 heads of 4 on 1 KV head, 10 tokens in the vocabulary."""
    b = PlanBuilder("small", KVShape(1, 1, 4), 10)
    table = b.rope_table(RopeTable(np.array([1.0, 0.5])))
    x = b.embed("token_embd.weight", 6)
    h = b.rmsnorm(x, "blk.0.attn_norm.weight", 1e-5)
    q = b.linear(h, "blk.0.attn_q.weight", 8, bias="blk.0.attn_q.bias", out="q")
    k = b.linear(h, "blk.0.attn_k.weight", 4, out="k")
    v = b.linear(h, "blk.0.attn_v.weight", 4, out="v")
    q = b.rope(q, 4, 4, style="interleaved", table=table, label="blk.0.rope_q")
    k = b.rope(k, 4, 4, style="interleaved", table=table, label="blk.0.rope_k")
    a = b.attention(q, k, v, layer=0, scale=0.5, rotary_dims=4, table=table, label="blk.0.attn")
    x = b.add(x, b.linear(a, "blk.0.attn_output.weight", 6, out="h"), label="blk.0.attn_residual")
    gate = b.linear(x, "blk.0.ffn_gate.weight", 12, out="gate")
    up = b.linear(x, "blk.0.ffn_up.weight", 12, out="up")
    y = b.gated("silu", gate, up, label="blk.0.ffn_act")
    x = b.add(x, b.linear(y, "blk.0.ffn_down.weight", 6, out="h"), label="blk.0.ffn_residual")
    share = b.route(b.linear(x, "blk.0.ffn_gate_inp.weight", 3, out="router"), 2, label="blk.0.ffn_route")
    names = ("blk.0.gate_exps", "blk.0.up_exps", "blk.0.down_exps")
    y = b.experts(x, share, names, 5, activation="silu", n_used=2, label="blk.0.ffn_experts")
    x = b.add(x, b.scale(y, 0.5, label="blk.0.ffn_scale"), label="blk.0.moe_residual")
    h = b.add_rows(x, "position_embd.weight", 9, row="position", out="h")
    h = b.gelu(b.layernorm(h, "last_norm", 1e-5), label="last_act")
    logits = b.linear(b.take_rows(h), "token_embd.weight", 10, out="logits", label="output")
    return b.build(b.softcap(logits, 30.0, label="output_softcap"))


def at(plan: Plan, op: Op) -> int:
    return next(i for i, s in enumerate(plan.steps) if s.op is op)


def changed(op: Op, **changes: object) -> Plan:
    """The small plan, its first step of `op` changed; made without the check that a Plan does by itself."""
    plan = small_plan()
    i = at(plan, op)
    params = dict(plan.steps[i].params) | changes.pop("params", {})  # type: ignore[operator]
    steps = list(plan.steps)
    steps[i] = dataclasses.replace(steps[i], **({"params": params} | changes))
    return unchecked(plan, steps=tuple(steps))


def unchecked(plan: Plan, **changes: object) -> Plan:
    copy = object.__new__(Plan)
    for field in dataclasses.fields(Plan):
        object.__setattr__(copy, field.name, changes.get(field.name, getattr(plan, field.name)))
    return copy


def test_every_op_has_a_row_a_body_and_a_builder_method() -> None:
    assert set(OPS) == set(Op) == set(BODIES)
    assert set(BODIES_OF_ACTIVATIONS) == set(ACTIVATIONS)
    assert all(callable(getattr(PlanBuilder, op.value)) for op in Op)
    assert {s.op for s in small_plan().steps} == set(Op)


def test_a_good_plan_passes() -> None:
    verify(small_plan())


@pytest.mark.parametrize(
    ("op", "changes", "words"),
    [
        (Op.EMBED, {"outputs": (2,)}, "table"),
        (Op.EMBED, {"outputs": (99,)}, "no buffer 99"),
        (Op.EMBED, {"outputs": (11,)}, "one row per token"),
        (Op.EMBED, {"weights": ()}, "wrong number"),
        (Op.EMBED, {"weights": ("nothing.weight",)}, "no declared shape"),
        (Op.RMSNORM, {"params": {"eps": 0.0}}, "eps"),
        (Op.RMSNORM, {"params": {"eps": float("nan")}}, "eps"),
        (Op.RMSNORM, {"params": {"eps": 1}}, "needed float"),
        (Op.RMSNORM, {"params": {"more": 1}}, "parameters"),
        (Op.RMSNORM, {"outputs": (2,)}, "differ in shape"),
        (Op.RMSNORM, {"params": {"group": 4}}, "groups of 4"),
        (Op.RMSNORM, {"params": {"group": 3}}, "the group 3"),
        (Op.ADD_ROWS, {"params": {"row": "second"}}, "second"),
        (Op.ADD_ROWS, {"weights": ("blk.0.attn_q.weight", "blk.0.attn_q.bias")}, "wrong number"),
        (Op.ADD_ROWS, {"weights": ("blk.0.attn_q.bias",)}, "no rows of 6"),
        (Op.ADD_ROWS, {"outputs": (0,)}, "must not be an input"),
        (Op.ADD_ROWS, {"inputs": (2,)}, "differ in shape"),
        (Op.LAYERNORM, {"params": {"eps": 1.0}}, "eps"),
        (Op.LAYERNORM, {"weights": ("last_norm.weight",)}, "wrong number"),
        (Op.LAYERNORM, {"weights": ("last_norm.weight", "blk.0.attn_q.bias")}, "not vectors of 6"),
        (Op.LAYERNORM, {"outputs": (2,)}, "differ in shape"),
        (Op.GELU, {"outputs": (2,)}, "differ in shape"),
        (Op.ATTENTION, {"params": {"causal": False, "window": 3}}, "do not go together"),
        (Op.ATTENTION, {"params": {"causal": 0}}, "needed bool"),
        (Op.LINEAR, {"outputs": (1,)}, "must not be an input"),
        (Op.RMSNORM, {"inputs": (7,)}, "before it is written"),
        (Op.RMSNORM, {"weights": ("blk.0.attn_q.bias",)}, "columns"),
        (Op.LINEAR, {"weights": ("blk.0.attn_k.weight",)}, "needed (8, 6)"),
        (Op.LINEAR, {"weights": ("blk.0.attn_q.weight", "blk.0.attn_norm.weight")}, "bias"),
        (Op.LINEAR, {"outputs": (1, 2)}, "wrong number"),
        (Op.ROPE, {"outputs": (3,)}, "in place"),
        (Op.ROPE, {"params": {"head_dim": 3}}, "heads of 3"),
        (Op.ROPE, {"params": {"rotary_dims": 3}}, "rotary_dims"),
        (Op.ROPE, {"params": {"rotary_dims": 2}}, "rope table 0 has shape"),
        (Op.ROPE, {"params": {"style": "spiral"}}, "spiral"),
        (Op.ROPE, {"params": {"table": 1}}, "no rope table 1"),
        (Op.ATTENTION, {"params": {"layer": 1}}, "layer 1"),
        (Op.ATTENTION, {"params": {"head_dim": 8}}, "KV cache"),
        (Op.ATTENTION, {"params": {"n_heads": 3}}, "n_heads"),
        (Op.ATTENTION, {"params": {"scale": 0.0}}, "scale"),
        (Op.ATTENTION, {"params": {"window": -1}}, "window"),
        (Op.ATTENTION, {"params": {"softcap": float("nan")}}, "softcap"),
        (Op.ATTENTION, {"params": {"softcap": -1.0}}, "softcap"),
        (Op.ATTENTION, {"inputs": (2, 3, 0)}, "n_kv_heads"),
        (Op.ATTENTION, {"params": {"rotary_dims": 6}}, "rotary_dims"),
        (Op.ATTENTION, {"params": {"rotary_dims": -2}}, "rotary_dims"),
        (Op.ATTENTION, {"params": {"rotary_dims": 2}}, "rope table 0 has shape"),
        (Op.ATTENTION, {"params": {"style": "spiral"}}, "spiral"),
        (Op.ATTENTION, {"params": {"table": 1}}, "no rope table 1"),
        (Op.ATTENTION, {"params": {"rotary_dims": 0}}, "its rotation is none, but"),
        (Op.ATTENTION, {"params": {"style": "halves"}}, "but q and k were turned"),
        (Op.ATTENTION, {"inputs": (2, 4, 4)}, "(4, 'interleaved', 0) and not"),
        (Op.GATED, {"params": {"activation": "relu6"}}, "relu6"),
        (Op.GATED, {"inputs": (6, 0)}, "differ in shape"),
        (Op.GATED, {"outputs": (7,)}, "first input only"),
        (Op.ADD, {"inputs": (0, 2)}, "differ in shape"),
        (Op.SCALE, {"params": {"factor": float("inf")}}, "factor"),
        (Op.SOFTCAP, {"params": {"cap": 0.0}}, "cap is 0.0"),
        (Op.SOFTCAP, {"params": {"cap": float("nan")}}, "cap is nan"),
        (Op.ROUTE, {"params": {"n_used": 4}}, "4 of 3 experts"),
        (Op.ROUTE, {"params": {"n_used": 0}}, "0 of 3 experts"),
        (Op.ROUTE, {"params": {"normalise": 1}}, "needed bool"),
        (Op.EXPERTS, {"params": {"n_used": 4}}, "4 of 3 experts"),
        (Op.EXPERTS, {"params": {"activation": "tanh"}}, "tanh"),
        (Op.EXPERTS, {"weights": ("blk.0.down_exps", "blk.0.up_exps", "blk.0.down_exps")}, "gate"),
        (Op.EXPERTS, {"weights": ("blk.0.gate_exps", "blk.0.down_exps", "blk.0.down_exps")}, "up"),
        (Op.EXPERTS, {"weights": ("blk.0.gate_exps", "blk.0.up_exps", "blk.0.up_exps")}, "down"),
        (Op.TAKE_ROWS, {"inputs": (2,)}, "columns"),
        (Op.TAKE_ROWS, {"outputs": (0,)}, "from rows of tokens"),
    ],
)
def test_each_broken_step_is_named(op: Op, changes: dict, words: str) -> None:
    with pytest.raises(PlanError, match=f"{op.value} ") as error:
        verify(changed(op, **changes))
    assert words in str(error.value)


def test_the_plan_as_a_whole_is_checked() -> None:
    plan = small_plan()
    with pytest.raises(PlanError, match="logits"):
        verify(unchecked(plan, logits=0))
    with pytest.raises(PlanError, match="logits"):
        verify(unchecked(plan, logits=77))
    with pytest.raises(PlanError, match="hidden"):
        verify(unchecked(plan, hidden=0))
    with pytest.raises(PlanError, match="no result"):
        verify(unchecked(plan, logits=None))
    verify(unchecked(plan, logits=None, hidden=plan.logits))
    with pytest.raises(PlanError, match="layers"):
        verify(unchecked(plan, kv=KVShape(2, 1, 4)))
    twice = (*plan.steps, plan.steps[at(plan, Op.ATTENTION)])
    with pytest.raises(PlanError, match="layers"):
        verify(unchecked(plan, steps=twice))
    buffers = (dataclasses.replace(plan.buffers[0], id=5), *plan.buffers[1:])
    with pytest.raises(PlanError, match="malformed"):
        verify(unchecked(plan, buffers=buffers))


def test_a_plan_checks_itself_when_it_is_made() -> None:
    plan = small_plan()
    step = Step(Op.ADD, (0, 2), (0,), (), {}, "blk.0.bad")
    with pytest.raises(PlanError, match=r"blk\.0\.bad"):
        dataclasses.replace(plan, steps=(*plan.steps, step))
