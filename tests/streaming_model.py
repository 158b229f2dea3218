"""A second implementation of attention over a cut history, straight from the definition of StreamingLLM.

Xiao et al. 2023 ("Efficient Streaming Language Models with Attention Sinks", section 3.2) hold keys before their
rotation and give them, at each token, the positions that they have *within the cache*: 0, 1, 2, ... over what is left
of it. So does this model: every token turns all keys that it sees from scratch, in float64, O(n^2). It knows nothing
of pages, spans and second queries; the other steps of a plan are those of the reference backend.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from edgellm.backends.reference import BODIES
from edgellm.ops import Op
from edgellm.plan import Plan
from edgellm.weights import Weights

Visible = list[list[int]]  # for each token the positions in its cache, ascending, its own the last


def everything(n: int) -> Visible:
    """Nothing is dropped."""
    return [list(range(t + 1)) for t in range(n)]


def sinks(n: int, n_sinks: int, window: int) -> Visible:
    """The cache holds `n_sinks` + `window` tokens; when it is full, the oldest behind the sinks leaves."""
    cache: list[int] = []
    found = []
    for t in range(n):
        cache.append(t)
        if len(cache) > n_sinks + window:
            del cache[n_sinks]
        found.append(list(cache))
    return found


def drops(n: int, keep: int, events: Mapping[int, int]) -> Visible:
    """`events` {t: m}: before token t the oldest m tokens behind the first `keep` leave the cache."""
    cache: list[int] = []
    found = []
    for t in range(n):
        del cache[keep : keep + events.get(t, 0)]
        cache.append(t)
        found.append(list(cache))
    return found


def logits(plan: Plan, weights: Weights, tokens: np.ndarray, visible: Visible) -> np.ndarray:
    """float32 (n, n_vocab): the logits of all tokens (n,), each of which sees `visible` of those before it."""
    n = len(tokens)
    now: Any = SimpleNamespace(tokens=np.asarray(tokens), outputs=np.arange(n))
    values: dict[int, np.ndarray] = {}
    for step in plan.steps:
        inputs = [values[b] for b in step.inputs]
        if step.op is Op.ROPE:
            continue  # the attention step turns
        if step.op is Op.ATTENTION:
            values[step.outputs[0]] = attention(plan, step.params, *inputs, visible)
        else:
            matrices = [weights.float32(name) for name in step.weights]
            values[step.outputs[0]] = BODIES[step.op](step, now, plan, *inputs, *matrices)
    return values[plan.logits]


def attention(
    plan: Plan, p: Mapping[str, Any], q: np.ndarray, k: np.ndarray, v: np.ndarray, visible: Visible
) -> np.ndarray:
    """float32 (n, n_heads * head_dim); q, k, v (n, heads * head_dim) as they were before any rotation."""
    n, d = len(q), p["head_dim"]
    heads = q.reshape(n, p["n_heads"], d).astype(float)
    keys, rows = (x.reshape(n, p["n_kv_heads"], d).astype(float) for x in (k, v))
    out = np.empty_like(heads)
    for t in range(n):
        cache = visible[t]
        at = np.arange(len(cache))  # positions within the cache
        query = turned(plan, p, heads[t][None], at[-1:])[0]  # (n_heads, d)
        near = np.flatnonzero(at[-1] - at < (p["window"] or math.inf))  # a layer's own window counts in them too
        left = np.array(cache)[near]
        key = turned(plan, p, keys[left], near).transpose(1, 2, 0)  # (n_kv_heads, d, length)
        scores = query.reshape(p["n_kv_heads"], -1, d) @ key * p["scale"]  # query heads of one group share a KV head
        if p["softcap"]:
            scores = p["softcap"] * np.tanh(scores / p["softcap"])
        e = np.exp(scores - scores.max(axis=-1, keepdims=True))
        out[t] = (e / e.sum(axis=-1, keepdims=True) @ rows[left].transpose(1, 0, 2)).reshape(-1, d)
    return out.reshape(n, -1).astype(np.float32)


def turned(plan: Plan, p: Mapping[str, Any], x: np.ndarray, at: np.ndarray) -> np.ndarray:
    """x (length, heads, d) with its pairs, as complex numbers, multiplied by magnitude * exp(i * at * inv_freq)."""
    m = p["rotary_dims"]
    if not m:
        return x
    table, y = plan.ropes[p["table"]], x.copy()
    neighbours = p["style"] == "interleaved"
    first, second = (slice(0, m, 2), slice(1, m, 2)) if neighbours else (slice(m // 2), slice(m // 2, m))
    z = (x[..., first] + 1j * x[..., second]) * (table.magnitude * np.exp(1j * at[:, None, None] * table.inv_freq))
    y[..., first], y[..., second] = z.real, z.imag
    return y
