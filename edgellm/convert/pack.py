"""Rows of float32 -> bytes of a type: the compiled quantiser where there is one, else its NumPy twin."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from .. import quants
from ..blocks import BF16, F16, F32, BlockType
from ..errors import ConvertError, one_line

F16_MAX = 65504.0
_PART = 1 << 16  # weights that are worth a thread


def pack(x: np.ndarray, kind: BlockType, importance: np.ndarray | None = None) -> np.ndarray:
    """float32 (rows, k) -> uint8 (rows, bytes of a row). Both ways give the same bytes; only the speed differs.

    `importance` (k,): how much an error in each column counts (`quants.quantize`). Raises InvalidArgumentError.
    """
    if kind is F32:
        return np.ascontiguousarray(x, dtype=np.float32).view(np.uint8)
    if kind is F16:
        return x.astype(np.float16).view(np.uint8)
    from .. import clib

    if not clib.available():
        return quants.quantize(x, kind, importance)
    if importance is not None:
        importance = quants.check_importance(importance, x.shape[-1])
    n_parts = min(_n_cores(), x.size // _PART)
    if n_parts < 2:
        return clib.quantize(x, kind, importance)
    with ThreadPoolExecutor(n_parts) as pool:  # C lets go of the interpreter's lock
        parts = pool.map(lambda rows: clib.quantize(rows, kind, importance), np.array_split(x, n_parts))
        return np.concatenate(list(parts))


def _n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_range(x: np.ndarray, kind: BlockType, name: str, path: str) -> None:
    """Refuse what the type cannot hold: NaN, infinity, and numbers beyond f16 (values or block scales)."""
    low, high = float(x.min(initial=0.0)), float(x.max(initial=0.0))  # NaN wins in both
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = "NaN" if np.isnan(low) or np.isnan(high) else "infinite"
        raise ConvertError(
            "a weight is not finite; the checkpoint is damaged", path=path, field=f"tensor {one_line(name)}", value=bad
        )
    if kind not in (F32, BF16) and max(-low, high) > F16_MAX:
        raise ConvertError(
            f"a weight is too large for {kind.name}; convert to bf16 or f32", path=path,
            field=f"tensor {one_line(name)}", value=max(-low, high), limit=F16_MAX,
        )  # fmt: skip
