"""The one table of operations that a plan may use.

An op is a row of `OPS`: the roles of its inputs, outputs and weights, its parameters with their types, whether the
output may be the input's buffer, and one function that checks shapes. What an op computes is defined by its body in
`edgellm.backends.reference`; the other backends are compared with that. A new op is a row here, a body there, a kernel.

Every buffer is float32 of shape (rows, cols). Its `rows` are "tokens" (one row per token of the pass) or "outputs" (one
row per token whose result is wanted). A weight of shape (n_out, n_in) has its output features first, as NumPy sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from . import shapes
from .shapes import Shapes


class Op(Enum):
    """What a step does. The value is the name that `Plan.print` shows."""

    EMBED = "embed"
    ADD_ROWS = "add_rows"
    RMSNORM = "rmsnorm"
    LAYERNORM = "layernorm"
    LINEAR = "linear"
    ROPE = "rope"
    ATTENTION = "attention"
    GATED = "gated"
    GELU = "gelu"
    ADD = "add"
    SCALE = "scale"
    SOFTCAP = "softcap"
    ROUTE = "route"
    EXPERTS = "experts"
    TAKE_ROWS = "take_rows"


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


OPS: dict[Op, OpSpec] = {
    Op.EMBED: OpSpec(
        summary="out[i] = row token[i] of the table",
        inputs=(),
        outputs=("out",),
        weights=("table",),  # (n_vocab, dim)
        min_weights=1,
        check=shapes.check_embed,
    ),
    Op.ADD_ROWS: OpSpec(
        summary="out = x + a row of the table: `row` position takes that of the token's position, first the first one "
        "for all tokens (the learned positions and token types of BERT, Devlin et al. 2018)",
        inputs=("x",),
        outputs=("out",),
        weights=("table",),  # (n_rows, cols)
        min_weights=1,
        params={"row": str},
        check=shapes.check_add_rows,
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
        check=shapes.check_rmsnorm,
    ),
    Op.LAYERNORM: OpSpec(
        summary="out = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias for every row (Ba et al. 2016)",
        inputs=("x",),
        outputs=("out",),
        weights=("weight", "bias"),  # (cols,) each
        min_weights=2,
        params={"eps": float},
        in_place="may",
        check=shapes.check_layernorm,
    ),
    Op.LINEAR: OpSpec(
        summary="out = x @ weight.T (+ bias)",
        inputs=("x",),
        outputs=("out",),
        weights=("weight", "bias"),  # (n_out, n_in), (n_out,)
        min_weights=1,
        check=shapes.check_linear,
    ),
    Op.ROPE: OpSpec(
        summary="turns the first rotary_dims of every head by position * inv_freq, in place (Su et al. 2021); style "
        "interleaved pairs columns 2i and 2i+1, style halves pairs i and i + rotary_dims/2",
        inputs=("x",),
        outputs=("x",),
        params={"head_dim": int, "rotary_dims": int, "style": str, "table": int},
        in_place="always",
        check=shapes.check_rope,
    ),
    Op.ATTENTION: OpSpec(
        summary="writes k and v of this pass to the cache of `layer`, then out = softmax(scale * q . k) v over the "
        "positions up to each token's own (the last `window` of them; 0: all), or, not `causal`, up to the end of the "
        "pass; query heads share KV heads in groups; `softcap` c > 0 turns a score s into c tanh(s / c) first "
        "(Gemma 2, 2024). rotary_dims, style and table are those of the rope steps of q and k (0 dims: there are "
        "none): where the sequence has dropped tokens, q meets those before the gap once more rotated "
        "(edgellm.cache.span)",
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
            "causal": bool,
            "rotary_dims": int,
            "style": str,
            "table": int,
        },
        check=shapes.check_attention,
    ),
    Op.GATED: OpSpec(
        summary="out = activation(gate) * up (Shazeer 2020)",
        inputs=("gate", "up"),
        outputs=("out",),
        params={"activation": str},
        in_place="may",
        check=shapes.check_gated,
    ),
    Op.GELU: OpSpec(
        summary="out = x * Phi(x), Phi the normal distribution function: the exact form of GELU (Hendrycks and Gimpel "
        "2016)",
        inputs=("x",),
        outputs=("out",),
        in_place="may",
        check=shapes.check_same,
    ),
    Op.ADD: OpSpec(
        summary="out = x + y",
        inputs=("x", "y"),
        outputs=("out",),
        in_place="may",
        check=shapes.check_add,
    ),
    Op.SCALE: OpSpec(
        summary="out = x * factor",
        inputs=("x",),
        outputs=("out",),
        params={"factor": float},
        in_place="may",
        check=shapes.check_scale,
    ),
    Op.SOFTCAP: OpSpec(
        summary="out = cap * tanh(x / cap)",
        inputs=("x",),
        outputs=("out",),
        params={"cap": float},
        in_place="may",
        check=shapes.check_softcap,
    ),
    Op.ROUTE: OpSpec(
        summary="out = softmax(logits) of the n_used largest experts of each row (of equals the first), 0 for all "
        "others; `normalise` makes a row's shares sum to 1 (Shazeer et al. 2017; Jiang et al. 2024)",
        inputs=("logits",),
        outputs=("share",),
        params={"n_used": int, "normalise": bool},
        check=shapes.check_route,
    ),
    Op.EXPERTS: OpSpec(
        summary="out = sum over experts e with share[e] != 0, in ascending order, of "
        "share[e] * down[e] (activation(gate[e] x) * (up[e] x)); at most n_used experts for a row",
        inputs=("x", "share"),
        outputs=("out",),
        weights=("gate", "up", "down"),  # (n_experts, hidden, dim) twice, (n_experts, dim, hidden)
        min_weights=3,
        params={"activation": str, "n_used": int},
        check=shapes.check_experts,
    ),
    Op.TAKE_ROWS: OpSpec(
        summary="out = the rows of x whose results are wanted",
        inputs=("x",),
        outputs=("out",),
        check=shapes.check_take_rows,
    ),
}
