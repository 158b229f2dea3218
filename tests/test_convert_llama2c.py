"""llama2.c checkpoints: tensors, tokenizer, and what is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from convert_inputs import llama2c_bytes, tok_bytes
from helpers import tiny_vocab
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.convert import convert
from edgellm.convert.llama2c import read_tokenizer
from edgellm.errors import ConvertError, EdgeLLMError, InvalidArgumentError, ModelFormatError, TokenizerError
from edgellm.gguf import open_gguf
from edgellm.tokenizers import Tokenizer


def write(folder: Path, raw: bytes | None = None, tok: bytes | None = None) -> tuple[Path, Path]:
    (folder / "m.bin").write_bytes(llama2c_bytes()[0] if raw is None else raw)
    (folder / "tok.bin").write_bytes(tok_bytes() if tok is None else tok)
    return folder / "m.bin", folder / "tok.bin"


@pytest.mark.parametrize("tied", [True, False])
def test_every_tensor_arrives_under_its_gguf_name(tmp_path: Path, tied: bool) -> None:
    raw, tensors = llama2c_bytes(tied=tied)
    src, tok = write(tmp_path, raw)
    report = convert(src, tmp_path / "o.gguf", "f32", tok)
    assert report.types == {"F32": len(tensors)}
    with open_gguf(tmp_path / "o.gguf") as file:
        assert set(file.tensors) == set(tensors)
        for name, x in tensors.items():
            assert file.tensors[name].shape == x.shape
            assert file.data(name).tobytes() == x.tobytes(), name


def test_metadata_is_what_readers_expect(tmp_path: Path) -> None:
    src, tok = write(tmp_path)
    convert(src, tmp_path / "o.gguf", "f16", tok)
    with open_gguf(tmp_path / "o.gguf") as file:
        m = file.metadata
        assert (m["general.architecture"], m["general.name"], m["general.file_type"]) == ("llama", "m", 1)
        assert (m["llama.block_count"], m["llama.context_length"], m["llama.embedding_length"]) == (2, 32, 64)
        assert (m["llama.attention.head_count"], m["llama.attention.head_count_kv"]) == (4, 2)
        assert (m["llama.feed_forward_length"], m["llama.rope.dimension_count"]) == (96, 16)


def test_the_vocabulary_is_the_one_that_was_written(tmp_path: Path) -> None:
    src, tok = write(tmp_path)
    convert(src, tmp_path / "o.gguf", "f16", tok)
    pieces, scores, types = tiny_vocab()
    types[-2:] = [1, 1]  # llama2.c does not mark control pieces beyond the first three
    with open_gguf(tmp_path / "o.gguf") as file:
        assert file.metadata["tokenizer.ggml.tokens"] == pieces
        assert file.metadata["tokenizer.ggml.scores"].tolist() == scores
        assert file.metadata["tokenizer.ggml.token_type"].tolist() == types
    tokenizer = Tokenizer.from_file(tmp_path / "o.gguf")
    ids = tokenizer.encode("hello world")
    assert ids[0] == tokenizer.bos_id == 1
    assert tokenizer.decode(ids, skip_special=True) == "hello world"


def test_a_tokenizer_file_is_needed(tmp_path: Path) -> None:
    src, _ = write(tmp_path)
    with pytest.raises(InvalidArgumentError, match="--tokenizer"):
        convert(src, tmp_path / "o.gguf")
    assert not (tmp_path / "o.gguf").exists()


def header(**changes: int) -> bytes:
    values = {"dim": 64, "hidden": 96, "layers": 2, "heads": 4, "kv": 2, "vocab": 32, "seq": 32, **changes}
    return struct.pack("<7i", *values.values()) + bytes(1000)


BAD = [
    (llama2c_bytes()[0][:-1], "size"),
    (llama2c_bytes()[0] + b"\0", "size"),
    (llama2c_bytes()[0][:40], "size"),
    (header(heads=3), "n_heads"),
    (header(heads=64), "n_heads"),  # an odd head size
    (header(kv=3), "n_kv_heads"),
    (struct.pack("<ii", 0x616B3432, 1) + bytes(300), "version"),
]


@pytest.mark.parametrize(("raw", "field"), BAD)
def test_broken_checkpoints_are_refused(tmp_path: Path, raw: bytes, field: str) -> None:
    src, tok = write(tmp_path, raw)
    with pytest.raises(ModelFormatError) as caught:
        convert(src, tmp_path / "o.gguf", "f32", tok)
    assert caught.value.field == field
    assert not (tmp_path / "o.gguf").exists()


@pytest.mark.parametrize(
    "raw", [b"abc", b"hello, this is a text file and nothing else", header(layers=0), header(dim=-1)]
)
def test_files_of_another_kind_are_refused(tmp_path: Path, raw: bytes) -> None:
    src, tok = write(tmp_path, raw)
    with pytest.raises(ConvertError, match="neither"):
        convert(src, tmp_path / "o.gguf", "f32", tok)


TOK = tok_bytes()
BAD_TOK = [
    (b"", "empty"),
    (b"\1\0", "too short"),
    (struct.pack("<i", 0) + TOK[4:], "max_token_length"),
    (struct.pack("<i", -5) + TOK[4:], "max_token_length"),
    (TOK[:-1], "length of piece"),
    (TOK + b"\0", "more pieces"),
    (TOK[:40], "length of piece"),
    (struct.pack("<ifi", 7, float("nan"), 1) + b"a", "not finite"),
    (struct.pack("<ifi", 7, 0.0, -1) + b"a", "length of piece 0"),
    (struct.pack("<ifi", 7, 0.0, 1) + b"a", "fewer pieces"),
]


@pytest.mark.parametrize(("tok", "match"), BAD_TOK)
def test_broken_tokenizers_are_refused(tmp_path: Path, tok: bytes, match: str) -> None:
    src, path = write(tmp_path, tok=tok)
    with pytest.raises(ModelFormatError, match=match):
        convert(src, tmp_path / "o.gguf", "f32", path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.bin", "tok.bin"]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(TOK) - 1), st.binary(min_size=1, max_size=4), st.integers(0, 3))
def test_mutated_tokenizers_are_refused_or_have_the_right_number_of_pieces(
    tmp_path_factory: pytest.TempPathFactory, at: int, patch: bytes, cut: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "tok.bin"
    path.write_bytes((TOK[:at] + patch + TOK[at + len(patch) :])[: len(TOK) - cut])
    n = len(tiny_vocab()[0])
    try:
        pieces = read_tokenizer(path, n)
    except EdgeLLMError as error:
        assert isinstance(error, TokenizerError)
    else:
        assert len(pieces) == n
        assert all(np.isfinite(score) for _, score in pieces)


def test_the_output_of_run_c_is_reproduced(tmp_path: Path, shared_data: Path) -> None:
    import edgellm

    folder = shared_data / "stories260K"
    convert(folder / "stories260K.bin", tmp_path / "s.gguf", "f32", folder / "tok512.bin")
    with edgellm.load(tmp_path / "s.gguf") as model:
        text = model.generate("", max_tokens=200, temperature=0).text
    assert text + "\n" == (folder / "greedy-200.txt").read_text()
