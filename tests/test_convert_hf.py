"""Hugging Face folders -> GGUF: tensors, hyperparameters, templates, output types, and every refusal."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convert_inputs import (
    DIM,
    HEAD_DIM,
    N_HEADS,
    N_KV_HEADS,
    config_json,
    hf_folder,
    write_json,
    write_safetensors,
)

from edgellm.convert import convert
from edgellm.convert.hf_config import read_config, rope_divisors
from edgellm.convert.hf_names import interleave
from edgellm.convert.pipeline import size_label
from edgellm.errors import (
    ConvertError,
    EdgeLLMError,
    InvalidArgumentError,
    MissingTensorError,
    ModelFileNotFoundError,
    ModelFormatError,
    OutputError,
    UnsupportedArchitectureError,
    UnsupportedFeatureError,
)
from edgellm.gguf import open_gguf
from edgellm.quants import dequantize, quantize

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def gguf_name(name: str) -> str:
    """The slow twin of the name table."""
    fixed = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem, _, end = name.rpartition(".")
    if stem in fixed:
        return f"{fixed[stem]}.{end}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{NAMES[part]}.{end}"


def interleaved(x: np.ndarray, n_heads: int) -> np.ndarray:
    """The slow twin of the row order: dimension j of a head goes to row 2j, j + half to 2j + 1."""
    half = HEAD_DIM // 2
    out = np.empty_like(x)
    for head in range(n_heads):
        for j in range(half):
            out[head * HEAD_DIM + 2 * j] = x[head * HEAD_DIM + j]
            out[head * HEAD_DIM + 2 * j + 1] = x[head * HEAD_DIM + half + j]
    return out


def expected(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    out = {}
    for name, x in tensors.items():
        heads = N_HEADS if "q_proj" in name else N_KV_HEADS if "k_proj" in name else 0
        out[gguf_name(name)] = interleaved(x, heads) if heads else x
    return out


def contents(path: Path) -> dict[str, np.ndarray]:
    with open_gguf(path) as file:
        return {name: dequantize(file.data(name), t.type, t.shape) for name, t in file.tensors.items()}


def keys_of(path: Path) -> dict[str, Any]:
    with open_gguf(path) as file:
        return {key: file.metadata[key] for key in file.metadata}


def check(folder: Path, tensors: dict[str, np.ndarray], outtype: str) -> None:
    convert(folder, folder / "o.gguf", outtype)
    got, want = contents(folder / "o.gguf"), expected(tensors)
    assert set(got) == set(want)
    for name, x in want.items():
        assert np.array_equal(got[name], x), name


# ---- tensors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F64"])
@pytest.mark.parametrize("outtype", ["f32", "F16"])
def test_every_weight_arrives(tmp_path: Path, dtype: str, outtype: str) -> None:
    check(tmp_path, hf_folder(tmp_path, dtype=dtype), outtype)


def test_shards_biases_and_a_tied_head(tmp_path: Path) -> None:
    check(tmp_path / "a", hf_folder(tmp_path / "a", shards=3), "f32")
    check(tmp_path / "b", hf_folder(tmp_path / "b", attention_bias=True, mlp_bias=True), "f32")
    tensors = hf_folder(tmp_path / "c", tie_word_embeddings=True)
    check(tmp_path / "c", tensors, "f32")
    assert "lm_head.weight" not in tensors


def test_buffers_and_a_tied_copy_of_the_head_are_left_out(tmp_path: Path) -> None:
    tensors = hf_folder(tmp_path, tie_word_embeddings=True)
    extra = {"lm_head.weight": tensors["model.embed_tokens.weight"],
             "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)}  # fmt: skip
    write_safetensors(tmp_path / "model.safetensors", tensors | extra)
    report = convert(tmp_path, tmp_path / "o.gguf", "f32")
    assert set(contents(tmp_path / "o.gguf")) == set(expected(tensors))
    assert "lm_head.weight" in report.notes[0]


def test_rows_in_large_tensors_are_worked_on_in_stretches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgellm.convert.pipeline.CHUNK", 3 * DIM)  # a few rows, less than a head
    check(tmp_path, hf_folder(tmp_path, attention_bias=True), "f32")


@pytest.mark.parametrize("outtype", ["bf16", "q8_0", "q4_0"])
def test_block_types_hold_what_the_quantiser_defines(tmp_path: Path, outtype: str) -> None:
    tensors = hf_folder(tmp_path)
    report = convert(tmp_path, tmp_path / "o.gguf", outtype)
    want = expected(tensors)
    with open_gguf(tmp_path / "o.gguf") as file:
        types = {name: t.type.name for name, t in file.tensors.items()}
        for name, x in want.items():
            assert file.data(name).tobytes() == quantize(np.atleast_2d(x), types[name]).tobytes(), name
    kind = outtype.upper()
    assert types["blk.0.attn_q.weight"] == types["token_embd.weight"] == kind
    assert types["output.weight"] == {"q4_0": "Q8_0"}.get(outtype, kind)  # 64 columns are no Q6_K block
    assert types["blk.0.attn_norm.weight"] == types["output_norm.weight"] == "F32"
    assert keys_of(tmp_path / "o.gguf")["general.file_type"] == {"bf16": 32, "q8_0": 7, "q4_0": 2}[outtype]
    assert report.outtype == kind
    assert sum(report.types.values()) == report.n_tensors == len(want)


def test_rows_that_are_no_multiple_of_a_block_stay_f16_and_are_reported(tmp_path: Path) -> None:
    tensors = hf_folder(tmp_path, intermediate_size=72)
    report = convert(tmp_path, tmp_path / "o.gguf", "q4_0")
    with open_gguf(tmp_path / "o.gguf") as file:
        assert file.tensors["blk.1.ffn_down.weight"].type.name == "F16"
        assert file.tensors["blk.1.ffn_up.weight"].type.name == "Q4_0"
    got = contents(tmp_path / "o.gguf")["blk.1.ffn_down.weight"]
    assert np.array_equal(got, tensors["model.layers.1.mlp.down_proj.weight"])
    assert set(report.notes) == {
        "blk.0.ffn_down.weight and 1 more: stays F16, a row of 72 weights is no multiple of the Q4_0 block of 32",
        "output.weight: becomes Q8_0, a row of 64 weights is no multiple of the Q6_K block of 256",
    }


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_of_a_q4_0_file_is_q6_k_where_its_rows_fit(tmp_path: Path, tied: bool) -> None:
    hf_folder(tmp_path, hidden_size=256, head_dim=64, tie_word_embeddings=tied)
    convert(tmp_path, tmp_path / "o.gguf", "q4_0")
    with open_gguf(tmp_path / "o.gguf") as file:
        types = {name: t.type.name for name, t in file.tensors.items()}
    assert types["token_embd.weight" if tied else "output.weight"] == "Q6_K"
    assert types["blk.0.attn_q.weight"] == "Q4_0"


def test_rotation_of_neighbours_equals_rotation_of_halves() -> None:
    """What the new row order is for: q . k is the same under either way to rotate."""
    rng = np.random.default_rng(0)
    order = interleave(1, HEAD_DIM)
    speed = 100.0 ** -(np.arange(HEAD_DIM // 2) / (HEAD_DIM // 2))

    def halves(x: np.ndarray, position: int) -> np.ndarray:
        a, b = np.split(x, 2)
        c, s = np.cos(position * speed), np.sin(position * speed)
        return np.concatenate([a * c - b * s, b * c + a * s])

    def neighbours(x: np.ndarray, position: int) -> np.ndarray:
        z = (x[0::2] + 1j * x[1::2]) * np.exp(1j * position * speed)
        return np.stack([z.real, z.imag], axis=1).reshape(-1)

    q, k = rng.standard_normal((2, HEAD_DIM))
    for m, n in ((0, 0), (5, 2), (100, 63)):
        want = halves(q, m) @ halves(k, n)
        assert neighbours(q[order], m) @ neighbours(k[order], n) == pytest.approx(want, rel=1e-12)


# ---- metadata --------------------------------------------------------------------------------------------------------


def test_metadata(tmp_path: Path) -> None:
    hf_folder(tmp_path / "my-model")
    convert(tmp_path / "my-model", tmp_path / "o.gguf", "f16")
    keys = keys_of(tmp_path / "o.gguf")
    want = {
        "general.architecture": "llama", "general.type": "model", "general.name": "my-model", "general.file_type": 1,
        "general.quantization_version": 2, "llama.block_count": 2, "llama.context_length": 128,
        "llama.embedding_length": 64, "llama.feed_forward_length": 96, "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2, "llama.rope.freq_base": 10000.0, "llama.attention.key_length": 16,
        "llama.attention.value_length": 16, "llama.rope.dimension_count": 16,
        "llama.vocab_size": config_json()["vocab_size"],
    }  # fmt: skip
    assert {key: keys[key] for key in want} == want
    assert keys["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    assert not any("scaling" in key or "sliding" in key for key in keys)


def test_the_name_in_config_json_wins(tmp_path: Path) -> None:
    hf_folder(tmp_path, _name_or_path="owner/Nice-Model/")
    convert(tmp_path, tmp_path / "o.gguf")
    assert keys_of(tmp_path / "o.gguf")["general.name"] == "Nice-Model"


def test_defaults_of_old_configs(tmp_path: Path) -> None:
    hf_folder(tmp_path, head_dim=..., num_key_value_heads=4)
    config = config_json(head_dim=..., num_key_value_heads=..., rope_theta=..., rms_norm_eps=..., hidden_act=...)
    write_json(tmp_path / "config.json", config)
    convert(tmp_path, tmp_path / "o.gguf")
    keys = keys_of(tmp_path / "o.gguf")
    assert keys["llama.attention.key_length"] == 16
    assert keys["llama.attention.head_count_kv"] == 4
    assert keys["llama.rope.freq_base"] == 10000.0
    assert keys["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)


def scaling_keys(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    hf_folder(tmp_path, **changes)
    convert(tmp_path, tmp_path / "o.gguf")
    keys = keys_of(tmp_path / "o.gguf")
    return {k.removeprefix("llama.rope."): v for k, v in keys.items() if k.startswith("llama.rope.")}


@pytest.mark.parametrize("form", ["old", "older", "new"])
def test_linear_scaling_in_each_form(tmp_path: Path, form: str) -> None:
    old = {"rope_scaling": {"rope_type": "linear", "factor": 4.0}, "rope_theta": 5000.0}
    older = {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_theta": 5000.0}
    new = {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0}, "rope_theta": ...}
    keys = scaling_keys(tmp_path, **{"old": old, "older": older, "new": new}[form])
    assert keys["freq_base"] == 5000.0
    assert (keys["scaling.type"], keys["scaling.factor"]) == ("linear", 4.0)


def test_yarn_keys(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e4}
    keys = scaling_keys(tmp_path / "a", rope_parameters=yarn)
    assert (keys["scaling.type"], keys["scaling.factor"]) == ("yarn", 4.0)
    assert keys["scaling.original_context_length"] == 32
    assert "scaling.attn_factor" not in keys
    usual = 0.1 * math.log(4) + 1
    keys = scaling_keys(
        tmp_path / "b", rope_parameters=yarn | {"attention_factor": 1.5, "beta_fast": 16, "beta_slow": 2}
    )
    assert keys["scaling.attn_factor"] == pytest.approx(1.5 / usual)
    assert (keys["scaling.yarn_beta_fast"], keys["scaling.yarn_beta_slow"]) == (16, 2)
    keys = scaling_keys(tmp_path / "c", rope_parameters=yarn | {"mscale": 1.0, "mscale_all_dim": 1.0})
    assert keys["scaling.attn_factor"] == pytest.approx(1 / usual)
    keys = scaling_keys(tmp_path / "d", rope_scaling={"type": "yarn", "factor": 2.0})
    assert keys["scaling.original_context_length"] == 128


def test_llama3_scaling_becomes_divisors(tmp_path: Path) -> None:
    params = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 64, "rope_theta": 500000.0}  # fmt: skip
    hf_folder(tmp_path, rope_parameters=params)
    convert(tmp_path, tmp_path / "o.gguf", "q8_0")
    got = contents(tmp_path / "o.gguf")["rope_freqs.weight"]
    want = []
    for i in range(HEAD_DIM // 2):  # as transformers' _compute_llama3_parameters states it, by wavelength
        wavelength = 2 * math.pi * 500000.0 ** (2 * i / HEAD_DIM)
        if wavelength < 64 / 4:
            want.append(1.0)
        elif wavelength > 64 / 1:
            want.append(8.0)
        else:
            smooth = (64 / wavelength - 1) / (4 - 1)
            want.append(1 / ((1 - smooth) / 8 + smooth))
    assert got == pytest.approx(want, rel=1e-6)
    assert 1.0 < got[np.argmax((got > 1) & (got < 8))] < 8.0  # the ramp is part of the test
    assert rope_divisors(read_config(config_json(), "config.json")) is None


def test_mistral_keeps_its_sliding_window_and_llama_has_none(tmp_path: Path) -> None:
    hf_folder(tmp_path / "a", architectures=["MistralForCausalLM"], sliding_window=32)
    convert(tmp_path / "a", tmp_path / "a.gguf")
    assert keys_of(tmp_path / "a.gguf")["llama.attention.sliding_window"] == 32
    for name, changes in {"b": {"architectures": ["MistralForCausalLM"], "sliding_window": None},
                          "c": {"sliding_window": 32}}.items():  # fmt: skip
        hf_folder(tmp_path / name, **changes)
        convert(tmp_path / name, tmp_path / "o.gguf")
        assert "llama.attention.sliding_window" not in keys_of(tmp_path / "o.gguf")


def test_code_in_the_folder_is_not_run_and_noted(tmp_path: Path) -> None:
    hf_folder(tmp_path, auto_map={"AutoModel": "modeling.Evil"})
    (tmp_path / "modeling.py").write_text("raise SystemExit('run!')")
    assert "auto_map" in convert(tmp_path, tmp_path / "o.gguf").notes[0]


def test_sampling_defaults_of_generation_config(tmp_path: Path) -> None:
    advice = {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.1, "min_p": 7, "do_sample": True}
    hf_folder(tmp_path, files={"generation_config.json": advice})
    report = convert(tmp_path, tmp_path / "o.gguf")
    keys = {k: v for k, v in keys_of(tmp_path / "o.gguf").items() if k.startswith("general.sampling.")}
    assert keys == {
        "general.sampling.temp": pytest.approx(0.7), "general.sampling.top_k": 40,
        "general.sampling.top_p": pytest.approx(0.9), "general.sampling.penalty_repeat": pytest.approx(1.1),
    }  # fmt: skip
    assert "min_p 7" in report.notes[0]


# ---- chat templates --------------------------------------------------------------------------------------------------


def templates(tmp_path: Path, files: dict[str, Any], texts: dict[str, str] | None = None) -> dict[str, Any]:
    hf_folder(tmp_path, files=files)
    for name, text in (texts or {}).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    convert(tmp_path, tmp_path / "o.gguf")
    prefix = "tokenizer.chat_template"
    return {k.removeprefix(prefix): v for k, v in keys_of(tmp_path / "o.gguf").items() if k.startswith(prefix)}


def test_chat_templates_in_all_their_places(tmp_path: Path) -> None:
    one = {"chat_template": "A {{ x }} é\n"}
    named = {"chat_template": [{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}]}
    assert templates(tmp_path / "none", {}) == {}
    assert templates(tmp_path / "a", {"tokenizer_config.json": one}) == {"": "A {{ x }} é\n"}
    assert templates(tmp_path / "b", {"chat_template.json": one}) == {"": "A {{ x }} é\n"}
    assert templates(tmp_path / "c", {"tokenizer_config.json": one}, {"chat_template.jinja": "C"}) == {"": "C"}
    got = templates(tmp_path / "d", {"tokenizer_config.json": named})
    assert got == {"": "A", "s": ["tool_use"], ".tool_use": "B"}
    texts = {"chat_template.jinja": "C", "additional_chat_templates/rag.jinja": "D"}
    assert templates(tmp_path / "e", {}, texts) == {"": "C", "s": ["rag"], ".rag": "D"}


@pytest.mark.parametrize("bad", [3, [3], [{"name": "default"}], [{"name": "../x", "template": "y"}]])
def test_bad_chat_templates_are_refused(tmp_path: Path, bad: Any) -> None:
    with pytest.raises(ConvertError, match="chat template"):
        templates(tmp_path, {"tokenizer_config.json": {"chat_template": bad}})


def test_a_template_file_must_be_small_and_utf8(tmp_path: Path) -> None:
    hf_folder(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"abc\xff")
    with pytest.raises(ModelFormatError, match="UTF-8"):
        convert(tmp_path, tmp_path / "o.gguf")
    (tmp_path / "chat_template.jinja").write_bytes(b"a" * ((1 << 20) + 1))
    with pytest.raises(ModelFormatError, match="too large"):
        convert(tmp_path, tmp_path / "o.gguf")


# ---- refusals --------------------------------------------------------------------------------------------------------

BAD_CONFIG: list[tuple[dict[str, Any], type[EdgeLLMError], str]] = [
    ({"architectures": ["WonderForCausalLM"]}, UnsupportedArchitectureError, "WonderForCausalLM"),
    ({"architectures": []}, ConvertError, "architectures"),
    ({"architectures": ...}, ConvertError, "architectures"),
    ({"architectures": [3]}, ConvertError, "architectures"),
    ({"hidden_act": "gelu"}, UnsupportedFeatureError, "gelu"),
    ({"partial_rotary_factor": 0.5}, UnsupportedFeatureError, "partial_rotary_factor"),
    ({"quantization_config": {"quant_method": "gptq"}}, UnsupportedFeatureError, "gptq"),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, UnsupportedFeatureError, "dynamic"),
    ({"rope_parameters": {"rope_type": "longrope"}}, UnsupportedFeatureError, "longrope"),
    ({"rope_parameters": {"rope_type": ["x"]}}, UnsupportedFeatureError, "rope_type"),
    ({"rope_parameters": [1]}, ConvertError, "rope_parameters"),
    ({"rope_scaling": {"type": "linear"}}, ConvertError, "factor"),
    ({"rope_scaling": {"type": "linear", "factor": 0}}, ConvertError, "factor"),
    ({"rope_scaling": {"type": "linear", "factor": "4"}}, ConvertError, "factor"),
    ({"rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 0}}, ConvertError, "original"),
    ({"rope_scaling": {"type": "yarn", "factor": 4, "truncate": False}}, UnsupportedFeatureError, "truncat"),
    ({"rope_scaling": {"type": "llama3", "low_freq_factor": 4, "high_freq_factor": 1}}, ConvertError, "high_freq"),
    ({"rope_theta": 0}, ConvertError, "rope_theta"),
    ({"rope_theta": True}, ConvertError, "rope_theta"),
    ({"hidden_size": ...}, ConvertError, "hidden_size"),
    ({"hidden_size": 64.0}, ConvertError, "hidden_size"),
    ({"hidden_size": -64}, ConvertError, "hidden_size"),
    ({"hidden_size": 2**40}, ConvertError, "hidden_size"),
    ({"num_hidden_layers": 0}, ConvertError, "num_hidden_layers"),
    ({"num_hidden_layers": 10**6}, ConvertError, "num_hidden_layers"),
    ({"num_hidden_layers": True}, ConvertError, "num_hidden_layers"),
    ({"num_key_value_heads": 3}, ConvertError, "num_key_value_heads"),
    ({"num_key_value_heads": 8}, ConvertError, "num_key_value_heads"),
    ({"head_dim": 15}, ConvertError, "head_dim"),
    ({"head_dim": None, "num_attention_heads": 5, "num_key_value_heads": 5}, ConvertError, "num_attention_heads"),
    ({"rms_norm_eps": 0}, ConvertError, "rms_norm_eps"),
    ({"rms_norm_eps": "1e-5"}, ConvertError, "rms_norm_eps"),
    ({"max_position_embeddings": 2**31}, ConvertError, "max_position_embeddings"),
    ({"attention_bias": 1}, ConvertError, "attention_bias"),
    ({"tie_word_embeddings": "no"}, ConvertError, "tie_word_embeddings"),
    ({"architectures": ["MistralForCausalLM"], "sliding_window": -1}, ConvertError, "sliding_window"),
]


@pytest.mark.parametrize(("changes", "error", "match"), BAD_CONFIG, ids=[str(c) for c, _, _ in BAD_CONFIG])
def test_bad_configs_are_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], error: type[EdgeLLMError], match: str
) -> None:
    hf_folder(tmp_path)
    write_json(tmp_path / "config.json", config_json(**changes))
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(error, match=match) as caught:
        convert(tmp_path, tmp_path / "o.gguf")
    assert "config.json" in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_supported_families_are_named(tmp_path: Path) -> None:
    hf_folder(tmp_path, architectures=["X"])
    with pytest.raises(UnsupportedArchitectureError, match="LlamaForCausalLM"):
        convert(tmp_path, tmp_path / "o.gguf")


def changed(tmp_path: Path, change: Any) -> None:
    tensors = hf_folder(tmp_path)
    change(tensors)
    write_safetensors(tmp_path / "model.safetensors", tensors)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda t: t.pop("model.norm.weight"), MissingTensorError, "model.norm.weight"),
        (lambda t: t.pop("lm_head.weight"), MissingTensorError, "lm_head.weight"),
        (lambda t: t.update({"model.wonder": np.ones(3, np.float32)}), ConvertError, "model.wonder"),
        (lambda t: t.update({"model.norm.weight": np.ones(63, np.float32)}), ModelFormatError, "model.norm.weight"),
        (
            lambda t: t.update({"model.layers.0.mlp.up_proj.weight": np.ones((64, 96), np.float32)}),
            ModelFormatError,
            "up_proj",
        ),
    ],
)
def test_tensors_must_follow_from_the_config(tmp_path: Path, change: Any, error: Any, match: str) -> None:
    changed(tmp_path, change)
    with pytest.raises(error, match=match):
        convert(tmp_path, tmp_path / "o.gguf")
    assert not (tmp_path / "o.gguf").exists()


@pytest.mark.parametrize(
    ("value", "outtype", "match"),
    [
        (math.nan, "f32", "NaN"),
        (math.inf, "q8_0", "infinite"),
        (-math.inf, "bf16", "infinite"),
        (70000.0, "f16", "too large"),
        (-70000.0, "q4_0", "too large"),
    ],
)
def test_weights_that_the_type_cannot_hold_are_refused(tmp_path: Path, value: float, outtype: str, match: str) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][5, 7] = value

    changed(tmp_path, change)
    with pytest.raises(ConvertError, match=match) as caught:
        convert(tmp_path, tmp_path / "o.gguf", outtype)
    assert "blk.1.ffn_up.weight" in str(caught.value)
    assert not list(tmp_path.glob("*gguf*"))


def test_large_weights_fit_f32_and_bf16(tmp_path: Path) -> None:
    changed(tmp_path, lambda t: t["lm_head.weight"].__setitem__((0, 0), 70000.0))
    for outtype in ("f32", "bf16"):
        convert(tmp_path, tmp_path / "o.gguf", outtype)


def test_wrong_paths_and_arguments(tmp_path: Path) -> None:
    hf_folder(tmp_path / "m")
    with pytest.raises(ModelFileNotFoundError):
        convert(tmp_path / "none", tmp_path / "o.gguf")
    with pytest.raises(InvalidArgumentError, match=r"q9_9.*F32, F16, BF16, Q8_0, .*Q4_K_M"):
        convert(tmp_path / "m", tmp_path / "o.gguf", "q9_9")
    with pytest.raises(InvalidArgumentError, match="tokenizer"):
        convert(tmp_path / "m", tmp_path / "o.gguf", tokenizer=tmp_path / "tok.bin")
    with pytest.raises(ConvertError, match=r"config\.json"):
        convert(tmp_path, tmp_path / "o.gguf")
    with pytest.raises(ConvertError, match="folder that holds"):
        convert(tmp_path / "m" / "model.safetensors", tmp_path / "o.gguf")
    with pytest.raises(OutputError):
        convert(tmp_path / "m", tmp_path / "none" / "o.gguf")
    with pytest.raises(OutputError):
        convert(tmp_path / "m", tmp_path)
    convert(tmp_path / "m", tmp_path / "o.gguf")
    with pytest.raises(ConvertError, match="quantize"):
        convert(tmp_path / "o.gguf", tmp_path / "p.gguf")
    with pytest.raises(OutputError, match="exists"):
        convert(tmp_path / "m", tmp_path / "o.gguf", overwrite=False)
    (tmp_path / "m.bin").write_bytes(b"PK\x03\x04" + bytes(60))
    with pytest.raises(ConvertError, match="PyTorch"):
        convert(tmp_path / "m.bin", tmp_path / "p.gguf")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.model", "config.json"])
def test_a_source_is_never_overwritten(tmp_path: Path, name: str) -> None:
    hf_folder(tmp_path)
    before = (tmp_path / name).read_bytes()
    with pytest.raises(InvalidArgumentError, match="source"):
        convert(tmp_path, tmp_path / name)
    assert (tmp_path / name).read_bytes() == before


def test_size_labels() -> None:
    sizes = (12, 260_032, 3_475_712, 12_345_678, 1_100_000_000, 70_000_000_000)
    assert [size_label(n) for n in sizes] == ["12", "260K", "3.5M", "12M", "1.1B", "70B"]
