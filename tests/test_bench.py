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

        def count(seq, tokens, outputs, cancel):
            seen.append((seq.length, len(tokens), len(outputs)))
            return real(seq, tokens, outputs, cancel)

        monkeypatch.setattr(engine, "forward", count)
        result = bench.one_test(model, 0, 3, 64, 2)
        assert seen[0] == (0, 64, 1) and seen[1:] == [(64, 1, 1), (65, 1, 1), (66, 1, 1)] * 3
        assert result.test == "tg3 @ d64" and len(result.samples_ts) == 2
        seen.clear()
        result = bench.one_test(model, 600, 0, 0, 1)
        assert seen == [(0, 512, 0), (512, 88, 1)] * 2 and result.test == "pp600"
        assert engine.pool.n_free == engine.pool.n_pages, "the cache is empty again"


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


def test_multiply_adds_by_hand(paths):
    """dim 64, 4 heads and 2 KV heads of 16, ffn 96, two layers, as tiny_llama_gguf makes them."""
    with edgellm.load(paths[False], backend="reference") as model:
        plan, v = model.plan, model.n_vocab
    layer = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 96  # q, k and v, output, gate and up and down
    assert bench.pass_madds(plan, 1) == 2 * layer + 64 * v
    assert bench.pass_madds(plan, 512) == 512 * 2 * layer + 64 * v, "the head runs for the last token only"
    assert bench.pass_madds(plan, 7, n_outputs=0) == 7 * 2 * layer
    assert bench.attention_madds(plan, 1, 0) == 2 * 4 * 16 * 2, "one position: a score and a value for each head"
    assert bench.attention_madds(plan, 3, 10) == 2 * (11 + 12 + 13) * 4 * 16 * 2


def test_multiply_adds_of_experts_and_windows():
    from types import SimpleNamespace as Fake

    from edgellm.ops import Op

    weights = {"gate": (8, 10, 6), "up": (8, 10, 6), "down": (8, 6, 10)}
    buffers = [Fake(rows="tokens")]
    experts = Fake(op=Op.EXPERTS, outputs=(0,), weights=tuple(weights), params={"n_used": 2})
    plan = Fake(steps=[experts], weights=weights, buffers=buffers)
    assert bench.pass_madds(plan, 5) == 5 * 2 * 3 * 60, "two of eight experts for each token"
    params = {"window": 4, "n_heads": 3, "head_dim": 5}
    plan = Fake(steps=[Fake(op=Op.ATTENTION, outputs=(0,), weights=(), params=params)], weights={}, buffers=buffers)
    assert bench.attention_madds(plan, 3, 2) == 2 * 3 * 5 * (3 + 4 + 4)


def test_work_of_a_test(paths):
    with edgellm.load(paths[False], backend="reference") as model:
        plan, weights = model.plan, model._loaded.weights
        prompt = bench.work_of(plan, weights, 600, 0, 10)
        one = bench.work_of(plan, weights, 0, 3, 64)
        assert prompt.n_bytes == bench.pass_bytes(plan, weights, 512, 0) + bench.pass_bytes(plan, weights, 88, 1)
        assert prompt.madds == bench.pass_madds(plan, 600, 1)
        assert prompt.attention_madds == bench.attention_madds(plan, 600, 10)
        assert one.n_bytes == 3 * bench.pass_bytes(plan, weights, 1) and one.madds == 3 * bench.pass_madds(plan, 1)
        assert one.attention_madds == sum(bench.attention_madds(plan, 1, d) for d in (64, 65, 66))


def test_shares(paths):
    from edgellm.probe import Limits

    limits = Limits(read=2e9, int8=4e9, bf16=None)
    with edgellm.load(paths[False], backend="reference") as model:
        tg = bench.one_test(model, 0, 2, 0, 1, limits)
        pp = bench.one_test(model, 8, 0, 0, 1, limits, busy=1)
    assert tg.read_share == pytest.approx(tg.gb_per_s / 2)
    assert (tg.int8_share, tg.bf16_share, tg.busy) == (None, None, 0)
    assert pp.int8_share == pytest.approx(pp.avg_ts / 8 * pp.madds / 4e9)
    assert (pp.read_share, pp.bf16_share, pp.busy) == (None, None, 1)


def test_busy_processes_end():
    with bench.busy_processes(2):
        pass
    with pytest.raises(KeyError), bench.busy_processes(1):
        raise KeyError
