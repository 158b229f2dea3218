"""LoRA adapters merged by the converter: W + s B A as the formula says, and every other kind refused by name."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convert_inputs import hf_folder, write_json, write_safetensors
from torch_inputs import write_torch

from edgellm import cli
from edgellm.convert import convert
from edgellm.errors import (
    ConvertError,
    EdgeLLMError,
    InvalidArgumentError,
    MissingTensorError,
    ModelFormatError,
    UnsupportedFeatureError,
)
from edgellm.gguf import open_gguf

RANK, ALPHA = 4, 6
PREFIX = "base_model.model."
# what PEFT 0.18 writes for a plain adapter
CONFIG: dict[str, Any] = {
    "alora_invocation_tokens": None, "alpha_pattern": {}, "arrow_config": None, "auto_mapping": None,
    "base_model_name_or_path": "../../somewhere/else", "bias": "none", "corda_config": None,
    "ensure_weight_tying": False,
    "eva_config": None, "exclude_modules": None, "fan_in_fan_out": False, "inference_mode": True,
    "init_lora_weights": True, "layer_replication": None, "layers_pattern": None, "layers_to_transform": None,
    "loftq_config": {}, "lora_alpha": ALPHA, "lora_bias": False, "lora_dropout": 0.05, "megatron_config": None,
    "megatron_core": "megatron.core", "modules_to_save": None, "peft_type": "LORA", "peft_version": "0.18.0",
    "qalora_group_size": 16, "r": RANK, "rank_pattern": {}, "revision": None, "target_modules": ["q_proj", "down_proj"],
    "target_parameters": None, "task_type": "CAUSAL_LM", "trainable_token_indices": None, "use_dora": False,
    "use_qalora": False, "use_rslora": False,
}  # fmt: skip


def pair(rng: np.random.Generator, shape: tuple[int, ...], rank: int) -> tuple[np.ndarray, np.ndarray]:
    a = rng.normal(size=(rank, shape[1])).astype(np.float32)
    return a, rng.normal(size=(shape[0], rank)).astype(np.float32)


def adapter_tensors(base: dict[str, np.ndarray], targets: list[str], rank: int = RANK) -> dict[str, np.ndarray]:
    rng, out = np.random.default_rng(5), {}
    for name, w in base.items():
        module = name.removesuffix(".weight")
        if module.rsplit(".", 1)[-1] in targets:
            a, b = pair(rng, w.shape, rank)
            out[f"{PREFIX}{module}.lora_A.weight"], out[f"{PREFIX}{module}.lora_B.weight"] = a, b
    return out


def write_adapter(folder: Path, tensors: dict[str, np.ndarray], kind: str = "safetensors", **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "adapter_config.json", CONFIG | changes)
    if kind == "safetensors":
        write_safetensors(folder / "adapter_model.safetensors", tensors)
    else:
        write_torch(folder / "adapter_model.bin", tensors)
    return folder


def merged(base: dict[str, np.ndarray], adapter: dict[str, np.ndarray], scale: float) -> dict[str, np.ndarray]:
    """The slow twin, in float64."""
    out = dict(base)
    for name in base:
        module = PREFIX + name.removesuffix(".weight")
        if f"{module}.lora_A.weight" in adapter:
            a, b = (adapter[f"{module}.lora_{p}.weight"].astype(np.float64) for p in "AB")
            out[name] = (base[name] + scale * (b @ a)).astype(np.float32)
    return out


def same_files(got: Path, want: Path, limit: float = 1e-6) -> None:
    """All tensors agree to `limit`, relative to the largest weight of the tensor, and the metadata is the same."""
    with open_gguf(got) as a, open_gguf(want) as b:
        assert list(a.tensors) == list(b.tensors)
        for name in a.tensors:
            x, y = (f.data(name).view(np.float32) for f in (a, b))
            assert np.abs(x - y).max() <= limit * max(1.0, np.abs(y).max()), name
        for key in set(a.metadata) - {"general.name"}:
            assert np.array_equal(a.metadata[key], b.metadata[key]), key


@pytest.fixture
def base(tmp_path: Path) -> dict[str, np.ndarray]:
    return hf_folder(tmp_path / "base")


def convert_merged(tmp_path: Path, tensors: dict[str, np.ndarray]) -> Path:
    """The plain F32 conversion of weights that were merged beforehand."""
    shutil.copytree(tmp_path / "base", tmp_path / "merged")
    write_safetensors(tmp_path / "merged" / "model.safetensors", tensors)
    convert(tmp_path / "merged", tmp_path / "want.gguf", "f32")
    return tmp_path / "want.gguf"


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("rslora", [False, True])
def test_merge_equals_the_conversion_of_merged_weights(
    tmp_path: Path, base: dict[str, np.ndarray], kind: str, rslora: bool
) -> None:
    adapter = adapter_tensors(base, CONFIG["target_modules"])
    lora = write_adapter(tmp_path / "lora", adapter, kind, use_rslora=rslora)
    report = convert(tmp_path / "base", tmp_path / "got.gguf", "f32", lora=lora)
    assert any("merged into 4 matrices" in note for note in report.notes)
    scale = ALPHA / math.sqrt(RANK) if rslora else ALPHA / RANK
    same_files(tmp_path / "got.gguf", convert_merged(tmp_path, merged(base, adapter, scale)))
    with pytest.raises(AssertionError):  # the comparison sees a wrong scale
        convert(tmp_path / "base", tmp_path / "plain.gguf", "f32")
        same_files(tmp_path / "plain.gguf", tmp_path / "want.gguf")


def test_ranks_and_alphas_of_single_modules(tmp_path: Path, base: dict[str, np.ndarray]) -> None:
    adapter = adapter_tensors(base, ["q_proj"])
    wide = adapter_tensors(base, ["q_proj"], rank=7)
    special = "model.layers.1.self_attn.q_proj"
    for p in "AB":
        adapter[f"{PREFIX}{special}.lora_{p}.weight"] = wide[f"{PREFIX}{special}.lora_{p}.weight"]
    lora = write_adapter(
        tmp_path / "lora", adapter, target_modules=["q_proj"], rank_pattern={"layers.1.self_attn.q_proj": 7},
        alpha_pattern={f"^{special}": 21, "no_such": 3},
    )  # fmt: skip
    convert(tmp_path / "base", tmp_path / "got.gguf", "f32", lora=lora)
    want = merged(base, adapter, ALPHA / RANK)
    want[f"{special}.weight"] = merged(base, adapter, 21 / 7)[f"{special}.weight"]
    same_files(tmp_path / "got.gguf", convert_merged(tmp_path, want))


def test_names_of_older_writers_and_a_sharded_base(tmp_path: Path) -> None:
    base = hf_folder(tmp_path / "base", shards=3)
    adapter = adapter_tensors(base, ["o_proj"])
    old = {name.replace(".weight", ".default.weight"): x for name, x in adapter.items()}
    lora = write_adapter(tmp_path / "lora", old, target_modules="all-linear")
    assert cli.execute(["convert", str(tmp_path / "base"), "--lora", str(lora), "-o", str(tmp_path / "o.gguf"),
                        "--outtype", "f32"]) == 0  # fmt: skip
    hf_folder(tmp_path / "plain")
    write_safetensors(tmp_path / "plain" / "model.safetensors", merged(base, adapter, ALPHA / RANK))
    convert(tmp_path / "plain", tmp_path / "want.gguf", "f32")
    same_files(tmp_path / "o.gguf", tmp_path / "want.gguf")


def test_stretches_of_rows_do_not_matter(
    tmp_path: Path, base: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = write_adapter(tmp_path / "lora", adapter_tensors(base, CONFIG["target_modules"]))
    convert(tmp_path / "base", tmp_path / "a.gguf", "f32", lora=lora)
    monkeypatch.setattr("edgellm.convert.pipeline.CHUNK", 300)  # a few rows at a time
    convert(tmp_path / "base", tmp_path / "b.gguf", "f32", lora=lora)
    same_files(tmp_path / "a.gguf", tmp_path / "b.gguf")


def test_shared_checkpoint(tmp_path: Path, shared_data: Path) -> None:
    """A fused family (Phi-3's qkv_proj) of the shared checkpoints."""
    from edgellm.convert.checkpoint import Checkpoint

    folder = shared_data / "hf-tiny" / "phi3"
    with Checkpoint(folder) as c:
        base = {n: c.rows(n, 0, c[n].shape[0] if len(c[n].shape) > 1 else 1).reshape(c[n].shape) for n in c}
    adapter = adapter_tensors(base, ["qkv_proj"])
    lora = write_adapter(tmp_path / "lora", adapter, target_modules=["qkv_proj"])
    convert(folder, tmp_path / "got.gguf", "f32", lora=lora)
    shutil.copytree(folder, tmp_path / "base")
    same_files(tmp_path / "got.gguf", convert_merged(tmp_path, merged(base, adapter, ALPHA / RANK)))


# ---- what is refused -------------------------------------------------------------------------------------------------

KINDS: list[tuple[str, Any]] = [
    ("peft_type", "ADALORA"), ("peft_type", None), ("use_dora", True), ("bias", "all"), ("bias", "lora_only"),
    ("lora_bias", True), ("modules_to_save", ["lm_head"]), ("init_lora_weights", "pissa"),
    ("init_lora_weights", "pissa_niter_4"), ("init_lora_weights", "olora"), ("init_lora_weights", "loftq"),
    ("layer_replication", [[0, 2], [1, 2]]), ("target_parameters", ["mlp.experts.gate_up_proj"]),
    ("trainable_token_indices", [1, 2]), ("use_qalora", True), ("alora_invocation_tokens", [5]),
    ("something_of_tomorrow", {"a": 1}), ("rank_pattern", {"q_proj.*": 4}),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), KINDS, ids=[f"{f}={v}" for f, v in KINDS])
def test_other_kinds_are_refused_by_name(
    tmp_path: Path, base: dict[str, np.ndarray], field: str, value: Any
) -> None:
    lora = write_adapter(tmp_path / "lora", adapter_tensors(base, CONFIG["target_modules"]), **{field: value})
    with pytest.raises(UnsupportedFeatureError, match=field):
        convert(tmp_path / "base", tmp_path / "o.gguf", "f32", lora=lora)
    assert not (tmp_path / "o.gguf").exists()


@pytest.mark.parametrize(("field", "value"), [("r", 0), ("r", -4), ("r", 2.5), ("r", True), ("r", "8"), ("r", 10**9),
                                              ("lora_alpha", 0), ("lora_alpha", "x"), ("rank_pattern", [1]),
                                              ("alpha_pattern", {"q_proj": None})])  # fmt: skip
def test_bad_numbers(tmp_path: Path, base: dict[str, np.ndarray], field: str, value: Any) -> None:
    lora = write_adapter(tmp_path / "lora", adapter_tensors(base, CONFIG["target_modules"]), **{field: value})
    with pytest.raises(ConvertError, match=field):
        convert(tmp_path / "base", tmp_path / "o.gguf", "f32", lora=lora)


Q1 = f"{PREFIX}model.layers.1.self_attn.q_proj"
DAMAGE: dict[str, tuple[dict[str, np.ndarray | None], type[EdgeLLMError], str]] = {
    "no B": ({f"{Q1}.lora_B.weight": None}, MissingTensorError, r"layers\.1\.self_attn\.q_proj\.lora_B"),
    "no A": ({f"{Q1}.lora_A.weight": None}, MissingTensorError, r"layers\.1\.self_attn\.q_proj\.lora_A"),
    "no pair": (
        {f"{Q1}.lora_A.weight": None, f"{Q1}.lora_B.weight": None}, MissingTensorError, r"layers\.1\.self_attn\.q_proj"
    ),
    "another layer": (
        {f"{PREFIX}model.layers.9.self_attn.q_proj.lora_A.weight": np.zeros((4, 4))}, ConvertError, r"layers\.9"
    ),
    "DoRA's vector": ({f"{Q1}.lora_magnitude_vector": np.zeros(4)}, ConvertError, "magnitude"),
    "an embedding": ({f"{PREFIX}model.embed_tokens.lora_embedding_A": np.zeros((4, 4))}, ConvertError, "embedding_A"),
    "a whole matrix": ({f"{PREFIX}lm_head.weight": np.zeros((4, 4))}, ConvertError, "lm_head"),
    "a bias": ({f"{Q1}.lora_B.bias": np.zeros(64)}, ConvertError, r"lora_B\.bias"),
    "twice": ({f"{Q1}.lora_A.default.weight": np.zeros((4, 64))}, ConvertError, "twice"),
    "other rank": ({f"{Q1}.lora_A.weight": np.zeros((5, 64))}, ModelFormatError, "shape"),
    "other width": ({f"{Q1}.lora_B.weight": np.zeros((63, 4))}, ModelFormatError, "shape"),
    "a norm": (
        {f"{PREFIX}model.norm.lora_{p}.weight": np.zeros((4, 64) if p == "A" else (64, 4)) for p in "AB"},
        ConvertError, "only matrices",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_tensors_that_do_not_fit_are_refused_by_name(tmp_path: Path, base: dict[str, np.ndarray], case: str) -> None:
    changes, kind, match = DAMAGE[case]
    tensors = adapter_tensors(base, CONFIG["target_modules"]) | changes
    lora = write_adapter(tmp_path / "lora", {name: x for name, x in tensors.items() if x is not None})
    with pytest.raises(kind, match=match):
        convert(tmp_path / "base", tmp_path / "o.gguf", "f32", lora=lora)
    assert not (tmp_path / "o.gguf").exists()


def test_a_target_without_tensors_is_refused(tmp_path: Path, base: dict[str, np.ndarray]) -> None:
    lora = write_adapter(tmp_path / "lora", adapter_tensors(base, ["q_proj"]), target_modules=["q_proj", "w_pack"])
    with pytest.raises(ConvertError, match="w_pack"):
        convert(tmp_path / "base", tmp_path / "o.gguf", lora=lora)


def test_a_tied_head_cannot_be_changed_alone(tmp_path: Path) -> None:
    base = hf_folder(tmp_path / "base", tie_word_embeddings=True)
    base["lm_head.weight"] = base["model.embed_tokens.weight"]
    write_safetensors(tmp_path / "base" / "model.safetensors", base)
    lora = write_adapter(tmp_path / "lora", adapter_tensors(base, ["lm_head"]), target_modules=["lm_head"])
    with pytest.raises(ConvertError, match="ties"):
        convert(tmp_path / "base", tmp_path / "o.gguf", lora=lora)


def test_folders_and_files_that_are_no_adapter(tmp_path: Path, base: dict[str, np.ndarray]) -> None:
    out = tmp_path / "o.gguf"
    with pytest.raises(ConvertError, match="adapter_config"):
        convert(tmp_path / "base", out, lora=tmp_path)
    lora = write_adapter(tmp_path / "lora", adapter_tensors(base, CONFIG["target_modules"]))
    with pytest.raises(InvalidArgumentError, match="source"):  # the adapter is not overwritten
        convert(tmp_path / "base", lora / "adapter_model.safetensors", lora=lora)
    (lora / "adapter_model.safetensors").unlink()
    with pytest.raises(ConvertError, match="adapter_model"):
        convert(tmp_path / "base", out, lora=lora)
    with pytest.raises(ConvertError, match="adapter_config"):
        convert(tmp_path / "base", out, lora=tmp_path / "nowhere")
    (tmp_path / "m.bin").write_bytes(bytes(100))
    with pytest.raises(InvalidArgumentError, match="adapter"):
        convert(tmp_path / "m.bin", out, lora=lora)
    (lora / "adapter_config.json").write_text(json.dumps({"r": 4})[:-1])
    with pytest.raises(ModelFormatError, match="JSON"):
        convert(tmp_path / "base", out, lora=lora)
