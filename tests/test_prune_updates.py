"""SparseGPT: against optimal brain surgeon with one inverse per column, and how inputs are measured in rounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import prune_twins as twins
import pytest
from helpers import tiny_llama_gguf
from hypothesis import given, settings
from hypothesis import strategies as st
from test_prune import CUT, TEXT
from tiny_families import tiny_family_gguf

from edgellm.errors import Cancelled, ConvertError
from edgellm.prune import prune, zeroing
from edgellm.prune.sparsegpt import inverse_root, prune_with_updates
from edgellm.prune.statistics import Grams, rounds

PATTERNS = {
    "unstructured": twins.choose_unstructured(0.5), "2:4": twins.choose_two_of_four,
    "block16": twins.choose_blocks(0.5, 64),
}  # fmt: skip


def inputs(rng: np.random.Generator, n: int, k: int, dead: int = 0) -> np.ndarray:
    """float64 (n, k), columns of very different sizes that are alike; the last `dead` are 0."""
    x = rng.standard_normal((n, k)) @ rng.standard_normal((k, k)) * np.exp(rng.standard_normal(k))
    x[:, k - dead :] = 0
    return x


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 50), st.sampled_from(sorted(PATTERNS)))
def test_updates_are_those_of_optimal_brain_surgeon(seed: int, rows: int, fours: int, pattern: str) -> None:
    rng, k = np.random.default_rng(seed), 4 * fours
    x = inputs(rng, 3 * k, k, dead=int(rng.integers(0, 2)))
    gram, w = x.T @ x / len(x), rng.standard_normal((rows, k)).astype(np.float32)
    got = w.copy()
    mask = prune_with_updates(got, inverse_root(gram), 0.5, pattern, 64)
    want = twins.sparsegpt(w, gram, PATTERNS[pattern])
    assert not got[mask].any()
    assert np.abs(got - want).max() <= 2e-4 * max(np.abs(want).max(), 1)


def test_several_blocks_of_columns() -> None:
    rng = np.random.default_rng(1)
    x = inputs(rng, 900, 300)
    gram, w = x.T @ x / len(x), rng.standard_normal((8, 300)).astype(np.float32)
    for pattern, choose in PATTERNS.items():
        got = w.copy()
        prune_with_updates(got, inverse_root(gram), 0.5, pattern, 64)
        want = twins.sparsegpt(w, gram, choose)
        assert np.abs(got - want).max() <= 1e-3 * np.abs(want).max(), pattern
        lost, kept = np.square((got - w) @ x.T).sum(), np.square(np.where(got == 0, 0, w) @ x.T - w @ x.T).sum()
        assert lost < 0.9 * kept, pattern  # the updates make up for something


def test_the_root_is_that_of_the_inverse() -> None:
    rng = np.random.default_rng(2)
    x = inputs(rng, 50, 30)
    gram = x.T @ x / len(x)
    upper = inverse_root(gram).upper
    h = gram + 0.01 * np.diag(gram).mean() * np.eye(30)
    assert np.allclose(upper.T @ upper @ h, np.eye(30), atol=1e-8)
    assert not np.tril(upper, -1).any()


def test_inputs_that_are_no_good() -> None:
    root = inverse_root(np.zeros((8, 8)))  # no input at all: every column is dead
    w = np.ones((4, 8), np.float32)
    prune_with_updates(w, root, 0.5, "unstructured", 64)
    assert not w.any()
    assert np.isfinite(inverse_root(np.ones((8, 8))).upper).all()  # columns that are all alike
    for bad in (np.nan, np.inf):
        with pytest.raises(ConvertError, match="finite"):
            inverse_root(np.full((4, 4), bad))
    with pytest.raises(ConvertError, match="another text"):
        inverse_root(-np.eye(4))


def test_a_tick_may_stop_it() -> None:
    def stop() -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        prune_with_updates(np.ones((4, 8), np.float32), inverse_root(np.eye(8)), 0.5, "unstructured", 64, stop)


@given(st.lists(st.integers(1, 100), max_size=30), st.integers(1, 100_000))
def test_rounds_hold_all_units_once_and_keep_to_the_budget(ks: list[int], budget: int) -> None:
    sizes = {("t", i): k for i, k in enumerate(ks)}
    groups = rounds(sizes, budget)
    assert sorted(unit for group in groups for unit in group) == sorted(sizes)
    for group in groups:
        assert len(group) == 1 or sum(8 * sizes[unit] ** 2 for unit in group) <= budget


def test_grams_sum_up_what_is_wanted() -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((9, 5)).astype(np.float32)
    found = Grams(frozenset({("a", 1)}))
    found.add("a", 1, 2, x[:4])
    found.add("a", 1, 2, x[4:])
    found.add("a", 1, 2, x[:0])
    found.add("a", 0, 2, x)
    found.add("b", 1, 2, x)
    assert list(found.sums) == [("a", 1)] and found.counts[("a", 1)] == 9
    assert np.allclose(found.sums[("a", 1)], x.astype(np.float64).T @ x, rtol=1e-5, atol=1e-5)
    assert np.allclose(found.root(("a", 0), 5).upper, np.eye(5) / np.sqrt(1.01))  # nothing seen: nothing is alike


# ---- whole files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_file_is_pruned_as_the_paper_says(tmp_path: Path, family: str) -> None:
    src, out, slow = tmp_path / "in.gguf", tmp_path / "out.gguf", tmp_path / "slow.gguf"
    tiny_family_gguf(src, family)
    report = prune(src, out, 0.5, method="sparsegpt", text=TEXT, backend="reference", **CUT)
    names = [[t.name for t in report.tensors if t.name.startswith(f"blk.{i}.")] for i in range(2)]
    twins.sparsegpt_file(src, slow, TEXT, names, 0.5, CUT["chunk_size"], CUT["n_chunks"])
    got, want, old = (twins.tensors_of(path) for path in (out, slow, src))
    for name in (n for layer in names for n in layer):
        assert ((got[name] == 0) == (want[name] == 0)).mean() > 0.999, name  # a tie may fall to the other side
        close = np.abs(got[name] - want[name]) <= 1e-3 * np.abs(want[name]).max()
        assert close.mean() > 0.99, name
        assert not np.allclose(got[name], np.where(got[name] == 0, 0, old[name]))  # something was made up for


@pytest.mark.parametrize("family", ["mixtral", "phi3"])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "block16"])
def test_experts_and_joined_tensors_in_rounds(
    tmp_path: Path, family: str, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    src = tiny_family_gguf(tmp_path / "in.gguf", family)
    how = {"pattern": pattern, "method": "sparsegpt", "text": TEXT, "backend": "reference", **CUT}
    one = prune(src, tmp_path / "one.gguf", **how)
    told: list[object] = []
    monkeypatch.setattr(zeroing, "rounds", lambda sizes: rounds(sizes, 1))  # a round for every matrix
    many = prune(src, tmp_path / "many.gguf", progress=told.append, **how)
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "many.gguf").read_bytes()
    assert one.tensors == many.tensors and told[-1].done == told[-1].total
    assert all(abs(t.n_zeros - t.n_weights / 2) <= 0.02 * t.n_weights or pattern == "block16" for t in one.tensors)


def test_the_type_of_the_output(tmp_path: Path) -> None:
    src, out = tiny_llama_gguf(tmp_path / "in.gguf"), tmp_path / "out.gguf"
    report = prune(src, out, 0.5, "2:4", "sparsegpt", text=TEXT, type="Q4_0", **CUT)
    new = twins.tensors_of(out)
    for t in report.tensors:
        assert t.type == "Q4_0" and ((new[t.name] == 0).reshape(-1, 4).sum(axis=1) >= 2).all()
