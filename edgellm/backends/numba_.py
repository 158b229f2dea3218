"""The Numba backend: the speed path of machines that have no compiled library.

Weights stay in block form in the mapped file; kernels (`numba_kernels`) read them there, with activations rounded to 8
bits as the native backend does. A pass is a Python loop over the lowered steps; each step hands ranges of rows, tokens
or heads to threads. Kernels are compiled when `prepare` or the first pass needs them, about a second each, and cached.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..cache import Sequence, Span, split_kv_type
from ..errors import BackendError, Cancelled, NonFiniteError
from ..plan import Plan
from ..quants import dequantize
from ..weights import Weights
from . import check_pass
from .lowering import LoweredStep, lower
from .numba_choice import GATED, kernels_of
from .numba_kernels import attention as attention_kernels
from .numba_kernels import pool, vector
from .numba_kernels.jit import Kernel
from .numba_kernels.pages import views
from .numba_kernels.span import place_of
from .numba_matrix import GROUPS, NONE, ROWS, Matrix, Scratch, input_kind, linear_rows

_CHUNK_WORK = 1 << 19  # multiply-adds (or as much time) that are worth handing to another thread
_CHUNKS_PER_THREAD = 4  # more than one, so that a thread that is held up does not hold up all


@dataclass
class _Pass:
    """What one pass works on. `turns` are cos and sin by rope table; `returns` turn a query from its position to that
    at which it meets the head (empty: no token of this pass has a shift)."""

    tokens: np.ndarray  # int32 (n,)
    position: int
    outputs: np.ndarray  # int32 (m,)
    table: np.ndarray  # int32 (n_layers, columns)
    place: np.ndarray  # int64 (5,), numba_kernels.span
    span: Span
    kv_type: str
    cache: tuple[Any, ...]  # pages.views
    cancel: np.ndarray  # int32 (1,)
    turns: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    returns: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)


class NumbaBackend:
    """See `edgellm.backends.Backend`. Two backends may run at once in two Python threads; one backend in one."""

    name = "numba"
    has_prefill, exact, any_width, reads_file, arena = False, True, True, True, (0, 0)

    def __init__(
        self, plan: Plan, weights: Weights, *, n_threads: int = 1, max_tokens: int = 512, pack: bool = True
    ) -> None:
        self.plan, self.max_tokens, self.n_threads = plan, max_tokens, max(1, n_threads)
        self._matrices: dict[str, Matrix] = {}
        self._vectors: dict[str, np.ndarray] = {}
        for name, shape in plan.weights.items():
            if len(shape) > 1:  # the matrices of experts follow each other: one tall matrix
                rows = math.prod(shape[:-1])
                self._matrices[name] = Matrix(weights.type(name), weights.data(name).reshape(-1), rows, shape[-1])
            else:  # norms and biases: small, float32
                self._vectors[name] = np.ascontiguousarray(weights.float32(name), dtype=np.float32).reshape(-1)
        self._scratch = Scratch(plan, self._matrices, max_tokens)
        self._fused = lower(plan)
        self._plain = lower(plan, fuse=False)  # step i is plan step i
        self._now: _Pass | None = None

    def prepare(self, kv_type: str, progress: Callable[[int, int], object] | None = None) -> None:
        """Compiles, or loads from the cache, the kernels that passes with pages of `kv_type` will call.

        progress(done, total) is called before each kernel that is not ready yet, and at the end.
        """
        wanted = [kernel for kernel in kernels_of(self._fused, self._matrices, kv_type) if not kernel.ready]
        for done, kernel in enumerate(wanted):
            if progress:
                progress(done, len(wanted))
            kernel.compile()
        if progress and wanted:
            progress(len(wanted), len(wanted))

    # ---- passes --------------------------------------------------------------------------------------------------

    def forward(
        self,
        tokens: np.ndarray,
        position: int,
        outputs: np.ndarray,
        seq: Sequence,
        cancel: np.ndarray | None = None,
        hidden: bool = False,
    ) -> np.ndarray:
        """One pass -> float32 (m, n_vocab) or (m, dim), a view that is valid until the next call."""
        result = self.plan.result(hidden)
        self._begin(tokens, position, outputs, seq, cancel)
        last = self.plan.last_step(result)
        for step in self._fused:
            if step.last <= last:
                self._step(step)
        values = self._view(result)
        if not np.isfinite(values).all():
            raise NonFiniteError(self._first_bad_step(tokens, position, outputs, seq))
        return values

    def begin(self, tokens: np.ndarray, position: int, outputs: np.ndarray, seq: Sequence) -> None:
        self._begin(tokens, position, outputs, seq, None)

    def run_step(self, index: int) -> None:
        self._step(self._plain[index])

    def read(self, buffer: int) -> np.ndarray:
        return self._view(buffer).copy()

    def write(self, buffer: int, values: np.ndarray) -> None:
        self._view(buffer)[...] = values

    def sibling(self, plan: Plan, max_tokens: int) -> NumbaBackend:
        """See `Backend`: the matrices are this one's, the buffers are its own."""
        other = copy.copy(self)
        other.plan, other.max_tokens, other._now = plan, max_tokens, None
        other._scratch = Scratch(plan, self._matrices, max_tokens)
        other._fused, other._plain = lower(plan), lower(plan, fuse=False)
        return other

    def close(self) -> None:
        self._matrices, self._vectors, self._now = {}, {}, None
        self._fused, self._plain = [], []
        self._scratch.close()

    def _begin(
        self, tokens: np.ndarray, position: int, outputs: np.ndarray, seq: Sequence, cancel: np.ndarray | None
    ) -> None:
        if not self._fused:
            raise BackendError("the backend is closed")
        tokens, outputs = check_pass(self.plan, tokens, position, outputs, seq, self.max_tokens)
        self._now = _Pass(
            tokens=tokens,
            position=position,
            outputs=outputs,
            table=seq.table,
            place=place_of(seq),
            span=seq.span,
            kv_type=seq.pool.kv_type,
            cache=views(seq.pool),
            cancel=np.zeros(1, np.int32) if cancel is None else cancel,
        )
        positions = range(position, position + tokens.size)
        self._now.turns = [vector.angles(positions, rope.inv_freq, rope.magnitude) for rope in self.plan.ropes]
        shifts = [-seq.span.shift(t) for t in positions]
        if any(shifts):  # the query has its table's magnitude already
            self._now.returns = [vector.angles(shifts, rope.inv_freq) for rope in self.plan.ropes]

    def _first_bad_step(self, tokens: np.ndarray, position: int, outputs: np.ndarray, seq: Sequence) -> str:
        """Runs the pass again, unfused, and looks at every output; the cache gets the same values once more."""
        self.begin(tokens, position, outputs, seq)
        for i, step in enumerate(self.plan.steps):
            self.run_step(i)
            if not np.isfinite(self._view(step.outputs[0])).all():
                return step.label
        return self.plan.steps[-1].label

    def _rows(self, buffer: int) -> int:
        now = self._pass()
        return now.tokens.size if self.plan.buffers[buffer].rows == "tokens" else now.outputs.size

    def _view(self, buffer: int) -> np.ndarray:
        """float32 (rows, cols) of the current pass."""
        rows, cols = self._rows(buffer), self.plan.buffers[buffer].cols
        return self._scratch.buffer(buffer)[: rows * cols].reshape(rows, cols)

    def _pass(self) -> _Pass:
        if self._now is None:
            raise BackendError("no pass was begun, or the backend is closed")
        return self._now

    # ---- steps ---------------------------------------------------------------------------------------------------

    def _step(self, step: LoweredStep) -> None:
        now = self._pass()
        getattr(self, f"_{step.op}")(step, now)
        if now.cancel[0]:
            raise Cancelled()

    def _spread(self, n: int, work_each: float, run: Callable[[int, int], Any]) -> None:
        """run(first, last) over ranges of 0 .. n, on as many threads as the work is worth."""
        wanted = min(n * work_each / _CHUNK_WORK, self.n_threads * _CHUNKS_PER_THREAD)
        if self.n_threads == 1 or wanted < 2 or n < 2:
            if n:
                run(0, n)
            return
        size = math.ceil(n / min(n, int(wanted)))
        pool.run(lambda c: run(c * size, min(n, (c + 1) * size)), math.ceil(n / size), self.n_threads)

    def _embed(self, step: LoweredStep, now: _Pass) -> None:
        m = self._matrices[step.weights[0]]
        rows = m.by_row[now.tokens]  # (n, row bytes), a copy of these rows only
        self._view(step.outputs[0])[...] = dequantize(rows, m.type, (now.tokens.size, m.cols))

    def _add_rows(self, step: LoweredStep, now: _Pass) -> None:
        m, x = self._matrices[step.weights[0]], self._view(step.inputs[0])
        first, n = (0, 1) if step.params["row"] == "first" else (now.position, len(x))
        rows = dequantize(m.by_row[first : first + n], m.type, (n, m.cols))
        np.add(x, rows, out=self._view(step.outputs[0]))

    def _layernorm(self, step: LoweredStep, now: _Pass) -> None:
        weight, bias = (self._vectors[w] for w in step.weights)
        x, y = self._scratch.buffer(step.inputs[0]), self._scratch.buffer(step.outputs[0])
        cols, eps = self.plan.buffers[step.inputs[0]].cols, step.params["eps"]
        n = self._rows(step.inputs[0])
        self._spread(n, 12 * cols, lambda a, b: vector.layernorm(x, weight, bias, y, cols, a, b, eps))

    def _rmsnorm(self, step: LoweredStep, now: _Pass) -> None:
        group, weight, eps = step.params["group"], self._vectors[step.weights[0]], step.params["eps"]
        x, y = self._scratch.buffer(step.inputs[0]), self._scratch.buffer(step.outputs[0])
        n = self._rows(step.inputs[0]) * self.plan.buffers[step.inputs[0]].cols // group
        self._spread(n, 8 * group, lambda a, b: vector.rmsnorm(x, weight, y, group, a, b, eps))

    def _rope(self, step: LoweredStep, now: _Pass) -> None:
        for buffer in step.inputs:
            self._turn(self._scratch.buffer(buffer), self.plan.buffers[buffer].cols, step.params, now.turns)

    def _turn(self, x: np.ndarray, cols: int, p: Mapping[str, Any], turns: list[tuple[np.ndarray, np.ndarray]]) -> None:
        """Turns the heads of x, (tokens, cols), in place by the table that the parameters of a step name."""
        n_pairs = p["rotary_dims"] // 2
        stride, other = (2, 1) if p["style"] == "interleaved" else (1, n_pairs)
        cos, sin = turns[p["table"]]

        def turn(a: int, b: int) -> None:
            vector.rope(x, cos, sin, cols, p["head_dim"], n_pairs, stride, other, a, b)

        self._spread(self._pass().tokens.size, 4 * cols, turn)

    def _attention(self, step: LoweredStep, now: _Pass) -> None:
        p, n = step.params, now.tokens.size
        q, k, v = (self._scratch.buffer(b) for b in step.inputs)
        out, cache = self._scratch.buffer(step.outputs[0]), (*now.cache, now.table[p["layer"]], now.place)
        n_kv, dim, group = p["n_kv_heads"], p["head_dim"], p["n_heads"] // p["n_kv_heads"]
        store, attend = attention_kernels.kernels(*split_kv_type(now.kv_type))
        store(k, v, *cache, n_kv, dim, now.position, n)
        turned = q
        if now.returns and p["rotary_dims"]:
            turned = q[: n * p["n_heads"] * dim].copy()
            self._turn(turned, p["n_heads"] * dim, p, now.returns)
        tiles, last = math.ceil(n / attention_kernels.TILE), now.position + n - 1
        visible = last + 1 - now.span.shift(last)
        visible = min(visible, p["window"] + n) if p["window"] else visible

        def run(a: int, b: int) -> None:
            attend(
                q, turned, out, *cache, p["n_heads"], n_kv, dim, p["window"], p["scale"], p["softcap"], now.position,
                n, int(p["causal"]), a, b, now.cancel,
            )  # fmt: skip

        self._spread(tiles * n_kv, 4 * visible * dim * group * min(n, attention_kernels.TILE), run)

    def _gated(self, step: LoweredStep, now: _Pass) -> None:
        self._flat(step, 16, GATED[step.params["activation"]])

    def _flat(self, step: LoweredStep, work: float, kernel: Kernel, *more: float) -> None:
        """kernel(inputs, output, first, last, *more) over all values of the output, one by one."""
        *inputs, out = (self._scratch.buffer(b) for b in (*step.inputs, step.outputs[0]))
        n = self._rows(step.outputs[0]) * self.plan.buffers[step.outputs[0]].cols
        self._spread(n, work, lambda a, b: kernel(*inputs, out, a, b, *more))

    def _gelu(self, step: LoweredStep, now: _Pass) -> None:
        self._flat(step, 20, vector.gelu)

    def _add(self, step: LoweredStep, now: _Pass) -> None:
        self._flat(step, 2, vector.add)

    def _scale(self, step: LoweredStep, now: _Pass) -> None:
        np.multiply(self._view(step.inputs[0]), np.float32(step.params["factor"]), out=self._view(step.outputs[0]))

    def _softcap(self, step: LoweredStep, now: _Pass) -> None:
        self._flat(step, 24, vector.softcap, step.params["cap"])

    def _route(self, step: LoweredStep, now: _Pass) -> None:
        p, n = step.params, self.plan.buffers[step.inputs[0]].cols
        logits, share = self._scratch.buffer(step.inputs[0]), self._scratch.buffer(step.outputs[0])
        vector.route(logits, share, n, self._rows(step.inputs[0]), p["n_used"], int(p["normalise"]))

    def _experts(self, step: LoweredStep, now: _Pass) -> None:
        """Expert after expert, each on the tokens that chose it."""
        x, share, out = (self._view(b) for b in (*step.inputs, step.outputs[0]))  # (n, dim), (n, experts), (n, dim)
        activate, (_, dim), n_experts = GATED[step.params["activation"]], x.shape, share.shape[1]
        out[...] = 0
        for e in range(n_experts):
            chosen = np.flatnonzero(share[:, e])
            if not chosen.size:
                continue
            gate, up, down = (self._matrices[w].part(e, n_experts) for w in step.weights)
            gated, raised = (np.empty(chosen.size * gate.rows, np.float32) for _ in range(2))
            self._products([gate, up], x[chosen].reshape(-1), chosen.size, [gated, raised], now, planes=step.planes)
            activate(gated, raised, gated, 0, gated.size)
            y = np.empty((chosen.size, dim), np.float32)
            self._products([down], gated, chosen.size, [y.reshape(-1)], now, planes=step.planes)
            out[chosen] += share[chosen, e, None] * y
            if now.cancel[0]:
                return

    def _take_rows(self, step: LoweredStep, now: _Pass) -> None:
        np.take(self._view(step.inputs[0]), now.outputs, axis=0, out=self._view(step.outputs[0]))

    # ---- matrices ------------------------------------------------------------------------------------------------

    def _linear(self, step: LoweredStep, now: _Pass) -> None:
        residual = NONE if step.residual is None else self._scratch.buffer(step.residual)
        self._multiply(step, now, [self._scratch.buffer(b) for b in step.outputs], residual)

    def _linear_gated(self, step: LoweredStep, now: _Pass) -> None:
        gate, up = self._scratch.buffer(step.outputs[0]), self._scratch.up
        self._multiply(step, now, [gate, up], NONE)
        kernel, n = GATED[step.params["activation"]], self._rows(step.outputs[0])
        n *= self.plan.buffers[step.outputs[0]].cols
        self._spread(n, 16, lambda a, b: kernel(gate, up, gate, a, b))

    def _multiply(self, step: LoweredStep, now: _Pass, outs: list[np.ndarray], residual: np.ndarray) -> None:
        """outs[j] = input @ weights[j].T (+ biases[j]) (+ residual): the rows of all weights are one list of work."""
        matrices = [self._matrices[w] for w in step.weights]
        biases = [NONE if b is None else self._vectors[b] for b in step.biases]
        n_cols, x = self._rows(step.inputs[0]), self._scratch.buffer(step.inputs[0])
        self._products(matrices, x, n_cols, outs, now, biases, residual, step.planes)

    def _products(
        self,
        matrices: list[Matrix],
        x: np.ndarray,
        n_cols: int,
        outs: list[np.ndarray],
        now: _Pass,
        biases: list[np.ndarray] | None = None,
        residual: np.ndarray = NONE,
        planes: int = 1,
    ) -> None:
        """As `_multiply`, for n_cols columns at x."""
        if n_cols == 0:
            return
        biases = biases or [NONE] * len(matrices)
        if planes == 2 and any(input_kind(m) != "f32" for m in matrices):
            self._two_planes(matrices, x, n_cols, outs, now, biases, residual)
            return
        kinds = {input_kind(m) for m in matrices}
        inputs = {kind: self._activations(kind, x, n_cols, matrices[0].cols) for kind in kinds}
        starts = [0]  # of each weight in the common list, in steps of 16 rows
        for m in matrices:
            starts.append(starts[-1] + math.ceil(m.rows / ROWS))

        def rows(first: int, last: int) -> None:
            for j, m in enumerate(matrices):
                a, b = max(first, starts[j]) - starts[j], min(last, starts[j + 1]) - starts[j]
                if a < b:
                    tail = (n_cols, biases[j], residual, outs[j], m.rows, now.cancel)
                    linear_rows(m, a * ROWS, min(b * ROWS, m.rows), inputs[input_kind(m)], tail)

        self._spread(starts[-1], ROWS * matrices[0].cols * n_cols, rows)

    def _two_planes(
        self, matrices: list[Matrix], x: np.ndarray, n_cols: int, outs: list[np.ndarray], now: _Pass,
        biases: list[np.ndarray], residual: np.ndarray,
    ) -> None:  # fmt: skip
        """`_products` with each column as two: itself in 8 bits, and in 8 bits what that left."""
        for m, out, bias in zip(matrices, outs, biases, strict=True):
            kind = input_kind(m)
            if kind == "f32":
                self._products([m], x, n_cols, [out], now, [bias], residual)
                continue
            q, d, _ = self._activations(kind, x, n_cols, m.cols)
            per_scale, both = GROUPS[kind][0], np.empty((n_cols, 2, m.cols), np.float32)
            both[:, 0] = x[: n_cols * m.cols].reshape(n_cols, -1)
            size = n_cols * m.cols
            known = d[: size // per_scale, None] * q[:size].reshape(-1, per_scale).astype(np.float32)
            both[:, 1] = both[:, 0] - known.reshape(n_cols, -1)
            y = np.empty((n_cols, 2, m.rows), np.float32)
            self._products([m], both.reshape(-1), 2 * n_cols, [y.reshape(-1)], now)
            total = y[:, 0] + y[:, 1]
            if bias.size:
                total += bias
            if residual.size:
                total = residual[: total.size].reshape(total.shape) + total
            out[: total.size] = total.reshape(-1)

    def _activations(self, kind: str, x: np.ndarray, n_cols: int, k: int) -> tuple[np.ndarray, ...]:
        """x (n_cols, k) as the kernels want it: itself, or (int8 q, float32 scales, int32 sums) in scratch memory."""
        if kind == "f32":
            return (x,)
        _, _, quantize = GROUPS[kind]
        target = self._scratch.quantised(kind)
        self._spread(n_cols, 8 * k, lambda a, b: quantize(x, a, b, k, *target))
        return target
