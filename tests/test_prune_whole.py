"""Heads and layers that go: measured influence against slow twins, and files that run as they were measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import prune_twins as twins
import pytest
from helpers import tiny_llama_gguf
from hypothesis import given, settings
from hypothesis import strategies as st
from test_prune import BACKENDS, CUT, TEXT
from tiny_families import FAMILIES, tiny_family_gguf

import edgellm
from edgellm.errors import InvalidArgumentError
from edgellm.gguf import open_gguf
from edgellm.models import build_plan, read_config
from edgellm.perplexity import perplexity
from edgellm.prune import PruneReport, prune
from edgellm.prune.dropping import block_influence
from edgellm.prune.heads import Attention, head_masks, influence

N_LAYERS = 4


def check_perplexity(report: PruneReport, src: Path, out: Path) -> None:
    """The figures of the report against `edgellm perplexity` on the last two windows of each file."""
    for path, said in ((src, report.ppl_before), (out, report.ppl_after)):
        with edgellm.load(path, n_ctx=CUT["chunk_size"], backend="reference") as model:
            running = perplexity(model, TEXT, CUT["chunk_size"]).running
        sums = np.log(running) * np.arange(1, len(running) + 1)
        assert np.log(said) == pytest.approx((sums[-1] - sums[-3]) / 2, rel=1e-4)
    assert abs(report.ppl_after - report.ppl_before) > 1e-4 * report.ppl_before


# ---- heads -----------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 5))
def test_influence_is_what_the_output_misses(seed: int, n_heads: int, dim: int) -> None:
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal((20, n_heads * dim)), rng.standard_normal((7, n_heads * dim))
    found = influence(w, x.T @ x / len(x), n_heads)
    for h in range(n_heads):
        without = w.copy()
        without[:, h * dim : (h + 1) * dim] = 0
        assert found[h] == pytest.approx(np.square(x @ (w - without).T).sum(axis=1).mean(), rel=1e-9)


@given(st.lists(st.booleans(), min_size=4, max_size=4))
def test_masks_of_heads_in_one_tensor(gone: list[bool]) -> None:
    """q, k and v in one tensor, two heads to a KV head."""
    a = Attention(("qkv", 0), ("qkv", 12), ("qkv", 18), "o", 4, 2, 3)
    masks = head_masks(a, np.array(gone), {"qkv": (24, 5), "o": (5, 12)})
    want = [g for g in gone for _ in range(3)]
    unused = [g for g in (gone[0] and gone[1], gone[2] and gone[3]) for _ in range(3)]
    assert masks["qkv"].all(axis=1).tolist() == masks["qkv"].any(axis=1).tolist() == [*want, *unused, *unused]
    assert masks["o"].all(axis=0).tolist() == masks["o"].any(axis=0).tolist() == want


@pytest.mark.parametrize("sparsity", [0.25, 0.75])
@pytest.mark.parametrize("backend", BACKENDS)
def test_heads_go_as_the_slow_way_takes_them(tmp_path: Path, sparsity: float, backend: str) -> None:
    src, out, slow = tiny_llama_gguf(tmp_path / "in.gguf", biases=True), tmp_path / "out.gguf", tmp_path / "slow.gguf"
    report = prune(src, out, sparsity, "heads", text=TEXT, backend=backend, **CUT)
    twins.heads_file(src, slow, TEXT, 4, int(4 * sparsity), CUT["chunk_size"], CUT["n_chunks"])
    got, want = twins.tensors_of(out), twins.tensors_of(slow)
    assert all((got[name] == want[name]).all() for name in want)
    assert report.method == "influence" and len(report.tensors) == 8
    assert {t.n_zeros / t.n_weights for t in report.tensors if "attn_o" in t.name} == {sparsity}
    check_perplexity(report, src, out)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_heads_of_every_family(tmp_path: Path, family: str) -> None:
    src, out = tiny_family_gguf(tmp_path / "in.gguf", family), tmp_path / "out.gguf"
    report = prune(src, out, 0.5, "heads", text=TEXT, backend="reference", **CUT)
    check_perplexity(report, src, out)


def test_heads_in_another_type(tmp_path: Path) -> None:
    src, out = tiny_llama_gguf(tmp_path / "in.gguf", head_dim=32), tmp_path / "out.gguf"
    report = prune(src, out, 0.5, "heads", text=TEXT, type="Q4_0", backend="reference", **CUT)
    with open_gguf(out) as file:
        assert file.tensors["blk.0.ffn_up.weight"].type.name == "Q4_0"
    check_perplexity(report, src, out)


# ---- layers ----------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_block_influence(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    before = [rng.standard_normal((3, 8)).astype(np.float32) for _ in range(n)]
    after = [rng.standard_normal((3, 8)).astype(np.float32) for _ in range(n)]
    before[0][0] = after[0][0] = 0  # no direction: unchanged
    cosines = [
        1.0 if not (x.any() and y.any()) else float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
        for a, b in zip(before, after, strict=True) for x, y in zip(a, b, strict=True)
    ]  # fmt: skip
    assert block_influence(before, after) == pytest.approx(1 - np.mean(cosines), abs=1e-5)
    assert block_influence(before, [3 * x for x in before]) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_layers_that_change_least_go(tmp_path: Path, backend: str) -> None:
    src, out = tiny_llama_gguf(tmp_path / "in.gguf", n_layers=N_LAYERS), tmp_path / "out.gguf"
    report = prune(src, out, 0.5, "layers", text=TEXT, backend=backend, **CUT)
    seen = twins.inputs_of(src, TEXT, CUT["chunk_size"], CUT["n_chunks"])
    states = [seen[f"x.{i}"] for i in range(N_LAYERS + 1)]
    want = [block_influence([a], [b]) for a, b in zip(states, states[1:], strict=False)]
    assert np.allclose(report.influence, want, atol=1e-4)
    assert report.removed == tuple(sorted(np.argsort(want)[:2].tolist()))
    assert report.zeros == 0.5 and report.bytes_after < report.bytes_before
    old, new = twins.tensors_of(src), twins.tensors_of(out)
    kept = [i for i in range(N_LAYERS) if i not in report.removed]
    names = {f"blk.{kept.index(i)}.{rest}": f"blk.{i}.{rest}" for i in kept
             for rest in (n.split(".", 2)[2] for n in old if n.startswith(f"blk.{i}."))}  # fmt: skip
    names |= {name: name for name in old if not name.startswith("blk.")}
    assert set(new) == set(names) and all((new[a] == old[b]).all() for a, b in names.items())
    with open_gguf(out) as file:
        assert list(file.metadata["edgellm.prune.layers"]) == list(report.removed)
        assert file.metadata["llama.block_count"] == 2
    check_perplexity(report, src, out)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("sparsity", [0.25, 0.75])
def test_layers_of_every_family_stay_what_they_were(tmp_path: Path, family: str, sparsity: float) -> None:
    """What a family takes from a layer's place (windows, positions) goes with the layer."""
    keys = {"rope.layers": [True, False, True, True]} if family == "smollm3" else {}
    src, out = tiny_family_gguf(tmp_path / "in.gguf", family, n_layers=N_LAYERS, **keys), tmp_path / "out.gguf"
    report = prune(src, out, sparsity, "layers", text=TEXT, backend="reference", **CUT)
    check_perplexity(report, src, out)
    plans = []
    for path in (src, out):
        with open_gguf(path) as file:
            plans.append(build_plan(read_config(file), file))
    kept = [i for i in range(N_LAYERS) if i not in report.removed]
    for new, old in enumerate(kept):
        a, b = ([(s.op, {k: v for k, v in s.params.items() if k != "layer"}) for s in plan.steps
                 if s.label.startswith(f"blk.{i}.")] for plan, i in ((plans[1], new), (plans[0], old)))  # fmt: skip
        assert a == b


def test_arrays_with_an_item_for_each_layer(tmp_path: Path) -> None:
    keys = {"llama.attention.head_count_kv": [2] * N_LAYERS, "llama.feed_forward_length": [96] * N_LAYERS}
    src, out = tiny_llama_gguf(tmp_path / "in.gguf", n_layers=N_LAYERS, **keys), tmp_path / "out.gguf"
    report = prune(src, out, 0.25, "layers", text=TEXT, type="Q8_0", **CUT)
    with open_gguf(out) as file:
        assert list(file.metadata["llama.attention.head_count_kv"]) == [2, 2, 2]
        assert file.tensors["blk.2.attn_q.weight"].type.name == "Q8_0"
    check_perplexity(report, src, out)


def test_the_scale_of_a_size_that_goes_by_its_layers(tmp_path: Path) -> None:
    """Gemma 2 of 46 layers has a scale of its own; with 34 of them the file says so."""
    src, out = tmp_path / "in.gguf", tmp_path / "out.gguf"
    tiny_family_gguf(src, "gemma2", n_layers=46, **{"attention.scale": None})
    report = prune(src, out, 0.25, "layers", text=TEXT, chunk_size=64, n_chunks=1, held_out=2)
    with open_gguf(src) as a, open_gguf(out) as b:
        plans = [build_plan(read_config(file), file) for file in (a, b)]
    scales = [{s.params["scale"] for s in plan.steps if "scale" in s.params} for plan in plans]
    assert len(report.removed) == 11 and [len(s) for s in scales] == [1, 1]
    assert scales[1].pop() == pytest.approx(scales[0].pop(), rel=1e-6)


# ---- what goes wrong -------------------------------------------------------------------------------------------------

BAD = {
    "a method for heads": {"pattern": "heads", "method": "wanda"},
    "a method for layers": {"pattern": "layers", "method": "magnitude"},
    "influence for weights": {"method": "influence"},
    "less than a head": {"pattern": "heads", "sparsity": 0.2},
    "less than a layer": {"pattern": "layers", "sparsity": 0.4},
    "heads without a text": {"pattern": "heads", "text": None},
    "layers without a text": {"pattern": "layers", "text": None},
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_arguments(tmp_path: Path, what: str) -> None:
    src = tiny_llama_gguf(tmp_path / "in.gguf")
    with pytest.raises(InvalidArgumentError):
        prune(src, tmp_path / "out.gguf", **{"text": TEXT, **CUT, **BAD[what]})
    assert [p.name for p in tmp_path.iterdir()] == ["in.gguf"]


@pytest.mark.parametrize("pattern", ["heads", "layers"])
def test_progress_ends_at_its_total(tmp_path: Path, pattern: str) -> None:
    told: list[edgellm.Progress] = []
    prune(tiny_llama_gguf(tmp_path / "in.gguf"), tmp_path / "out.gguf", 0.5, pattern, text=TEXT, progress=told.append,
          **CUT)  # fmt: skip
    assert told[-1].done == told[-1].total
