"""Checkpoints that the converter's tests write by hand: safetensors, Hugging Face folders, llama2.c files."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from helpers import BYTE, NORMAL, tiny_vocab

DIM, N_HEADS, N_KV_HEADS, HEAD_DIM, FFN, N_LAYERS = 64, 4, 2, 16, 96, 2


def safetensors_bytes(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A file with this header (an object, or its raw bytes) and data; `length` overrides the header length."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def to_dtype(x: np.ndarray, dtype: str) -> bytes:
    """float32 values as the bytes of a safetensors element type (bf16 by cutting)."""
    if dtype == "BF16":
        return (np.ascontiguousarray(x, np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
    return x.astype({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]).tobytes()


def write_safetensors(path: Path, tensors: dict[str, np.ndarray], dtype: str = "F32") -> int:
    """A sound file; returns the bytes of its tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, x in tensors.items():
        raw = to_dtype(x, dtype)
        header[name] = {"dtype": dtype, "shape": list(x.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    path.write_bytes(safetensors_bytes(header, data))
    return len(data)


def config_json(**changes: Any) -> dict[str, Any]:
    """config.json of the tiny Llama; a change to `...` removes the field."""
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": DIM, "intermediate_size": FFN,
        "num_hidden_layers": N_LAYERS, "num_attention_heads": N_HEADS, "num_key_value_heads": N_KV_HEADS,
        "head_dim": HEAD_DIM, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False,
        "bos_token_id": 1, "eos_token_id": 2, "vocab_size": len(tiny_vocab()[0]),
    }  # fmt: skip
    config.update(changes)
    return {name: value for name, value in config.items() if value is not ...}


def llama_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights for a config; multiples of 1/64, so that f16 and bf16 hold them exactly."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return (rng.integers(-60, 61, shape) / 64).astype(np.float32)

    d, f, h = config["hidden_size"], config["intermediate_size"], config.get("head_dim") or HEAD_DIM
    q, kv = config["num_attention_heads"] * h, config.get("num_key_value_heads", N_HEADS) * h
    out = {"model.embed_tokens.weight": draw(config["vocab_size"], d)}
    for i in range(config["num_hidden_layers"]):
        p = f"model.layers.{i}"
        out[f"{p}.input_layernorm.weight"] = 1 + draw(d)
        for name, rows, k in (("q", q, d), ("k", kv, d), ("v", kv, d), ("o", d, q)):
            out[f"{p}.self_attn.{name}_proj.weight"] = draw(rows, k)
            if config.get("attention_bias"):
                out[f"{p}.self_attn.{name}_proj.bias"] = draw(rows)
        out[f"{p}.post_attention_layernorm.weight"] = 1 + draw(d)
        for name, rows, k in (("gate", f, d), ("up", f, d), ("down", d, f)):
            out[f"{p}.mlp.{name}_proj.weight"] = draw(rows, k)
            if config.get("mlp_bias"):
                out[f"{p}.mlp.{name}_proj.bias"] = draw(rows)
    out["model.norm.weight"] = 1 + draw(d)
    if not config.get("tie_word_embeddings"):
        out["lm_head.weight"] = draw(config["vocab_size"], d)
    return out


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def hf_folder(
    folder: Path, *, dtype: str = "F32", shards: int = 1, files: dict[str, Any] | None = None, **changes: Any
) -> dict[str, np.ndarray]:
    """Write a folder with the tiny vocabulary as tokenizer.model; `files`: more JSON files. Returns its tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    config = config_json(**changes)
    write_json(folder / "config.json", config)
    (folder / "tokenizer.model").write_bytes(sentencepiece_bytes())
    for name, value in (files or {}).items():
        write_json(folder / name, value)
    tensors = llama_tensors(config)
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, dtype)
        return tensors
    names = list(tensors)
    weight_map, total = {}, 0
    for i in range(shards):
        shard = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[i::shards]}
        total += write_safetensors(folder / shard, part, dtype)
        weight_map.update(dict.fromkeys(part, shard))
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})
    return tensors


# ---- sentencepiece's protocol buffer ---------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def message(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def piece_bytes(text: str | bytes, score: float, kind: int) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    body = message(1, raw) + varint(2 << 3 | 5) + struct.pack("<f", score)
    return message(1, body + (number(3, kind) if kind != NORMAL else b""))


def sentencepiece_bytes(
    pieces: list[tuple[str, float, int]] | None = None, *, model_type: int = 2, dummy_prefix: bool = True,
    charsmap: bytes = b"", pad_id: int = -1, escape: bool = True,
) -> bytes:  # fmt: skip
    """A tokenizer.model with these pieces (text, score, type), by default those of `tiny_vocab`."""
    rows = list(zip(*tiny_vocab(), strict=True)) if pieces is None else pieces
    out = b"".join(piece_bytes(*row) for row in rows)
    trainer = number(3, model_type) + number(40, 0) + number(41, 1) + number(42, 2) + number(43, pad_id)
    normalizer = message(1, b"identity") + (message(2, charsmap) if charsmap else b"")
    normalizer += number(3, int(dummy_prefix)) + number(4, 0) + number(5, int(escape))
    return out + message(2, trainer) + message(3, normalizer)


# ---- llama2.c --------------------------------------------------------------------------------------------------------


def llama2c_bytes(
    *, dim: int = 64, hidden: int = 96, layers: int = 2, heads: int = 4, kv_heads: int = 2, vocab: int | None = None,
    seq: int = 32, tied: bool = True, seed: int = 0,
) -> tuple[bytes, dict[str, np.ndarray]]:  # fmt: skip
    """A checkpoint and its tensors under their GGUF names."""
    rng = np.random.default_rng(seed)
    vocab = vocab or len(tiny_vocab()[0])
    kv = kv_heads * dim // heads
    per_layer = [("attn_norm", (dim,)), ("attn_q", (dim, dim)), ("attn_k", (kv, dim)), ("attn_v", (kv, dim)),
                 ("attn_output", (dim, dim)), ("ffn_norm", (dim,)), ("ffn_gate", (hidden, dim)),
                 ("ffn_down", (dim, hidden)), ("ffn_up", (hidden, dim))]  # fmt: skip
    tensors, raw = {}, struct.pack("<7i", dim, hidden, layers, heads, kv_heads, vocab if tied else -vocab, seq)

    def put(name: str, shape: tuple[int, ...]) -> None:
        nonlocal raw
        x = rng.standard_normal(shape).astype(np.float32)
        raw += x.tobytes()
        tensors[name] = x

    put("token_embd.weight", (vocab, dim))
    for name, shape in per_layer:
        for layer in range(layers):
            put(f"blk.{layer}.{name}.weight", shape)
    put("output_norm.weight", (dim,))
    raw += bytes(4 * seq * dim // heads)
    if not tied:
        put("output.weight", (vocab, dim))
    return raw, tensors


def tok_bytes(pieces: list[tuple[bytes, float]] | None = None) -> bytes:
    """A llama2.c tokenizer file, by default with the tiny vocabulary."""
    if pieces is None:
        texts, scores, types = tiny_vocab()
        pieces = [(t.replace("▁", " ").encode(), s) for t, s in zip(texts, scores, strict=True)]
        pieces[1], pieces[2] = (b"\n<s>\n", 0.0), (b"\n</s>\n", 0.0)
        assert types[3] == BYTE
    longest = max(len(text) for text, _ in pieces)
    return struct.pack("<i", longest) + b"".join(struct.pack("<fi", s, len(t)) + t for t, s in pieces)
