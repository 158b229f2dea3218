"""Hyperparameters: what is read, and every value that must be refused (rows P, V6 and T12/T13 of the reject list)."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import tiny_llama_gguf, tiny_vocab

from edgellm.config import ModelConfig
from edgellm.errors import (
    MissingKeyError,
    MissingTensorError,
    ModelFormatError,
    UnsupportedArchitectureError,
    UnsupportedFeatureError,
    WrongKeyTypeError,
)
from edgellm.gguf import GGUFWriter, open_gguf
from edgellm.models import FAMILIES, build_plan, read_config
from edgellm.plan import Plan
from edgellm.quants import quantize
from edgellm.weights import Weights


def config(tmp_path: Path, **options: Any) -> ModelConfig:
    with open_gguf(tiny_llama_gguf(tmp_path / "m.gguf", **options)) as file:
        return read_config(file)


def plan_and_weights(path: Path) -> tuple[Plan, Weights]:
    file = open_gguf(path)
    plan = build_plan(read_config(file), file)
    return plan, Weights(file, plan)


def write_gguf(path: Path, arch: str, metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    with GGUFWriter(path, arch) as w:
        for key, value in metadata.items():
            w.add(key, value)
        for name, x in tensors.items():
            w.add_tensor_info(name, x.shape, "F32")
        for name, x in tensors.items():
            w.write_tensor(name, quantize(x, "F32"))
    return path


def test_a_plain_file(tmp_path: Path) -> None:
    c = config(tmp_path)
    assert (c.arch, c.name, c.n_layers, c.dim, c.n_heads, c.n_kv_heads) == ("llama", "tiny test model", 2, 64, 4, 2)
    assert (c.head_dim, c.rotary_dims, c.ffn_dim, c.n_ctx_train) == (16, 16, 96, 256)
    assert c.n_vocab == len(tiny_vocab()[0])
    assert c.norm_eps == pytest.approx(1e-5)
    assert (c.rope_theta, c.attention_scale, c.rope_scaling.kind) == (10000.0, 0.25, "none")


def test_defaults_of_keys_that_may_be_missing(tmp_path: Path) -> None:
    missing = dict.fromkeys(("llama.attention.head_count_kv", "llama.rope.freq_base", "llama.rope.dimension_count"))
    c = config(tmp_path, n_kv_heads=4, **missing, **{"general.name": None, "llama.vocab_size": None})
    assert (c.n_kv_heads, c.rope_theta, c.rotary_dims, c.name) == (4, 10000.0, 16, "llama")


def test_head_size_of_its_own(tmp_path: Path) -> None:
    c = config(tmp_path, head_dim=10, n_heads=3, n_kv_heads=1)
    assert (c.head_dim, c.rotary_dims) == (10, 10)
    assert c.attention_scale == pytest.approx(1 / math.sqrt(10))
    assert config(tmp_path, **{"llama.attention.scale": 0.3}).attention_scale == pytest.approx(0.3)


def test_per_layer_arrays_that_say_the_same(tmp_path: Path) -> None:
    same = {"llama.attention.head_count_kv": np.array([2, 2], np.int32)}
    assert config(tmp_path, **same).n_kv_heads == 2


def test_vocabulary_size_without_a_vocabulary(tmp_path: Path) -> None:
    none = {f"tokenizer.ggml.{k}": None for k in ("tokens", "scores", "token_type")}
    assert config(tmp_path, **none).n_vocab == len(tiny_vocab()[0])  # llama.vocab_size
    assert config(tmp_path, **none, **{"llama.vocab_size": None}).n_vocab == len(tiny_vocab()[0])  # the table's rows


@pytest.mark.parametrize(
    ("keys", "kind", "factor", "original"),
    [
        ({"type": "linear", "factor": 4.0}, "linear", 4.0, 256),
        ({"type": "none", "factor": 4.0}, "none", 1.0, 256),
        ({"type": "yarn", "factor": 2.0, "original_context_length": 128}, "yarn", 2.0, 128),
    ],
)
def test_rope_scaling(tmp_path: Path, keys: dict, kind: str, factor: float, original: int) -> None:
    s = config(tmp_path, **{f"llama.rope.scaling.{k}": v for k, v in keys.items()}).rope_scaling
    assert (s.kind, s.factor, s.original_ctx) == (kind, factor, original)


def test_the_oldest_scaling_key(tmp_path: Path) -> None:
    s = config(tmp_path, **{"llama.rope.scale_linear": 2.0}).rope_scaling
    assert (s.kind, s.factor) == ("linear", 2.0)
    assert config(tmp_path, **{"llama.rope.scale_linear": 1.0}).rope_scaling.kind == "none"


NAN, INF = float("nan"), float("inf")
BAD = [
    ("P1", "block_count", 0),
    ("P1", "block_count", 1025),
    ("P1", "block_count", 2**31),
    ("P1", "block_count", -1),
    ("P2", "embedding_length", 0),
    ("P2", "embedding_length", 1 << 40),
    ("P2", "attention.head_count", 0),
    ("P2", "attention.head_count", 5),
    ("P2", "attention.head_count", 65),
    ("P2", "attention.head_count_kv", 3),
    ("P2", "attention.head_count_kv", 0),
    ("P2", "attention.head_count_kv", 8),
    ("P2", "attention.key_length", 15),
    ("P2", "attention.key_length", 0),
    ("P2", "feed_forward_length", 0),
    ("P2", "rope.dimension_count", 0),
    ("P2", "rope.dimension_count", 5),
    ("P2", "rope.dimension_count", 18),
    ("P3", "attention.layer_norm_rms_epsilon", 0.0),
    ("P3", "attention.layer_norm_rms_epsilon", -1e-5),
    ("P3", "attention.layer_norm_rms_epsilon", NAN),
    ("P3", "attention.layer_norm_rms_epsilon", INF),
    ("P4", "rope.freq_base", 0.0),
    ("P4", "rope.freq_base", -1.0),
    ("P4", "rope.freq_base", NAN),
    ("P4", "rope.scaling.factor", 0.0),
    ("P4", "rope.scaling.factor", NAN),
    ("P4", "rope.scale_linear", -2.0),
    ("P4", "rope.scaling.attn_factor", INF),
    ("P4", "rope.scaling.yarn_beta_fast", 0.5),
    ("P4", "rope.scaling.yarn_beta_slow", -1.0),
    ("P4", "rope.scaling.yarn_attn_factor", 0.0),
    ("P4", "rope.scaling.original_context_length", 0),
    ("P4", "attention.scale", -0.5),
    ("P5", "attention.sliding_window", -1),
    ("P8", "context_length", 0),
    ("P8", "context_length", 2**31),
    ("P9", "attention.head_count", np.array([4, 4, 4], np.int32)),
    ("P9", "feed_forward_length", np.array([96], np.int32)),
]


@pytest.mark.parametrize(("rule", "key", "value"), BAD, ids=[f"{r}-{k}-{v}" for r, k, v in BAD])
def test_bad_hyperparameters(tmp_path: Path, rule: str, key: str, value: Any) -> None:
    with open_gguf(tiny_llama_gguf(tmp_path / "m.gguf", **{f"llama.{key}": value})) as file:
        started = time.monotonic()
        with pytest.raises(ModelFormatError) as error:
            read_config(file)
        assert time.monotonic() - started < 1
    assert error.value.rule == rule
    assert str(file.path) in str(error.value)
    assert "llama." in error.value.field


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope.scaling.type", "longrope"),
        ("rope.scaling.type", "dynamic"),
        ("expert_gating_func", 2),
        ("expert_weights_scale", 2.5),
        ("logit_scale", 8.0),
        ("residual_scale", 0.2),
        ("embedding_scale", 12.0),
        ("attention.value_length", 8),
        ("attention.causal", False),
        ("final_logit_softcapping", 30.0),
        ("rope.scaling.yarn_ext_factor", 0.5),
        ("attention.head_count_kv", np.array([2, 4], np.int32)),
    ],
)
def test_settings_that_are_not_done_are_refused_by_name(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(UnsupportedFeatureError) as error:
        config(tmp_path, **{f"llama.{key}": value})
    assert key in str(error.value)


def test_neutral_settings_are_accepted(tmp_path: Path) -> None:
    config(tmp_path, **{"llama.attention.sliding_window": 256, "llama.expert_count": 0, "llama.logit_scale": 1.0})


@pytest.mark.parametrize("key", ["block_count", "embedding_length", "attention.head_count", "context_length",
                                 "feed_forward_length", "attention.layer_norm_rms_epsilon"])  # fmt: skip
def test_keys_that_must_be_there(tmp_path: Path, key: str) -> None:
    with pytest.raises(MissingKeyError, match=f"llama.{key}"):
        config(tmp_path, **{f"llama.{key}": None})


@pytest.mark.parametrize(("key", "value"), [("block_count", "2"), ("rope.freq_base", 10000), ("expert_count", 0.0),
                                            ("attention.head_count", [4.0, 4.0])])  # fmt: skip
def test_keys_of_the_wrong_type(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(WrongKeyTypeError, match=f"llama.{key}"):
        config(tmp_path, **{f"llama.{key}": value})


def test_unknown_family_is_named_with_the_known_ones(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", "mamba9", {"mamba9.block_count": 1}, {"a": np.ones(4, np.float32)})
    with open_gguf(path) as file:
        for call in (lambda: read_config(file), lambda: build_plan(None, file)):  # type: ignore[arg-type]
            with pytest.raises(UnsupportedArchitectureError, match="mamba9") as error:
                call()
            assert all(name in str(error.value) for name in FAMILIES)


# ---- tensors against the plan ----------------------------------------------------------------------------------------


def test_weights_are_bound(tmp_path: Path) -> None:
    plan, weights = plan_and_weights(tiny_llama_gguf(tmp_path / "m.gguf", type="Q8_0"))
    assert set(weights.names) == set(plan.weights)
    assert weights.matrix_types == {"Q8_0"}
    assert weights.type("blk.0.attn_norm.weight").name == "F32"
    assert weights.shape("blk.0.ffn_down.weight") == (64, 96)
    assert weights.data("blk.0.ffn_down.weight").nbytes == 64 * 3 * 34
    x = weights.float32("blk.0.ffn_down.weight")
    assert (x.shape, x.dtype) == ((64, 96), np.float32)
    assert weights.n_bytes == sum(weights.data(n).nbytes for n in weights.names)
    assert weights.extra == ()


def test_a_tied_head_is_the_embedding(tmp_path: Path) -> None:
    plan, _ = plan_and_weights(tiny_llama_gguf(tmp_path / "m.gguf", tied=True))
    assert plan.steps[-1].weights == ("token_embd.weight",)
    plan, _ = plan_and_weights(tiny_llama_gguf(tmp_path / "n.gguf", tied=False))
    assert plan.steps[-1].weights == ("output.weight",)


def test_biases_are_used_where_they_are(tmp_path: Path) -> None:
    plan, weights = plan_and_weights(tiny_llama_gguf(tmp_path / "m.gguf", biases=True))
    by_label = {s.label: s.weights for s in plan.steps}
    assert by_label["blk.1.attn_q"] == ("blk.1.attn_q.weight", "blk.1.attn_q.bias")
    assert by_label["blk.1.ffn_up"] == ("blk.1.ffn_up.weight",)
    assert weights.extra == ()


def rewrite(source: Path, target: Path, change: Any) -> Path:
    """A copy of a file whose tensors (name -> float32 array) went through `change`."""
    with open_gguf(source) as file:
        tensors = {n: file.data(n).view(np.float32).reshape(t.shape).copy() for n, t in file.tensors.items()}
        metadata = {k: v for k, v in file.metadata.items() if k != "general.architecture"}
        change(tensors)
        return write_gguf(target, "llama", metadata, tensors)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return tiny_llama_gguf(tmp_path / "plain.gguf")


def test_missing_tensor(tmp_path: Path, plain: Path) -> None:
    path = rewrite(plain, tmp_path / "m.gguf", lambda t: t.pop("blk.1.ffn_up.weight"))
    with pytest.raises(MissingTensorError, match=r"blk\.1\.ffn_up\.weight") as error:
        plan_and_weights(path)
    assert error.value.rule == "T12"


@pytest.mark.parametrize("name", ["blk.0.attn_q.weight", "blk.1.ffn_up.weight", "output_norm.weight", "output.weight"])
def test_wrong_shape(tmp_path: Path, plain: Path, name: str) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[name] = tensors[name][:-2].copy()

    with pytest.raises(ModelFormatError) as error:
        plan_and_weights(rewrite(plain, tmp_path / "m.gguf", change))
    assert error.value.rule == "T13"
    assert name in str(error.value)


def test_embedding_rows_are_not_the_vocabulary(tmp_path: Path, plain: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors["token_embd.weight"] = tensors["token_embd.weight"][:-1].copy()

    with pytest.raises(ModelFormatError, match="vocabulary") as error:
        plan_and_weights(rewrite(plain, tmp_path / "m.gguf", change))
    assert error.value.rule == "V6"


def test_extra_tensors_are_noted(tmp_path: Path, plain: Path) -> None:
    path = rewrite(plain, tmp_path / "m.gguf", lambda t: t.update({"something.weight": np.ones(8, np.float32)}))
    _, weights = plan_and_weights(path)
    assert weights.extra == ("something.weight",)
    assert any("something.weight" in w for w in weights.file.warnings)


def test_parts_of_relatives_are_refused(tmp_path: Path, plain: Path) -> None:
    extra = {"blk.0.attn_q_norm.weight": np.ones(16, np.float32)}
    with pytest.raises(UnsupportedFeatureError, match=r"blk\.0\.attn_q_norm"):
        plan_and_weights(rewrite(plain, tmp_path / "m.gguf", lambda t: t.update(extra)))


def test_llama3_divisors_come_from_their_tensor(tmp_path: Path, plain: Path) -> None:
    divisors = np.linspace(1, 8, 8, dtype=np.float32)
    plan, weights = plan_and_weights(
        rewrite(plain, tmp_path / "m.gguf", lambda t: t.update({"rope_freqs.weight": divisors}))
    )
    np.testing.assert_allclose(plan.ropes[0].inv_freq, 1e4 ** (-np.arange(8) / 8) / divisors, rtol=1e-12)
    assert weights.extra == ()
    for bad in (divisors[:7], divisors * 0):
        with pytest.raises(ModelFormatError, match="rope_freqs.weight"):
            plan_and_weights(
                rewrite(plain, tmp_path / "b.gguf", lambda t, bad=bad: t.update({"rope_freqs.weight": bad}))
            )
