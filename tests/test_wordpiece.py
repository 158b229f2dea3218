"""WordPiece on small vocabularies: spelling, cleaning, special tokens, settings, size."""

from __future__ import annotations

import time
import unicodedata
from typing import Any

import numpy as np
import pytest
from helpers import CONTROL, NORMAL, UNKNOWN
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_helpers import needs_native

from edgellm import clib
from edgellm.errors import TokenizerError
from edgellm.tokenizers import StreamDecoder, Tokenizer
from edgellm.tokenizers.characters import category
from edgellm.tokenizers.vocab import read_vocab
from edgellm.tokenizers.wordpiece import without_accents

SPECIAL = {"[PAD]": CONTROL, "[UNK]": UNKNOWN, "[CLS]": CONTROL, "[SEP]": CONTROL, "[MASK]": CONTROL}
PIECES = ["▁un", "aff", "able", "▁a", "b", "▁b", "a", "▁,", "▁!", "▁日", "▁本", "▁[", "▁]", "▁un", "▁UN", "▁é", "▁e"]


def tokenizer(native: bool | None = None, **keys: Any) -> Tokenizer:
    pieces = list(dict.fromkeys([*SPECIAL, *PIECES]))
    found = {
        "model": "bert", "tokens": pieces,
        "token_type": np.array([SPECIAL.get(p, NORMAL) for p in pieces], np.int32),
        "unknown_token_id": 1, "cls_token_id": 2, "seperator_token_id": 3, "padding_token_id": 0, **keys,
    }  # fmt: skip
    table = {f"tokenizer.ggml.{k}": v for k, v in found.items() if v is not None}
    return Tokenizer(read_vocab(table, "v.gguf"), native=native)


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


LETTERS = st.text(alphabet="abé▁日Å", min_size=1, max_size=4)


@needs_native
@settings(max_examples=300, deadline=None)
@given(st.sets(LETTERS, max_size=20), st.text(alphabet="abABé▁日 \u0301\u0323\u302e!\n", max_size=150), st.booleans())
def test_native_spelling_equals_its_twin_on_any_vocabulary(extra: set[str], text: str, lowercase: bool) -> None:
    pieces = list(dict.fromkeys([*SPECIAL, *extra, *("▁" + piece for piece in extra)]))
    types = np.array([SPECIAL.get(p, NORMAL) for p in pieces], np.int32)
    changes = {"tokens": pieces, "token_type": types, "normalizer.lowercase": lowercase}
    native, twin = tokenizer(True, **changes), tokenizer(False, **changes)
    ids = native.encode(text)
    assert ids == twin.encode(text)
    stream = StreamDecoder(native)
    assert "".join(map(stream.push, ids)) + stream.flush() == native.decode(ids)


def test_a_mark_inside_a_word_is_no_beginning() -> None:
    pieces = [*SPECIAL, "▁a", "▁b", "b", "▁▁b", "▁"]
    changes = {"tokens": pieces, "token_type": np.array([SPECIAL.get(p, NORMAL) for p in pieces], np.int32)}
    for native in {False, clib.available()}:
        t = tokenizer(native, **changes)
        assert [t.piece(i) for i in t.encode("a▁b ▁b a▁", add_special=False)] == ["▁a", "▁", "b", "▁▁b", "▁a", "▁"]


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=20), st.text(alphabet="\u0301\u0323\u302e\u1161\U0001d165e각", max_size=20))
def test_accents_go_as_unicode_says(one: str, two: str) -> None:
    text = one + two
    marks = {c for c in unicodedata.normalize("NFD", text) if category_mn(c)}
    assert without_accents(text) == "".join(c for c in unicodedata.normalize("NFD", text) if c not in marks)


def category_mn(c: str) -> bool:
    return any(a <= ord(c) < b for a, b in category("Mn"))


@needs_native
def test_native_calls_check_their_arguments() -> None:
    ffi, lib = clib.library()
    out, n = ffi.new("el_wordpiece **"), ffi.new("int64_t *")
    text, offsets, ids = ffi.new("uint8_t[]", b"aab"), ffi.new("int64_t[]", [0, 1, 3]), ffi.new("int32_t[]", [0, 1])
    given = {
        "begin": text, "begin_offsets": offsets, "begin_ids": ids, "n_begin": 2,
        "next": text, "next_offsets": offsets, "next_ids": ids, "n_next": 2, "n": 3, "unk": 2, "most": 9,
    }  # fmt: skip

    def make(**changes: Any) -> int:
        return lib.el_wordpiece_new(out, *(given | changes).values())

    assert make() == clib.EL_OK
    wordpiece = ffi.gc(out[0], lib.el_wordpiece_free)
    for change in (
        {"begin": ffi.NULL}, {"next_ids": ffi.NULL}, {"n": 1}, {"unk": 3}, {"unk": -1}, {"most": 0}, {"n_next": -1},
        {"next_offsets": ffi.new("int64_t[]", [0, 2, 1])}, {"begin_offsets": ffi.new("int64_t[]", [0, 0, 3])},
    ):  # fmt: skip
        assert make(**change) == clib.EL_E_ARGUMENT, change
    words, room = ffi.new("uint8_t[]", b"aab b  a"), ffi.new("int32_t[8]")
    assert lib.el_wordpiece_encode(wordpiece, words, 8, room, 8, n) == clib.EL_OK
    assert list(room[0 : n[0]]) == [0, 1, 2, 0]
    for args in ((words, 8, room, 7), (words, -1, room, 8), (ffi.NULL, 8, room, 8)):
        assert lib.el_wordpiece_encode(wordpiece, *args, n) == clib.EL_E_ARGUMENT


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
