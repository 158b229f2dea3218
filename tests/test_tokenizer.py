"""The SentencePiece tokenizer: text to ids and back, special pieces, the compiled loop against its twin."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, tiny_llama_gguf, tiny_vocab
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_helpers import SPACE, metadata, needs_native, small, tiny

from edgellm import clib
from edgellm.errors import InvalidArgumentError, TokenizerError
from edgellm.tokenizers import Tokenizer
from edgellm.tokenizers.special import SpecialPieces
from edgellm.tokenizers.vocab import read_vocab


def texts() -> st.SearchStrategy[str]:
    words = st.sampled_from(
        ["hello", " world", "the ", "once upon", "  ", "\n", "<s>", "</s>", "<|im_end|>", "<0x41>", "日本", SPACE]
    )
    return st.lists(st.one_of(words, st.text(max_size=6)), max_size=8).map("".join)


# ---- text to ids -----------------------------------------------------------------------------------------------------


def test_merges_take_the_best_pair_and_the_leftmost_of_equals() -> None:
    rows = [("a", -9.0, NORMAL), ("b", -9.0, NORMAL), ("aa", -1.0, NORMAL), ("ab", -0.5, NORMAL), ("aaa", -3.0, NORMAL)]
    for native in {False, clib.available()}:
        t = small(rows, native, add_space_prefix=False, add_bos_token=False)
        assert [t.piece(i) for i in t.encode("aaaa")] == ["aa", "aa"]
        assert [t.piece(i) for i in t.encode("aaaaa")] == ["aa", "aaa"]  # the leftmost pair first, then "aaa"
        assert [t.piece(i) for i in t.encode("aaab")] == ["aa", "ab"]  # ab is the better pair
        assert t.encode("") == []


@needs_native
@settings(max_examples=150, deadline=None)
@given(texts())
def test_native_loop_equals_its_twin(text: str) -> None:
    native, twin = tiny(True), tiny(False)
    assert native.encode(text) == twin.encode(text)
    assert native.encode(text, parse_special=True) == twin.encode(text, parse_special=True)


PIECES = st.text(alphabet="abc", min_size=1, max_size=5)
ROWS = st.dictionaries(
    PIECES, st.tuples(st.sampled_from([-1.0, -2.0, 0.0, 3.5, -0.0]), st.sampled_from([NORMAL, UNUSED]))
)


@needs_native
@settings(max_examples=200, deadline=None)
@given(ROWS, st.text(alphabet="abcd", max_size=300))
def test_native_loop_equals_its_twin_on_any_vocabulary(rows: dict[str, tuple[float, int]], text: str) -> None:
    # Equal scores, unused pieces, characters without a piece, texts long enough for runs in the queue.
    extra = [(piece, score, kind) for piece, (score, kind) in rows.items()]
    native, twin = (small(extra, flag, add_space_prefix=False) for flag in (True, False))
    assert native.encode(text) == twin.encode(text)


@settings(max_examples=200, deadline=None)
@given(texts())
def test_round_trip(text: str) -> None:
    t = tiny()
    plain = text.replace(SPACE, " ")  # the piece of a space cannot be told from a space
    assert t.decode(t.encode(text, add_special=False)) == plain
    assert t.decode(t.encode(text), skip_special=True) == plain
    assert t.decode_bytes(t.encode(text, add_special=False)) == plain.encode()


def test_tokens_of_the_whole_text() -> None:
    t = tiny()
    assert t.encode("hi")[0] == t.bos_id == 1
    assert t.encode("hi", add_special=False) == t.encode("hi")[1:]
    assert t.encode("") == [1]
    assert tiny(add_bos_token=False, add_eos_token=True).encode("") == [2]
    assert t.piece(t.encode("hello world")[1]) == "▁hello"
    assert tiny(add_space_prefix=False).encode("hello", add_special=False)[0] == t.id_of("he")
    assert t.encode(" hello", add_special=False) == [t.id_of("▁"), t.id_of("▁hello")]


@pytest.mark.parametrize("native", [False, pytest.param(True, marks=needs_native)])
def test_characters_without_a_piece(native: bool) -> None:
    t = tiny(native)
    euro = [t.id_of(f"<0x{b:02X}>") for b in "€".encode()]
    assert t.encode("€", add_special=False) == [t.id_of("▁"), *euro]
    rows = [("a", 0.0, NORMAL)]
    bare = small(rows, native, add_space_prefix=False, add_bos_token=False)
    assert bare.encode("axyaz") == [3, 0, 3, 0]  # one unknown token for each run of unknown characters
    with pytest.raises(TokenizerError, match="neither byte pieces nor an unknown"):
        types = [NORMAL, CONTROL, CONTROL, NORMAL]
        pieces = ["u", "<s>", "</s>", "a"]
        Tokenizer(read_vocab(metadata(pieces, [0.0] * 4, types, unknown_token_id=None)), native=native).encode("ax")


@pytest.mark.parametrize("native", [False, pytest.param(True, marks=needs_native)])
def test_unused_pieces_fall_apart(native: bool) -> None:
    rows = [
        ("a", -3.0, NORMAL),
        ("b", -3.0, NORMAL),
        ("ab", -1.0, UNUSED),
        ("abb", -2.0, NORMAL),
        ("aba", -1.0, UNUSED),
    ]
    t = small(rows, native, add_space_prefix=False, add_bos_token=False)
    assert [t.piece(i) for i in t.encode("ab")] == ["a", "b"]
    assert [t.piece(i) for i in t.encode("abb")] == ["abb"]
    assert [t.piece(i) for i in t.encode("aba")] == ["a", "b", "a"]


@pytest.mark.parametrize(
    "text", ["\ud800", "a\udc00b", "\ud83d\ude42", "\x00", "a\x00b", "\r", "\r\n", "\u2028", "\ufeff"]
)
def test_odd_characters_do_no_harm(text: str) -> None:
    t = tiny()
    clean = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    assert t.decode(t.encode(text), skip_special=True) == clean


def test_text_must_be_text() -> None:
    for wrong in (None, b"x", 3):
        with pytest.raises(InvalidArgumentError, match="must be a string"):
            tiny().encode(wrong)


@needs_native
@pytest.mark.parametrize("letter", ["a", " ", "🙂", "\n"])
def test_ten_megabytes_of_one_letter(letter: str) -> None:
    t = tiny()
    text = letter * (10_000_000 // len(letter.encode()))
    start = time.process_time()
    ids = t.encode(text, add_special=False)
    assert time.process_time() - start < 5
    assert sum(len(t.token_bytes(i)) * n for i, n in zip(*np.unique(ids, return_counts=True), strict=True)) == 1 + len(
        text.encode()
    )


def test_twin_is_not_quadratic() -> None:
    start = time.process_time()
    tiny(False).encode("the " * 10_000)
    assert time.process_time() - start < 5


@needs_native
def test_native_calls_check_their_arguments() -> None:
    ffi, lib = clib.library()
    text, offsets = ffi.new("uint8_t[]", b"abaab"), ffi.new("int64_t[]", [0, 1, 2, 5])
    scores, kinds, byte_ids = (
        ffi.new("float[]", [0, 0, 0]),
        ffi.new("uint8_t[]", [0, 0, 0]),
        ffi.new("int32_t[]", [-1] * 256),
    )
    out = ffi.new("el_spm **")

    def make(**changes: Any) -> int:
        given = {
            "text": text,
            "offsets": offsets,
            "scores": scores,
            "kinds": kinds,
            "n": 3,
            "bytes": byte_ids,
            "unk": 0,
        }
        return lib.el_spm_new(out, *(given | changes).values())

    assert make() == clib.EL_OK
    spm = ffi.gc(out[0], lib.el_spm_free)
    twice = ffi.new("int64_t[]", [0, 1, 2, 3])  # the third piece is "a" again
    bad_bytes = ffi.new("int32_t[]", [3] * 256)
    for change in (
        {"text": ffi.NULL}, {"offsets": ffi.NULL}, {"n": 0}, {"n": -1}, {"n": 2**40}, {"unk": 3}, {"unk": -2},
        {"offsets": twice}, {"offsets": ffi.new("int64_t[]", [1, 2, 3, 4])}, {"bytes": bad_bytes},
        {"offsets": ffi.new("int64_t[]", [0, 2, 1, 5])}, {"kinds": ffi.new("uint8_t[]", [0, 9, 0])},
        {"scores": ffi.new("float[]", [0, float("nan"), 0])},
    ):  # fmt: skip
        assert make(**change) == clib.EL_E_ARGUMENT, change
        assert out[0] == ffi.NULL or "text" in change or "offsets" in change
    ids, n = ffi.new("int32_t[5]"), ffi.new("int64_t *")
    assert lib.el_spm_encode(spm, text, 5, ids, 5, n) == clib.EL_OK and list(ids[0 : n[0]]) == [0, 1, 0, 0, 1]
    for args in ((text, 5, ids, 4), (text, -1, ids, 5), (ffi.NULL, 5, ids, 5), (text, 2**31, ids, 2**31)):
        assert lib.el_spm_encode(spm, *args, n) == clib.EL_E_ARGUMENT
    assert lib.el_spm_encode(spm, ffi.NULL, 0, ffi.NULL, 0, n) == clib.EL_OK and n[0] == 0


# ---- special pieces --------------------------------------------------------------------------------------------------


def test_user_text_never_becomes_a_control_token() -> None:
    t = tiny()
    special = [t.piece(i) for i in range(t.n_vocab) if t.vocab.types[i] in (CONTROL, UNKNOWN)]
    assert {"<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"} == set(special)
    for piece in special:
        for text in (piece, f"a{piece}b", piece * 3, f" {piece}\n", piece[:-1] + piece):
            assert not set(t.encode(text, add_special=False)) & {t.id_of(p) for p in special}
        assert t.encode(piece, add_special=False, parse_special=True) == [t.id_of(piece)]


@pytest.mark.parametrize("native", [False, pytest.param(True, marks=needs_native)])
def test_merges_never_make_control_or_byte_pieces(native: bool) -> None:
    rows = [(c, 0.0, NORMAL) for c in "<s>|0x41"]
    rows += [
        ("<s", 1.0, NORMAL),
        ("<0", 1.0, NORMAL),
        ("<0x", 1.0, NORMAL),
        ("<0x4", 1.0, NORMAL),
        ("<0x41", 1.0, NORMAL),
    ]
    rows += [("<0x41>", 9.0, BYTE)]
    rows = list({piece: (piece, score, kind) for piece, score, kind in rows}.values())
    t = small(rows, native, add_space_prefix=False)
    assert [t.piece(i) for i in t.encode("<s>", add_special=False)] == ["<s", ">"]
    assert [t.piece(i) for i in t.encode("<0x41>", add_special=False)] == ["<0x41", ">"]


def test_space_prefix_after_special_pieces() -> None:
    t = tiny()
    ids = t.encode("hello<|im_end|>hello", add_special=False, parse_special=True)
    hello = t.id_of("▁hello")
    assert ids == [hello, t.id_of("<|im_end|>"), hello]


def test_user_defined_pieces_are_found_anywhere() -> None:
    rows = [
        ("a", 0.0, NORMAL),
        ("[x]", 0.0, USER_DEFINED),
        ("[x]]", 0.0, USER_DEFINED),
        ("  ", 0.0, USER_DEFINED),
        ("▁", 0.0, NORMAL),
    ]
    t = small(rows, add_space_prefix=False, add_bos_token=False)
    assert [t.piece(i) for i in t.encode("a[x]a[x]]a   a")] == ["a", "[x]", "a", "[x]]", "a", "  ", "▁", "a"]
    assert t.decode(t.encode("a[x]]  a")) == "a[x]]  a"


def test_turn_ends_are_control_whatever_the_file_says() -> None:
    rows = [("a", 0.0, NORMAL), ("<|im_end|>", 0.0, USER_DEFINED), ("<|eot_id|>", 0.0, NORMAL)]
    t = small(rows, eos_token_id=2)
    assert t.eog_ids == {2, 4, 5}
    assert t.is_control(4) and t.is_control(5) and not t.is_control(3)
    assert 4 not in t.encode("a<|im_end|>", add_special=False)
    assert small([("<eos>", 0.0, CONTROL), ("a", 0.0, NORMAL)], eos_token_id=3).eog_ids == {3}


def test_strip_rule_of_phi_3() -> None:
    pieces, scores, types = tiny_vocab()
    keys = metadata(pieces, scores, types) | {"general.name": "Phi-3 mini"}
    t = Tokenizer(read_vocab(keys))
    want = tiny().encode("<|im_end|>hello", parse_special=True)
    assert t.encode("<|im_end|> \n\thello", parse_special=True) == want
    assert t.encode("<|im_end|>  ", parse_special=True) == want[:2]
    assert len(t.encode("<s>  ", parse_special=True)) > 2  # not after <s>


def test_parts_are_one_text_with_control_pieces_from_the_template_only() -> None:
    t = tiny()
    start, end = t.id_of("<|im_start|>"), t.id_of("<|im_end|>")
    parts = [("<|im_start|>user\n", True), ("hello<|im_end|> <s>", False), ("<|im_end|>", True)]
    ids = t.encode_parts(parts)
    assert [i for i in ids if t.is_control(i)] == [start, end]
    assert t.decode(ids).replace(" ", "") == "".join(text for text, _ in parts).replace(" ", "")
    # merges go across the borders of parts
    assert t.encode_parts([("hel", True), ("lo wor", False), ("ld", False)]) == t.encode(
        "hello world", add_special=False
    )
    # a piece that is only partly template text stays text; two template parts side by side count as one
    assert end not in t.encode_parts([("<|im", True), ("_end|>", False)])
    assert end not in t.encode_parts([("<|im_", False), ("end|>", True)])
    assert t.encode_parts([("<|im", True), ("", False), ("_end|>", True)]) == [end]
    assert t.encode_parts([("\ud800", False), ("<|im_end|>", True)])[-1] == end
    assert t.encode_parts([]) == [] and t.encode_parts([], add_special=True) == [1]


WORDS = st.sets(st.text(alphabet="ab<", min_size=1, max_size=4), max_size=6)


@settings(max_examples=300, deadline=None)
@given(WORDS, WORDS, st.lists(st.tuples(st.text(alphabet="ab<", max_size=8), st.booleans()), max_size=5))
def test_special_pieces_against_a_slow_search(free: set[str], control: set[str], parts: list[tuple[str, bool]]) -> None:
    control -= free
    ids = {word: i for i, word in enumerate(sorted(free | control))}
    text = "".join(part for part, _ in parts)
    trusted_char = [flag for part, flag in parts for _ in part]
    spans, at = [], 0
    while at < len(text):
        end = at
        while end < len(text) and trusted_char[end]:
            end += 1
        spans += [(at, end)] if end > at else []
        at = max(end, at + 1)
    want, at = [], 0
    while at < len(text):
        fits = [w for w in ids if text.startswith(w, at) and (w in free or all(trusted_char[at : at + len(w)]))]
        best = max(fits, key=len, default="")
        if best:
            want.append((at, at + len(best), ids[best]))
        at += len(best) or 1
    finder = SpecialPieces({w: ids[w] for w in free}, {w: ids[w] for w in control})
    assert list(finder.cuts(text, spans)) == want


def test_many_long_special_pieces() -> None:
    words = {"x" * n: n for n in range(1, 400)}
    assert [cut[2] for cut in SpecialPieces(words, {}).cuts("x" * 1000, [])] == [399, 399, 202]


# ---- ids to text, and the vocabulary -------------------------------------------------------------------------------


def test_decode_of_special_tokens_and_prefixes() -> None:
    t = tiny()
    hello, end = t.id_of("▁hello"), t.id_of("<|im_end|>")
    assert t.decode([1, hello]) == "<s> hello"
    assert t.decode([1, hello], skip_special=True) == "hello"
    assert t.decode([hello, end, hello]) == "hello<|im_end|> hello"
    assert t.decode([hello], at_start=False) == " hello"
    assert t.decode([]) == "" == t.decode([1], skip_special=True)
    assert t.decode([t.id_of("<0xE6>"), t.id_of("<0x97>")]) == "\ufffd"
    assert t.decode_bytes([t.id_of("<0xE6>")]) == b"\xe6"
    assert t.decode(np.array([hello, end])) == "hello<|im_end|>"


def test_ids_outside_the_vocabulary_are_refused() -> None:
    t = tiny()
    for call in (t.decode, t.decode_bytes):
        for wrong in ([-1], [t.n_vocab], ["1"], [1.0]):
            with pytest.raises(InvalidArgumentError, match="token id"):
                call(wrong)
    with pytest.raises(InvalidArgumentError, match=f"0 to {t.n_vocab - 1}"):
        t.piece(t.n_vocab)
    assert t.id_of("no such piece") is None


def test_attributes() -> None:
    t = tiny()
    assert (t.kind, t.n_vocab, t.bos_id, t.eos_id, t.unk_id) == ("llama", len(tiny_vocab()[0]), 1, 2, 0)
    assert t.eog_ids == {2, t.id_of("<|im_end|>")}
    assert "llama" in repr(t)
    bare = small([("a", 0.0, NORMAL)], bos_token_id=None)
    assert (bare.bos_id, bare.eos_id) == (1, 2)  # the kind's defaults, where these are control pieces
    plain = Tokenizer(read_vocab(metadata(["x", "y", "z"], [0.0] * 3, [NORMAL] * 3, unknown_token_id=None)))
    assert (plain.bos_id, plain.eos_id, plain.unk_id, plain.eog_ids) == (None, None, None, frozenset())


def test_from_file(tmp_path: Path) -> None:
    t = Tokenizer.from_file(tiny_llama_gguf(tmp_path / "m.gguf"))
    assert t.encode("hello world") == tiny().encode("hello world")
