"""What a backend will take of memory for one model, worked out before anything of it is made.

Weights: `weight_sizes` follows what each backend does with them (many zeros are not stored). Scratch: the native
backend's buffers are made once without being written to, and C says what passes would touch (el_plan_bytes); the others
are NumPy arrays of known size.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from contextlib import closing
from importlib.util import find_spec
from typing import TYPE_CHECKING

from .. import clib
from ..blocks import F32
from ..machine import huge_pages
from ..ops import Op
from ..quants.panels import panel_bytes
from .compressed import find_compressed
from .lowering import activation_planes, lower, panel_weights
from .sparse import find_sparse

if TYPE_CHECKING:
    from ..plan import Plan
    from ..weights import Weights

_SPLIT_TOKENS = 512  # native/attention.c: SPLIT_TOKENS
_HUGE_PAGE = 2 << 20
_LINE = 64
LOGITS_ROWS = 8  # of a pass with guesses (edgellm.speculate)
# Numba itself and the kernels of one model, as they come out of its cache (Numba 0.66, llvmlite 0.48, x86-64).
_NUMBA_IMPORT, _NUMBA_KERNELS = 60 << 20, 76 << 20


def resolve(backend: str) -> str:
    """The backend that "auto" stands for here; any other name as it is."""
    if backend != "auto":
        return backend
    if clib.available():
        return "native"
    return "numba" if find_spec("numba") is not None else "reference"


# ---- weights ---------------------------------------------------------------------------------------------------------


def weight_sizes(
    backend: str, plan: Plan, weights: Weights, n_threads: int, pack: bool = True, huge_pages: bool = False
) -> tuple[int, int]:
    """(bytes of the file that stay mapped, bytes of the process's own) of a plan's weights in a backend."""
    mapped = own = 0
    wanted = set(panel_weights(plan, weights)) if backend == "native" else set()
    rows = [name for name in wanted if weights.panels(name) is None] if pack else []
    sparse = find_sparse(rows, weights, n_threads)
    compressed = find_compressed(rows, weights, n_threads, sparse)
    for name, shape in plan.weights.items():
        info = weights.type(name)
        in_file = weights.panels(name) is not None
        if len(shape) == 1 or backend == "reference":  # float32
            own += 4 * math.prod(shape)
        elif name in wanted and (pack or in_file):
            n_bytes = panel_bytes(math.prod(shape[:-1]), shape[-1], info)
            if name in compressed:
                n_bytes = compressed[name].n_bytes
            elif name in sparse:
                n_bytes = sparse[name].n_bytes
            elif weights.sparse(name):
                n_bytes = weights.stored_bytes(name)
            if in_file and not huge_pages:
                mapped += n_bytes
            else:
                own += -(-n_bytes // _LINE) * _LINE
        elif in_file:  # turned back into rows
            own += weights.span(name)[1]
        else:
            mapped += weights.span(name)[1]
    return mapped, own


# ---- scratch ---------------------------------------------------------------------------------------------------------


def scratch_sizer(
    backend: str, plan: Plan, weights: Weights, n_threads: int, max_tokens: int, pack: bool = True
) -> Callable[[int], int]:
    """A function n_ctx -> bytes that buffers take when all of the context is used, with the logits of a few tokens."""
    if backend == "native":
        return _native_scratch(plan, weights, n_threads, max_tokens, pack)
    return lambda n_ctx: _numpy_scratch(backend, plan, min(n_ctx, max_tokens))


def runtime_bytes(backend: str) -> int:
    """What comes once per process, whatever the model: Numba and its compiled kernels."""
    if backend != "numba":
        return 0
    compiled = "edgellm.backends.numba_" in sys.modules
    return (0 if compiled else _NUMBA_KERNELS) + (0 if "numba" in sys.modules else _NUMBA_IMPORT)


def _native_scratch(plan: Plan, weights: Weights, n_threads: int, max_tokens: int, pack: bool) -> Callable[[int], int]:
    page = _HUGE_PAGE if huge_pages() in ("always", "madvise") else 4096
    known = _plan_bytes(plan, weights, n_threads, max_tokens, pack, page)
    attention = [s.params for s in plan.steps if s.op is Op.ATTENTION]
    partial = max((4 * p["n_heads"] * (p["head_dim"] + 2) for p in attention), default=0)

    def scratch(n_ctx: int) -> int:
        splits = -(-n_ctx // _SPLIT_TOKENS)  # of decoding, each a work item where there are several threads
        buffers = next(n_bytes for n_tokens, n_bytes in known if n_tokens >= min(n_ctx, max_tokens))
        return buffers + (2 * splits * partial if splits > 1 and n_threads > 1 else 0)

    return scratch


def _plan_bytes(
    plan: Plan, weights: Weights, n_threads: int, max_tokens: int, pack: bool, page: int
) -> list[tuple[int, int]]:
    """(tokens of the longest pass, bytes of buffers and scratch on memory pages of `page` bytes), ascending."""
    from .native import _NativePlan

    lib = clib.library()[1]
    sizes = sorted({min(1 << i, max_tokens) for i in range(max_tokens.bit_length() + 1)})
    with closing(_NativePlan(plan, lower(plan), _WeightShapes(plan, weights, pack), max_tokens)) as native:
        return [(n, lib.el_plan_bytes(native.handle, n, min(n, LOGITS_ROWS), n_threads, page)) for n in sizes]


class _WeightShapes:
    """A plan's weights as structs with sizes and no data: all that a plan needs whose passes are never run."""

    def __init__(self, plan: Plan, weights: Weights, pack: bool) -> None:
        ffi, lib = clib.library()
        self.ids = {name: i for i, name in enumerate(plan.weights)}
        self.structs = ffi.new("el_weight[]", len(self.ids))
        self._nothing = ffi.new("char[64]")  # the address that all of them have
        panels = {name for name in panel_weights(plan, weights) if pack or weights.panels(name) is not None}
        for name, i in self.ids.items():
            one, shape = self.structs[i], weights.shape(name)
            kind = F32 if len(shape) == 1 else weights.type(name)
            one.type, one.layout, one.data = kind.id, int(name in panels), self._nothing
            one.rows, one.cols = math.prod(shape[:-1]), shape[-1]
            packed = lib.el_panel_bytes(kind.id, one.rows, one.cols) if one.layout else 0
            one.bytes = packed or one.rows * kind.row_bytes(one.cols)


def _numpy_scratch(backend: str, plan: Plan, n_tokens: int) -> int:
    """Buffers of float32, and for Numba the activations as 8 bits and the second product of gated steps."""
    rows = {"tokens": n_tokens, "outputs": 1 if backend == "reference" else min(n_tokens, LOGITS_ROWS)}
    used = set(range(len(plan.buffers)))
    if backend == "numba":  # fused steps leave some buffers unused: they are never made
        used = {b for s in lower(plan) for b in s.outputs}
    buffers = [4 * rows[b.rows] * b.cols for b in plan.buffers if b.id in used]
    if backend == "reference":
        return 2 * sum(buffers)
    widest = activation_planes(plan) * max(b.cols for b in plan.buffers if b.rows == "tokens")
    quantised = n_tokens * widest + 4 * (n_tokens * widest // 32) + 4 * (n_tokens * widest // 16)
    return sum(buffers) + 2 * quantised + max(4 * n_tokens * b.cols for b in plan.buffers if b.rows == "tokens")
