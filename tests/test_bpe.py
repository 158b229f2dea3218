"""Byte-level BPE: the loops against each other, the rules on hand-made cases, round trips, size and bad input."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from helpers import BYTE, CONTROL, NORMAL, USER_DEFINED
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_helpers import needs_native

from edgellm import clib
from edgellm.tokenizers import StreamDecoder, Tokenizer
from edgellm.tokenizers.bpe import byte_alphabet
from edgellm.tokenizers.patterns import Patterns
from edgellm.tokenizers.pretokenizers import RULES
from edgellm.tokenizers.vocab import read_vocab

MERGES = [
    "h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "l d", "Ġwor ld", "Ġ Ġ", "ĠĠ ĠĠ", "a a", "aa aa", "aa b",
    "Ã ©", "1 2", "12 3", "' s", "Ċ Ċ", "ð Ł", "ðŁ ĺ", "< |", "<| e", "<|e n", "<|en d", "<|end |", "<|end| >",
]  # fmt: skip


def keys(kind: str = "gpt2", pre: str = "gpt-2", merges: list[str] | None = None, **more: Any) -> dict[str, Any]:
    merges = MERGES if merges is None else merges
    pieces = list(byte_alphabet()) if kind == "gpt2" else [f"<0x{b:02X}>" for b in range(256)] + list("▁abcé\n🙂")
    types = [NORMAL if kind == "gpt2" else BYTE] * 256 + [NORMAL] * (len(pieces) - 256)
    pieces += dict.fromkeys(merge.replace(" ", "") for merge in merges)
    types += [NORMAL] * (len(pieces) - len(types))
    for piece, kind_of in (("<s>", CONTROL), ("</s>", CONTROL), ("<|end|>", CONTROL), ("[x]", USER_DEFINED)):
        if piece in pieces:
            types[pieces.index(piece)] = kind_of
        else:
            pieces.append(piece)
            types.append(kind_of)
    found = {
        "model": kind, "pre": pre, "tokens": pieces, "token_type": np.array(types, np.int32), "merges": merges,
        "bos_token_id": pieces.index("<s>"), "eos_token_id": pieces.index("</s>"), **more,
    }  # fmt: skip
    return {f"tokenizer.ggml.{name}": value for name, value in found.items()}


@lru_cache
def tokenizer(pre: str = "gpt-2", native: bool | None = None, kind: str = "gpt2") -> Tokenizer:
    merges = None if kind == "gpt2" else ["▁ a", "▁a b", "a a", "aa a", "é é", "\n \n"]
    return Tokenizer(read_vocab(keys(kind, pre, merges)), native=native)


WORDS = st.sampled_from(
    ["hello", " world", "hello world", "'s", "'S", "aaaaab", "  ", "\n\n", "\r\n", "1234", " 12", "é", "🙂", "<|end|>",
     "[x]", "<s>", "日本", "ÀÉ", "x́", "\u2003", "٣", "\u00a0", "Ǆ", "'ſ", "!?", "//"]
)  # fmt: skip
TEXTS = st.lists(st.one_of(WORDS, st.text(max_size=5)), max_size=8).map("".join)
ONE_NAME_PER_RULE = list({rule: name for name, rule in reversed(RULES.items()) if name != "gemma4"}.values())


@pytest.mark.parametrize("pre", ONE_NAME_PER_RULE)
@settings(max_examples=60, deadline=None)
@given(TEXTS)
def test_round_trip_twin_and_stream(pre: str, text: str) -> None:
    native, twin = tokenizer(pre), tokenizer(pre, False)
    ids = native.encode(text, add_special=False)
    assert ids == twin.encode(text, add_special=False)
    assert native.decode(ids) == text and native.decode_bytes(ids) == text.encode()
    stream = StreamDecoder(native)
    assert "".join(map(stream.push, ids)) + stream.flush() == text
    assert not set(ids) & native.control_ids
    parsed = native.encode(text, parse_special=True, add_special=False)
    assert parsed == twin.encode(text, parse_special=True, add_special=False)
    assert native.decode(parsed) == text


@needs_native
@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), unique=True, max_size=12), st.data())
def test_merge_loops_agree_on_any_merges(pairs: list[tuple[int, int]], data: st.DataObject) -> None:
    pieces = ["a", "b", "c"]
    merges = []
    for left, right in pairs:
        a, b = pieces[left % len(pieces)], pieces[right % len(pieces)]
        if f"{a} {b}" not in merges and len(a + b) < 40:
            merges.append(f"{a} {b}")
            pieces.append(a + b)
    table = keys(merges=merges)
    native, twin = Tokenizer(read_vocab(table), native=True), Tokenizer(read_vocab(table), native=False)
    text = data.draw(st.text(alphabet="abc ", max_size=300))
    assert native.encode(text) == twin.encode(text)


CASES = {
    "gpt-2": ("I'll  go 1234\n\n x!!", ["I", "'ll", " ", " go", " 1234", "\n\n", " x", "!!"]),
    "llama-bpe": ("I'LL  go 12345\n\n x!!\n y", ["I", "'LL", " ", " go", " ", "123", "45", "\n\n", " x", "!!\n", " y"]),
    "qwen2": ("a123 \n b", ["a", "1", "2", "3", " \n", " b"]),
    "qwen35": ("नमस्ते 12", ["नमस्ते", " ", "1", "2"]),
    "deepseek-llm": ("a b\n  日本x 12", ["a", " b", "\n", "  ", "日本", "x", " ", "12"]),
    "deepseek-coder": ("a12 !?日本", ["a", "1", "2", " !?", "日本"]),
    "falcon": ("a$$ 12345 b 1", ["a", "$$", " ", "123", "45", " b", " ", "1"]),
    "starcoder": ("a 12'll", ["a", " ", "1", "2", "'ll"]),
    "gpt-4o": ("HelloWorld's ABCdef 12345//\n", ["Hello", "World's", " ABCdef", " ", "123", "45", "//\n"]),
    "tekken": ("HelloWorld's 12", ["Hello", "World", "'s", " ", "1", "2"]),
    "gemma4": ("a b\n\nc\n", ["a b", "\n\n", "c", "\n"]),
}


@pytest.mark.parametrize("pre", CASES)
def test_words_of_the_rules(pre: str) -> None:
    text, words = CASES[pre]
    ends = Patterns(RULES[pre].expressions).split(np.array([ord(c) for c in text], np.uint32)).tolist()
    assert [text[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)] == words


def test_every_rule_compiles() -> None:
    for rule in set(RULES.values()):
        assert Patterns(rule.expressions).split(np.zeros(0, np.uint32)).tolist() == []


def test_whole_words_come_before_merges() -> None:
    merges = ["b c", "a b", "ab c"]  # merges alone give a, bc
    for native in {False, clib.available()}:
        for pre, pieces in (("smaug-bpe", ["a", "bc"]), ("llama-bpe", ["abc"])):
            t = Tokenizer(read_vocab(keys(pre=pre, merges=merges)), native=native)
            assert [t.piece(i) for i in t.encode("abc", add_special=False)] == pieces


def test_special_tokens_of_rules() -> None:
    assert tokenizer("llama-bpe").encode("a")[0] == tokenizer("llama-bpe").bos_id
    assert tokenizer("gpt-2").encode("a") == [tokenizer("gpt-2").id_of("a")]
    t = Tokenizer(read_vocab(keys(pre="llama-bpe", add_bos_token=False, add_eos_token=True)))
    assert t.encode("a") == [t.id_of("a"), t.eos_id]


def test_merges_never_make_control_pieces() -> None:
    for native in {False, clib.available()}:
        for pre in ("gpt-2", "llama-bpe"):
            t = tokenizer(pre, native)
            assert t.id_of("<|end|>") not in t.encode("<|end|>", add_special=False)
            assert t.encode("<|end|>", add_special=False, parse_special=True) == [t.id_of("<|end|>")]


def test_characters_with_byte_pieces() -> None:
    for native in {False, clib.available()}:
        t = tokenizer("gemma4", native, "gemma4")
        assert t.encode("a")[0] == t.bos_id
        assert [t.piece(i) for i in t.encode("ab ab\n\nz🙂€", add_special=False)] == [
            "a", "b", "▁ab", "\n\n", "<0x7A>", "🙂", "<0xE2>", "<0x82>", "<0xAC>",
        ]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(TEXTS)
def test_characters_round_trip(text: str) -> None:
    native, twin = tokenizer("gemma4", None, "gemma4"), tokenizer("gemma4", False, "gemma4")
    ids = native.encode(text, add_special=False)
    assert ids == twin.encode(text, add_special=False)
    assert native.decode(ids) == text.replace("▁", " ")


def test_a_byte_without_piece() -> None:
    table = keys()
    pieces = table["tokenizer.ggml.tokens"]
    pieces[pieces.index("q")] = "qq"
    for native in {False, clib.available()}:
        t = Tokenizer(read_vocab(table), native=native)
        assert t.encode("q") == [] and t.encode("aqa") == [t.id_of("aa")]
        t = Tokenizer(read_vocab(table | {"tokenizer.ggml.unknown_token_id": 5}), native=native)
        assert t.encode("aq") == [t.id_of("a"), 5]


@needs_native
@pytest.mark.parametrize("pre", ONE_NAME_PER_RULE)
def test_megabytes_of_one_letter(pre: str) -> None:
    """10 MB for one rule, 1 MB for the others; tools/tokenizer_parity.py has 10 MB for all."""
    t, size = tokenizer(pre), 10_000_000 if pre == "llama-bpe" else 1_000_000
    for letter in ("a", " ", "🙂", "7", "\n"):
        text = letter * (size // len(letter.encode()))
        start = time.process_time()
        ends = t._model.word_ends(text)
        ids = t._model._native.encode(text.encode(), ends)
        assert time.process_time() - start < 5, letter
        assert ends[-1] == size and len(ids) <= size


@needs_native
def test_native_calls_check_their_arguments() -> None:
    ffi, lib = clib.library()
    out, n = ffi.new("el_bpe **"), ffi.new("int64_t *")
    given = {
        "text": ffi.new("uint8_t[]", b"abab"), "offsets": ffi.new("int64_t[]", [0, 1, 2, 4]),
        "kinds": ffi.new("uint8_t[]", [0, 0, 0]), "n": 3, "merges": ffi.new("int32_t[]", [0, 1, 2]), "n_merges": 1,
        "bytes": ffi.new("int32_t[256]", [0] * 256), "unk": -1, "whole": 0, "characters": 0,
    }  # fmt: skip

    def make(**changes: Any) -> int:
        return lib.el_bpe_new(out, *(given | changes).values())

    assert make() == clib.EL_OK
    bpe = ffi.gc(out[0], lib.el_bpe_free)
    for change in (
        {"text": ffi.NULL}, {"merges": ffi.NULL}, {"n": 0}, {"n": -1}, {"n": 2**40}, {"n_merges": -1}, {"unk": 3},
        {"whole": 3}, {"whole": -1}, {"offsets": ffi.new("int64_t[]", [0, 2, 1, 4])},
        {"merges": ffi.new("int32_t[]", [0, 1, 3])}, {"merges": ffi.new("int32_t[]", [0, -2, 1])},
        {"merges": ffi.new("int32_t[]", [0, 1, 2, 0, 1, 2]), "n_merges": 2}, {"kinds": ffi.new("uint8_t[]", [0, 9, 0])},
        {"bytes": ffi.new("int32_t[256]", [3] * 256)}, {"offsets": ffi.new("int64_t[]", [0, 1, 2, 3])},
    ):  # fmt: skip
        assert make(**change) == clib.EL_E_ARGUMENT, change
    ids, text = ffi.new("int32_t[4]"), given["text"]
    ends = ffi.new("int64_t[]", [2, 4])
    assert lib.el_bpe_encode(bpe, text, 4, ends, 2, ids, 4, n) == clib.EL_OK and n[0] == 4
    for args in (
        (text, 4, ends, 1, ids, 4), (text, 4, ends, 0, ids, 4), (text, 4, ends, 2, ids, 3), (text, -1, ends, 2, ids, 4),
        (ffi.NULL, 4, ends, 2, ids, 4), (text, 3, ends, 2, ids, 4), (text, 4, ffi.new("int64_t[]", [4, 4]), 2, ids, 4),
    ):  # fmt: skip
        assert lib.el_bpe_encode(bpe, *args, n) == clib.EL_E_ARGUMENT
