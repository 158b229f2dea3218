"""The one table of operations that a plan may use, and `verify`, which holds a plan to it.

An op is a row of `OPS`: the roles of its inputs, outputs and weights, its parameters with their types, whether the
output may be the input's buffer, and one function that checks shapes. What an op computes is defined by its body in
`edgellm.backends.reference`; the other backends are compared with that. A new op is a row here, a body there, a kernel.

Every buffer is float32 of shape (rows, cols). Its `rows` are "tokens" (one row per token of the pass) or "outputs" (one
row per token whose logits are wanted). A weight of shape (n_out, n_in) has its output features first, as NumPy sees it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from .errors import PlanError

if TYPE_CHECKING:
    from .plan import Buffer, Plan, Step

ACTIVATIONS = ("silu", "gelu_tanh")
ROPE_STYLES = ("interleaved", "halves")
ROTATION = ("rotary_dims", "style", "table")  # parameters that rope and attention share
MAX_EXPERTS = 1024  # of one layer (native/plan.h)


class Op(Enum):
    """What a step does. The value is the name that `Plan.print` shows."""

    EMBED = "embed"
    RMSNORM = "rmsnorm"
    LINEAR = "linear"
    ROPE = "rope"
    ATTENTION = "attention"
    GATED = "gated"
    ADD = "add"
    SCALE = "scale"
    SOFTCAP = "softcap"
    ROUTE = "route"
    EXPERTS = "experts"
    TAKE_ROWS = "take_rows"


@dataclass(frozen=True)
class Shapes:
    """What the shape check of an op sees: the buffers and weight shapes of one step, its parameters, and the plan."""

    inputs: tuple[Buffer, ...]
    outputs: tuple[Buffer, ...]
    weights: tuple[tuple[int, ...], ...]
    params: Mapping[str, Any]
    plan: Plan

    def need(self, condition: bool, message: str) -> None:
        """Raises ValueError(message) unless `condition` holds; `verify` adds where."""
        if not condition:
            raise ValueError(message)


@dataclass(frozen=True)
class OpSpec:
    """One row of the table. `min_weights` of the `weights` must be there, those after it are optional."""

    summary: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    check: Callable[[Shapes], None]
    weights: tuple[str, ...] = ()
    min_weights: int = 0
    params: Mapping[str, type] | None = None
    in_place: str = "never"  # "never": no output is an input; "may": output 0 may be input 0; "always": it is


# ---- shape checks ----------------------------------------------------------------------------------------------------


def _same_shape(s: Shapes, a: Buffer, b: Buffer) -> None:
    s.need((a.cols, a.rows) == (b.cols, b.rows), f"'{a.name}' and '{b.name}' differ in shape")


def _check_embed(s: Shapes) -> None:
    out, table = s.outputs[0], s.weights[0]
    s.need(out.rows == "tokens", f"'{out.name}' must have one row per token")
    s.need(table == (s.plan.n_vocab, out.cols), f"table {table} is not (n_vocab {s.plan.n_vocab}, cols {out.cols})")


def _check_rmsnorm(s: Shapes) -> None:
    _same_shape(s, s.inputs[0], s.outputs[0])
    cols, group = s.inputs[0].cols, s.params["group"]
    s.need(group > 0 and cols % group == 0, f"{cols} columns are not groups of {group}")
    s.need(s.weights[0] == (group,), f"the weight has shape {s.weights[0]}, the group {group} columns")
    s.need(0.0 < s.params["eps"] < 1.0, f"eps is {s.params['eps']}")


def _check_linear(s: Shapes) -> None:
    x, y = s.inputs[0], s.outputs[0]
    s.need(s.weights[0] == (y.cols, x.cols), f"the weight has shape {s.weights[0]}, needed ({y.cols}, {x.cols})")
    s.need(len(s.weights) < 2 or s.weights[1] == (y.cols,), f"the bias is not a vector of {y.cols}")
    s.need(x.rows == y.rows, f"'{x.name}' has one row per {x.rows}, '{y.name}' per {y.rows}")


def _check_rope(s: Shapes) -> None:
    p, x = s.params, s.inputs[0]
    s.need(x.rows == "tokens", "only rows of tokens have a position")
    s.need(p["head_dim"] > 0 and x.cols % p["head_dim"] == 0, f"{x.cols} columns are not heads of {p['head_dim']}")
    _check_rotation(s)


def _check_rotation(s: Shapes) -> None:
    p = s.params
    s.need(0 < p["rotary_dims"] <= p["head_dim"] and p["rotary_dims"] % 2 == 0, f"rotary_dims is {p['rotary_dims']}")
    s.need(p["style"] in ROPE_STYLES, f"style is '{p['style']}'")
    s.need(0 <= p["table"] < len(s.plan.ropes), f"there is no rope table {p['table']}")
    n = s.plan.ropes[p["table"]].inv_freq.shape
    s.need(n == (p["rotary_dims"] // 2,), f"rope table {p['table']} has shape {n}")


def _check_attention(s: Shapes) -> None:
    p, (q, k, v), out, kv = s.params, s.inputs, s.outputs[0], s.plan.kv
    s.need(0 <= p["layer"] < kv.n_layers, f"layer {p['layer']} of {kv.n_layers}")
    s.need((p["n_kv_heads"], p["head_dim"]) == (kv.n_kv_heads, kv.head_dim), "heads differ from the KV cache's")
    s.need(p["n_heads"] % p["n_kv_heads"] == 0, f"{p['n_heads']} heads do not share {p['n_kv_heads']} KV heads evenly")
    s.need(q.cols == out.cols == p["n_heads"] * p["head_dim"], f"'{q.name}' or '{out.name}' is not n_heads x head_dim")
    s.need(k.cols == v.cols == p["n_kv_heads"] * p["head_dim"], f"'{k.name}' or '{v.name}' is no n_kv_heads x head_dim")
    s.need(all(b.rows == "tokens" for b in (q, k, v, out)), "attention works on rows of tokens")
    s.need(p["scale"] > 0 and p["window"] >= 0, f"scale is {p['scale']}, window {p['window']}")
    s.need(0.0 <= p["softcap"] < math.inf, f"softcap is {p['softcap']}")
    if p["rotary_dims"]:
        _check_rotation(s)


def _check_gated(s: Shapes) -> None:
    _same_shape(s, s.inputs[0], s.inputs[1])
    _same_shape(s, s.inputs[0], s.outputs[0])
    s.need(s.params["activation"] in ACTIVATIONS, f"activation is '{s.params['activation']}'")


def _check_add(s: Shapes) -> None:
    _same_shape(s, s.inputs[0], s.inputs[1])
    _same_shape(s, s.inputs[0], s.outputs[0])


def _check_scale(s: Shapes) -> None:
    _same_shape(s, s.inputs[0], s.outputs[0])
    s.need(math.isfinite(s.params["factor"]), f"factor is {s.params['factor']}")


def _check_softcap(s: Shapes) -> None:
    _same_shape(s, s.inputs[0], s.outputs[0])
    s.need(0.0 < s.params["cap"] < math.inf, f"cap is {s.params['cap']}")


def _check_route(s: Shapes) -> None:
    _same_shape(s, s.inputs[0], s.outputs[0])
    n, used = s.inputs[0].cols, s.params["n_used"]
    s.need(0 < used <= n <= MAX_EXPERTS, f"{used} of {n} experts")


def _check_experts(s: Shapes) -> None:
    (x, share), out, (gate, up, down) = s.inputs, s.outputs[0], s.weights
    _same_shape(s, x, out)
    s.need(x.rows == share.rows, f"'{x.name}' has one row per {x.rows}, '{share.name}' per {share.rows}")
    s.need(0 < s.params["n_used"] <= share.cols, f"{s.params['n_used']} of {share.cols} experts")
    s.need(len(gate) == 3 and gate[::2] == (share.cols, x.cols), f"gate {gate} is not (experts, hidden, {x.cols})")
    s.need(up == gate, f"up {up} differs from gate {gate}")
    s.need(down == (share.cols, x.cols, gate[1]), f"down {down} is not ({share.cols}, {x.cols}, {gate[1]})")
    s.need(s.params["activation"] in ACTIVATIONS, f"activation is '{s.params['activation']}'")


def _check_take_rows(s: Shapes) -> None:
    x, y = s.inputs[0], s.outputs[0]
    s.need(x.cols == y.cols, f"'{x.name}' has {x.cols} columns, '{y.name}' {y.cols}")
    s.need((x.rows, y.rows) == ("tokens", "outputs"), "it goes from rows of tokens to rows of outputs")


# ---- the table -------------------------------------------------------------------------------------------------------

OPS: dict[Op, OpSpec] = {
    Op.EMBED: OpSpec(
        summary="out[i] = row token[i] of the table",
        inputs=(),
        outputs=("out",),
        weights=("table",),  # (n_vocab, dim)
        min_weights=1,
        check=_check_embed,
    ),
    Op.RMSNORM: OpSpec(
        summary="out = x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019) for every `group` columns of every "
        "row: a whole row, or one head of it",
        inputs=("x",),
        outputs=("out",),
        weights=("weight",),  # (group,)
        min_weights=1,
        params={"eps": float, "group": int},
        in_place="may",
        check=_check_rmsnorm,
    ),
    Op.LINEAR: OpSpec(
        summary="out = x @ weight.T (+ bias)",
        inputs=("x",),
        outputs=("out",),
        weights=("weight", "bias"),  # (n_out, n_in), (n_out,)
        min_weights=1,
        check=_check_linear,
    ),
    Op.ROPE: OpSpec(
        summary="turns the first rotary_dims of every head by position * inv_freq, in place (Su et al. 2021); style "
        "interleaved pairs columns 2i and 2i+1, style halves pairs i and i + rotary_dims/2",
        inputs=("x",),
        outputs=("x",),
        params={"head_dim": int, "rotary_dims": int, "style": str, "table": int},
        in_place="always",
        check=_check_rope,
    ),
    Op.ATTENTION: OpSpec(
        summary="writes k and v of this pass to the cache of `layer`, then out = softmax(scale * q . k) v over the "
        "positions up to each token's own (the last `window` of them; 0: all); query heads share KV heads in groups; "
        "`softcap` c > 0 turns a score s into c tanh(s / c) first (Gemma 2, 2024). rotary_dims, style and table are "
        "those of the rope steps of q and k (rotary_dims 0: there are none): where the sequence has dropped tokens, q "
        "meets those before the gap once more rotated (edgellm.cache.span)",
        inputs=("q", "k", "v"),
        outputs=("out",),
        params={
            "layer": int,
            "n_heads": int,
            "n_kv_heads": int,
            "head_dim": int,
            "scale": float,
            "window": int,
            "softcap": float,
            "rotary_dims": int,
            "style": str,
            "table": int,
        },
        check=_check_attention,
    ),
    Op.GATED: OpSpec(
        summary="out = activation(gate) * up (Shazeer 2020)",
        inputs=("gate", "up"),
        outputs=("out",),
        params={"activation": str},
        in_place="may",
        check=_check_gated,
    ),
    Op.ADD: OpSpec(
        summary="out = x + y",
        inputs=("x", "y"),
        outputs=("out",),
        in_place="may",
        check=_check_add,
    ),
    Op.SCALE: OpSpec(
        summary="out = x * factor",
        inputs=("x",),
        outputs=("out",),
        params={"factor": float},
        in_place="may",
        check=_check_scale,
    ),
    Op.SOFTCAP: OpSpec(
        summary="out = cap * tanh(x / cap)",
        inputs=("x",),
        outputs=("out",),
        params={"cap": float},
        in_place="may",
        check=_check_softcap,
    ),
    Op.ROUTE: OpSpec(
        summary="out = softmax(logits) of the n_used largest experts of each row (of equals the first), 0 for all "
        "others; `normalise` makes a row's shares sum to 1 (Shazeer et al. 2017; Jiang et al. 2024)",
        inputs=("logits",),
        outputs=("share",),
        params={"n_used": int, "normalise": bool},
        check=_check_route,
    ),
    Op.EXPERTS: OpSpec(
        summary="out = sum over experts e with share[e] != 0, in ascending order, of "
        "share[e] * down[e] (activation(gate[e] x) * (up[e] x)); at most n_used experts for a row",
        inputs=("x", "share"),
        outputs=("out",),
        weights=("gate", "up", "down"),  # (n_experts, hidden, dim) twice, (n_experts, dim, hidden)
        min_weights=3,
        params={"activation": str, "n_used": int},
        check=_check_experts,
    ),
    Op.TAKE_ROWS: OpSpec(
        summary="out = the rows of x whose logits are wanted",
        inputs=("x",),
        outputs=("out",),
        check=_check_take_rows,
    ),
}


# ---- verification ----------------------------------------------------------------------------------------------------


def verify(plan: Plan) -> None:
    """Checks every step of a plan against the table, and that no buffer is read before it is written.

    Raises PlanError that names the step: a broken plan is a fault of a model family file, never of a model's weights
    (those are checked against `plan.weights` by `edgellm.weights`).
    """
    written: set[int] = set()
    layers: list[int] = []
    turned: dict[int, tuple] = {}  # buffer -> the rotation of what is in it
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
    if sorted(layers) != list(range(plan.kv.n_layers)):
        raise PlanError(f"the {plan.kv.n_layers} layers of the KV cache are not each used by one attention step")
    logits = plan.buffers[plan.logits] if 0 <= plan.logits < len(plan.buffers) else None
    if logits is None or plan.logits not in written or (logits.rows, logits.cols) != ("outputs", plan.n_vocab):
        raise PlanError(f"the logits buffer {plan.logits} is not a written (outputs, {plan.n_vocab}) buffer")


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


def _rotation(step: Step) -> tuple:
    return tuple(step.params[name] for name in ROTATION)


def _verify_rotation(step: Step, turned: Mapping[int, tuple]) -> None:
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
