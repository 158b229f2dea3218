"""Unigram against the sentencepiece package, and its normalisation map against damage."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.errors import TokenizerError
from edgellm.tokenizers import StreamDecoder, Tokenizer
from edgellm.tokenizers.vocab import read_vocab


@lru_cache
def trained(folder: Path, **options: Any) -> Any:
    import sentencepiece

    rng = np.random.default_rng(0)
    syllables = ["ka", "to", "mi", "ré", "sun", "qua", "li", "o", "日", "本"]
    lines = [" ".join("".join(rng.choice(syllables, rng.integers(1, 5))) for _ in range(12)) for _ in range(300)]
    (folder / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"), model_prefix=str(folder / "m"), model_type="unigram", minloglevel=2,
        num_threads=1, hard_vocab_limit=False, vocab_size=400, **options,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "m.model"))


def charsmap_of(path: Path) -> bytes:
    """normalizer_spec.precompiled_charsmap of a model file (fields 3 and 2 of sentencepiece_model.proto)."""

    def fields(data: bytes) -> dict[int, bytes]:
        found, at = {}, 0

        def number() -> int:
            nonlocal at
            value = shift = 0
            while True:
                byte = data[at]
                at += 1
                value |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    return value

        while at < len(data):
            tag = number()
            if tag & 7 == 0:
                number()
            elif tag & 7 == 5:
                at += 4
            else:
                n = number()
                found[tag >> 3] = data[at : at + n]
                at += n
        return found

    return fields(fields(path.read_bytes())[3]).get(2, b"")


def tokenizer(sp: Any, charsmap: bytes, **flags: bool) -> Tokenizer:
    n = sp.get_piece_size()
    kinds = ((sp.is_unknown, UNKNOWN), (sp.is_control, CONTROL), (sp.is_byte, BYTE), (sp.is_unused, UNUSED))
    types = [next((kind for test, kind in kinds if test(i)), NORMAL) for i in range(n)]
    found = {
        "model": "t5", "tokens": [sp.id_to_piece(i) for i in range(n)], "token_type": np.array(types, np.int32),
        "scores": np.array([sp.get_score(i) for i in range(n)], np.float32), "unknown_token_id": sp.unk_id(),
        "eos_token_id": sp.eos_id(), "precompiled_charsmap": np.frombuffer(charsmap, np.uint8), **flags,
    }  # fmt: skip
    return Tokenizer(read_vocab({f"tokenizer.ggml.{k}": v for k, v in found.items()}))


LETTERS = [*"katomirésunquali日本", " ", "  ", "x", "🙂", "\n", "<s>", "É", "ﬁ", "ｱ", "①", "\u00a0", "e\u0301", "\t"]


@pytest.mark.parametrize("byte_fallback", [True, False])
@pytest.mark.parametrize("rule, extra", [("nmt_nfkc", True), ("identity", False), ("nfkc_cf", True)])
def test_against_sentencepiece(tmp_path: Path, byte_fallback: bool, rule: str, extra: bool) -> None:
    sp = trained(tmp_path, byte_fallback=byte_fallback, normalization_rule_name=rule, remove_extra_whitespaces=extra)
    flags = {"add_space_prefix": True, "remove_extra_whitespaces": extra}
    t = tokenizer(sp, charsmap_of(tmp_path / "m.model"), **flags)
    rng = np.random.default_rng(1)
    for text in ["", " ", "a"] + ["".join(rng.choice(LETTERS, rng.integers(0, 40))) for _ in range(500)]:
        ids = t.encode(text, add_special=False)
        assert ids == sp.encode(text), repr(text)
        if t.unk_id not in ids:
            assert t.encode(t.decode(ids), add_special=False) == ids
        stream = StreamDecoder(t)
        assert "".join(map(stream.push, ids)) + stream.flush() == t.decode(ids)
    assert t.encode("ka")[-1] == t.eos_id


def small(**keys: Any) -> Tokenizer:
    pieces = ["<pad>", "</s>", "<unk>", "a", "b", "ab", "▁a", "▁", "[x]", "bb▁"]
    found = {
        "model": "t5", "tokens": pieces, "scores": np.array([0, 0, 0, -2, -2, -3, -2.5, -3, -9, -4], np.float32),
        "token_type": np.array([CONTROL, CONTROL, UNKNOWN, *[NORMAL] * 5, USER_DEFINED, NORMAL], np.int32), **keys,
    }  # fmt: skip
    return Tokenizer(read_vocab({f"tokenizer.ggml.{k}": v for k, v in found.items()}))


def test_best_sum_wins_across_words() -> None:
    t = small()
    pieces = [t.piece(i) for i in t.encode("abbb a[x]</s>", add_special=False)]
    assert pieces == ["ab", "bb▁", "a", "[x]", "<unk>"]
    with pytest.raises(TokenizerError, match="spaces"):
        small(treat_whitespace_as_suffix=True)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80))
def test_damaged_maps_are_refused_or_harmless(data: bytes) -> None:
    for blob in (data, len(data[: len(data) // 8 * 4]).to_bytes(4, "little") + data + b"\0"):
        try:
            t = small(precompiled_charsmap=np.frombuffer(blob, np.uint8))
        except TokenizerError as error:
            assert error.rule == "V8"
        else:
            t.encode("ab \u00e9" + data.decode("utf-8", "replace"))
