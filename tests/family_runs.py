"""Opens a model file and runs it on one backend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from edgellm import clib
from edgellm.backends import create
from edgellm.cache import PagePool, Sequence
from edgellm.gguf import open_gguf
from edgellm.models import build_plan, read_config
from edgellm.plan import Plan
from edgellm.weights import Weights

FAST = [*(["native"] if clib.available() else []), "numba"]
ALL = ["reference", *FAST]


@contextmanager
def opened(path: Path, n_ctx: int | None = None) -> Iterator[tuple[Plan, Weights]]:
    with open_gguf(path) as file:
        plan = build_plan(read_config(file), file, n_ctx)
        yield plan, Weights(file, plan)


def logits(
    name: str, plan: Plan, weights: Weights, ids: np.ndarray, *, kv_type: str = "f32", chunk: int = 512, **options: Any
) -> np.ndarray:
    """Logits (n, n_vocab) of all positions, in passes of `chunk` tokens."""
    backend = create(name, plan, weights, **options)
    out = []
    try:
        with Sequence(PagePool.for_tokens(plan.kv, kv_type, len(ids)), len(ids)) as seq:
            for start in range(0, len(ids), chunk):
                part = np.asarray(ids[start : start + chunk], np.int32)
                seq.ensure(start + part.size)
                out.append(backend.forward(part, start, np.arange(part.size, dtype=np.int32), seq).copy())
                seq.commit(start + part.size)
    finally:
        backend.close()
    return np.concatenate(out)
