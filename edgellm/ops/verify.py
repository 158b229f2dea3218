"""`verify`, which holds a plan to the table of ops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import PlanError
from .shapes import ROTATION, Shapes
from .table import OPS, Op, OpSpec

if TYPE_CHECKING:
    from ..plan import Plan, Step


def verify(plan: Plan) -> None:
    """Checks every step of a plan against the table, and that no buffer is read before it is written.

    Raises PlanError that names the step: a broken plan is a fault of a model family file, never of a model's weights
    (those are checked against `plan.weights` by `edgellm.weights`).
    """
    written: set[int] = set()
    layers: list[int] = []
    turned: dict[int, tuple[Any, ...]] = {}  # buffer -> the rotation of what is in it
    for i, buffer in enumerate(plan.buffers):
        if buffer.id != i or buffer.cols < 1 or buffer.rows not in ("tokens", "outputs"):
            raise PlanError(f"buffer {i} is malformed: {buffer}")
    for i, step in enumerate(plan.steps):
        try:
            _verify_step(plan, step, written)
            _verify_rotation(step, turned)
        except ValueError as e:
            raise PlanError(f"step {i} ({step.op.value} {step.label}): {e}") from None
        written.update(step.outputs)
        turned.update({b: _rotation(step) if step.op is Op.ROPE else () for b in step.outputs})
        if step.op is Op.ATTENTION:
            layers.append(step.params["layer"])
    if len(set(layers)) < len(layers) or set(layers) - set(range(plan.kv.n_layers)):
        raise PlanError(f"attention steps do not each use one of the {plan.kv.n_layers} layers of the KV cache")
    if len(layers) < plan.kv.n_layers and not plan.partial:
        raise PlanError(f"the {plan.kv.n_layers} layers of the KV cache are not each used by one attention step")
    if plan.logits is None and plan.hidden is None:
        raise PlanError("the plan has no result: neither logits nor hidden states")
    _verify_result(plan, "logits", plan.logits, plan.n_vocab, written)
    _verify_result(plan, "hidden", plan.hidden, None, written)


def _verify_result(plan: Plan, name: str, buffer: int | None, cols: int | None, written: set[int]) -> None:
    if buffer is None:
        return
    found = plan.buffers[buffer] if 0 <= buffer < len(plan.buffers) else None
    if found is None or buffer not in written or found.rows != "outputs" or cols not in (None, found.cols):
        raise PlanError(f"the {name} buffer {buffer} is not a written (outputs, {cols or 'any'}) buffer")


def _verify_step(plan: Plan, step: Step, written: set[int]) -> None:
    spec = OPS[step.op]
    counts = (len(step.inputs), len(step.outputs)) == (len(spec.inputs), len(spec.outputs))
    if not counts or not spec.min_weights <= len(step.weights) <= len(spec.weights):
        raise ValueError("wrong number of inputs, outputs or weights")
    for b in (*step.inputs, *step.outputs):
        if not 0 <= b < len(plan.buffers):
            raise ValueError(f"there is no buffer {b}")
    for b in step.inputs:
        if b not in written:
            raise ValueError(f"'{plan.buffers[b].name}' is read before it is written")
    _verify_aliases(step, spec)
    wanted = dict(spec.params or {})
    if set(step.params) != set(wanted):
        raise ValueError(f"parameters {sorted(step.params)}, needed {sorted(wanted)}")
    for name, kind in wanted.items():
        if type(step.params[name]) is not kind:
            raise ValueError(f"parameter {name} is {step.params[name]!r}, needed {kind.__name__}")
    for name in step.weights:
        if name not in plan.weights:
            raise ValueError(f"weight '{name}' has no declared shape")
    inputs = tuple(plan.buffers[b] for b in step.inputs)
    outputs = tuple(plan.buffers[b] for b in step.outputs)
    spec.check(Shapes(inputs, outputs, tuple(plan.weights[w] for w in step.weights), step.params, plan))


def _rotation(step: Step) -> tuple[Any, ...]:
    return tuple(step.params[name] for name in ROTATION)


def _verify_rotation(step: Step, turned: Mapping[int, tuple[Any, ...]]) -> None:
    """Attention turns q once more where tokens were dropped: it must know how q and k were turned before."""
    if step.op is not Op.ATTENTION:
        return
    wanted = _rotation(step) if step.params["rotary_dims"] else ()
    if any(turned[b] != wanted for b in step.inputs[:2]):
        found = " and ".join(str(turned[b] or "not") for b in step.inputs[:2])
        raise ValueError(f"its rotation is {wanted or 'none'}, but q and k were turned {found}")


def _verify_aliases(step: Step, spec: OpSpec) -> None:
    shared = set(step.inputs) & set(step.outputs)
    if spec.in_place == "always" and step.inputs != step.outputs:
        raise ValueError("it works in place: the output must be the input")
    if spec.in_place == "never" and shared:
        raise ValueError("the output must not be an input")
    if spec.in_place == "may" and shared and step.outputs[0] != step.inputs[0]:
        raise ValueError("the output may be the first input only")
