"""Tiny models and vocabularies that the tests make themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgellm.blocks import BY_NAME
from edgellm.gguf import GGUFFile, GGUFWriter
from edgellm.quants import quantize

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # token types of tokenizer.ggml.token_type

_TEXT = (
    # pieces; all their prefixes are pieces too
    "▁t he ▁the in er on re ▁a nd ▁and ▁w ou ▁s at en it is or ed ▁o ing ▁c ar es ▁to ▁in ▁he ▁of ll ▁b ow "
    "▁you ld ▁hello ▁world o. ▁once ▁upon ▁time é ü 日 本 日本 🙂"
)


def tiny_vocab() -> tuple[list[str], list[float], list[int]]:
    """A sentencepiece-style vocabulary: pieces, scores and token types.

    0 `<unk>`, 1 `<s>`, 2 `</s>`, 3 to 258 the bytes, then merged pieces (earlier ones have higher scores), "▁",
    printable ASCII and a few other characters, and at the end the control tokens `<|im_start|>` and `<|im_end|>`. Every
    merged piece can be reached by merging two others.
    """
    words = _TEXT.split()
    merged = [p for word in words for p in (word[: i + 1] for i in range(1, len(word)))]
    single = ["▁", *(chr(c) for c in range(33, 127)), *(w for w in words if len(w) == 1)]
    normal = list(dict.fromkeys(merged + single))
    control = ["<|im_start|>", "<|im_end|>"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *normal, *control]
    scores = [0.0] * 259 + [-float(i) for i in range(len(normal))] + [0.0] * len(control)
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(normal) + [CONTROL] * len(control)
    return pieces, scores, types


def tiny_llama_gguf(
    path: str | Path,
    *,
    n_layers: int = 2,
    dim: int = 64,
    n_heads: int = 4,
    n_kv_heads: int = 2,
    head_dim: int | None = None,
    ffn: int = 96,
    n_ctx: int = 256,
    vocab: tuple[list[str], list[float], list[int]] | None = None,
    type: str = "F32",
    seed: int = 0,
    tied: bool = False,
    biases: bool = False,
    **extra_metadata: Any,
) -> Path:
    """Write a Llama with random weights and the vocabulary of `tiny_vocab`; returns the path.

    `type` is that of the matrices; rows that are no multiple of its block are F32, norms and biases always. Metadata in
    `extra_metadata` is added or replaces a key: `**{"llama.rope.freq_base": 5e5}`; None leaves the key out.
    """
    pieces, scores, types = vocab or tiny_vocab()
    head = head_dim or dim // n_heads
    metadata: dict[str, Any] = {
        "general.name": "tiny test model",
        "general.alignment": 32,
        "llama.context_length": n_ctx,
        "llama.embedding_length": dim,
        "llama.block_count": n_layers,
        "llama.feed_forward_length": ffn,
        "llama.attention.head_count": n_heads,
        "llama.attention.head_count_kv": n_kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": head,
        "llama.vocab_size": len(pieces),
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": np.array(scores, dtype=np.float32),
        "tokenizer.ggml.token_type": np.array(types, dtype=np.int32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
    }
    if head_dim:
        metadata |= {"llama.attention.key_length": head, "llama.attention.value_length": head}
    metadata |= extra_metadata
    shapes = _llama_shapes(n_layers, dim, n_heads * head, n_kv_heads * head, ffn, len(pieces), tied, biases)
    rng = np.random.default_rng(seed)
    with GGUFWriter(path, "llama") as w:
        for key, value in metadata.items():
            if value is not None:
                w.add(key, value)
        kinds = {name: _tensor_type(shape, type) for name, shape in shapes.items()}
        for name, shape in shapes.items():
            w.add_tensor_info(name, shape, kinds[name])
        for name, shape in shapes.items():
            w.write_tensor(name, quantize(_random_weights(rng, name, shape), kinds[name]))
    return Path(path)


def _tensor_type(shape: tuple[int, ...], type: str) -> str:
    return type if len(shape) > 1 and shape[-1] % BY_NAME[type].block_size == 0 else "F32"


def _llama_shapes(
    n_layers: int, dim: int, q_dim: int, kv_dim: int, ffn: int, n_vocab: int, tied: bool, biases: bool
) -> dict[str, tuple[int, ...]]:
    """GGUF tensor names and shapes (rows first) of a Llama."""
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (n_vocab, dim)}
    for i in range(n_layers):
        block: dict[str, tuple[int, ...]] = {
            "attn_norm.weight": (dim,),
            "attn_q.weight": (q_dim, dim),
            "attn_k.weight": (kv_dim, dim),
            "attn_v.weight": (kv_dim, dim),
            "attn_output.weight": (dim, q_dim),
            "ffn_norm.weight": (dim,),
            "ffn_gate.weight": (ffn, dim),
            "ffn_up.weight": (ffn, dim),
            "ffn_down.weight": (dim, ffn),
        }
        if biases:
            block |= {"attn_q.bias": (q_dim,), "attn_k.bias": (kv_dim,), "attn_v.bias": (kv_dim,)}
            block |= {"attn_output.bias": (dim,)}
        shapes |= {f"blk.{i}.{name}": shape for name, shape in block.items()}
    shapes["output_norm.weight"] = (dim,)
    if not tied:
        shapes["output.weight"] = (n_vocab, dim)
    return shapes


def _random_weights(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 of `shape`: norms near 1, biases small, matrices scaled by their row length."""
    x = rng.standard_normal(shape, dtype=np.float32)
    if "norm" in name:
        return 1 + np.float32(0.1) * x
    if name.endswith(".bias"):
        return np.float32(0.1) * x
    scale = 1.0 if name == "token_embd.weight" else 1 / np.sqrt(shape[-1])
    return np.float32(scale) * x


def compare_with_peer(f: GGUFFile, peer: Any) -> None:
    """Assert that an open file holds exactly what the gguf package's GGUFReader finds in it."""
    assert [t.name for t in peer.tensors] == list(f.tensors)
    for t in peer.tensors:
        info = f.tensors[t.name]
        found = (info.offset, info.n_bytes, info.type.id, info.shape)
        assert found == (t.data_offset, t.n_bytes, t.tensor_type, tuple(int(n) for n in reversed(t.shape)))
        assert (f.data(t.name) == np.ascontiguousarray(t.data).reshape(-1).view(np.uint8)).all()
    fields = {k: v for k, v in peer.fields.items() if not k.startswith("GGUF.")}
    assert set(fields) == set(f.metadata)
    for key, field in fields.items():
        have, want = _plain(f.metadata[key]), field.contents()
        assert have == (list(want) if isinstance(have, list) else want), key


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value
