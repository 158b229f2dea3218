"""Tables of strings in C against their twins in Python, on vocabularies that nobody checked."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_helpers import needs_native

from edgellm import clib
from edgellm.errors import TokenizerError
from edgellm.gguf import GGUFWriter, open_gguf
from edgellm.gguf.constants import ValueType
from edgellm.strings import StringIndex, StringTable, as_table, length_of_strings
from edgellm.tokenizers import Tokenizer
from edgellm.tokenizers.merges import byte_alphabet, merge_table, slow_spellings, spellings
from edgellm.tokenizers.spm import NEVER_PIECE, TEXT_PIECE
from edgellm.tokenizers.vocab import _Reader, check_pieces, read_vocab

NOT_UTF8 = [b"\x80", b"\xc0\x80", b"\xc1\xbf", b"\xc3", b"\xe0\x9f\xbf", b"\xed\xa0\x80", b"\xf0\x8f\xbf\xbf",
            b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"\xe2\x82", b"\xff", b"a\xf0\x9f\x98"]  # fmt: skip
UTF8 = [b"\x00", b"\x7f", b"\xc2\x80", b"\xdf\xbf", b"\xe0\xa0\x80", b"\xed\x9f\xbf", b"\xee\x80\x80", b"\xef\xbf\xbf",
        b"\xf0\x90\x80\x80", b"\xf4\x8f\xbf\xbf", b"eight by\xc3\xa9tes and more"]  # fmt: skip
STRINGS = st.one_of(
    st.text(max_size=4).map(str.encode), st.binary(max_size=3),
    st.sampled_from([*NOT_UTF8, *UTF8, b"", b"a b", b"x" * 40]),
)  # fmt: skip


def packed(strings: list[bytes]) -> bytes:
    """A GGUF array's items."""
    return b"".join(struct.pack("<Q", len(s)) + s for s in strings)


def table_of(strings: list[bytes]) -> StringTable:
    return StringTable.from_gguf(packed(strings), len(strings), native=False)


class Keys(dict[str, Any]):
    """Metadata whose arrays of strings are tables, as those of a file are."""

    @property
    def types(self) -> dict[str, Any]:
        return {k: (ValueType.ARRAY, ValueType.STRING) for k, v in self.items() if isinstance(v, StringTable)}

    def strings(self, key: str) -> StringTable:
        return self[key]


def outcome(call: Any) -> Any:
    """What a call gives, or the text of its TokenizerError."""
    try:
        return call()
    except TokenizerError as error:
        return str(error)


# ---- tables ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("native", [False, pytest.param(True, marks=needs_native)])
@settings(max_examples=100, deadline=None)
@given(strings=st.lists(STRINGS, max_size=20))
def test_a_table_gives_its_strings(native: bool, strings: list[bytes]) -> None:
    data = packed(strings)
    table = StringTable.from_gguf(data, len(strings), native)
    decoded = [s.decode("utf-8", "surrogateescape") for s in strings]
    assert list(table) == decoded == [table[i] for i in range(len(table))]
    assert table[:] == decoded and table[-2:] == decoded[-2:]
    assert [table.bytes_of(i) for i in range(len(table))] == strings
    again = StringTable.of(decoded)
    assert again.text == table.text and np.array_equal(again.offsets, table.offsets)
    assert as_table(table) is table
    assert length_of_strings(b"junk" + data + b"tail", 4, 4 + len(data) + 4, len(strings), native) == len(data)
    for bad in (len(table), -len(table) - 1):
        with pytest.raises(IndexError):
            table[bad]


@needs_native
@settings(max_examples=300, deadline=None)
@given(st.lists(STRINGS, min_size=1, max_size=8), st.data())
def test_damaged_arrays_are_refused_alike(strings: list[bytes], data: st.DataObject) -> None:
    """Cut anywhere, with a length changed to anything, or with more strings asked for than there are."""
    raw = bytearray(packed(strings))
    count = len(strings) + data.draw(st.integers(0, 2))
    if data.draw(st.booleans()):
        at = sum(8 + len(s) for s in strings[: data.draw(st.integers(0, len(strings) - 1))])
        length = data.draw(st.sampled_from([2**63 - 1, 2**63, 2**64 - 1, 2**64 - 8, len(raw), len(raw) - at]))
        raw[at : at + 8] = struct.pack("<Q", length)
    cut = bytes(raw[: data.draw(st.integers(1, len(raw)))])
    slow, fast = (length_of_strings(cut, 0, len(cut), count, native) for native in (False, True))
    assert slow == fast
    found = []
    for native in (False, True):
        try:
            table = StringTable.from_gguf(cut, count, native)
            found.append((table.text, table.offsets.tolist()))
        except ValueError:
            found.append(None)
    assert found[0] == found[1] and (found[0] is None) == (slow is None)


# ---- finding ---------------------------------------------------------------------------------------------------------


@needs_native
@settings(max_examples=300, deadline=None)
@given(st.lists(STRINGS, min_size=1, max_size=12), STRINGS)
def test_an_index_finds_what_a_dict_finds_and_refuses_what_the_rules_refuse(
    strings: list[bytes], other: bytes
) -> None:
    table = table_of(strings)
    ids = outcome(lambda: check_pieces(_Reader({}, None), list(table)))
    if isinstance(ids, str):
        with pytest.raises(ValueError, match="empty"):
            StringIndex(table)
        return
    index = StringIndex(table)
    assert dict(index) == ids and len(index) == len(ids)
    for text in [*strings, other]:
        piece = text.decode("utf-8", "surrogateescape")
        assert index.get(piece) == ids.get(piece) and (piece in index) == (piece in ids)
    assert 7 not in index and "\ud800" not in index and "" not in index


@needs_native
@pytest.mark.parametrize(("texts", "good"), [(UTF8, True), (NOT_UTF8, False)])
def test_what_is_utf8(texts: list[bytes], good: bool) -> None:
    for text in texts:
        for padding in (b"", b"seven  ", b"eight   ", b"more than sixteen"):
            if good:
                assert StringIndex(table_of([padding + text])).find(padding + text) == 0
            else:
                with pytest.raises(ValueError, match="UTF-8"):
                    StringIndex(table_of([padding + text]))


@needs_native
def test_every_lead_and_second_byte() -> None:
    """All pairs of bytes, with 0 to 2 continuation bytes after them: as Python decides."""
    for tail in (b"", b"\x80", b"\x80\xbf"):
        for first in range(0x80, 0x100):
            good, bad = [], 0
            for second in range(0x100):
                text = bytes([first, second]) + tail
                try:
                    text.decode()
                    good.append(text)
                except UnicodeDecodeError:
                    bad += 1
                    if second in (0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0):
                        with pytest.raises(ValueError, match="UTF-8"):
                            StringIndex(table_of([text]))
            if good:
                assert len(StringIndex(table_of(good))) == len(good) == 256 - bad


@needs_native
def test_a_large_table() -> None:
    """More strings than Python steps over itself; each is found, and a longer or shorter one is not."""
    strings = [b"%d" % (i * i) for i in range(20_000)]
    raw = packed(strings)
    table = StringTable.from_gguf(raw, len(strings))
    assert length_of_strings(raw, 0, len(raw), len(strings)) == len(raw)
    index = StringIndex(table)
    assert all(index[str(i * i)] == i for i in range(0, 20_000, 7))
    assert index.find(b"2") == -1 and index.find(b"1" * 100) == -1


# ---- merges and spellings --------------------------------------------------------------------------------------------

LETTERS = ["a", "b", "ab", "aba", "Ġ", "Ġa", "é", "日", "日a", " ", "  ", "a b", "x" * 30, "ab" * 4]
MERGES = st.one_of(
    st.tuples(st.sampled_from(LETTERS), st.sampled_from(LETTERS)).map(lambda m: " ".join(m).encode()),
    st.sampled_from(
        [b"", b" ", b"a", b"a ", b" a", b"  ", b"a  b", b"a b ab", b"\xe6 a", b"\xff \xff", b"a\0 b", b"x" * 99]
    ),
)
SPELLED = st.sampled_from([*byte_alphabet(), "日", "\u0144", "\u017f", "\u0180", "\u007f", "\x00"])


@needs_native
@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(LETTERS), unique=True, min_size=1), st.lists(MERGES, max_size=6), st.integers(1, 6))
def test_merges_are_those_of_the_twin(pieces: list[str], merge_texts: list[bytes], kind: int) -> None:
    """The same rows or, to the letter, the same error."""
    pieces = list(dict.fromkeys([*pieces, "a", "b"]))
    types = np.array([kind] + [1] * (len(pieces) - 1), np.int32)
    keys = {"model": "gpt2", "tokens": table_of([p.encode() for p in pieces]), "token_type": types,
            "merges": table_of(merge_texts)}  # fmt: skip
    vocab = read_vocab(Keys({f"tokenizer.ggml.{name}": value for name, value in keys.items()}))
    assert isinstance(vocab.ids, StringIndex) and isinstance(vocab.merges, StringTable)
    slow, fast = (outcome(lambda n=native: merge_table(vocab, n).tolist()) for native in (False, True))
    assert slow == fast


@needs_native
@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(SPELLED, min_size=1), min_size=1, max_size=10), st.data())
def test_spellings_are_those_of_the_twin(pieces: list[str], data: st.DataObject) -> None:
    kinds = np.array([data.draw(st.sampled_from([TEXT_PIECE, NEVER_PIECE])) for _ in pieces], np.uint8)
    table = StringTable.of(pieces)
    (slow, slow_kinds), (fast, fast_kinds) = slow_spellings(table, kinds), spellings(table, kinds, False)
    assert (slow.text, slow.offsets.tolist(), slow_kinds.tolist()) == (
        fast.text, fast.offsets.tolist(), fast_kinds.tolist()
    )  # fmt: skip


def vocabulary_file(path: Any, pieces: list[str], merge_texts: list[str]) -> Any:
    with GGUFWriter(path, None) as writer:
        for name, value in {"model": "gpt2", "pre": "gpt-2", "tokens": pieces, "merges": merge_texts}.items():
            writer.add(f"tokenizer.ggml.{name}", value)
    return path


def test_a_file_and_a_dict_give_the_same_tokenizer(tmp_path: Any) -> None:
    """A vocabulary large enough for C, from a file and from Python's lists, with and without the library's loops."""
    letters = list(byte_alphabet())
    words = [a + b for a in letters[:60] for b in letters[:60]]
    merge_texts = [f"{w[0]} {w[1]}" for w in words]
    path = vocabulary_file(tmp_path / "v.gguf", letters + words, merge_texts)
    keys = {"model": "gpt2", "pre": "gpt-2", "tokens": letters + words, "merges": merge_texts}
    plain = Tokenizer(read_vocab({f"tokenizer.ggml.{name}": value for name, value in keys.items()}), native=False)
    with open_gguf(path) as file:
        table = file.metadata.strings("tokenizer.ggml.tokens")
        assert list(table) == file.metadata["tokenizer.ggml.tokens"] == letters + words
        assert list(file.metadata.strings("tokenizer.ggml.tokens")) == letters + words, "also once it was decoded"
        with pytest.raises(KeyError):
            file.metadata.strings("tokenizer.ggml.model")
    ours = Tokenizer.from_file(path)
    text = "Some words, 123 and é 日本 \n\n \x00!"
    ids = ours.encode(text)
    assert ids == plain.encode(text) and ours.decode(ids) == text
    assert ours._model.merges.tolist() == plain._model.merges.tolist()
    assert all(ours.piece(i) == plain.piece(i) and ours.id_of(ours.piece(i)) == i for i in range(0, len(words), 11))
    assert [ours.token_bytes(i) for i in range(ours.n_vocab)] == [plain.token_bytes(i) for i in range(ours.n_vocab)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((5, ""), "piece 5 is empty"),
        ((5, "!"), "pieces 0 and 5 have the same text"),
        ((5, "x" * 70_000), "a piece is too long"),
    ],
)
def test_bad_vocabularies_of_a_file(tmp_path: Any, change: tuple[int, str], message: str) -> None:
    pieces = list(byte_alphabet()) + [f"{i:05}" for i in range(4000)]
    pieces[change[0]] = change[1]
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_file(vocabulary_file(tmp_path / "v.gguf", pieces, ["0 0"]))


def test_long_pieces_count_characters(tmp_path: Any) -> None:
    """65,536 characters are allowed, however many bytes they take."""
    pieces = [*byte_alphabet(), "é" * 65_536]
    assert Tokenizer.from_file(vocabulary_file(tmp_path / "v.gguf", pieces, [])).n_vocab == 257


# ---- the calls -------------------------------------------------------------------------------------------------------


@needs_native
def test_calls_check_their_arguments() -> None:
    ffi, lib = clib.library()
    out, n = ffi.new("el_strings **"), ffi.new("int64_t *")
    text = ffi.new("uint8_t[]", b"abcd")
    for offsets in ([0, 2, 5], [1, 2, 4], [0, 3, 2], [0, -1, 4], [0, 2, 3]):
        assert lib.el_strings_new(out, text, 4, ffi.new("int64_t[]", offsets), 2) == clib.EL_E_ARGUMENT
    good = ffi.new("int64_t[]", [0, 2, 4])
    for n_bytes, count in [(4, -1), (-1, 2), (4, 2**40)]:
        assert lib.el_strings_new(out, text, n_bytes, good, count) == clib.EL_E_ARGUMENT
    assert lib.el_strings_new(ffi.NULL, text, 4, good, 2) == clib.EL_E_ARGUMENT
    assert lib.el_strings_find(ffi.NULL, text, 4) == -1
    assert lib.el_gguf_strings(ffi.NULL, 4, 1, ffi.NULL, ffi.NULL, n) == clib.EL_E_ARGUMENT
    for n_bytes, count in [(-1, 0), (4, -1), (4, 1), (4, 2**62)]:
        assert lib.el_gguf_strings(text, n_bytes, count, ffi.NULL, ffi.NULL, n) == clib.EL_E_ARGUMENT
    index = StringIndex(table_of([b"ab", b"cd"]))
    rows = ffi.new("int32_t[3]")
    assert lib.el_bpe_merges(index.handle, text, 4, good, -1, rows, n) == clib.EL_E_ARGUMENT
    assert lib.el_bpe_merges(index.handle, text, 3, good, 2, rows, n) == clib.EL_E_ARGUMENT
    kinds, codes, place = ffi.new("uint8_t[2]"), ffi.new("int16_t[384]", [-1] * 384), ffi.new("int64_t[3]")
    empty = ffi.new("int64_t[]", [0, 0, 4])
    assert lib.el_bpe_spell(text, 4, empty, 2, codes, kinds, text, place) == clib.EL_E_ARGUMENT
    codes[65] = 256
    assert lib.el_bpe_spell(text, 4, good, 2, codes, kinds, text, place) == clib.EL_E_ARGUMENT
