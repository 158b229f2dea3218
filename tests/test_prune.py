"""Pruning: the masks against slow twins, whole files against the papers' own order, what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import prune_twins as twins
import pytest
from click.testing import CliRunner
from helpers import tiny_llama_gguf
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bert import tiny_bert_gguf
from tiny_families import FAMILIES, tiny_family_gguf

import edgellm
from edgellm import clib
from edgellm.blocks import ALL, BY_NAME, F32
from edgellm.cli import cli
from edgellm.convert.pack import pack
from edgellm.errors import (
    Cancelled,
    ConvertError,
    EdgeLLMError,
    InvalidArgumentError,
    NonFiniteError,
    UnsupportedFeatureError,
)
from edgellm.gguf import open_gguf
from edgellm.imatrix import Imatrix
from edgellm.perplexity import perplexity
from edgellm.prune import prune
from edgellm.prune.choose import prune_matrix
from edgellm.prune.masks import blocks, lowest, scores, two_of_four, unstructured
from edgellm.prune.wish import EXACT_ZERO, parse
from edgellm.quants import dequantize

TEXT = "hello there, once upon a time in the world you and he and I were in the ocean. " * 14
BACKENDS = ["reference", *(["native"] if clib.available() else [])]
MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
CUT = {"chunk_size": 64, "n_chunks": 4, "held_out": 2}


def tiny(tmp_path: Path, **how: object) -> Path:
    return tiny_llama_gguf(tmp_path / "in.gguf", **how)


# ---- masks -----------------------------------------------------------------------------------------------------------

COARSE = st.integers(-3, 3)  # many equals


@st.composite
def matrices(draw: st.DrawFn, multiple: int = 1) -> np.ndarray:
    rows, k = draw(st.integers(1, 40)), multiple * draw(st.integers(1, 160 // multiple))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    coarse = draw(st.booleans())
    return (rng.integers(-3, 4, (rows, k)) if coarse else rng.standard_normal((rows, k))).astype(np.float32)


@given(st.lists(COARSE, min_size=1, max_size=50), st.data())
def test_the_lowest_are_those_of_a_sort(values: list[int], data: st.DataObject) -> None:
    n = data.draw(st.integers(0, len(values)))
    x = np.array(values, np.float32)
    assert (lowest(x, n) == twins.lowest(x, n)).all()


@settings(deadline=None)
@given(matrices(), st.floats(0.01, 0.99), st.integers(0, 9))
def test_wanda_is_the_paper_s(w: np.ndarray, sparsity: float, seed: int) -> None:
    means = np.random.default_rng(seed).chisquare(2, w.shape[1])
    found = unstructured(scores(w, means), sparsity, per_row=True)
    assert (found.sum(axis=1) == int(w.shape[1] * sparsity)).all()
    want = twins.wanda_rows(w, means, sparsity)
    for row, a, b in zip(w, found, want, strict=True):  # rounding may swap equals: the sums must be the same
        size = np.abs(row) * np.sqrt(means)
        assert size[a].sum() == pytest.approx(size[b].sum(), rel=1e-5)


@settings(deadline=None)
@given(matrices(), st.floats(0.01, 0.99), st.integers(0, 9))
def test_wanda_among_the_weights_of_a_matrix(w: np.ndarray, sparsity: float, seed: int) -> None:
    means = np.random.default_rng(seed).chisquare(2, w.shape[1])
    wish, seen = parse(sparsity, "unstructured", "wanda", None), Imatrix()
    seen.add("w", 0, 1, np.sqrt(means)[None].astype(np.float32))
    mask = prune_matrix(w.copy(), 1, ("w", 0), seen, F32, wish, lambda: None)
    size = np.abs(w) * np.sqrt(means)
    assert mask.sum() == int(w.size * sparsity)
    assert size[mask].max(initial=0) <= size[~mask].min(initial=np.inf) * (1 + 1e-5)


@pytest.mark.parametrize(("pattern", "method", "group"), [
    ("unstructured", "wanda", "column"), ("2:4", "wanda", "row"), ("unstructured", "magnitude", "row"),
])  # fmt: skip
def test_a_group_goes_with_wanda(pattern: str, method: str, group: str) -> None:
    with pytest.raises(InvalidArgumentError, match="group"):
        parse(None, pattern, method, None, group)


@settings(deadline=None)
@given(matrices(), st.floats(0.01, 0.99))
def test_magnitude_takes_the_smallest_of_the_matrix(w: np.ndarray, sparsity: float) -> None:
    mask = unstructured(scores(w, None), sparsity, per_row=False)
    assert mask.sum() == int(w.size * sparsity)
    assert np.abs(w[mask]).max(initial=0) <= np.abs(w[~mask]).min(initial=np.inf)


@settings(deadline=None)
@given(matrices(multiple=4))
def test_two_of_four(w: np.ndarray) -> None:
    found = two_of_four(np.abs(w))
    assert (found.reshape(-1, 4).sum(axis=1) == 2).all()
    assert (found == twins.two_of_four(np.abs(w))).all()


@settings(deadline=None)
@given(matrices(), st.floats(0.01, 0.99), st.sampled_from([64, 256]))
def test_blocks(w: np.ndarray, sparsity: float, tile: int) -> None:
    found = blocks(np.abs(w), sparsity, tile)
    assert found.mean() <= sparsity
    assert (found == twins.blocks(np.abs(w), sparsity, tile)).all()


def test_huge_inputs_do_not_overflow() -> None:
    w = np.full((1, 4), 6e4, np.float32)
    found = scores(w, np.array([1e300, 1e290, 1.0, 0.0]))
    assert np.isfinite(found).all() and list(np.argsort(-found[0], kind="stable")) == [0, 1, 2, 3]
    assert (scores(w, np.zeros(4)) == np.abs(w)).all()  # inputs that say nothing leave the weights to decide


# ---- zeros in every type ---------------------------------------------------------------------------------------------


def some_weights(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_t(3, (16, 512)) * 10.0 ** rng.integers(-6, 3)).astype(np.float32)


@pytest.mark.parametrize("name", sorted(EXACT_ZERO))
@pytest.mark.parametrize("seed", range(3))
def test_types_with_an_exact_zero(name: str, seed: int) -> None:
    x = some_weights(seed)
    mask = np.random.default_rng(seed).random(x.shape) < 0.5
    x[mask] = 0
    assert not dequantize(pack(x, BY_NAME[name]), name, x.shape)[mask].any()


@pytest.mark.parametrize("kind", ALL, ids=lambda b: b.name)
@pytest.mark.parametrize("seed", range(3))
def test_whole_groups_are_zero_in_every_type(kind: object, seed: int) -> None:
    x = some_weights(seed)
    mask = np.repeat(np.random.default_rng(seed).random((16, 16)) < 0.5, 32, axis=1)
    x[mask] = 0
    assert not dequantize(pack(x, kind), kind, x.shape)[mask].any()


# ---- whole files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "mixtral", "phi3", "gemma2"])
def test_a_file_is_pruned_as_the_paper_says(tmp_path: Path, family: str) -> None:
    """The inputs of a layer are measured after the layers before it were pruned."""
    src = tiny_family_gguf(tmp_path / "in.gguf", family, n_layers=3)
    report = prune(src, tmp_path / "out.gguf", 0.5, text=TEXT, backend="reference", group="row", **CUT)
    names = [[t.name for t in report.tensors if t.name.startswith(f"blk.{i}.")] for i in range(3)]
    assert all(names)
    twins.wanda_file(src, tmp_path / "slow.gguf", TEXT, names, 0.5, chunk_size=64, n_chunks=4)
    want, got, old = (twins.tensors_of(p) for p in (tmp_path / "slow.gguf", tmp_path / "out.gguf", src))
    assert set(want) == set(got)
    pruned = {name for layer in names for name in layer}
    for name, w in want.items():
        assert (got[name] == w).all(), name
        assert (name in pruned) == (not np.array_equal(got[name], old[name]))
    zeros = {t.name: t.n_zeros for t in report.tensors}
    assert all(zeros[name] == np.count_nonzero(got[name] == 0) for name in pruned)
    assert report.zeros == 0.5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "block16"])
@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_patterns_and_methods(tmp_path: Path, pattern: str, method: str, backend: str) -> None:
    src = tiny(tmp_path, dim=128, ffn=192)
    out = tmp_path / "out.gguf"
    report = prune(src, out, 0.5, pattern, method, text=TEXT, dataset="t.txt", backend=backend, **CUT)
    old, new = twins.tensors_of(src), twins.tensors_of(out)
    for t in report.tensors:
        gone = new[t.name] == 0
        assert (new[t.name][~gone] == old[t.name][~gone]).all()
        if pattern == "2:4":
            assert (gone.reshape(-1, 4).sum(axis=1) == 2).all()
        if pattern == "block16":
            tiles = gone.reshape(gone.shape[0] // 16, 16, gone.shape[1] // 64, 64).transpose(0, 2, 1, 3)
            assert set(tiles.reshape(-1, 16 * 64).sum(axis=1).tolist()) == {0, 16 * 64}
    assert report.zeros == 0.5 and report.chunks == (4 if method == "wanda" else 0)
    assert report.held_out == 2 and report.ppl_after > 0
    with open_gguf(out) as file:
        said = {k.removeprefix("edgellm.prune."): file.metadata[k] for k in file.metadata if "prune" in k}
    assert said["method"] == method and said["pattern"] == pattern and said["dataset"] == "t.txt"
    assert said["zeros"] == 0.5 and said["perplexity_after"] == pytest.approx(report.ppl_after, rel=1e-6)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_perplexity_is_that_of_the_files(tmp_path: Path, family: str) -> None:
    """Before and after, measured on the way, against `edgellm perplexity` of both files."""
    src, out = tiny_family_gguf(tmp_path / "in.gguf", family), tmp_path / "out.gguf"
    with edgellm.load(src, n_ctx=64, backend="reference") as model:
        n = len(model.tokenize(TEXT, add_special=True)) // 64
        before = perplexity(model, TEXT, 64)
    report = prune(src, out, 0.6, method="magnitude", text=TEXT, chunk_size=64, held_out=n, backend="reference")
    with edgellm.load(out, n_ctx=64, backend="reference") as model:
        after = perplexity(model, TEXT, 64)
    assert report.ppl_before == pytest.approx(before.ppl, rel=1e-4)
    assert report.ppl_after == pytest.approx(after.ppl, rel=1e-4)
    assert report.ppl_after_error == pytest.approx(after.ppl_error, rel=2e-2)
    assert abs(report.ppl_after - report.ppl_before) > 1e-3 * report.ppl_before  # it says something


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "F16"])
def test_another_type(tmp_path: Path, kind: str) -> None:
    src, out = tiny(tmp_path, biases=True), tmp_path / "out.gguf"
    report = prune(src, out, text=TEXT, type=kind, backend="reference", **CUT)
    new = twins.tensors_of(out)
    with open_gguf(out) as file:
        assert all(file.tensors[t.name].type.name == kind == t.type for t in report.tensors)
    assert all(np.count_nonzero(new[t.name] == 0) >= t.n_weights // 2 for t in report.tensors)
    n = CUT["chunk_size"]
    with edgellm.load(out, n_ctx=n, backend="reference") as model:
        ids = model.tokenize(TEXT, add_special=True)
        whole = perplexity(model, TEXT, n).running
        assert len(whole) == len(ids) // n
    logs = np.log(whole) * np.arange(1, len(whole) + 1)  # sums of the windows' mean losses
    assert np.log(report.ppl_after) == pytest.approx((logs[-1] - logs[-3]) / 2, rel=1e-4)


def test_without_a_text(tmp_path: Path) -> None:
    report = prune(tiny(tmp_path), tmp_path / "out.gguf", 0.25, method="magnitude")
    assert (report.ppl_before, report.held_out, report.chunks, report.zeros) == (None, 0, 0, 0.25)


def test_pruning_again_replaces_the_keys(tmp_path: Path) -> None:
    first, second = tmp_path / "a.gguf", tmp_path / "b.gguf"
    prune(tiny(tmp_path), first, 0.25, method="magnitude")
    prune(first, second, 0.5, method="magnitude")
    with open_gguf(second) as file:
        assert file.metadata["edgellm.prune.sparsity"] == 0.5


def test_rows_of_a_tile_of_256(tmp_path: Path) -> None:
    src, out = tiny(tmp_path, dim=256, ffn=512, head_dim=64), tmp_path / "out.gguf"
    report = prune(src, out, 0.5, "block16", "magnitude", type="Q4_K_S")
    new = twins.tensors_of(out)
    for t in report.tensors:
        tiles = (new[t.name] == 0).reshape(new[t.name].shape[0] // 16, 16, -1, 256).all(axis=(1, 3))
        assert t.type in ("Q4_K", "Q5_K") and tiles.mean() == 0.5


# ---- what goes wrong -------------------------------------------------------------------------------------------------

BAD = {
    "sparsity 0": {"sparsity": 0.0}, "sparsity 1": {"sparsity": 1.0}, "not a number": {"sparsity": float("nan")},
    "negative": {"sparsity": -0.5}, "a text": {"sparsity": "0.5"}, "a bool": {"sparsity": True},
    "pattern": {"pattern": "4:8"}, "method": {"method": "guess\x1b[31m"}, "type": {"type": "Q9"},
    "2:4 at 0.6": {"pattern": "2:4", "sparsity": 0.6}, "no text": {"text": None}, "empty text": {"text": ""},
    "a short text": {"text": "hello"}, "chunk size": {"chunk_size": 1}, "no chunks": {"n_chunks": 0},
    "held out": {"held_out": -1}, "all held out": {"held_out": 10**6}, "backend": {"backend": "gpu"},
    "half a chunk": {"chunk_size": 63.5},
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_arguments(tmp_path: Path, what: str) -> None:
    how = {"text": TEXT, **CUT, **BAD[what]}
    with pytest.raises(InvalidArgumentError) as error:
        prune(tiny(tmp_path), tmp_path / "out.gguf", **how)
    assert "\x1b" not in str(error.value)
    assert os.listdir(tmp_path) == ["in.gguf"]


def test_what_cannot_be_pruned(tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    with pytest.raises(ConvertError, match="exactly 0"):
        prune(tiny(tmp_path, dim=256, ffn=256), out, method="magnitude", type="Q4_K_M")
    with pytest.raises(UnsupportedFeatureError, match="write text"):
        prune(tiny_bert_gguf(tmp_path / "bert.gguf"), out, method="magnitude")
    with pytest.raises(InvalidArgumentError, match="another name"):
        prune(tmp_path / "in.gguf", tmp_path / "in.gguf", method="magnitude")
    with pytest.raises(EdgeLLMError):
        prune(tmp_path / "missing.gguf", out, method="magnitude")
    assert not out.exists()


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    src, bad = tiny(tmp_path), tmp_path / "bad.gguf"
    w = twins.tensors_of(src)["blk.1.ffn_up.weight"]
    w[3, 5] = np.nan
    twins.with_tensors(src, bad, {"blk.1.ffn_up.weight": w})
    with pytest.raises(ConvertError, match="finite"):
        prune(bad, tmp_path / "out.gguf", text=TEXT, **CUT)
    assert sorted(os.listdir(tmp_path)) == ["bad.gguf", "in.gguf"]


def test_a_model_whose_logits_are_not_finite(tmp_path: Path) -> None:
    src, bad = tiny(tmp_path), tmp_path / "bad.gguf"
    twins.with_tensors(src, bad, {"output_norm.weight": np.full(64, 3e38, np.float32)})
    with pytest.raises(NonFiniteError, match="held-out"):
        prune(bad, tmp_path / "out.gguf", text=TEXT, **CUT)
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("stop_at", [0, 3, 20])
def test_stopping_leaves_an_old_file_as_it_was(tmp_path: Path, stop_at: int) -> None:
    src, out = tiny(tmp_path), tmp_path / "out.gguf"
    out.write_bytes(b"old")
    calls = []

    def stop(progress: edgellm.Progress) -> bool:
        calls.append(progress.done)
        return progress.done < stop_at

    with pytest.raises(Cancelled, match="nothing was written"):
        prune(src, out, text=TEXT, progress=stop, **CUT)
    assert out.read_bytes() == b"old" and sorted(os.listdir(tmp_path)) == ["in.gguf", "out.gguf"]


def test_progress_ends_at_its_total(tmp_path: Path) -> None:
    told: list[edgellm.Progress] = []
    prune(tiny(tmp_path), tmp_path / "out.gguf", text=TEXT, progress=told.append, **CUT)
    assert told[-1].done == told[-1].total and told[-1].stage == "pruning"


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command(tmp_path: Path) -> None:
    src, out, text = str(tiny(tmp_path)), str(tmp_path / "out.gguf"), tmp_path / "t.txt"
    text.write_text(TEXT, encoding="utf-8")
    args = ["prune", src, out, "-f", str(text), "-c", "64", "--sparsity", "0.5"]
    done = CliRunner().invoke(cli, [*args, "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["zeros"] == 0.5
    done = CliRunner().invoke(cli, [*args, "--report"])
    assert done.exit_code == 0 and done.stdout == ""
    assert "blk.0.attn_q.weight" in done.stderr and "before" in done.stderr and "speed: " in done.stderr
    done = CliRunner().invoke(cli, [*args, "--no-overwrite"])
    assert done.exit_code == 1 and "exists already" in str(done.exception)
