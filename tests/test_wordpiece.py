"""WordPiece on small vocabularies: spelling, cleaning, special tokens, settings, size."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from helpers import CONTROL, NORMAL, UNKNOWN
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.errors import TokenizerError
from edgellm.tokenizers import StreamDecoder, Tokenizer
from edgellm.tokenizers.vocab import read_vocab

SPECIAL = {"[PAD]": CONTROL, "[UNK]": UNKNOWN, "[CLS]": CONTROL, "[SEP]": CONTROL, "[MASK]": CONTROL}
PIECES = ["▁un", "aff", "able", "▁a", "b", "▁b", "a", "▁,", "▁!", "▁日", "▁本", "▁[", "▁]", "▁un", "▁UN", "▁é", "▁e"]


def tokenizer(**keys: Any) -> Tokenizer:
    pieces = list(dict.fromkeys([*SPECIAL, *PIECES]))
    found = {
        "model": "bert", "tokens": pieces,
        "token_type": np.array([SPECIAL.get(p, NORMAL) for p in pieces], np.int32),
        "unknown_token_id": 1, "cls_token_id": 2, "seperator_token_id": 3, "padding_token_id": 0, **keys,
    }  # fmt: skip
    return Tokenizer(read_vocab({f"tokenizer.ggml.{k}": v for k, v in found.items() if v is not None}, "v.gguf"))


CASES = [
    ("unaffable", ["▁un", "aff", "able"]),
    ("UNaffable, a!", ["▁un", "aff", "able", "▁,", "▁a", "▁!"]),
    ("abab", ["▁a", "b", "a", "b"]),
    ("a\tb\n\u00a0a\u3000b", ["▁a", "▁b", "▁a", "▁b"]),
    ("a\x00\x01\ufffd\u200bb", ["▁a", "b"]),  # control and format characters go without a trace
    ("a日本b", ["▁a", "▁日", "▁本", "▁b"]),
    ("é e\u0301 E", ["▁e", "▁e", "▁e"]),
    ("xyz a unx", ["[UNK]", "▁a", "[UNK]"]),
    ("a" * 101, ["[UNK]"]),
    ("ab" * 50, ["▁a", "b"] + ["a", "b"] * 49),
    ("[CLS]", ["▁[", "[UNK]", "▁]"]),
    ("  \n", []),
]


@pytest.mark.parametrize("text, pieces", CASES)
def test_words(text: str, pieces: list[str]) -> None:
    t = tokenizer()
    assert [t.piece(i) for i in t.encode(text, add_special=False)] == pieces
    assert t.encode(text) == [2, *t.encode(text, add_special=False), 3]


def test_settings_of_the_file() -> None:
    cased = tokenizer(**{"normalizer.lowercase": False})
    assert [cased.piece(i) for i in cased.encode("UN é", add_special=False)] == ["▁UN", "▁é"]
    both = tokenizer(**{"normalizer.strip_accents": False})
    assert [both.piece(i) for i in both.encode("UN É", add_special=False)] == ["▁un", "▁é"]
    assert tokenizer(add_sep_token=False).encode("a")[-1] != 3
    assert tokenizer(add_bos_token=False).encode("a")[0] != 2
    with pytest.raises(TokenizerError, match="unknown token"):
        tokenizer(unknown_token_id=None)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="unafble ,!日本[]É\n", max_size=40))
def test_what_is_decoded_gives_the_same_tokens(text: str) -> None:
    t = tokenizer()
    ids = t.encode(text, add_special=False)
    assert t.encode(t.decode(ids), add_special=False, parse_special=True) == ids
    stream = StreamDecoder(t)
    assert "".join(map(stream.push, ids)) + stream.flush() == t.decode(ids)
    assert not set(ids) & {0, 2, 3, 4}


@pytest.mark.parametrize("letter", ["a", " ", "🙂", "日", "!"])
def test_megabytes_of_one_letter(letter: str) -> None:
    text = letter * (2_000_000 // len(letter.encode()))
    start = time.process_time()
    tokenizer().encode(text)
    assert time.process_time() - start < 5
