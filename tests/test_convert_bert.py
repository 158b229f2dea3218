"""BERT folders of transformers and sentence-transformers: names of tensors, keys, poolings, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convert_inputs import write_safetensors
from helpers import compare_with_peer
from hypothesis import given
from hypothesis import strategies as st
from tiny_bert import LETTERS

import edgellm
from edgellm.convert import convert
from edgellm.convert.hf_pooling import pooling_type
from edgellm.convert.strict_json import StrictJSONError, parse_objects
from edgellm.errors import ConvertError, EdgeLLMError, MissingTensorError, ModelFormatError, UnsupportedFeatureError
from edgellm.gguf import open_gguf

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{c}" for c in LETTERS)]
DIM, FFN, N_LAYERS, N_CTX = 32, 48, 2, 40
CONFIG: dict[str, Any] = {
    "architectures": ["BertModel"], "model_type": "bert", "hidden_size": DIM, "intermediate_size": FFN,
    "num_hidden_layers": N_LAYERS, "num_attention_heads": 4, "max_position_embeddings": N_CTX, "hidden_act": "gelu",
    "layer_norm_eps": 1e-12, "vocab_size": len(PIECES), "type_vocab_size": 2, "position_embedding_type": "absolute",
    "pad_token_id": 0, "is_decoder": False, "add_cross_attention": False,
}  # fmt: skip
# name in the checkpoint -> name in GGUF
WHOLE = {
    "embeddings.word_embeddings.weight": "token_embd.weight",
    "embeddings.token_type_embeddings.weight": "token_types.weight",
    "embeddings.position_embeddings.weight": "position_embd.weight",
    "embeddings.LayerNorm.weight": "token_embd_norm.weight",
    "embeddings.LayerNorm.bias": "token_embd_norm.bias",
}
LAYER = {
    "attention.self.query": "attn_q", "attention.self.key": "attn_k", "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output", "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up", "output.dense": "ffn_down", "output.LayerNorm": "layer_output_norm",
}  # fmt: skip


def names() -> dict[str, str]:
    layers = {
        f"encoder.layer.{i}.{source}.{part}": f"blk.{i}.{name}.{part}"
        for i in range(N_LAYERS) for source, name in LAYER.items() for part in ("weight", "bias")
    }  # fmt: skip
    return WHOLE | layers


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Random tensors by their names in a BertModel."""
    sizes = {"word": (len(PIECES), DIM), "token_type": (2, DIM), "position": (N_CTX, DIM)}
    rng, out = np.random.default_rng(seed), {}
    for name in names():
        shape: tuple[int, ...] = (DIM, DIM)
        if name.startswith("embeddings.") and "LayerNorm" not in name:
            shape = sizes[name.split(".")[1].removesuffix("_embeddings")]
        elif "intermediate" in name:
            shape = (FFN, DIM)
        elif "attention" not in name and "output.dense" in name:
            shape = (DIM, FFN)
        if name.endswith(".bias") or "LayerNorm" in name:
            shape = shape[:1]
        scale = 0.2 if len(shape) > 1 else 0.1
        out[name] = (scale * rng.standard_normal(shape) + ("LayerNorm.weight" in name)).astype(np.float32)
    return out


def folder(path: Path, weights: dict[str, np.ndarray] | None = None, **changes: Any) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(CONFIG | changes))
    special = [{"id": i, "content": PIECES[i], "special": True} for i in range(5)]
    table = {
        "added_tokens": special, "normalizer": {"type": "BertNormalizer", "clean_text": True,
        "handle_chinese_chars": True, "strip_accents": None, "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": {piece: i for i, piece in enumerate(PIECES)}},
    }  # fmt: skip
    (path / "tokenizer.json").write_text(json.dumps(table))
    roles = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    (path / "tokenizer_config.json").write_text(json.dumps(roles))
    write_safetensors(path / "model.safetensors", tensors() if weights is None else weights)
    return path


def sentence_transformers(path: Path, config: dict[str, Any], more: tuple[dict[str, Any], ...] = ()) -> None:
    rows = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    (path / "modules.json").write_text(json.dumps([*more, *rows]))
    (path / "1_Pooling").mkdir(exist_ok=True)
    (path / "1_Pooling" / "config.json").write_text(json.dumps(config))


# ---- what is written -------------------------------------------------------------------------------------------------


def test_tensors_and_keys(tmp_path: Path) -> None:
    weights = tensors()
    convert(folder(tmp_path / "hf"), tmp_path / "m.gguf", outtype="f32")
    with open_gguf(tmp_path / "m.gguf") as file:
        assert set(file.tensors) == set(names().values())
        for source, name in names().items():
            assert np.array_equal(file.data(name).view(np.float32).reshape(weights[source].shape), weights[source])
        assert file.get("general.architecture", str) == "bert"
        keys = {key.removeprefix("bert."): file.metadata[key] for key in file.metadata if key.startswith("bert.")}
        assert keys.pop("attention.layer_norm_epsilon") == pytest.approx(1e-12)
        assert keys == {
            "block_count": 2, "context_length": 40, "embedding_length": 32, "feed_forward_length": 48,
            "attention.head_count": 4, "attention.causal": False, "vocab_size": len(PIECES),
        }  # fmt: skip
        assert file.get("tokenizer.ggml.token_type_count", int) == 2
        roles = ("bos", "cls", "seperator", "unknown", "padding", "mask")
        assert [file.get(f"tokenizer.ggml.{role}_token_id", int) for role in roles] == [2, 2, 3, 1, 0, 4]
        gguf = pytest.importorskip("gguf")
        compare_with_peer(file, gguf.GGUFReader(tmp_path / "m.gguf"))


def test_all_spellings_of_a_checkpoint_are_one_model(tmp_path: Path) -> None:
    """With a head in front of it, with a pooler, with the names of before 2019: the same bytes."""
    plain = tensors()
    old = {n.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): x for n, x in plain.items()}
    old = {f"bert.{n}": x for n, x in old.items()} | {"cls.predictions.bias": np.zeros(len(PIECES), np.float32)}
    more = plain | {
        "pooler.dense.weight": np.zeros((DIM, DIM), np.float32), "pooler.dense.bias": np.zeros(DIM, np.float32),
        "embeddings.position_ids": np.zeros((1, N_CTX), np.float32),
    }  # fmt: skip
    found = []
    for i, (architecture, weights) in enumerate([("BertModel", plain), ("BertForMaskedLM", old), ("BertModel", more)]):
        source = folder(tmp_path / "hf", weights, architectures=[architecture])
        convert(source, tmp_path / f"{i}.gguf", outtype="f32")
        found.append((tmp_path / f"{i}.gguf").read_bytes())
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("outtype", ["f16", "bf16", "q8_0"])
def test_other_types_keep_positions_as_they_are(tmp_path: Path, outtype: str) -> None:
    convert(folder(tmp_path / "hf"), tmp_path / "full.gguf", outtype="f32")
    convert(folder(tmp_path / "hf"), tmp_path / "m.gguf", outtype=outtype)
    with open_gguf(tmp_path / "m.gguf") as file:
        kinds = {name: info.type.name for name, info in file.tensors.items()}
    assert {kinds["position_embd.weight"], kinds["token_types.weight"], kinds["blk.0.attn_q.bias"]} == {"F32"}
    assert kinds["blk.1.ffn_up.weight"] == outtype.upper()
    with edgellm.load(tmp_path / "full.gguf") as full, edgellm.load(tmp_path / "m.gguf") as model:
        assert float(full.embed("a bc def") @ model.embed("a bc def")) > 0.999


MODES: list[tuple[dict[str, Any], int]] = [
    ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True, "word_embedding_dimension": 32}, 1),
    ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, 2),
    ({"pooling_mode_lasttoken": True}, 3),
    ({"pooling_mode": "cls"}, 2),
]


@pytest.mark.parametrize("config, number", MODES)
def test_pooling_of_sentence_transformers(tmp_path: Path, config: dict[str, Any], number: int) -> None:
    source = folder(tmp_path / "hf")
    sentence_transformers(source, config)
    convert(source, tmp_path / "m.gguf", outtype="f32")
    with edgellm.load(tmp_path / "m.gguf") as model:
        assert model.metadata["bert.pooling_type"] == number
        named = model.embed(["a b c"], pooling=("mean", "cls", "last")[number - 1])  # type: ignore[call-overload]
        assert np.array_equal(model.embed(["a b c"]), named)


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, field",
    [({"position_embedding_type": "relative_key"}, "position_embedding_type"), ({"is_decoder": True}, "is_decoder"),
     ({"add_cross_attention": True}, "add_cross_attention"), ({"hidden_act": "relu"}, "hidden_act"),
     ({"hidden_act": "gelu_new"}, "hidden_act"), ({"type_vocab_size": 0}, "type_vocab_size"),
     ({"type_vocab_size": "2"}, "type_vocab_size"), ({"layer_norm_eps": 0}, "layer_norm_eps"),
     ({"layer_norm_eps": "x"}, "layer_norm_eps"), ({"num_attention_heads": 5}, "num_attention_heads"),
     ({"max_position_embeddings": 41}, "position_embeddings"), ({"vocab_size": 99}, "word_embeddings")],
)  # fmt: skip
def test_settings_that_are_refused(tmp_path: Path, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(EdgeLLMError, match=field):
        convert(folder(tmp_path / "hf", **changes), tmp_path / "m.gguf", outtype="f32")
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize("gone", ["embeddings.LayerNorm.bias", "encoder.layer.1.output.dense.bias"])
def test_a_tensor_that_is_missing_or_too_many(tmp_path: Path, gone: str) -> None:
    weights = tensors()
    more = weights | {"classifier.weight": np.zeros((2, DIM), np.float32)}
    with pytest.raises(MissingTensorError, match=gone):
        convert(folder(tmp_path / "a", {n: x for n, x in weights.items() if n != gone}), tmp_path / "m.gguf")
    with pytest.raises(ConvertError, match="classifier"):
        convert(folder(tmp_path / "b", more), tmp_path / "m.gguf")


def test_poolings_that_are_refused(tmp_path: Path) -> None:
    for config in ({"pooling_mode_max_tokens": True}, {}, {"pooling_mode": "max"},
                   {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}):  # fmt: skip
        sentence_transformers(tmp_path, config)
        with pytest.raises(UnsupportedFeatureError, match="pooling"):
            pooling_type(str(tmp_path))
    sentence_transformers(tmp_path, {"pooling_mode": "cls"}, ({"path": "2_Dense", "type": "x.Dense"},))
    with pytest.raises(UnsupportedFeatureError, match="Dense"):
        pooling_type(str(tmp_path))
    for where in ("../1_Pooling", "/etc", "", ".", "..", None, 3):
        rows = [{"path": where, "type": "sentence_transformers.models.Pooling"}]
        (tmp_path / "modules.json").write_text(json.dumps(rows))
        with pytest.raises(ConvertError, match="beside"):
            pooling_type(str(tmp_path))
    for text in ("{}", "[3]", "[", "[" * 100_000, "nan"):
        (tmp_path / "modules.json").write_text(text)
        with pytest.raises(ModelFormatError, match="JSON"):
            pooling_type(str(tmp_path))
    (tmp_path / "modules.json").unlink()
    assert pooling_type(str(tmp_path)) == (None, [])


@given(st.binary(max_size=40) | st.text(alphabet='[]{},":aA0 ', max_size=40).map(str.encode))
def test_a_list_of_objects_or_a_typed_error(raw: bytes) -> None:
    try:
        rows = parse_objects(raw)
    except StrictJSONError:
        return
    assert rows == json.loads(raw) and all(isinstance(row, dict) for row in rows)
