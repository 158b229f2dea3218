"""The SentencePiece tokenizer against the sentencepiece package and llama.cpp's vectors."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED
from tokenizer_helpers import SPACE, metadata, needs_native

from edgellm import clib
from edgellm.tokenizers import Tokenizer
from edgellm.tokenizers.vocab import read_vocab


@lru_cache(maxsize=3)
def _vocab(path: Path) -> Any:
    return Tokenizer.from_file(path).vocab


def _from_sentencepiece(sp: Any, native: bool | None = None) -> Tokenizer:
    n = sp.get_piece_size()
    kinds = ((sp.is_unknown, UNKNOWN), (sp.is_control, CONTROL), (sp.is_byte, BYTE), (sp.is_unused, UNUSED))
    types = [next((kind for test, kind in kinds if test(i)), NORMAL) for i in range(n)]
    pieces = [sp.id_to_piece(i) for i in range(n)]
    prefix = sp.encode_as_pieces("q")[0].startswith(SPACE)
    scores = [sp.get_score(i) for i in range(n)]
    keys = metadata(pieces, scores, types, unknown_token_id=sp.unk_id(), add_space_prefix=prefix, add_bos_token=False)
    return Tokenizer(read_vocab(keys), native=native)


def _train(tmp_path: Path, **options: Any) -> Any:
    """A little SentencePiece BPE model, trained on text made here."""
    import sentencepiece

    rng = np.random.default_rng(0)
    syllables = ["ka", "to", "mi", "ré", "sun", "qua", "li", "o", "日", "本"]
    lines = [" ".join("".join(rng.choice(syllables, rng.integers(1, 5))) for _ in range(12)) for _ in range(300)]
    (tmp_path / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"), model_prefix=str(tmp_path / "m"), model_type="bpe", minloglevel=2,
        normalization_rule_name="identity", remove_extra_whitespaces=False, num_threads=1, **options,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))


def _with_unused(path: Path, ids: list[int]) -> Any:
    """The model in `path` with some pieces made unused (sentencepiece_model.proto: ModelProto.pieces is field 1)."""
    import sentencepiece

    raw, out, at, index = path.read_bytes(), b"", 0, 0
    while raw[at] == 0x0A:  # field 1, a message of fewer than 126 bytes
        piece = raw[at + 2 : at + 2 + raw[at + 1]]
        at += 2 + len(piece)
        piece += b"\x18\x05" if index in ids else b""  # type = UNUSED; the last value of a field counts
        out += bytes([0x0A, len(piece)]) + piece
        index += 1
    return sentencepiece.SentencePieceProcessor(model_proto=out + raw[at:])


@pytest.mark.parametrize("byte_fallback", [True, False])
def test_against_sentencepiece(tmp_path: Path, byte_fallback: bool) -> None:
    sp = _train(tmp_path, vocab_size=420 if byte_fallback else 164, byte_fallback=byte_fallback)
    unused = [i for i in range(sp.get_piece_size()) if not sp.is_byte(i) and i % 3 == 1 and i > 2]
    sp_unused = _with_unused(tmp_path / "m.model", unused)
    assert sp_unused.is_unused(unused[0])
    rng = np.random.default_rng(1)
    letters = list("katomirésunquali日本") + [" ", "  ", "x", "🙂", "\n", SPACE, "<s>", "\x00", "É"]
    samples = ["", " ", "a"] + ["".join(rng.choice(letters, rng.integers(0, 60))) for _ in range(400)]
    for model in (sp, sp_unused):
        for native in {False, clib.available()}:
            t = _from_sentencepiece(model, native)
            for text in samples:
                assert t.encode(text) == model.encode(text), repr(text)


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "llama", "mistral", "mixtral", "phi3"])
def test_against_sentencepiece_on_books(shared_data: Path, name: str) -> None:
    import sentencepiece

    sp = sentencepiece.SentencePieceProcessor(model_file=str(shared_data / "hf-tiny" / name / "tokenizer.model"))
    t = _from_sentencepiece(sp)
    lines = (shared_data / "text" / "grimm.txt").read_text(encoding="utf-8").split("\n")[:1500]
    lines += (shared_data / "text" / "wikitext2-test.txt").read_text(encoding="utf-8").split("\n")[:300]
    for line in lines:
        ids = t.encode(line)
        assert ids == sp.encode(line)
        assert t.decode(ids) == line


BPE = ["deepseek-coder", "deepseek-llm", "gpt-2", "llama-bpe", "mpt", "qwen2", "starcoder"]


@pytest.mark.parametrize("name", ["llama-spm", "phi-3", *BPE])
@pytest.mark.parametrize("native", [False, pytest.param(True, marks=needs_native)])
def test_vectors_of_llama_cpp(shared_data: Path, name: str, native: bool) -> None:
    path = shared_data / "vocab" / f"ggml-vocab-{name}.gguf"
    t = Tokenizer(_vocab(path), native=native)
    cases = Path(f"{path}.inp").read_bytes().decode("utf-8").split("\n__ggml_vocab_test__\n")
    want = [[int(i) for i in line.split()] for line in Path(f"{path}.out").read_text().split("\n")]
    assert len(cases) >= 46
    for text, ids in zip(cases, want, strict=True):
        assert t.encode(text, add_special=False) == ids, repr(text)
        assert t.decode(ids) == text


def test_wordpiece_vectors(shared_data: Path) -> None:
    path = shared_data / "vocab" / "ggml-vocab-bert-bge.gguf"
    t = Tokenizer(_vocab(path))
    cases = Path(f"{path}.inp").read_bytes().decode("utf-8").split("\n__ggml_vocab_test__\n")
    want = [[int(i) for i in line.split()] for line in Path(f"{path}.out").read_text().split("\n")]
    assert len(cases) >= 46
    for text, ids in zip(cases, want, strict=True):
        assert t.encode(text, add_special=False) == ids, repr(text)
        assert t.encode(text) == [t.id_of("[CLS]"), *ids, t.id_of("[SEP]")]
        assert t.encode(t.decode(ids), add_special=False, parse_special=True) == ids


@pytest.mark.parametrize("name", ["llama-spm", "phi-3", "bert-bge", *BPE])
def test_special_pieces_of_real_vocabularies_stay_text(shared_data: Path, name: str) -> None:
    t = Tokenizer(_vocab(shared_data / "vocab" / f"ggml-vocab-{name}.gguf"))
    special = [i for i in range(t.n_vocab) if t.vocab.types[i] in (CONTROL, UNKNOWN)]
    assert special
    for i in special:
        piece = t.piece(i)
        for text in (piece, f"x{piece}y", f"{piece}{piece}", f"{piece[:2]}{piece}{piece[2:]}"):
            assert not set(t.encode(text, add_special=False)) & set(special)
            parts = [(t.piece(special[-1]), True), (text, False)]
            assert [k for k in t.encode_parts(parts) if k in special] == [special[-1]]
            if name != "bert-bge":  # cleans text
                assert t.decode(t.encode(text, add_special=False)) == text
