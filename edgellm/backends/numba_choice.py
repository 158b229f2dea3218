"""Which compiled kernels serve which steps: what `NumbaBackend.prepare` compiles before the first pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..blocks import F32
from ..cache import split_kv_type
from .lowering import LoweredStep
from .numba_kernels import attention, vector
from .numba_kernels.jit import Kernel
from .numba_kernels.linear import LINEAR
from .numba_matrix import GROUPS, Matrix, input_kind

GATED = {"silu": vector.gated_silu, "gelu_tanh": vector.gated_gelu_tanh}
# one kernel each, by op
_PLAIN = {n: getattr(vector, n) for n in ("rmsnorm", "layernorm", "gelu", "rope", "add", "softcap", "route")}


def kernels_of(steps: Iterable[LoweredStep], matrices: Mapping[str, Matrix], kv_type: str) -> list[Kernel]:
    """The kernels of a lowered plan over pages of `kv_type`, each once."""
    found: dict[Kernel, None] = {}
    for step in steps:
        for name in step.weights if step.op in ("linear", "linear_gated", "experts") else ():
            matrix = matrices[name]
            kind = input_kind(matrix)
            found.update(dict.fromkeys([GROUPS[kind][2]] if kind in GROUPS else []))
            found[LINEAR[matrix.type.id if matrix.type.id in LINEAR else F32.id]] = None
        if step.op == "attention":
            found.update(dict.fromkeys(attention.kernels(*split_kv_type(kv_type))))
        elif "activation" in step.params:
            found[GATED[step.params["activation"]]] = None
        elif step.op in _PLAIN:
            found[_PLAIN[step.op]] = None
    return list(found)
