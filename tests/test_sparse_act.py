"""The experiment with sparse activations (tools/sparse_act*): products by channel against dense ones, thresholds, budgets."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm import clib
from edgellm.blocks import BY_NAME

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import sparse_act_native as native  # noqa: E402

pytestmark = pytest.mark.skipif(
    not clib.available() or sys.platform == "win32" or shutil.which("cc") is None,
    reason="the experiment needs the compiled library and a C compiler",
)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return native.kernels(tmp_path_factory.mktemp("sparse_act"))


def dense(data: np.ndarray, kind: Any, rows: int, x: np.ndarray) -> np.ndarray:
    """The runtime's own product, float32 (rows,)."""
    ffi, lib = clib.library()
    panels, y = clib.pack_panels(data, kind, rows, x.size), np.empty(rows, np.float32)
    rc = lib.el_linear_test(
        kind.id, 1, ffi.from_buffer(panels), rows, x.size, 0, rows, ffi.from_buffer("float[]", x), 1,
        ffi.from_buffer("float[]", y), rows,
    )  # fmt: skip
    assert rc == 0
    return y


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(native.TYPES), st.integers(1, 300), st.integers(1, 9), st.sampled_from([128, 256]),
    st.floats(0, 3), st.booleans(), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_products_are_those_of_the_runtime(
    kernels: Any, name: str, rows: int, groups: int, block_rows: int, threshold: float, fast: bool, seed: int
) -> None:
    rng, kind, k = np.random.default_rng(seed), BY_NAME[name], 32 * groups
    data = clib.quantize(rng.standard_normal((rows, k)).astype(np.float32), kind)
    x = (rng.standard_normal(k) * np.exp(rng.normal(0, 2, k))).astype(np.float32)
    kept = np.where(np.abs(x) < np.float32(threshold), np.float32(0), x)
    w = native.KMajor(kernels, data, kind, rows, k, block_rows)
    y, live = native.multiply(kernels, w, x, threshold, fast)
    assert (y == dense(data, kind, rows, kept)).all()
    assert live == np.count_nonzero(native.quantise(kept)[0])
