"""Lowering: the plan as a model file wrote it -> the fused steps that native code runs.

Fusing changes no bit of the result; it removes passes over memory and points where threads wait for each other:

    linear a, linear b on one input          -> one linear step with two weights        (q|k|v)
    linear gate, linear up, gated            -> linear_gated
    linear, add to the residual              -> linear with a residual
    rope q, rope k                           -> one rope step

`fuse=False` keeps one step per plan step, for the step-compare mode.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..ops import Op
from ..plan import Plan, Step
from ..quants.panels import ROWS
from ..weights import part_of

if TYPE_CHECKING:
    from ..weights import Weights

MAX_GROUP = 4  # weights that one linear step may carry (native/edgellm.h)


@dataclass(frozen=True)
class LoweredStep:
    """A step for native code. `op` is the lower-case name in enum el_op; `weights` and `biases` are tensor names.

    `last` is the index of the last plan step that this one covers. `planes` says how many int8 columns hold one input
    column of a quantised product: 1, or 2 (the column and what its rounding left, 15 bits together).
    """

    op: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    label: str
    last: int
    weights: tuple[str, ...] = ()
    biases: tuple[str | None, ...] = ()
    residual: int | None = None
    planes: int = 1
    params: Mapping[str, Any] = field(default_factory=dict)


def lower(plan: Plan, fuse: bool = True) -> list[LoweredStep]:
    """The plan's steps for native code, in order."""
    planes = activation_planes(plan)
    steps = [_plain(i, s, planes) for i, s in enumerate(plan.steps)]
    if fuse:
        steps = _pairs(steps, _join_linears)
        steps = _pairs(steps, _join_ropes)
        steps = _with_dead_buffers(steps, _join_gated)
        steps = _with_dead_buffers(steps, _join_residual)
    return steps


def activation_planes(plan: Plan) -> int:
    """2 for a mixture of experts, else 1.

    A router's choice is a cliff: two experts may be closer than 8-bit activations can tell, and a token that goes to
    the wrong one is wrong altogether. 15 bits keep the choice; a decoded token pays a few percent, for its weights are
    read once.
    """
    return 2 if any(s.op is Op.EXPERTS for s in plan.steps) else 1


def _plain(index: int, s: Step, planes: int) -> LoweredStep:
    step = LoweredStep(s.op.value, s.inputs, s.outputs, s.label, index, params=s.params)
    if s.op in (Op.LINEAR, Op.EXPERTS):
        step = replace(step, planes=planes)
    if s.op is Op.LINEAR:
        return replace(step, weights=s.weights[:1], biases=(s.weights[1] if len(s.weights) > 1 else None,))
    return replace(step, weights=s.weights)


# ---- joining neighbours ----------------------------------------------------------------------------------------------


def _pairs(steps: list[LoweredStep], join) -> list[LoweredStep]:
    """Joins each step with the one before it where `join(before, step)` gives a step."""
    out: list[LoweredStep] = []
    for step in steps:
        joined = join(out[-1], step) if out else None
        if joined:
            out[-1] = joined
        else:
            out.append(step)
    return out


def _join_linears(a: LoweredStep, b: LoweredStep) -> LoweredStep | None:
    if a.op != "linear" or b.op != "linear" or a.inputs != b.inputs or len(a.weights) >= MAX_GROUP:
        return None
    if set(a.outputs) & set(b.outputs):
        return None
    return replace(
        a,
        outputs=a.outputs + b.outputs,
        weights=a.weights + b.weights,
        biases=a.biases + b.biases,
        label=f"{a.label}|{b.label.rsplit('.', 1)[-1]}",
        last=b.last,
    )


def _join_ropes(a: LoweredStep, b: LoweredStep) -> LoweredStep | None:
    if a.op != "rope" or b.op != "rope" or len(a.inputs) > 1 or a.params != b.params or a.inputs == b.inputs:
        return None
    return replace(a, inputs=a.inputs + b.inputs, outputs=a.outputs + b.outputs, last=b.last)


# ---- joining where a buffer is not needed any more -------------------------------------------------------------------


def _with_dead_buffers(steps: list[LoweredStep], join) -> list[LoweredStep]:
    """Like _pairs; `join` also gets a test whether a buffer's value is never read after the pair."""
    out: list[LoweredStep] = []
    for i, step in enumerate(steps):
        rest = steps[i + 1 :]
        joined = join(out[-1], step, lambda buffer, rest=rest: _is_dead(buffer, rest)) if out else None
        if joined:
            out[-1] = joined
        else:
            out.append(step)
    return out


def _is_dead(buffer: int, rest: list[LoweredStep]) -> bool:
    """True when no step of `rest` reads the buffer before it is written again."""
    for step in rest:
        if buffer in step.inputs or buffer == step.residual:
            return False
        if buffer in step.outputs:
            return True
    return True


def _join_gated(a: LoweredStep, b: LoweredStep, dead) -> LoweredStep | None:
    if a.op != "linear" or b.op != "gated" or a.outputs != b.inputs:
        return None
    if any(o not in b.outputs and not dead(o) for o in a.outputs):
        return None
    return replace(a, op="linear_gated", outputs=b.outputs, params=b.params, last=b.last)


def _join_residual(a: LoweredStep, b: LoweredStep, dead) -> LoweredStep | None:
    if a.op != "linear" or len(a.weights) != 1 or a.residual is not None or b.op != "add":
        return None
    product = a.outputs[0]
    if product not in b.inputs or b.inputs[0] == b.inputs[1]:
        return None
    other = b.inputs[1] if b.inputs[0] == product else b.inputs[0]
    if product not in b.outputs and not dead(product):
        return None
    if b.outputs[0] == a.inputs[0]:  # the result would overwrite the input while other rows still read it
        return None
    return replace(a, outputs=b.outputs, residual=other, last=b.last)


# ---- which weights lie in panels -------------------------------------------------------------------------------------


def panel_weights(plan: Plan, weights: Weights) -> list[str]:
    """Names of the plan's weights that native kernels read in panels: those that are multiplied, in the plan's order.

    Experts only where each begins a group of 16 rows. A table that only tokens are looked up in stays in rows.
    """
    multiplied = {s.weights[0] for s in plan.steps if s.op is Op.LINEAR}
    multiplied |= {w for s in plan.steps if s.op is Op.EXPERTS for w in s.weights if plan.weights[w][1] % ROWS == 0}
    return [name for name in plan.weights if name in multiplied and weights.type(name).has_panel]


def panel_tensors(plan: Plan, weights: Weights) -> list[str]:
    """Names of the file's tensors that a packed file holds in panels: all their parts are, and begin a group."""
    wanted, found = set(panel_weights(plan, weights)), {}
    for name in plan.weights:
        tensor, first, _ = part_of(name) or (name, 0, 0)
        found[tensor] = found.get(tensor, True) and name in wanted and first % ROWS == 0
    return [tensor for tensor, good in found.items() if good]
