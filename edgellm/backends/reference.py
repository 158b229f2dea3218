"""The reference backend: NumPy, float32, on dequantised weights. It defines what every op computes.

Slow, short and obviously right; the other backends are compared with it. It reads and writes the same KV pages as they
do, so with f16 pages K and V are rounded to f16, and with q8_0 pages to 8 bits.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..cache import PAGE_TOKENS, Sequence
from ..errors import BackendError, Cancelled, InvalidArgumentError, NonFiniteError
from ..ops import Op
from ..plan import Plan, Step
from ..weights import Weights
from . import check_pass


@dataclass
class _Pass:
    """What one pass works on: int32 tokens (n,) at position ..., wanted rows (m,), the cache, values by buffer id."""

    tokens: np.ndarray
    position: int
    outputs: np.ndarray
    seq: Sequence
    values: dict[int, np.ndarray]


class ReferenceBackend:
    """See `edgellm.backends.Backend`. Every tensor is decoded whole at its first use and kept."""

    name = "reference"
    has_prefill = any_width = False
    arena = (0, 0)
    reads_file = True  # at the first use of each weight

    def __init__(
        self, plan: Plan, weights: Weights, *, n_threads: int = 1, max_tokens: int = 512, pack: bool = True
    ) -> None:
        self.plan, self.max_tokens = plan, max_tokens
        self._source: Weights | None = weights
        self._weights: dict[str, np.ndarray] = {}
        self._pass: _Pass | None = None

    @property
    def exact(self) -> bool:
        """False: NumPy rounds otherwise in passes of another width. Setting it raises InvalidArgumentError."""
        return False

    @exact.setter
    def exact(self, wanted: bool) -> None:
        if wanted:
            raise InvalidArgumentError("the reference backend cannot be exact; choose backend='native' or 'numba'")

    def forward(
        self,
        tokens: np.ndarray,
        position: int,
        outputs: np.ndarray,
        seq: Sequence,
        cancel: np.ndarray | None = None,
        hidden: bool = False,
    ) -> np.ndarray:
        result = self.plan.result(hidden)
        self.begin(tokens, position, outputs, seq)
        for i in range(self.plan.last_step(result) + 1):
            if cancel is not None and cancel[0]:
                raise Cancelled()
            self.run_step(i)
        values = self._now().values[result]  # (m, n_vocab), or (m, dim)
        if not np.isfinite(values).all():
            raise NonFiniteError(self._first_bad_step(tokens, position, outputs, seq))
        return values

    def begin(self, tokens: np.ndarray, position: int, outputs: np.ndarray, seq: Sequence) -> None:
        tokens, outputs = check_pass(self.plan, tokens, position, outputs, seq, self.max_tokens)
        self._pass = _Pass(tokens, position, outputs, seq, {})

    def run_step(self, index: int) -> None:
        step, now = self.plan.steps[index], self._now()
        inputs = [now.values[b] for b in step.inputs]
        weights = [self._weight(name) for name in step.weights]
        with np.errstate(all="ignore"):  # what is not finite is reported by `forward`
            now.values[step.outputs[0]] = BODIES[step.op](step, now, self.plan, *inputs, *weights)

    def read(self, buffer: int) -> np.ndarray:
        return self._now().values[buffer].copy()

    def write(self, buffer: int, values: np.ndarray) -> None:
        self._now().values[buffer] = np.array(values, dtype=np.float32)

    def sibling(self, plan: Plan, max_tokens: int) -> ReferenceBackend:
        """See `Backend`: what was decoded is decoded for both."""
        other = copy.copy(self)
        other.plan, other.max_tokens, other._pass = plan, max_tokens, None
        return other

    def close(self) -> None:
        self._weights = {}
        self._pass = self._source = None

    def _now(self) -> _Pass:
        if self._pass is None:
            raise BackendError("no pass was begun, or the backend is closed")
        return self._pass

    def _weight(self, name: str) -> np.ndarray:
        if name not in self._weights:
            if self._source is None:
                raise BackendError("the backend is closed")
            self._weights[name] = self._source.float32(name)
        return self._weights[name]

    def _first_bad_step(self, tokens: np.ndarray, position: int, outputs: np.ndarray, seq: Sequence) -> str:
        """Runs the pass again and looks at every output; the cache gets the same values once more."""
        self.begin(tokens, position, outputs, seq)
        for i, step in enumerate(self.plan.steps):
            self.run_step(i)
            if not np.isfinite(self._now().values[step.outputs[0]]).all():
                return step.label
        return self.plan.steps[-1].label


# ---- the bodies: each takes (step, pass, plan, *inputs, *weights) and returns its output, float32 (rows, cols) -------


def embed(step: Step, now: _Pass, plan: Plan, table: np.ndarray) -> np.ndarray:
    return table[now.tokens]


def add_rows(step: Step, now: _Pass, plan: Plan, x: np.ndarray, table: np.ndarray) -> np.ndarray:
    return x + (table[0] if step.params["row"] == "first" else table[now.position : now.position + len(x)])


def layernorm(
    step: Step, now: _Pass, plan: Plan, x: np.ndarray, weight: np.ndarray, bias: np.ndarray
) -> np.ndarray:
    wide = x.astype(np.float64)
    wide = wide - wide.mean(axis=1, keepdims=True)
    variance = np.mean(np.square(wide), axis=1, keepdims=True)
    return (wide / np.sqrt(variance + step.params["eps"])).astype(np.float32) * weight + bias


def rmsnorm(step: Step, now: _Pass, plan: Plan, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    groups = x.reshape(-1, step.params["group"])  # (rows * groups, group)
    mean_square = np.mean(np.square(groups, dtype=np.float64), axis=1, keepdims=True)
    y = (groups / np.sqrt(mean_square + step.params["eps"])).astype(np.float32) * weight
    return y.reshape(x.shape)


def linear(
    step: Step, now: _Pass, plan: Plan, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None
) -> np.ndarray:
    y = x @ weight.T
    return y if bias is None else y + bias


def rope(step: Step, now: _Pass, plan: Plan, x: np.ndarray) -> np.ndarray:
    positions = np.arange(now.position, now.position + len(x))
    return turn(x, positions, step.params, plan, plan.ropes[step.params["table"]].magnitude)


def turn(
    x: np.ndarray, positions: np.ndarray, params: Mapping[str, Any], plan: Plan, magnitude: float = 1.0
) -> np.ndarray:
    """The heads of x (n, heads * head_dim) rotated by as many positions (n,) as the row says."""
    head_dim, rotary = params["head_dim"], params["rotary_dims"]
    angles = positions[:, None, None] * plan.ropes[params["table"]].inv_freq  # (n, 1, rotary / 2), float64
    cos = (np.cos(angles) * magnitude).astype(np.float32)
    sin = (np.sin(angles) * magnitude).astype(np.float32)
    y = x.reshape(len(x), -1, head_dim).copy()  # (n, heads, head_dim)
    if params["style"] == "interleaved":
        first, second = slice(0, rotary, 2), slice(1, rotary, 2)
    else:
        first, second = slice(0, rotary // 2), slice(rotary // 2, rotary)
    a, b = y[..., first].copy(), y[..., second].copy()
    y[..., first] = a * cos - b * sin
    y[..., second] = a * sin + b * cos
    return y.reshape(x.shape)


def attention(step: Step, now: _Pass, plan: Plan, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    p = step.params
    n, n_kv, head_dim, window, span = len(q), p["n_kv_heads"], p["head_dim"], p["window"], now.seq.span
    _store(now, p["layer"], k.reshape(n, n_kv, head_dim), v.reshape(n, n_kv, head_dim))
    last = now.position + n - 1
    own = range(now.position, last + 1) if p["causal"] else [last] * n  # each token sees what the token there would
    stretches = span.seen(own[0], own[-1], window)
    positions = np.unique(np.concatenate([np.arange(s.start, s.stop) for s in stretches]))  # (length,) that are read
    head = _within(positions, [span.head_seen(t, window) for t in own])  # (n, 1, length) what each token sees
    tail = _within(positions, [span.tail_seen(t, window) for t in own])
    back = np.array([-span.shift(t) for t in own])  # (n,) by which the head is nearer than its positions say
    turned = turn(q, back, p, plan) if head.any() and p["rotary_dims"] else q
    queries, turned = (x.reshape(n, n_kv, -1, head_dim) for x in (q, turned))  # heads of one group share a KV head
    out = np.empty_like(queries)
    for kv in range(n_kv):
        keys, values = _load(now, p["layer"], kv, positions)  # (length, head_dim) each
        scores = queries[:, kv] @ keys.T  # (n, group, length)
        if head.any():
            scores = np.where(head, turned[:, kv] @ keys.T, scores)
        scores = scores * np.float32(p["scale"])
        if p["softcap"]:
            scores = capped(scores, p["softcap"])
        scores = np.where(head | tail, scores, np.float32(-np.inf))
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        out[:, kv] = weights / weights.sum(axis=-1, keepdims=True) @ values
    return out.reshape(n, -1)


def gated(step: Step, now: _Pass, plan: Plan, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    return ACTIVATIONS[step.params["activation"]](gate) * up


def gelu(step: Step, now: _Pass, plan: Plan, x: np.ndarray) -> np.ndarray:
    below = np.array([math.erfc(-v / math.sqrt(2)) for v in x.reshape(-1).tolist()])  # 2 Phi(x), float64
    return (x * (0.5 * below.reshape(x.shape))).astype(np.float32)


def add(step: Step, now: _Pass, plan: Plan, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return x + y


def scale(step: Step, now: _Pass, plan: Plan, x: np.ndarray) -> np.ndarray:
    return x * np.float32(step.params["factor"])


def softcap(step: Step, now: _Pass, plan: Plan, x: np.ndarray) -> np.ndarray:
    return capped(x, step.params["cap"])


def route(step: Step, now: _Pass, plan: Plan, logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    p = e / e.sum(axis=1, keepdims=True)  # (rows, n_experts)
    chosen = np.argsort(-p, axis=1, kind="stable")[:, : step.params["n_used"]]  # of equals the first
    share = np.zeros_like(p)
    np.put_along_axis(share, chosen, np.take_along_axis(p, chosen, axis=1), axis=1)
    return share / share.sum(axis=1, keepdims=True) if step.params["normalise"] else share


def experts(
    step: Step, now: _Pass, plan: Plan, x: np.ndarray, share: np.ndarray, gate: np.ndarray, up: np.ndarray,
    down: np.ndarray,
) -> np.ndarray:  # fmt: skip
    activation, out = ACTIVATIONS[step.params["activation"]], np.zeros_like(x)
    for e in range(share.shape[1]):
        rows = np.flatnonzero(share[:, e])
        hidden = activation(x[rows] @ gate[e].T) * (x[rows] @ up[e].T)
        out[rows] += share[rows, e, None] * (hidden @ down[e].T)
    return out


def take_rows(step: Step, now: _Pass, plan: Plan, x: np.ndarray) -> np.ndarray:
    return x[now.outputs]


def capped(x: np.ndarray, cap: float) -> np.ndarray:
    """cap * tanh(x / cap)."""
    return np.float32(cap) * np.tanh(x / np.float32(cap))


def silu(x: np.ndarray) -> np.ndarray:
    """x * sigmoid(x) (Elfwing et al. 2017)."""
    return x / (np.float32(1) + np.exp(-x))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """The tanh form of GELU (Hendrycks and Gimpel 2016)."""
    c = np.float32(0.7978845608028654)  # sqrt(2 / pi)
    return np.float32(0.5) * x * (np.float32(1) + np.tanh(c * (x + np.float32(0.044715) * x * x * x)))


def _store(now: _Pass, layer: int, k: np.ndarray, v: np.ndarray) -> None:
    """Writes k and v, (n, n_kv_heads, head_dim), of the tokens of this pass into their pages."""
    pool, table, column = now.seq.pool, now.seq.table[layer], now.seq.column
    for i in range(len(k)):
        block, lane = divmod(now.position + i, PAGE_TOKENS)
        for head in range(k.shape[1]):
            pool.store(int(table[column(block)]), head, lane, k[i, head], v[i, head])


def _within(positions: np.ndarray, stretches: list[range]) -> np.ndarray:
    """bool (n, 1, length): which of `positions` (length,) are in each of the n stretches."""
    return np.array([(positions >= s.start) & (positions < s.stop) for s in stretches])[:, None]


def _load(now: _Pass, layer: int, head: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values of `positions` (length,) of one KV head: float32 (length, head_dim) each."""
    pool, table = now.seq.pool, now.seq.table[layer]
    blocks, lanes = np.divmod(positions, PAGE_TOKENS)
    keys = np.empty((len(positions), pool.shape.head_dim), dtype=np.float32)
    values = np.empty_like(keys)
    for block in np.unique(blocks):
        here = blocks == block
        k, v = pool.load(int(table[now.seq.column(int(block))]), head)
        keys[here], values[here] = k[lanes[here]], v[lanes[here]]
    return keys, values


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"silu": silu, "gelu_tanh": gelu_tanh}
BODIES: dict[Op, Callable[..., np.ndarray]] = {
    Op.EMBED: embed,
    Op.ADD_ROWS: add_rows,
    Op.RMSNORM: rmsnorm,
    Op.LAYERNORM: layernorm,
    Op.LINEAR: linear,
    Op.ROPE: rope,
    Op.ATTENTION: attention,
    Op.GATED: gated,
    Op.GELU: gelu,
    Op.ADD: add,
    Op.SCALE: scale,
    Op.SOFTCAP: softcap,
    Op.ROUTE: route,
    Op.EXPERTS: experts,
    Op.TAKE_ROWS: take_rows,
}
