"""Prefill kernels: tests/prefill_cases.py on emulated tiles, and what `exact` does on this machine's own kernels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_llama_gguf

import edgellm
from edgellm import clib
from edgellm.errors import InvalidArgumentError

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.skipif(not sys.platform.startswith(("linux", "darwin")), reason="GCC's flags")
@pytest.mark.skipif(not clib.available(), reason="the compiled library was not built")
def test_cases_on_emulated_tiles() -> None:
    command = [sys.executable, "tests/emulated_tiles.py", "tests/prefill_cases.py"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    assert "100%" in run.stdout and "SKIPPED" not in run.stdout


@pytest.mark.parametrize("backend", ["auto", "numba"])
def test_exact_logits_do_not_depend_on_the_passes(tmp_path: Path, backend: str) -> None:
    path = tiny_llama_gguf(tmp_path / "m.gguf", type="Q8_0")
    ids = np.random.default_rng(3).integers(3, 60, 70).tolist()
    with edgellm.load(path, backend=backend, exact=True, threads=2) as model:
        assert model.exact
        whole = model.logits(ids)
        engine = model._loaded.engine
        single = model._worker.call(lambda job: _one_by_one(engine, ids))
        assert np.array_equal(whole, single)


def test_a_backend_that_cannot_be_exact_says_so(tmp_path: Path) -> None:
    path = tiny_llama_gguf(tmp_path / "m.gguf")
    with pytest.raises(InvalidArgumentError, match="cannot be exact"):
        edgellm.load(path, backend="reference", exact=True)
    with edgellm.load(path, backend="reference") as model:
        with pytest.raises(InvalidArgumentError, match="cannot be exact"):
            model.generate([3, 4], exact=True, max_tokens=1)
        assert len(model.generate([3, 4], max_tokens=1, ignore_eos=True).token_ids) == 1


def _one_by_one(engine, ids: list[int]) -> np.ndarray:
    with engine.new_sequence() as seq:
        return np.concatenate([np.array(engine.forward(seq, [token], [0], None)) for token in ids])
