"""llama2.c checkpoints (https://github.com/karpathy/llama2.c): the first, unversioned `.bin` form, and its tokenizer.

Layout (`legacy_export` of its export.py): seven int32 (dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size,
seq_len; a negative vocab_size says that the head is not tied), then float32 matrices, each kind for all layers in turn.
Its RoPE rotates neighbours, which is what GGUF's llama family stores too, so q and k need no permutation.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ..errors import ModelFormatError, TokenizerError
from ..gguf.source import MappedFile
from .pieces import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, byte_of_piece
from .pipeline import Conversion, Weight, size_label

_HEADER = struct.Struct("<7i")
_FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
_LIMITS = (1 << 20, 1 << 22, 1024, 1 << 16, 1 << 16, 1 << 24, 1 << 30)
_MAGIC = 0x616B3432  # "ak42": the later, versioned exports
_NORM_EPS = 1e-5
_ROPE_THETA = 10000.0
MAX_PIECE = 1 << 16  # bytes


@dataclass(frozen=True)
class Header:
    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    seq_len: int
    tied: bool

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    def sections(self) -> list[tuple[str, tuple[int, ...]]]:
        """The matrices in file order: GGUF suffix and shape with the layers first. Empty names are not needed."""
        n, d, kv, h = self.n_layers, self.dim, self.n_kv_heads * self.head_dim, self.hidden_dim
        out: list[tuple[str, tuple[int, ...]]] = [
            ("token_embd", (self.vocab_size, d)),
            ("attn_norm", (n, 1, d)), ("attn_q", (n, d, d)), ("attn_k", (n, kv, d)), ("attn_v", (n, kv, d)),
            ("attn_output", (n, d, d)), ("ffn_norm", (n, 1, d)), ("ffn_gate", (n, h, d)), ("ffn_down", (n, d, h)),
            ("ffn_up", (n, h, d)), ("output_norm", (1, d)), ("", (2, self.seq_len, self.head_dim // 2)),
        ]  # fmt: skip
        return out if self.tied else [*out, ("output", (self.vocab_size, d))]


def looks_like(path: str) -> bool:
    """Whether a file could be a llama2.c checkpoint: seven plausible numbers at its start, or its later magic."""
    file = MappedFile(path)
    try:
        if file.size < _HEADER.size:
            return False
        values = list(_HEADER.unpack_from(file.buffer, 0))
    finally:
        file.close()
    values[5] = abs(values[5])  # negative: the head is not tied
    return values[0] == _MAGIC or all(0 < v <= top for v, top in zip(values, _LIMITS, strict=True))


class Checkpoint:
    """A checked, mapped checkpoint; `weights` reads from it until `close`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = MappedFile(path)
        self.path = self._file.path
        try:
            with self._file.reading():
                self.header = self._read_header()
                self._check_size()
        except BaseException:
            self._file.close()
            raise

    def _fail(self, message: str, field: str, value: Any, limit: Any, offset: int) -> Any:
        raise ModelFormatError(message, path=self.path, field=field, value=value, limit=limit, offset=offset)

    def _read_header(self) -> Header:
        if self._file.size < _HEADER.size:
            self._fail("too short for a llama2.c checkpoint", "size", self._file.size, "at least 28 bytes", 0)
        values = list(_HEADER.unpack_from(self._file.buffer, 0))
        if values[0] == _MAGIC:
            self._fail(
                "this versioned llama2.c export is not supported; export it as version 0 (legacy)",
                "version", values[1], "0 (without a magic number)", 4,
            )  # fmt: skip
        tied = values[5] > 0
        values[5] = abs(values[5])
        for i, (name, value, top) in enumerate(zip(_FIELDS, values, _LIMITS, strict=True)):
            if not 0 < value <= top:
                self._fail(
                    "this is no llama2.c checkpoint: a header field is out of range", name, value, f"1 to {top}", 4 * i
                )
        h = Header(*values, tied)
        if h.dim % h.n_heads or h.head_dim % 2:
            self._fail("heads do not divide the width into even parts", "n_heads", h.n_heads, f"divides {h.dim}", 12)
        if h.n_heads % h.n_kv_heads:
            self._fail("heads do not share the KV heads evenly", "n_kv_heads", h.n_kv_heads, f"divides {h.n_heads}", 16)
        return h

    def _check_size(self) -> None:
        want = _HEADER.size + 4 * sum(prod(shape) for _, shape in self.header.sections())
        if self._file.size != want:
            self._fail("the file size does not match its header; it is cut off or no llama2.c checkpoint",
                       "size", self._file.size, f"{want} bytes", _HEADER.size)  # fmt: skip

    def weights(self) -> list[Weight]:
        """All tensors under their GGUF names, layer by layer."""
        h, at, place = self.header, _HEADER.size, {}
        for name, shape in h.sections():
            place[name] = (at, shape)
            at += 4 * prod(shape)
        out = [self._weight("token_embd.weight", *place["token_embd"])]
        per_layer = [name for name, shape in h.sections() if len(shape) == 3 and name]
        for layer in range(h.n_layers):
            for name in per_layer:
                first, (_, rows, k) = place[name]
                shape = (k,) if name.endswith("_norm") else (rows, k)
                out.append(self._weight(f"blk.{layer}.{name}.weight", first + 4 * layer * rows * k, shape))
        out.append(self._weight("output_norm.weight", place["output_norm"][0], (h.dim,)))
        return out if h.tied else [*out, self._weight("output.weight", *place["output"])]

    def _weight(self, name: str, offset: int, shape: tuple[int, ...]) -> Weight:
        k = shape[-1]

        def rows(start: int, stop: int) -> np.ndarray:
            first, count = offset + 4 * start * k, (stop - start) * k
            with self._file.reading():
                x = np.frombuffer(self._file.buffer, dtype="<f4", count=count, offset=first).astype(np.float32)
            self._file.advise_dont_need(first, 4 * count)
            return x.reshape(stop - start, k)

        return Weight(name, shape, rows, source=self.path)

    def close(self) -> None:
        self._file.close()


# ---- the tokenizer file ----------------------------------------------------------------------------------------------


def read_tokenizer(path: str | os.PathLike[str], n_vocab: int) -> list[tuple[bytes, float]]:
    """Pieces and scores of a tokenizer file: int32 longest piece, then per piece float32 score, int32 length, bytes.

    Raises TokenizerError when the file does not hold exactly `n_vocab` pieces.
    """
    file = MappedFile(path)
    try:
        with file.reading():
            return _read_pieces(file, n_vocab)
    finally:
        file.close()


def _read_pieces(file: MappedFile, n_vocab: int) -> list[tuple[bytes, float]]:
    def fail(message: str, field: str, value: Any, limit: Any) -> Any:
        raise TokenizerError(message, path=file.path, offset=at, field=field, value=value, limit=limit)

    buf, at, out = file.buffer, 0, []
    if file.size < 4:
        fail("too short for a llama2.c tokenizer", "size", file.size, "at least 4 bytes")
    (longest,) = struct.unpack_from("<i", buf, 0)
    at = 4
    if not 0 < longest <= MAX_PIECE:
        fail("this is no llama2.c tokenizer", "max_token_length", longest, f"1 to {MAX_PIECE}")
    for i in range(n_vocab):
        if file.size - at < 8:
            fail("the tokenizer has fewer pieces than the model", "pieces", i, n_vocab)
        score, length = struct.unpack_from("<fi", buf, at)
        if not np.isfinite(score):
            fail("a score is not finite", f"score of piece {i}", score, "a number")
        if not 0 <= length <= min(longest + 16, file.size - at - 8):  # the special pieces are not counted in `longest`
            fail("a piece has a bad length", f"length of piece {i}", length, f"0 to {longest}")
        out.append((buf[at + 8 : at + 8 + length], score))
        at += 8 + length
    if at != file.size:
        fail("the tokenizer has more pieces than the model", "size", file.size, f"{at} bytes")
    return out


def tokenizer_keys(pieces: list[tuple[bytes, float]], path: str) -> list[tuple[str, Any, str | None]]:
    """GGUF keys of the vocabulary. In llama2.c pieces 1 and 2 begin and end a text, and spaces stand as spaces."""
    if len(pieces) < 3:
        raise TokenizerError("a llama2.c vocabulary has at least three pieces", path=path, value=len(pieces), limit=3)
    texts, types = ["<unk>", "<s>", "</s>"], [UNKNOWN, CONTROL, CONTROL]
    for i, (raw, _) in enumerate(pieces[3:], start=3):
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise TokenizerError("a piece is not UTF-8", path=path, field=f"piece {i}", value=raw) from None
        types.append(NORMAL if byte_of_piece(text) is None else BYTE)
        texts.append(text.replace(" ", SPACE))
    return [
        ("tokenizer.ggml.model", "llama", "str"),
        ("tokenizer.ggml.pre", "default", "str"),
        ("tokenizer.ggml.tokens", texts, "str"),
        ("tokenizer.ggml.scores", [score for _, score in pieces], "f32"),
        ("tokenizer.ggml.token_type", types, "i32"),
        ("tokenizer.ggml.bos_token_id", 1, "u32"),
        ("tokenizer.ggml.eos_token_id", 2, "u32"),
        ("tokenizer.ggml.unknown_token_id", 0, "u32"),
        ("tokenizer.ggml.add_bos_token", True, "bool"),
        ("tokenizer.ggml.add_eos_token", False, "bool"),
        ("tokenizer.ggml.add_space_prefix", True, "bool"),
    ]


def read(checkpoint: Checkpoint, tokenizer: str | os.PathLike[str]) -> Conversion:
    """What `edgellm convert` writes for a checkpoint and its tokenizer."""
    h = checkpoint.header
    weights = checkpoint.weights()
    name = os.path.splitext(os.path.basename(checkpoint.path))[0] or "llama2.c"
    keys: list[tuple[str, Any, str | None]] = [
        ("general.type", "model", "str"),
        ("general.name", name, "str"),
        ("general.size_label", size_label(sum(prod(w.shape) for w in weights)), "str"),
        ("llama.block_count", h.n_layers, "u32"),
        ("llama.context_length", h.seq_len, "u32"),
        ("llama.embedding_length", h.dim, "u32"),
        ("llama.feed_forward_length", h.hidden_dim, "u32"),
        ("llama.attention.head_count", h.n_heads, "u32"),
        ("llama.attention.head_count_kv", h.n_kv_heads, "u32"),
        ("llama.rope.freq_base", _ROPE_THETA, "f32"),
        ("llama.attention.layer_norm_rms_epsilon", _NORM_EPS, "f32"),
        ("llama.attention.key_length", h.head_dim, "u32"),
        ("llama.attention.value_length", h.head_dim, "u32"),
        ("llama.vocab_size", h.vocab_size, "u32"),
        ("llama.rope.dimension_count", h.head_dim, "u32"),
    ]
    path = os.fspath(tokenizer)
    if not isinstance(path, str):
        path = os.fsdecode(path)
    return Conversion(
        "llama", keys, tokenizer_keys(read_tokenizer(path, h.vocab_size), path), weights,
        sources=[checkpoint.path, path],
    )  # fmt: skip
