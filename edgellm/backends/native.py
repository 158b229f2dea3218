"""The native backend: hands the whole lowered plan to C, one call per pass, with the GIL released.

What lives where: weights in the arena or in the mapped file (native_weights.py), buffers with the C plan, KV pages with
`edgellm.cache`. This file only turns Python objects into the structs of native/edgellm.h.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from .. import clib
from ..cache import Sequence
from ..errors import NonFiniteError
from ..ops import ACTIVATIONS, ROPE_STYLES, ROWS_BY
from ..plan import Plan
from ..weights import Weights
from . import LoadProgress, check_pass
from .lowering import LoweredStep, lower
from .native_weights import WeightTable

_KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 2, "q4_0": 3}


class NativeBackend:
    """Runs a plan with the compiled kernels. See `Backend` for the methods.

    Raises ImportError when the library was not built, NotEnoughMemoryError, BackendError.
    """

    name, any_width = "native", True

    def __init__(
        self,
        plan: Plan,
        weights: Weights,
        *,
        n_threads: int = 1,
        max_tokens: int = 512,
        pack: bool = True,
        huge_pages: bool = False,
        progress: LoadProgress | None = None,
    ) -> None:
        if not clib.available():
            raise ImportError("edgellm._native was not built")
        self._ffi, self._lib = clib.library()
        self.plan, self.n_threads, self.max_tokens = plan, n_threads, max_tokens
        self.exact = False
        self.calls = 0  # native calls for forward passes, for the tests
        self._owns_table = True
        self._table = WeightTable(plan, weights, n_threads, pack, huge_pages, progress)
        self.reads_file, self.arena = self._table.reads_file, self._table.arena
        self._fused = _NativePlan(plan, lower(plan), self._table, max_tokens)
        self.has_prefill = bool(self._lib.el_plan_has_prefill(self._fused.handle))
        self._single: _NativePlan | None = None  # one native step per plan step, made when somebody debugs
        self._debug: tuple[Any, ...] | None = None

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
        tokens, outputs = (np.ascontiguousarray(ids, dtype=np.int32) for ids in (tokens, outputs))
        native = self._fused
        self._run(native, tokens, position, outputs, seq, 0, native.last[result] + 1, cancel, check_finite=True)
        return native.view(result, outputs.size)

    def weight_bytes(self) -> dict[str, int]:
        """Bytes of each weight of the plan as it lies in memory: rows, panels or sparse panels."""
        return {name: int(self._table.structs[i].bytes) for name, i in self._table.ids.items()}

    def _run(self, native, tokens, position, outputs, seq, first, last, cancel=None, check_finite=False) -> None:
        ffi, lib = self._ffi, self._lib
        keep: list[Any] = []  # what the structs point to, until the call returns
        one = ffi.new("el_pass *")
        one.tokens = ffi.from_buffer("int32_t[]", tokens)
        one.outputs = ffi.from_buffer("int32_t[]", outputs) if outputs.size else ffi.NULL
        one.n_tokens, one.n_outputs, one.position = tokens.size, outputs.size, position
        one.kv = _kv_struct(ffi, seq, keep)
        one.n_threads, one.check_finite = self.n_threads, check_finite
        one.exact, one.first_step, one.last_step = self.exact, first, last
        one.cancel = ffi.NULL if cancel is None else ffi.from_buffer("int32_t[]", cancel)
        self.calls += 1
        rc = lib.el_forward(native.handle, one)
        if rc == clib.EL_E_NONFINITE:
            raise NonFiniteError(native.steps[one.bad_step].label)
        if rc == clib.EL_E_ARGUMENT:  # C checks it all in a microsecond; here it is said what is wrong
            check_pass(self.plan, tokens, position, outputs, seq, self.max_tokens)
        clib.check(rc, "the forward pass")

    # ---- step by step, for debugging -----------------------------------------------------------------------------

    def begin(self, tokens: np.ndarray, position: int, outputs: np.ndarray, seq: Sequence) -> None:
        if self._single is None:
            self._single = _NativePlan(self.plan, lower(self.plan, fuse=False), self._table, self.max_tokens)
        tokens, outputs = check_pass(self.plan, tokens, position, outputs, seq, self.max_tokens)
        self._debug = (tokens, position, outputs, seq)

    def run_step(self, index: int) -> None:
        native = self._single
        tokens, position, outputs, seq = self._debug
        self._run(native, tokens, position, outputs, seq, index, index + 1)

    def read(self, buffer: int) -> np.ndarray:
        return self._debug_view(buffer).copy()

    def write(self, buffer: int, values: np.ndarray) -> None:
        self._debug_view(buffer)[...] = values

    def _debug_view(self, buffer: int) -> np.ndarray:
        tokens, _, outputs, _ = self._debug
        n = tokens.size if self.plan.buffers[buffer].rows == "tokens" else outputs.size
        return self._single.view(buffer, n)

    def sibling(self, plan: Plan, max_tokens: int) -> NativeBackend:
        """See `Backend`: the table of weights is this one's, the buffers are its own."""
        other = copy.copy(self)
        other.plan, other.max_tokens, other.calls, other._single, other._debug = plan, max_tokens, 0, None, None
        other._fused, other._owns_table = _NativePlan(plan, lower(plan), self._table, max_tokens), False
        return other

    def close(self) -> None:
        """Gives the arena and the buffers back; calling it again does nothing."""
        for part in (self._fused, self._single, self._table if self._owns_table else None):
            if part is not None:
                part.close()


def _kv_struct(ffi: Any, seq: Sequence, keep: list[Any]) -> Any:
    pool = seq.pool
    kv = ffi.new("el_kv *")
    kv.base = ffi.cast("void *", pool.address)
    kv.n_pages, kv.page_bytes = pool.n_pages, pool.page_bytes
    kv.k_type, kv.v_type = _KV_TYPES[pool.layout.k.kv_type], _KV_TYPES[pool.layout.v.kv_type]
    kv.n_layers = seq.table.shape[0]
    kv.table = ffi.from_buffer("int32_t[]", seq.table)
    kv.table_stride = seq.table.shape[1]
    kv.head_blocks, kv.ring = seq.head_blocks, seq.ring
    kv.keep, kv.first, kv.window = seq.span.keep, seq.span.first, seq.span.window
    keep.append(kv)
    return kv


# ---- the plan ------------------------------------------------------------------------------------------------------


class _NativePlan:
    """A lowered plan as C holds it."""

    def __init__(self, plan: Plan, steps: list[LoweredStep], table: WeightTable, max_tokens: int) -> None:
        self._ffi, self._lib = clib.library()
        self.plan, self.steps = plan, steps
        self.last = {b: i for i, step in enumerate(steps) for b in step.outputs}  # buffer -> last step that writes it
        ffi = self._ffi
        c_steps = ffi.new("el_step[]", len(steps))
        for target, step in zip(c_steps, steps, strict=True):
            self._fill(target, step, table.ids)
        buffers = ffi.new("el_buffer[]", [(b.cols, int(b.rows == "outputs"), 0) for b in plan.buffers])
        angles = [np.ascontiguousarray(r.inv_freq, dtype=np.float64) for r in plan.ropes]
        ropes = ffi.new("el_rope_table[]", len(angles))
        for target, a, r in zip(ropes, angles, plan.ropes, strict=True):
            target.inv_freq, target.n, target.magnitude = ffi.from_buffer("double[]", a), a.size, r.magnitude
        out = ffi.new("el_plan **")
        rc = self._lib.el_plan_new(
            out, c_steps, len(c_steps), buffers, len(buffers), table.structs, len(table.structs), ropes, len(ropes),
            max_tokens,
        )
        clib.check(rc, "preparing the plan")
        self.handle = out[0]

    def _fill(self, target: Any, step: LoweredStep, ids: dict[str, int]) -> None:
        target.op = getattr(self._lib, f"EL_OP_{step.op.upper()}")
        target.n = len(step.weights)
        inputs = list(step.inputs) + ([step.residual] if step.residual is not None else [])
        biases = [None if b is None else ids[b] for b in step.biases]
        for field, values in (
            (getattr(target, "in"), inputs),
            (target.out, step.outputs),
            (target.w, [ids[w] for w in step.weights]),
            (target.b, biases),
        ):
            for j in range(4):
                field[j] = values[j] if j < len(values) and values[j] is not None else -1
        p = step.params
        if step.op in ("linear", "linear_gated", "experts"):
            target.i[3] = step.planes - 1
        if step.op == "rmsnorm":
            target.f[0], target.i[0] = p["eps"], p["group"]
        elif step.op == "layernorm":
            target.f[0] = p["eps"]
        elif step.op == "add_rows":
            target.i[0] = ROWS_BY.index(p["row"])
        elif step.op in ("gated", "linear_gated"):
            target.i[0] = ACTIVATIONS.index(p["activation"])
        elif step.op == "rope":
            target.i[0:4] = [p["head_dim"], p["rotary_dims"], ROPE_STYLES.index(p["style"]), p["table"]]
        elif step.op == "attention":
            target.i[0:5] = [p["layer"], p["n_heads"], p["n_kv_heads"], p["head_dim"], p["window"]]
            target.i[5:9] = [p["rotary_dims"], ROPE_STYLES.index(p["style"]), p["table"], not p["causal"]]
            target.f[0], target.f[1] = p["scale"], p["softcap"]
        elif step.op in ("scale", "softcap"):
            target.f[0] = p["factor" if step.op == "scale" else "cap"]
        elif step.op == "route":
            target.i[0:2] = [p["n_used"], p["normalise"]]
        elif step.op == "experts":
            n_experts = self.plan.buffers[step.inputs[1]].cols
            target.i[0:3] = [ACTIVATIONS.index(p["activation"]), n_experts, p["n_used"]]

    def view(self, buffer: int, n_rows: int) -> np.ndarray:
        """float32 (n_rows, cols) view of a buffer."""
        cols = self.plan.buffers[buffer].cols
        raw = self._lib.el_plan_buffer(self.handle, buffer)
        return np.frombuffer(self._ffi.buffer(raw, n_rows * cols * 4), dtype=np.float32).reshape(n_rows, cols)

    def close(self) -> None:
        self._lib.el_plan_free(self.handle)
        self.handle = self._ffi.NULL
