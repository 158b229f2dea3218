"""Hyperparameters of families: values out of range (rows P2 to P9 of the reject list), and settings nobody does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_families import tiny_family_gguf

from edgellm.errors import (
    MissingKeyError,
    MissingTensorError,
    ModelFormatError,
    UnsupportedFeatureError,
    WrongKeyTypeError,
)
from edgellm.gguf import open_gguf
from edgellm.models import build_plan, read_config

NAN, INF = float("nan"), float("inf")
WINDOW = "attention.sliding_window"
BAD_OF_FAMILIES = [
    ("mistral", "P5", WINDOW, -1),
    ("mistral", "P5", WINDOW, 2**31),
    ("gemma3", "P5", f"{WINDOW}_pattern", -1),
    ("gemma3", "P5", f"{WINDOW}_pattern", 1025),
    ("gemma2", "P9", f"{WINDOW}_pattern", [True]),
    ("smollm3", "P9", "rope.layers", [True, False, True]),
    ("mixtral", "P6", "expert_used_count", 0),
    ("mixtral", "P6", "expert_used_count", 5),
    ("mixtral", "P6", "expert_used_count", -2),
    ("mixtral", "P6", "expert_count", -1),
    ("mixtral", "P6", "expert_count", 1025),
    ("qwen3moe", "P6", "expert_used_count", 9),
    ("qwen3moe", "P2", "expert_feed_forward_length", 0),
    ("gemma2", "P7", "attn_logit_softcapping", NAN),
    ("gemma2", "P7", "attn_logit_softcapping", -50.0),
    ("gemma2", "P7", "final_logit_softcapping", INF),
    ("gemma2", "P4", "attention.scale", NAN),
    ("gemma3", "P4", "rope.freq_base_swa", 0.0),
    ("gemma3", "P4", "rope.freq_base_swa", NAN),
    ("granite", "P7", "embedding_scale", NAN),
    ("granite", "P7", "residual_scale", -0.2),
    ("granite", "P7", "logit_scale", INF),
    ("phi3", "P4", "rope.scaling.attn_factor", NAN),
    ("phi3", "P2", "rope.dimension_count", 17),
]


@pytest.mark.parametrize(("family", "rule", "key", "value"), BAD_OF_FAMILIES, ids=str)
def test_bad_hyperparameters_of_families(tmp_path: Path, family: str, rule: str, key: str, value: Any) -> None:
    with (
        open_gguf(tiny_family_gguf(tmp_path / "m.gguf", family, **{key: value})) as file,
        pytest.raises(ModelFormatError) as error,
    ):
        read_config(file)
    assert error.value.rule == rule
    assert key in error.value.field
    assert str(file.path) in str(error.value)


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("llama", "rope.scaling.type", "longrope"),
        ("qwen2", "rope.scaling.type", "su"),
        ("phi3", "rope.scaling.type", "dynamic"),
        ("qwen2", "expert_count", 4),
        ("olmo2", WINDOW, 32),
        ("granite", WINDOW, 32),
        ("llama", "attn_logit_softcapping", 50.0),
        ("gemma3", "attn_logit_softcapping", 50.0),
        ("llama", "logit_scale", 4.0),
        ("mixtral", "expert_gating_func", 2),
        ("mixtral", "expert_shared_count", 1),
        ("mixtral", "expert_weights_scale", 2.5),
        ("qwen3", "attention.value_length", 16),
        ("gemma3", "attention.head_count_kv", np.array([2, 1], np.int32)),
    ],
)
def test_what_a_family_does_not_do_is_refused_by_name(tmp_path: Path, family: str, key: str, value: Any) -> None:
    with (
        open_gguf(tiny_family_gguf(tmp_path / "m.gguf", family, **{key: value})) as file,
        pytest.raises(UnsupportedFeatureError, match=key),
    ):
        read_config(file)


def test_a_window_of_a_family_without_windows_holds_for_the_context_that_is_asked_for(tmp_path: Path) -> None:
    """As wide as the trained context it has no effect, but a longer context would need it."""
    with open_gguf(tiny_family_gguf(tmp_path / "m.gguf", "olmo2", **{WINDOW: 256})) as file:
        config = read_config(file)
        assert config.n_ctx_train == 256
        build_plan(config, file)
        build_plan(config, file, 256)
        with pytest.raises(UnsupportedFeatureError, match="n_ctx <= 256"):
            build_plan(config, file, 257)


@pytest.mark.parametrize(("family", "key"), [("mixtral", "expert_used_count"), ("gemma2", "context_length")])
def test_keys_that_families_need(tmp_path: Path, family: str, key: str) -> None:
    with (
        open_gguf(tiny_family_gguf(tmp_path / "m.gguf", family, **{key: None})) as file,
        pytest.raises(MissingKeyError, match=key),
    ):
        read_config(file)


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [("gemma3", f"{WINDOW}_pattern", "2"), ("gemma3", f"{WINDOW}_pattern", [1.0, 2.0]), ("smollm3", "rope.layers", 4),
     ("mixtral", "expert_weights_norm", 1), ("mixtral", "expert_used_count", 2.0), ("gemma2", WINDOW, 16.0)],
)  # fmt: skip
def test_keys_of_families_of_the_wrong_type(tmp_path: Path, family: str, key: str, value: Any) -> None:
    with (
        open_gguf(tiny_family_gguf(tmp_path / "m.gguf", family, **{key: value})) as file,
        pytest.raises(WrongKeyTypeError, match=key),
    ):
        read_config(file)


def test_divisors_of_longrope_must_be_positive_and_complete(tmp_path: Path) -> None:
    names = ("rope_factors_long.weight", "rope_factors_short.weight")
    for whole, error in (
        (dict.fromkeys(names, (7,)), ModelFormatError),
        ({names[0]: (8,)}, MissingTensorError),
    ):
        with open_gguf(tiny_family_gguf(tmp_path / "m.gguf", "phi3", whole=whole)) as file, pytest.raises(error):
            build_plan(read_config(file), file)
    path = tiny_family_gguf(tmp_path / "n.gguf", "phi3", whole=dict.fromkeys(names, (8,)))
    with open_gguf(path) as file:
        offset = file.tensors[names[0]].offset
    with open(path, "r+b") as f:
        f.seek(offset)
        f.write(np.float32(0).tobytes())
    with open_gguf(path) as file, pytest.raises(ModelFormatError, match="rope_factors_long") as bad:
        build_plan(read_config(file), file)
    assert bad.value.rule == "P4"
