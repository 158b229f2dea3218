"""A plan: the flat list of steps that a model is, over named buffers; and the builder that model families use.

A plan knows names and shapes, never weights' bytes: backends get those from `edgellm.weights`. `Plan.print` shows a
model as a page that a person can read.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .errors import InvalidArgumentError, PlanError
from .ops import ROPE_STYLES, ROTATION, Op, verify


@dataclass(frozen=True)
class Buffer:
    """Float32 values (n_rows, cols); `rows` is "tokens" (of the pass) or "outputs" (tokens whose logits are wanted)."""

    id: int
    name: str
    cols: int
    rows: str


@dataclass(frozen=True)
class Step:
    """One op on buffers (by id) and weights (by GGUF tensor name). `label` names it in errors, e.g. "blk.3.attn_q"."""

    op: Op
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    weights: tuple[str, ...]
    params: Mapping[str, Any]
    label: str


@dataclass(frozen=True, eq=False)
class RopeTable:
    """Rotation of pair i at position p: angle p * inv_freq[i] in radians; cos and sin are multiplied by `magnitude`.

    `inv_freq` is float64 (rotary_dims / 2,).
    """

    inv_freq: np.ndarray
    magnitude: float = 1.0


@dataclass(frozen=True)
class KVShape:
    """Shape of the KV cache: what `edgellm.cache` makes its pages from.

    `windows` are the layers' own sliding windows in tokens (0: none); () where no layer has one.
    """

    n_layers: int
    n_kv_heads: int
    head_dim: int
    windows: tuple[int, ...] = ()

    @property
    def layer_windows(self) -> tuple[int, ...]:
        """(n_layers,) the own window of each layer in tokens, 0: none."""
        return self.windows or (0,) * self.n_layers


@dataclass(frozen=True)
class Plan:
    """A whole model, verified against the op table when it is made (PlanError).

    `weights` maps each tensor name to the shape that the steps need (output features first); "name[a:b]" stands for
    rows a .. b - 1 of a tensor that holds several matrices. `logits` is the id of the (outputs, n_vocab) buffer that
    holds the result, None for an encoder, which has no head. `hidden` is that of the (outputs, dim) buffer with what
    the head reads: the hidden states after the last norm, for embeddings; None where a plan does not say. A `partial`
    plan leaves layers of the cache out.
    """

    name: str
    buffers: tuple[Buffer, ...]
    steps: tuple[Step, ...]
    ropes: tuple[RopeTable, ...]
    kv: KVShape
    logits: int | None
    n_vocab: int
    weights: Mapping[str, tuple[int, ...]]
    hidden: int | None = None
    partial: bool = False

    def __post_init__(self) -> None:
        verify(self)

    @functools.cached_property
    def layers_by_window(self) -> dict[int, list[int] | slice]:
        """The windows of the layers' own, 0 for none: {window: its layers}; all layers as one slice."""
        found: dict[int, list[int]] = {}
        for step in self.steps:
            if step.op is Op.ATTENTION:
                found.setdefault(step.params["window"], []).append(step.params["layer"])
        if len(found) == 1 and not self.partial:
            return {w: slice(None) for w in found}
        return {w: layers for w, layers in found.items()}

    @functools.cached_property
    def causal(self) -> bool:
        """False where tokens see those that follow them: a text is one pass then."""
        return all(step.params["causal"] for step in self.steps if step.op is Op.ATTENTION)

    @functools.cached_property
    def max_positions(self) -> int | None:
        """Positions that the plan has rows for; None: any number."""
        tables = [s.weights[0] for s in self.steps if s.op is Op.ADD_ROWS and s.params["row"] == "position"]
        return min((self.weights[name][0] for name in tables), default=None)

    def result(self, hidden: bool = False) -> int:
        """The buffer of a pass's result: logits, or hidden states. Raises InvalidArgumentError where there is none."""
        buffer = self.hidden if hidden else self.logits
        if buffer is None and hidden:
            raise InvalidArgumentError("this model's plan names no hidden states to end at")
        if buffer is None:
            raise InvalidArgumentError(
                "this model is an encoder: it makes embeddings (Model.embed, `edgellm embed`) and writes no text"
            )
        return buffer

    def last_step(self, buffer: int) -> int:
        """The index of the last step that writes to a buffer."""
        return max(i for i, step in enumerate(self.steps) if buffer in step.outputs)

    def print(self, full: bool = False) -> str:
        """The plan as text. Layers that repeat the one before them are shown as one line unless `full`."""
        return "\n".join(_page(self, full))


# ---- printing --------------------------------------------------------------------------------------------------------


def _page(plan: Plan, full: bool) -> Iterable[str]:
    kv = plan.kv
    n_weights = sum(int(np.prod(s, dtype=np.int64)) for s in plan.weights.values())
    yield f"{plan.name}: {len(plan.steps)} steps, {len(plan.weights)} tensors, {n_weights:,} weights"
    yield f"KV cache: {kv.n_layers} layers x {kv.n_kv_heads} heads x {kv.head_dim}"
    for i, rope in enumerate(plan.ropes):
        f = rope.inv_freq
        yield f"rope table {i}: {len(f)} angles, {f[0]:.6g} .. {f[-1]:.6g} rad/position, magnitude {rope.magnitude:.6g}"
    yield "buffers: " + ", ".join(f"{b.name} ({b.rows}, {b.cols})" for b in plan.buffers)
    yield ""
    groups = _groups(plan.steps)
    shown_shape = None
    skipped: list[str] = []
    for group, (start, steps) in groups.items():
        shape = [_relative(plan, s, group) for s in steps]
        if not full and group.startswith("blk.") and shape == shown_shape:
            skipped.append(group)
            continue
        yield from _same_again(skipped)
        skipped, shown_shape = [], shape
        yield from (_line(plan, start + i, s) for i, s in enumerate(steps))
    yield from _same_again(skipped)
    for what, buffer in (("hidden states", plan.hidden), ("logits", plan.logits)):
        if buffer is not None:
            yield f"{what}: {plan.buffers[buffer].name}"


def _same_again(groups: list[str]) -> Iterable[str]:
    if groups:
        yield f"      {groups[0]} .. {groups[-1]}: the same steps ({len(groups)} times)"


def _groups(steps: tuple[Step, ...]) -> dict[str, tuple[int, list[Step]]]:
    """Consecutive steps by layer: {"blk.3": (index of its first step, steps)}; steps outside layers stand alone."""
    groups: dict[str, tuple[int, list[Step]]] = {}
    for i, step in enumerate(steps):
        parts = step.label.split(".")
        key = ".".join(parts[:2]) if parts[0] == "blk" else f"{i}:{step.label}"
        groups.setdefault(key, (i, []))[1].append(step)
    return groups


def _relative(plan: Plan, step: Step, group: str) -> tuple[Any, ...]:
    """A step without its layer number: equal for layers that are built the same way."""
    names = tuple((w.removeprefix(group), plan.weights[w]) for w in step.weights)
    params = {k: v for k, v in step.params.items() if k != "layer"}
    return step.op, step.inputs, step.outputs, names, params, step.label.removeprefix(group)


def _line(plan: Plan, index: int, step: Step) -> str:
    name = [b.name for b in plan.buffers]
    out = plan.buffers[step.outputs[0]]
    args = [name[b] for b in step.inputs]
    args += [f"{w} {plan.weights[w]}" for w in step.weights]
    told = ROTATION if step.op is Op.ATTENTION else ()  # its rope steps say that already
    params = {k: v for k, v in step.params.items() if k not in told and (k, v) != ("causal", True)}
    args += [f"{k}={v:.6g}" if isinstance(v, float) else f"{k}={v}" for k, v in params.items()]
    return f"{index:5d} {out.name:>8} ({out.rows}, {out.cols}) = {step.op.value}({', '.join(args)})"


# ---- building --------------------------------------------------------------------------------------------------------


@dataclass
class PlanBuilder:
    """Writes a plan step by step. Values are buffer ids; each method returns the id of its output.

    `out` names the role of a value ("q", "ffn", ...). A role has one buffer, used again by every layer, so a plan needs
    little memory. `tensors` are the names in the file, for `optional`.
    """

    name: str
    kv: KVShape
    n_vocab: int
    tensors: Iterable[str] = ()
    hidden: int | None = None  # the value that `Plan.hidden` names
    _buffers: list[Buffer] = field(default_factory=list)
    _steps: list[Step] = field(default_factory=list)
    _ropes: list[RopeTable] = field(default_factory=list)
    _weights: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tensors = frozenset(self.tensors)

    def optional(self, name: str) -> str | None:
        """`name` where the file has that tensor, else None."""
        return name if name in self.tensors else None

    @staticmethod
    def rows(name: str, first: int, n: int) -> str:
        """The weight that is rows first .. first + n - 1 of tensor `name` (edgellm.weights splits such tensors)."""
        return f"{name}[{first}:{first + n}]"

    def rope_table(self, table: RopeTable) -> int:
        """Adds a table of angles; returns its number."""
        self._ropes.append(table)
        return len(self._ropes) - 1

    # Each op of the table has one method below.

    def embed(self, weight: str, dim: int, *, out: str = "x") -> int:
        """(tokens, dim): the rows of `weight` (n_vocab, dim) for the tokens of the pass."""
        return self._add(Op.EMBED, (), (out, dim, "tokens"), {weight: (self.n_vocab, dim)})

    def add_rows(self, x: int, weight: str, n_rows: int, *, row: str, out: str) -> int:
        """x + a row of `weight` (n_rows, cols): that of the token's "position", or the "first". Never in place."""
        b = self._buffers[x]
        return self._add(Op.ADD_ROWS, (x,), (out, b.cols, b.rows), {weight: (n_rows, b.cols)}, {"row": row})

    def layernorm(self, x: int, name: str, eps: float, *, out: str | None = None) -> int:
        """(x - mean) / deviation * weight + bias, the tensors `name`.weight and .bias (cols,); out None: in place."""
        b = self._buffers[x]
        shapes = {f"{name}.weight": (b.cols,), f"{name}.bias": (b.cols,)}
        return self._add(Op.LAYERNORM, (x,), (out or b.name, b.cols, b.rows), shapes, {"eps": float(eps)})

    def gelu(self, x: int, *, label: str) -> int:
        """x * Phi(x), in the buffer of x."""
        b = self._buffers[x]
        return self._add(Op.GELU, (x,), (b.name, b.cols, b.rows), {}, {}, label)

    def rmsnorm(self, x: int, weight: str, eps: float, *, group: int = 0, out: str | None = "h") -> int:
        """x normalised by its root mean square, times `weight` (cols,); out None: in place.

        `group` > 0: each `group` columns (a head) are normalised on their own, all with the same `weight` (group,).
        """
        b = self._buffers[x]
        group = group or b.cols
        params = {"eps": float(eps), "group": group}
        return self._add(Op.RMSNORM, (x,), (out or b.name, b.cols, b.rows), {weight: (group,)}, params)

    def linear(
        self, x: int, weight: str, n_out: int, *, bias: str | None = None, out: str, label: str | None = None
    ) -> int:
        """(rows of x, n_out): x @ weight.T + bias; `weight` is (n_out, cols of x), `bias` (n_out,) or None."""
        b = self._buffers[x]
        shapes: dict[str, tuple[int, ...]] = {weight: (n_out, b.cols)}
        if bias:
            shapes[bias] = (n_out,)
        return self._add(Op.LINEAR, (x,), (out, n_out, b.rows), shapes, label=label)

    def rope(self, x: int, head_dim: int, rotary_dims: int, *, style: str, table: int, label: str) -> int:
        """Rotates the heads of x in place. `style` is "interleaved" or "halves", `table` a number from rope_table."""
        b = self._buffers[x]
        params = {"head_dim": head_dim, "rotary_dims": rotary_dims, "style": style, "table": table}
        return self._add(Op.ROPE, (x,), (b.name, b.cols, b.rows), {}, params, label)

    def attention(
        self, q: int, k: int, v: int, *, layer: int, scale: float, window: int = 0, softcap: float = 0.0,
        causal: bool = True, rotary_dims: int = 0, style: str = ROPE_STYLES[0], table: int = 0, out: str = "attn",
        label: str,
    ) -> int:  # fmt: skip
        """(tokens, n_heads * head_dim): attention of q over the cache of `layer`, to which k and v are added first.

        `rotary_dims`, `style` and `table` are those of the rope steps of q and k; 0 dims: they were not turned. Not
        `causal`: every token sees all of the pass.
        """
        head_dim, cols = self.kv.head_dim, self._buffers[q].cols
        n_heads, n_kv_heads = cols // head_dim, self.kv.n_kv_heads
        params: dict[str, Any] = {"layer": layer, "n_heads": n_heads, "n_kv_heads": n_kv_heads, "head_dim": head_dim}
        params |= {"scale": float(scale), "window": window, "softcap": float(softcap), "causal": causal}
        params |= {"rotary_dims": rotary_dims, "style": style, "table": table}
        return self._add(Op.ATTENTION, (q, k, v), (out, cols, "tokens"), {}, params, label)

    def gated(self, activation: str, gate: int, up: int, *, label: str) -> int:
        """activation(gate) * up, in the buffer of `gate`."""
        b = self._buffers[gate]
        return self._add(Op.GATED, (gate, up), (b.name, b.cols, b.rows), {}, {"activation": activation}, label)

    def add(self, x: int, y: int, *, label: str) -> int:
        """x + y, in the buffer of x."""
        b = self._buffers[x]
        return self._add(Op.ADD, (x, y), (b.name, b.cols, b.rows), {}, {}, label)

    def scale(self, x: int, factor: float, *, label: str) -> int:
        """x * factor, in the buffer of x."""
        b = self._buffers[x]
        return self._add(Op.SCALE, (x,), (b.name, b.cols, b.rows), {}, {"factor": float(factor)}, label)

    def softcap(self, x: int, cap: float, *, label: str) -> int:
        """cap * tanh(x / cap), in the buffer of x."""
        b = self._buffers[x]
        return self._add(Op.SOFTCAP, (x,), (b.name, b.cols, b.rows), {}, {"cap": float(cap)}, label)

    def route(self, logits: int, n_used: int, *, normalise: bool = True, out: str = "share", label: str) -> int:
        """(rows, n_experts): the shares of the n_used experts with the largest logits, 0 for the others."""
        b = self._buffers[logits]
        params = {"n_used": n_used, "normalise": normalise}
        return self._add(Op.ROUTE, (logits,), (out, b.cols, b.rows), {}, params, label)

    def experts(
        self, x: int, share: int, weights: tuple[str, str, str], hidden: int, *, activation: str, n_used: int,
        out: str = "moe", label: str,
    ) -> int:  # fmt: skip
        """x through the experts that `share` names, weighed by it; `weights` are gate, up, down of width `hidden`."""
        b, n = self._buffers[x], self._buffers[share].cols
        wide, narrow = (n, hidden, b.cols), (n, b.cols, hidden)
        shapes = dict(zip(weights, (wide, wide, narrow), strict=True))
        params = {"activation": activation, "n_used": n_used}
        return self._add(Op.EXPERTS, (x, share), (out, b.cols, b.rows), shapes, params, label)

    def take_rows(self, x: int, *, out: str = "x_out", label: str = "take_rows") -> int:
        """(outputs, cols): the rows of x whose results are wanted."""
        return self._add(Op.TAKE_ROWS, (x,), (out, self._buffers[x].cols, "outputs"), {}, {}, label)

    def build(self, logits: int | None) -> Plan:
        """The finished plan; `logits` is the value that holds the result (None: it is `hidden`). Raises PlanError."""
        return Plan(
            name=self.name,
            buffers=tuple(self._buffers),
            steps=tuple(self._steps),
            ropes=tuple(self._ropes),
            kv=replace(self.kv, windows=self._windows()),
            logits=logits,
            n_vocab=self.n_vocab,
            hidden=self.hidden,
            weights=dict(self._weights),
        )

    def _windows(self) -> tuple[int, ...]:
        """The layers' own windows; of steps that share a layer the widest."""
        found: dict[int, list[int]] = {}
        for step in self._steps:
            if step.op is Op.ATTENTION:
                found.setdefault(step.params["layer"], []).append(step.params["window"])
        windows = tuple(0 if 0 in (w := found.get(i, [0])) else max(w) for i in range(self.kv.n_layers))
        return windows if any(windows) else ()

    def _add(
        self,
        op: Op,
        inputs: tuple[int, ...],
        out: tuple[str, int, str],
        weights: Mapping[str, tuple[int, ...]],
        params: Mapping[str, Any] | None = None,
        label: str | None = None,
    ) -> int:
        for name, shape in weights.items():
            if self._weights.setdefault(name, shape) != shape:
                raise PlanError(f"tensor '{name}' is used with shapes {self._weights[name]} and {shape}")
        label = label or next(iter(weights)).removesuffix(".weight")
        target = self._buffer(*out)
        self._steps.append(Step(op, inputs, (target,), tuple(weights), dict(params or {}), label))
        return target

    def _buffer(self, name: str, cols: int, rows: str) -> int:
        for b in self._buffers:
            if b.name == name:
                if (b.cols, b.rows) != (cols, rows):
                    raise PlanError(f"buffer '{name}' is used as ({b.rows}, {b.cols}) and as ({rows}, {cols})")
                return b.id
        self._buffers.append(Buffer(len(self._buffers), name, cols, rows))
        return self._buffers[-1].id
