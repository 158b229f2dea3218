"""What `bench` counts: bytes, passes, names. Speed itself is not tested."""

from __future__ import annotations

import pytest
from helpers import tiny_llama_gguf

import edgellm
from edgellm import bench


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    return {tied: tiny_llama_gguf(folder / f"{tied}.gguf", tied=tied, type="Q8_0") for tied in (False, True)}


@pytest.mark.parametrize("tied", [False, True])
def test_bytes_of_a_pass(paths, tied):
    with edgellm.load(paths[tied], backend="reference") as model:
        plan, weights = model.plan, model._loaded.weights
        sizes = {t.name: t.n_bytes for t in weights.file.tensors.values()}
        row = sizes["token_embd.weight"] // model.n_vocab
        layers = sum(n for name, n in sizes.items() if name.startswith("blk.") or name == "output_norm.weight")
        head = sizes["token_embd.weight" if tied else "output.weight"]
        looked_up = 0 if tied else row  # a tied table is read whole by the head
        assert bench.pass_bytes(plan, weights, 1) == layers + head + looked_up
        assert bench.pass_bytes(plan, weights, 512) == layers + head + (0 if tied else min(512, model.n_vocab) * row)
        assert bench.pass_bytes(plan, weights, 3, n_outputs=0) == layers + 3 * row, "no logits, no head"


def test_passes_and_depth(paths, monkeypatch):
    seen = []
    with edgellm.load(paths[False], backend="reference", n_ctx=2000) as model:
        engine = model._loaded.engine
        real = engine.forward

        def count(tokens, outputs, cancel):
            seen.append((len(engine.cached), len(tokens), len(outputs)))
            return real(tokens, outputs, cancel)

        monkeypatch.setattr(engine, "forward", count)
        result = bench.one_test(model, 0, 3, 64, 2)
        assert seen[0] == (0, 64, 1) and seen[1:] == [(64, 1, 1), (65, 1, 1), (66, 1, 1)] * 3
        assert result.test == "tg3 @ d64" and len(result.samples_ts) == 2
        seen.clear()
        result = bench.one_test(model, 600, 0, 0, 1)
        assert seen == [(0, 512, 0), (512, 88, 1)] * 2 and result.test == "pp600"
        assert engine.cached == [], "the cache is empty again"


def test_rates_and_bytes_agree(paths):
    with edgellm.load(paths[False], backend="reference") as model:
        result = bench.one_test(model, 0, 4, 0, 3)
        per_token = bench.pass_bytes(model.plan, model._loaded.weights, 1)
    assert result.gb_per_s == pytest.approx(result.avg_ts * per_token / 1e9)
    assert result.model_type == "llama Q8_0" and result.to_dict()["samples_ts"] == list(result.samples_ts)


def test_tokens_are_valid():
    for n_vocab in (1, 12, 419, 100_000):
        tokens = bench.tokens_for(50, n_vocab, 11)
        assert len(tokens) == 50 and all(0 <= t < n_vocab for t in tokens)
