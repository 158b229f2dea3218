"""Which shapes and parameters each op takes: one function per op, named in the table of `edgellm.ops`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..plan import Buffer, Plan

ACTIVATIONS = ("silu", "gelu_tanh")  # of gated steps
ROPE_STYLES = ("interleaved", "halves")
ROTATION = ("rotary_dims", "style", "table")  # parameters that rope and attention share
ROWS_BY = ("first", "position")  # which row of a table add_rows takes
MAX_EXPERTS = 1024  # of one layer (native/plan.h)


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


def _same_shape(s: Shapes, a: Buffer, b: Buffer) -> None:
    s.need((a.cols, a.rows) == (b.cols, b.rows), f"'{a.name}' and '{b.name}' differ in shape")


def check_embed(s: Shapes) -> None:
    out, table = s.outputs[0], s.weights[0]
    s.need(out.rows == "tokens", f"'{out.name}' must have one row per token")
    s.need(table == (s.plan.n_vocab, out.cols), f"table {table} is not (n_vocab {s.plan.n_vocab}, cols {out.cols})")


def check_same(s: Shapes) -> None:
    """One input and an output of its shape: all that there is to check."""
    _same_shape(s, s.inputs[0], s.outputs[0])


def check_add_rows(s: Shapes) -> None:
    (x,), row = s.inputs, s.params["row"]
    _same_shape(s, x, s.outputs[0])
    s.need(row in ROWS_BY, f"row is '{row}'")
    s.need(len(s.weights[0]) == 2 and s.weights[0][1] == x.cols, f"table {s.weights[0]} has no rows of {x.cols}")
    s.need(row != "position" or x.rows == "tokens", "only rows of tokens have a position")


def check_layernorm(s: Shapes) -> None:
    x = s.inputs[0]
    _same_shape(s, x, s.outputs[0])
    s.need(s.weights == ((x.cols,), (x.cols,)), f"weight and bias {s.weights} are not vectors of {x.cols}")
    s.need(0.0 < s.params["eps"] < 1.0, f"eps is {s.params['eps']}")


def check_rmsnorm(s: Shapes) -> None:
    _same_shape(s, s.inputs[0], s.outputs[0])
    cols, group = s.inputs[0].cols, s.params["group"]
    s.need(group > 0 and cols % group == 0, f"{cols} columns are not groups of {group}")
    s.need(s.weights[0] == (group,), f"the weight has shape {s.weights[0]}, the group {group} columns")
    s.need(0.0 < s.params["eps"] < 1.0, f"eps is {s.params['eps']}")


def check_linear(s: Shapes) -> None:
    x, y = s.inputs[0], s.outputs[0]
    s.need(s.weights[0] == (y.cols, x.cols), f"the weight has shape {s.weights[0]}, needed ({y.cols}, {x.cols})")
    s.need(len(s.weights) < 2 or s.weights[1] == (y.cols,), f"the bias is not a vector of {y.cols}")
    s.need(x.rows == y.rows, f"'{x.name}' has one row per {x.rows}, '{y.name}' per {y.rows}")


def check_rope(s: Shapes) -> None:
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


def check_attention(s: Shapes) -> None:
    p, (q, k, v), out, kv = s.params, s.inputs, s.outputs[0], s.plan.kv
    s.need(0 <= p["layer"] < kv.n_layers, f"layer {p['layer']} of {kv.n_layers}")
    s.need((p["n_kv_heads"], p["head_dim"]) == (kv.n_kv_heads, kv.head_dim), "heads differ from the KV cache's")
    s.need(p["n_heads"] % p["n_kv_heads"] == 0, f"{p['n_heads']} heads do not share {p['n_kv_heads']} KV heads evenly")
    s.need(q.cols == out.cols == p["n_heads"] * p["head_dim"], f"'{q.name}' or '{out.name}' is not n_heads x head_dim")
    s.need(k.cols == v.cols == p["n_kv_heads"] * p["head_dim"], f"'{k.name}' or '{v.name}' is no n_kv_heads x head_dim")
    s.need(all(b.rows == "tokens" for b in (q, k, v, out)), "attention works on rows of tokens")
    s.need(p["scale"] > 0 and p["window"] >= 0, f"scale is {p['scale']}, window {p['window']}")
    s.need(0.0 <= p["softcap"] < math.inf, f"softcap is {p['softcap']}")
    s.need(p["causal"] or not p["window"], "a window and attention to what follows do not go together")
    if p["rotary_dims"]:
        _check_rotation(s)


def check_gated(s: Shapes) -> None:
    _same_shape(s, s.inputs[0], s.inputs[1])
    _same_shape(s, s.inputs[0], s.outputs[0])
    s.need(s.params["activation"] in ACTIVATIONS, f"activation is '{s.params['activation']}'")


def check_add(s: Shapes) -> None:
    _same_shape(s, s.inputs[0], s.inputs[1])
    _same_shape(s, s.inputs[0], s.outputs[0])


def check_scale(s: Shapes) -> None:
    _same_shape(s, s.inputs[0], s.outputs[0])
    s.need(math.isfinite(s.params["factor"]), f"factor is {s.params['factor']}")


def check_softcap(s: Shapes) -> None:
    _same_shape(s, s.inputs[0], s.outputs[0])
    s.need(0.0 < s.params["cap"] < math.inf, f"cap is {s.params['cap']}")


def check_route(s: Shapes) -> None:
    _same_shape(s, s.inputs[0], s.outputs[0])
    n, used = s.inputs[0].cols, s.params["n_used"]
    s.need(0 < used <= n <= MAX_EXPERTS, f"{used} of {n} experts")


def check_experts(s: Shapes) -> None:
    (x, share), out, (gate, up, down) = s.inputs, s.outputs[0], s.weights
    _same_shape(s, x, out)
    s.need(x.rows == share.rows, f"'{x.name}' has one row per {x.rows}, '{share.name}' per {share.rows}")
    s.need(0 < s.params["n_used"] <= share.cols, f"{s.params['n_used']} of {share.cols} experts")
    s.need(len(gate) == 3 and gate[::2] == (share.cols, x.cols), f"gate {gate} is not (experts, hidden, {x.cols})")
    s.need(up == gate, f"up {up} differs from gate {gate}")
    s.need(down == (share.cols, x.cols, gate[1]), f"down {down} is not ({share.cols}, {x.cols}, {gate[1]})")
    s.need(s.params["activation"] in ACTIVATIONS, f"activation is '{s.params['activation']}'")


def check_take_rows(s: Shapes) -> None:
    x, y = s.inputs[0], s.outputs[0]
    s.need(x.cols == y.cols, f"'{x.name}' has {x.cols} columns, '{y.name}' {y.cols}")
    s.need((x.rows, y.rows) == ("tokens", "outputs"), "it goes from rows of tokens to rows of outputs")
