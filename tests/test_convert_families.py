"""The converter's rows for families: keys and tensors, literally, and configurations that are refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convert_inputs import hf_folder, write_safetensors

from edgellm.convert import convert
from edgellm.convert.hf_config import long_rope_divisors, model_keys, read_config
from edgellm.errors import ConvertError, ModelFormatError, UnsupportedFeatureError
from edgellm.gguf import open_gguf

BASE = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "vocab_size": 100,
}  # fmt: skip
FACTORS = [1.0 + 0.5 * i for i in range(8)]
LONGROPE = {"rope_type": "longrope", "long_factor": FACTORS, "short_factor": [1.0] * 8}


def keys(architecture: str, **changes: Any) -> dict[str, Any]:
    """Keys below the family's name of a configuration; a change to `...` removes the field."""
    raw = {**BASE, "architectures": [architecture], **changes}
    config = read_config({k: v for k, v in raw.items() if v is not ...}, "config.json")
    prefix = f"{config.family.arch}."
    found = {key: value for key, value, _ in model_keys(config)}
    assert all(key.startswith(prefix) for key in found)
    return {key.removeprefix(prefix): value for key, value in found.items()}


WINDOW, PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"
SLIDING, FULL = "sliding_attention", "full_attention"


@pytest.mark.parametrize(
    ("architecture", "changes", "window", "pattern"),
    [
        ("MistralForCausalLM", {}, 4096, None),  # what transformers takes where config.json says nothing
        ("MistralForCausalLM", {"sliding_window": None}, None, None),
        ("MistralForCausalLM", {"sliding_window": 16}, 16, None),
        ("MixtralForCausalLM", {"sliding_window": 16, "num_local_experts": 4}, 16, None),
        ("Qwen2ForCausalLM", {"sliding_window": 16}, None, None),
        ("Qwen2ForCausalLM", {"sliding_window": 16, "use_sliding_window": True}, None, None),
        ("Qwen2ForCausalLM", {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 3}, 16,
         [False, False, False, True]),
        ("Qwen3ForCausalLM", {"sliding_window": 16, "use_sliding_window": True, "layer_types": [FULL, SLIDING] * 2}, 16,
         [False, True] * 2),
        ("Qwen3MoeForCausalLM", {"use_sliding_window": True, "num_experts": 4, "num_experts_per_tok": 2,
         "moe_intermediate_size": 48}, 4096, None),
        ("Gemma2ForCausalLM", {}, 4096, None),
        ("Gemma2ForCausalLM", {"layer_types": [SLIDING, FULL] * 2}, 4096, None),
        ("Gemma2ForCausalLM", {"layer_types": [FULL, SLIDING] * 2, "sliding_window": 9}, 9, [False, True] * 2),
        ("Gemma3ForCausalLM", {"num_hidden_layers": 7, "sliding_window": 512}, 512, None),
        ("Gemma3ForCausalLM", {"sliding_window": 512, "sliding_window_pattern": 2}, 512, [True, False] * 2),
        ("Phi3ForCausalLM", {"sliding_window": 2047}, 2047, None),
        ("LlamaForCausalLM", {"sliding_window": 16}, None, None),
    ],
)  # fmt: skip
def test_windows(architecture: str, changes: dict, window: int | None, pattern: list | None) -> None:
    found = keys(architecture, **changes)
    assert (found.get(WINDOW), found.get(PATTERN)) == (window, pattern)


def test_gemma_scales_and_caps() -> None:
    found = keys("Gemma2ForCausalLM", query_pre_attn_scalar=144, attn_logit_softcapping=20.0)
    assert found["attention.scale"] == pytest.approx(1 / 12)
    assert (found["attn_logit_softcapping"], found["final_logit_softcapping"]) == (20.0, 30.0)
    assert (found["attention.key_length"], found["rope.dimension_count"]) == (256, 256)
    none = keys("Gemma2ForCausalLM", attn_logit_softcapping=None, final_logit_softcapping=None)
    assert (none["attn_logit_softcapping"], none["final_logit_softcapping"]) == (0.0, 0.0)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_parameters": {
            FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5}, SLIDING: {"rope_theta": 2e4}}},
        {"rope_theta": 5e5, "rope_local_base_freq": 2e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    ],
    ids=["new", "old"],
)  # fmt: skip
def test_gemma3_has_two_thetas(rope: dict) -> None:
    found = keys("Gemma3ForCausalLM", **rope)
    assert (found["rope.freq_base"], found["rope.freq_base_swa"]) == (5e5, 2e4)
    assert (found["rope.scaling.type"], found["rope.scaling.factor"]) == ("linear", 8.0)
    plain = keys("Gemma3ForCausalLM")
    assert (plain["rope.freq_base"], plain["rope.freq_base_swa"]) == (1e6, 1e4)


def test_granite_multipliers() -> None:
    found = keys("GraniteForCausalLM", embedding_multiplier=12.0, residual_multiplier=0.22, logits_scaling=8.0)
    names = ("embedding_scale", "residual_scale", "logit_scale", "attention.scale")
    assert [found[name] for name in names] == [12.0, 0.22, 8.0, 1.0]


def test_experts() -> None:
    found = keys("Qwen3MoeForCausalLM", num_experts=8, num_experts_per_tok=2, moe_intermediate_size=48)
    names = ("expert_count", "expert_used_count", "expert_feed_forward_length", "expert_weights_norm")
    assert [found[name] for name in names] == [8, 2, 48, False]
    assert "expert_weights_norm" not in keys("MixtralForCausalLM", num_local_experts=4)


def test_layers_of_smollm3_without_positions() -> None:
    assert "rope.layers" not in keys("SmolLM3ForCausalLM", no_rope_layers=[1, 1, 1, 0])
    assert keys("SmolLM3ForCausalLM", no_rope_layers=[0, 1, 1, 0])["rope.layers"] == [False, True, True, False]
    assert keys("SmolLM3ForCausalLM", no_rope_layer_interval=2)["rope.layers"] == [True, False, True, False]


@pytest.mark.parametrize("kind", ["longrope", "su", "yarn"])
def test_longrope(kind: str) -> None:
    rope = {"rope_scaling": {**LONGROPE, "rope_type": kind}, "original_max_position_embeddings": 32}
    found = keys("Phi3ForCausalLM", **rope)
    assert (found["rope.scaling.type"], found["rope.scaling.original_context_length"]) == ("longrope", 32)
    assert found["rope.scaling.attn_factor"] == pytest.approx(math.sqrt(1 + math.log(4) / math.log(32)))
    config = read_config({**BASE, "architectures": ["Phi3ForCausalLM"], **rope}, "config.json")
    divisors = long_rope_divisors(config)
    assert {name: list(x) for name, x in divisors.items()} == {
        "rope_factors_long.weight": FACTORS, "rope_factors_short.weight": [1.0] * 8,
    }  # fmt: skip
    part = {**rope["rope_scaling"], "long_factor": FACTORS[:6], "short_factor": FACTORS[:6]}
    assert keys("Phi3ForCausalLM", rope_scaling=part, partial_rotary_factor=0.75)["rope.dimension_count"] == 12


PHI3_LONG = {"original_max_position_embeddings": 32, "architectures": ["Phi3ForCausalLM"]}


@pytest.mark.parametrize(
    ("architecture", "changes", "field"),
    [
        ("MixtralForCausalLM", {"num_local_experts": 4, "num_experts_per_tok": 5}, "num_experts_per_tok"),
        ("MixtralForCausalLM", {"num_local_experts": 4, "num_experts_per_tok": 0}, "num_experts_per_tok"),
        ("MixtralForCausalLM", {"num_local_experts": 0}, "num_local_experts"),
        ("MixtralForCausalLM", {}, "num_experts"),
        ("Qwen3MoeForCausalLM", {"num_experts": 4, "num_experts_per_tok": 2}, "moe_intermediate_size"),
        ("MistralForCausalLM", {"sliding_window": -1}, "sliding_window"),
        ("MistralForCausalLM", {"sliding_window": 16.5}, "sliding_window"),
        ("Gemma2ForCausalLM", {"layer_types": [FULL] * 3}, "layer_types"),
        ("Gemma2ForCausalLM", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
        ("Gemma2ForCausalLM", {"query_pre_attn_scalar": "24"}, "query_pre_attn_scalar"),
        ("Gemma2ForCausalLM", {"final_logit_softcapping": float("nan")}, "final_logit_softcapping"),
        ("Gemma3ForCausalLM", {"rope_parameters": {SLIDING: 4}}, "sliding_attention"),
        ("SmolLM3ForCausalLM", {"no_rope_layers": [1, 0]}, "no_rope_layers"),
        ("GraniteForCausalLM", {"residual_multiplier": -1.0}, "residual_multiplier"),
        ("Phi3ForCausalLM", {"partial_rotary_factor": 0.7}, "partial_rotary_factor"),
    ],
)
def test_bad_values(architecture: str, changes: dict, field: str) -> None:
    with pytest.raises(ConvertError, match=field):
        keys(architecture, **changes)


@pytest.mark.parametrize(
    ("architecture", "changes", "field"),
    [
        ("Gemma2ForCausalLM", {"hidden_activation": "relu"}, "hidden_activation"),
        ("Qwen2ForCausalLM", {"hidden_act": "gelu"}, "hidden_act"),
        ("Qwen2ForCausalLM", {"rope_scaling": {"rope_type": "longrope"}}, "rope_type"),
        ("Phi3ForCausalLM", {"rope_scaling": {"rope_type": "dynamic"}}, "rope_type"),
        ("LlamaForCausalLM", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("Gemma3ForCausalLM", {"rope_parameters": {SLIDING: {"rope_type": "linear", "factor": 2.0}}}, "rope_type"),
        ("Gemma3ForCausalLM", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("Gemma2ForCausalLM", {"layer_types": ["chunked_attention"] * 4}, "layer_types"),
        ("Qwen3MoeForCausalLM", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
                                 "decoder_sparse_step": 2}, "decoder_sparse_step"),
        ("Qwen3MoeForCausalLM", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
                                 "mlp_only_layers": [0]}, "mlp_only_layers"),
        ("SmolLM3ForCausalLM", {"use_sliding_window": True, "sliding_window": 8}, "use_sliding_window"),
    ],
)  # fmt: skip
def test_what_is_not_done_is_refused_by_name(architecture: str, changes: dict, field: str) -> None:
    with pytest.raises(UnsupportedFeatureError, match=field):
        keys(architecture, **changes)


@pytest.mark.parametrize("factors", [FACTORS[:7], [*FACTORS[:7], 0.0], [*FACTORS[:7], float("nan")], "8", None])
def test_bad_factors_of_longrope(factors: Any) -> None:
    raw = {**BASE, **PHI3_LONG, "rope_scaling": {**LONGROPE, "long_factor": factors}}
    with pytest.raises(ConvertError, match="long_factor"):
        long_rope_divisors(read_config(raw, "config.json"))


# ---- tensors ---------------------------------------------------------------------------------------------------------

# Tensors of one layer: name in the checkpoint -> (name in GGUF, rows first shape)
LLAMA_NORMS = {"input_layernorm": ("attn_norm", (64,)), "post_attention_layernorm": ("ffn_norm", (64,))}
POST = {"post_attention_layernorm": ("post_attention_norm", (64,)),
        "post_feedforward_layernorm": ("post_ffw_norm", (64,))}  # fmt: skip
SELF = {f"self_attn.{a}_proj": (f"attn_{b}", shape) for a, b, shape in (
    ("q", "q", (64, 64)), ("k", "k", (32, 64)), ("v", "v", (32, 64)), ("o", "output", (64, 64)))}  # fmt: skip
MLP = {f"mlp.{n}_proj": (f"ffn_{n}", (64, 96) if n == "down" else (96, 64)) for n in ("gate", "up", "down")}
LAYERS = {
    "Olmo2ForCausalLM": SELF | MLP | POST
    | {"self_attn.q_norm": ("attn_q_norm", (64,)), "self_attn.k_norm": ("attn_k_norm", (32,))},
    "Gemma3ForCausalLM": SELF | MLP | POST
    | {"input_layernorm": ("attn_norm", (64,)), "pre_feedforward_layernorm": ("ffn_norm", (64,)),
       "self_attn.q_norm": ("attn_q_norm", (16,)), "self_attn.k_norm": ("attn_k_norm", (16,))},
    "Phi3ForCausalLM": LLAMA_NORMS
    | {"self_attn.qkv_proj": ("attn_qkv", (128, 64)), "self_attn.o_proj": ("attn_output", (64, 64)),
       "mlp.gate_up_proj": ("ffn_up", (192, 64)), "mlp.down_proj": ("ffn_down", (64, 96))},
    "Qwen2ForCausalLM": LLAMA_NORMS | SELF | MLP
    | {f"self_attn.{n}_proj.bias": (f"attn_{n}.bias", (64 if n == "q" else 32,)) for n in "qkv"},
}  # fmt: skip


def folder_of(path: Path, architecture: str, layer: dict[str, tuple[str, tuple[int, ...]]], **changes: Any) -> dict:
    """A folder with random tensors of one layer; returns {name in GGUF: array}."""
    hf_folder(path, architectures=[architecture], num_hidden_layers=1, tie_word_embeddings=True, hidden_act="silu",
              hidden_activation="gelu_pytorch_tanh" if "Gemma" in architecture else None, **changes)  # fmt: skip
    rng, n_vocab = np.random.default_rng(0), open_vocab(path)
    wanted, tensors = {}, {}
    rows = {"model.embed_tokens": ("token_embd", (n_vocab, 64)), "model.norm": ("output_norm", (64,))}
    rows |= {f"model.layers.0.{a}": (f"blk.0.{b}", shape) for a, (b, shape) in layer.items()}
    for source, (name, shape) in rows.items():
        x = rng.standard_normal(shape, dtype=np.float32)
        tensors[source if source.endswith(".bias") else f"{source}.weight"] = x
        wanted[name if name.endswith(".bias") else f"{name}.weight"] = x
    write_safetensors(path / "model.safetensors", tensors)
    return wanted


def open_vocab(path: Path) -> int:
    import json

    return json.loads((path / "config.json").read_text())["vocab_size"]


def converted(folder: Path, target: Path) -> dict[str, np.ndarray]:
    convert(folder, target, outtype="f32")
    with open_gguf(target) as file:
        return {n: file.data(n).view(np.float32).reshape(t.shape).copy() for n, t in file.tensors.items()}


@pytest.mark.parametrize("architecture", LAYERS)
def test_tensors_of_a_layer(tmp_path: Path, architecture: str) -> None:
    wanted = folder_of(tmp_path / "hf", architecture, LAYERS[architecture])
    got = converted(tmp_path / "hf", tmp_path / "m.gguf")
    assert set(got) == set(wanted)
    for name, x in wanted.items():  # no family of these reorders rows; Gemma stores norms with their 1 added
        plus = np.float32(1 if architecture.startswith("Gemma") and "norm" in name else 0)
        assert np.array_equal(got[name], x + plus), name


@pytest.mark.parametrize(
    ("architecture", "place", "names"),
    [
        ("MixtralForCausalLM", "block_sparse_moe", {"gate": "w1", "up": "w3", "down": "w2"}),
        ("Qwen3MoeForCausalLM", "mlp", {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}),
    ],
)
def test_experts_are_stacked(tmp_path: Path, architecture: str, place: str, names: dict) -> None:
    layer = LLAMA_NORMS | SELF | {f"{place}.gate": ("ffn_gate_inp", (3, 64))}
    if place == "mlp":
        layer |= {"self_attn.q_norm": ("attn_q_norm", (16,)), "self_attn.k_norm": ("attn_k_norm", (16,))}
    for part, source in names.items():
        shape = (64, 96) if part == "down" else (96, 64)
        layer |= {f"{place}.experts.{e}.{source}": (f"{part}.{e}", shape) for e in range(3)}
    changes = {"num_local_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 96}
    wanted = folder_of(tmp_path / "hf", architecture, layer, **changes)
    got = converted(tmp_path / "hf", tmp_path / "m.gguf")
    for part in names:
        stack = np.stack([wanted[f"blk.0.{part}.{e}.weight"] for e in range(3)])
        assert np.array_equal(got[f"blk.0.ffn_{part}_exps.weight"], stack)
    assert np.array_equal(got["blk.0.ffn_gate_inp.weight"], wanted["blk.0.ffn_gate_inp.weight"])


def test_an_expert_of_another_shape(tmp_path: Path) -> None:
    layer = LLAMA_NORMS | SELF | {"block_sparse_moe.gate": ("ffn_gate_inp", (2, 64))}
    for e in range(2):
        for source in ("w1", "w2", "w3"):
            rows = 95 if (e, source) == (1, "w3") else 96
            shape = (64, 96) if source == "w2" else (rows, 64)
            layer[f"block_sparse_moe.experts.{e}.{source}"] = (f"{source}.{e}", shape)
    folder_of(tmp_path / "hf", "MixtralForCausalLM", layer, num_local_experts=2, num_experts_per_tok=1)
    with pytest.raises(ModelFormatError, match=r"experts\.1\.w3") as error:
        convert(tmp_path / "hf", tmp_path / "m.gguf", outtype="f32")
    assert error.value.rule == "T13"
    assert not (tmp_path / "m.gguf").exists()
