"""Every family: the backends agree, bits depend on no thread or pass, other programs give the same answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_families import FAMILIES, tiny_family_gguf

from edgellm import clib
from edgellm.backends import create
from edgellm.backends.compare import compare, nmse
from edgellm.gguf import open_gguf
from edgellm.kv import PagePool, Sequence
from edgellm.models import build_plan, read_config
from edgellm.plan import Plan
from edgellm.weights import Weights

FAST = [*(["native"] if clib.available() else []), "numba"]


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
    with Sequence(PagePool.for_tokens(plan.kv, kv_type, len(ids)), len(ids)) as seq:
        for start in range(0, len(ids), chunk):
            part = np.asarray(ids[start : start + chunk], np.int32)
            seq.ensure(start + part.size)
            out.append(backend.forward(part, start, np.arange(part.size, dtype=np.int32), seq).copy())
            seq.commit(start + part.size)
    backend.close()
    return np.concatenate(out)


def some_ids(n: int, n_vocab: int) -> np.ndarray:
    return np.random.default_rng(5).integers(3, n_vocab, n).astype(np.int32)


# ---- tiny models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backend", FAST)
def test_close_to_the_reference(tmp_path: Path, family: str, backend: str) -> None:
    with opened(tiny_family_gguf(tmp_path / "m.gguf", family)) as (plan, weights):
        assert weights.extra == ()
        ids = some_ids(70, plan.n_vocab)
        wanted = logits("reference", plan, weights, ids)
        assert nmse(wanted, logits(backend, plan, weights, ids, n_threads=2)) <= 1e-11
        assert compare(plan, weights, ids, "reference", backend, n_past=69) is None


@pytest.mark.skipif(not clib.available(), reason="the compiled library was not built")
@pytest.mark.parametrize("type", ["F32", "Q4_0"])
@pytest.mark.parametrize("family", FAMILIES)
def test_same_bits_for_threads_passes_panels_and_backends(tmp_path: Path, family: str, type: str) -> None:
    with opened(tiny_family_gguf(tmp_path / "m.gguf", family, type=type)) as (plan, weights):
        ids = some_ids(70, plan.n_vocab)
        wanted = logits("native", plan, weights, ids, n_threads=1)
        for name, options in (
            ("native", {"n_threads": 1, "chunk": 1}),
            ("native", {"n_threads": 3, "chunk": 33}),
            ("native", {"n_threads": 2, "pack": False, "chunk": 7}),
            ("numba", {"n_threads": 2, "chunk": 40}),
        ):
            assert np.array_equal(wanted, logits(name, plan, weights, ids, **options)), (name, options)
