"""The experiment with sparse activations (tools/sparse_act*): products by channel against dense ones, budgets."""

from __future__ import annotations

import itertools
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import tiny_llama_gguf
from hypothesis import given, settings
from hypothesis import strategies as st

import edgellm
from edgellm import clib
from edgellm.blocks import BY_NAME
from edgellm.cache import Sequence
from edgellm.errors import InvalidArgumentError
from edgellm.perplexity import perplexity

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import sparse_act_budget as budget  # noqa: E402
import sparse_act_native as native  # noqa: E402
from sparse_act_model import SparseModel, cut  # noqa: E402
from sparse_act_page import page  # noqa: E402
from sparse_act_speed import draft_gain  # noqa: E402

pytestmark = pytest.mark.skipif(
    not clib.available() or sys.platform == "win32" or shutil.which("cc") is None,
    reason="the experiment needs the compiled library and a C compiler",
)
TEXT = "hello there, once upon a time in the world you and he and I were in the ocean. " * 14


# ---- products --------------------------------------------------------------------------------------------------------


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
    w = native.KMajor(kernels, data, kind, rows, k, block_rows)
    y, live = native.multiply(kernels, w, x, threshold, fast)
    kept = cut(x, threshold)
    assert (y == dense(data, kind, rows, kept)).all()
    assert live == np.count_nonzero(native.quantise(kept)[0])


@pytest.mark.parametrize(("name", "k", "block_rows"), [("Q4_K", 256, 128), ("Q4_0", 64, 192), ("Q4_0", 96, 128)])
def test_what_cannot_be_stored_by_channel_is_refused(kernels: Any, name: str, k: int, block_rows: int) -> None:
    kind = BY_NAME[name]
    data = np.zeros(8 * kind.row_bytes(256), np.uint8)
    with pytest.raises(InvalidArgumentError, match="by channel"):
        native.KMajor(kernels, data, kind, 8, k, block_rows)


# ---- levels ----------------------------------------------------------------------------------------------------------


def test_thresholds_cut_the_shares_of_their_levels() -> None:
    x = np.random.default_rng(1).standard_normal((40, 50)).astype(np.float32)
    for level, threshold in zip(budget.LEVELS, budget.thresholds_of(x), strict=True):
        assert (cut(x, threshold) == 0).mean() == pytest.approx(level, abs=1e-3)


@given(st.integers(1, 3), st.integers(2, 4), st.integers(0, 2**32 - 1))
def test_the_path_is_the_best_there_is_where_levels_cost_more_and_more(n: int, top: int, seed: int) -> None:
    """All places of the path against all levels of the same sparsity."""
    rng = np.random.default_rng(seed)
    steps = np.sort(rng.random((n, top - 1)), axis=1)
    costs = np.concatenate([np.zeros((n, 1)), np.cumsum(steps, axis=1)], axis=1)
    path = budget.greedy_path(costs, [1] * n)
    assert path[0] == (0,) * n and path[-1] == (top - 1,) * n and len(path) == n * (top - 1) + 1
    for levels in path:
        rivals = [r for r in itertools.product(range(top), repeat=n) if sum(r) == sum(levels)]
        cost = {r: sum(costs[i, level] for i, level in enumerate(r)) for r in rivals}
        assert cost[levels] == pytest.approx(min(cost.values()))


def test_large_matrices_go_first_at_equal_cost() -> None:
    assert budget.greedy_path(np.array([[0.0, 1.0], [0.0, 1.0]]), [10, 30])[1] == (0, 1)


@given(st.integers(1, 60), st.integers(0, 80))
def test_furthest_is_the_last_that_fits(n: int, limit: int) -> None:
    assert budget.furthest(n, lambda i: i <= limit) == min(limit, n - 1)


def test_a_draft_that_is_free_and_right_gains_its_guesses() -> None:
    flat = dict.fromkeys(range(1, 9), 1.0)
    assert draft_gain(1.0, 0.0, flat) == (pytest.approx(8.0), 7)
    gain, _ = draft_gain(0.0, 1.0, flat)
    assert gain == pytest.approx(0.5)  # a pass for nothing before each


# ---- a whole model ---------------------------------------------------------------------------------------------------


def test_without_thresholds_a_model_is_what_it_is(tmp_path: Path) -> None:
    path = tiny_llama_gguf(tmp_path / "m.gguf")
    with edgellm.load(path) as model:
        expected = perplexity(model, TEXT, n_ctx=64, n_chunks=3).ppl
        windows = np.array(model.tokenize(TEXT, add_special=True)[: 3 * 64], np.int32).reshape(3, 64)
        first = model.tokenize("", add_special=True)
    windows[:, : len(first)] = first
    with SparseModel(path, 64, 1) as sparse:
        assert budget.dense(sparse, windows).ppl == pytest.approx(expected, rel=1e-6)


def test_a_model_whose_inputs_are_all_cut_knows_only_the_last_token(tmp_path: Path) -> None:
    with SparseModel(tiny_llama_gguf(tmp_path / "m.gguf"), 64, 1) as model:
        assert {site.kind for site in model.sites} == {"o", "down"}
        everything = {site.tensor: float("inf") for site in model.sites}

        def logits(tokens: list[int], thresholds: dict[str, float]) -> np.ndarray:
            with Sequence(model.loaded.pool, 64) as seq:
                seq.ensure(len(tokens))
                last = np.array([len(tokens) - 1], np.int32)
                return model.run(np.array(tokens, np.int32), 0, last, seq, thresholds)

        assert (logits([5, 6, 9], everything) == logits([7, 8, 9], everything)).all()
        assert (logits([5, 6, 9], {}) != logits([7, 8, 9], {})).any()


def test_a_calibration_keeps_to_its_budget(tmp_path: Path) -> None:
    from edgellm.prune.windows import split

    with SparseModel(tiny_llama_gguf(tmp_path / "m.gguf"), 64, 1) as model:
        windows = split(model.loaded.tokenizer, TEXT, 64, 4, 2, need=True)
        found = budget.calibrate(model, windows, (0.005, 0.03))
    assert [one["budget"] for one in found["budgets"]] == [0.005, 0.03]
    assert all(one["ratio"] <= 1 + one["budget"] for one in found["budgets"])
    assert [round(one["sparsity"], 1) for one in found["curve"]] == list(budget.CURVE)
    for one in found["budgets"]:
        for site, level in zip(found["sites"], one["levels"], strict=True):
            assert one["thresholds"][site["tensor"]] == site["thresholds"][level]


def test_the_page_says_what_was_reached() -> None:
    quality = {"ppl": 10.0, "ratio": 1.009, "ratio_error": 0.001, "same_top": 0.9, "sparsity": 0.5}
    seen = {
        "gain": 1.2,
        "gain_low": 1.1,
        "gain_high": 1.3,
        "seconds": 1e-3,
        "live": 0.5,
        "read_sites": 0.6,
        "read_all": 0.9,
    }
    names = ["dense", *(f"budget {b:g}" for b in (0.005, 0.01, 0.03)), "0.50"]
    speed = {
        "settings": dict.fromkeys(names, seen), "widths": {str(n): 1.0 + n / 10 for n in range(1, 9)}, "threads": 2,
        "block_rows": [128], "extra_bytes": 10_000_000,
    }  # fmt: skip
    calibration = {
        "ppl": 9.9, "held_out": 2, "n_ctx": 64, "uniform": quality, "curve": [quality] * 8,
        "budgets": [{**quality, "budget": b} for b in (0.005, 0.01, 0.03)],
    }  # fmt: skip
    text = "\n".join(page([{"name": "m", "calibration": calibration, "speed": speed}], "here"))
    assert "1.200 times dense" in text and "**reached**" in text
    speed["settings"] = dict.fromkeys(names, {**seen, "gain": 1.1})
    assert "**not reached**" in "\n".join(page([{"name": "m", "calibration": calibration, "speed": speed}], "here"))
