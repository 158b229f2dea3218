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
from tokenizer_helpers import needs_native

from edgellm import clib
from edgellm.errors import TokenizerError
from edgellm.tokenizers import StreamDecoder, Tokenizer
from edgellm.tokenizers.charsmap import CharsMap
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


def tokenizer(sp: Any, charsmap: bytes, native: bool | None = None, **flags: bool) -> Tokenizer:
    n = sp.get_piece_size()
    kinds = ((sp.is_unknown, UNKNOWN), (sp.is_control, CONTROL), (sp.is_byte, BYTE), (sp.is_unused, UNUSED))
    types = [next((kind for test, kind in kinds if test(i)), NORMAL) for i in range(n)]
    found = {
        "model": "t5", "tokens": [sp.id_to_piece(i) for i in range(n)], "token_type": np.array(types, np.int32),
        "scores": np.array([sp.get_score(i) for i in range(n)], np.float32), "unknown_token_id": sp.unk_id(),
        "eos_token_id": sp.eos_id(), "precompiled_charsmap": np.frombuffer(charsmap, np.uint8), **flags,
    }  # fmt: skip
    return Tokenizer(read_vocab({f"tokenizer.ggml.{k}": v for k, v in found.items()}), native=native)


LETTERS = [*"katomirésunquali日本", " ", "  ", "x", "🙂", "\n", "<s>", "É", "ﬁ", "ｱ", "①", "\u00a0", "e\u0301", "\t"]


@pytest.mark.parametrize("byte_fallback", [True, False])
@pytest.mark.parametrize("rule, extra", [("nmt_nfkc", True), ("identity", False), ("nfkc_cf", True)])
def test_against_sentencepiece(tmp_path: Path, byte_fallback: bool, rule: str, extra: bool) -> None:
    sp = trained(tmp_path, byte_fallback=byte_fallback, normalization_rule_name=rule, remove_extra_whitespaces=extra)
    flags = {"add_space_prefix": True, "remove_extra_whitespaces": extra}
    t = tokenizer(sp, charsmap_of(tmp_path / "m.model"), **flags)
    twin = tokenizer(sp, charsmap_of(tmp_path / "m.model"), False, **flags)
    rng = np.random.default_rng(1)
    for text in ["", " ", "a"] + ["".join(rng.choice(LETTERS, rng.integers(0, 40))) for _ in range(500)]:
        ids = t.encode(text, add_special=False)
        assert ids == sp.encode(text), repr(text)
        assert ids == twin.encode(text, add_special=False), repr(text)
        if t.unk_id not in ids:
            assert t.encode(t.decode(ids), add_special=False) == ids
        stream = StreamDecoder(t)
        assert "".join(map(stream.push, ids)) + stream.flush() == t.decode(ids)
    assert t.encode("ka")[-1] == t.eos_id


def small(native: bool | None = None, **keys: Any) -> Tokenizer:
    pieces = ["<pad>", "</s>", "<unk>", "a", "b", "ab", "▁a", "▁", "[x]", "bb▁"]
    found = {
        "model": "t5", "tokens": pieces, "scores": np.array([0, 0, 0, -2, -2, -3, -2.5, -3, -9, -4], np.float32),
        "token_type": np.array([CONTROL, CONTROL, UNKNOWN, *[NORMAL] * 5, USER_DEFINED, NORMAL], np.int32), **keys,
    }  # fmt: skip
    return Tokenizer(read_vocab({f"tokenizer.ggml.{k}": v for k, v in found.items()}), native=native)


def test_best_sum_wins_across_words() -> None:
    t = small()
    pieces = [t.piece(i) for i in t.encode("abbb a[x]</s>", add_special=False)]
    assert pieces == ["ab", "bb▁", "a", "[x]", "<unk>"]
    with pytest.raises(TokenizerError, match="spaces"):
        small(treat_whitespace_as_suffix=True)


PIECES = st.text(alphabet="ab▁é🙂", min_size=1, max_size=6)
SCORES = st.sampled_from([0.0, -1.0, -2.0, -2.5, -3.0, -0.1, 1.5])
ROWS = st.dictionaries(PIECES, st.tuples(SCORES, st.sampled_from([NORMAL, UNUSED, CONTROL])), max_size=20)


def any_vocabulary(rows: dict[str, tuple[float, int]], with_bytes: bool, native: bool) -> Tokenizer:
    table = {"<unk>": (0.0, UNKNOWN), **rows}
    if with_bytes:
        table |= {f"<0x{b:02X}>": (0.0, BYTE) for b in range(256)}
    found = {
        "model": "t5", "tokens": list(table), "scores": np.array([score for score, _ in table.values()], np.float32),
        "token_type": np.array([kind for _, kind in table.values()], np.int32), "unknown_token_id": 0,
    }  # fmt: skip
    return Tokenizer(read_vocab({f"tokenizer.ggml.{k}": v for k, v in found.items()}), native=native)


@needs_native
@settings(max_examples=300, deadline=None)
@given(ROWS, st.booleans(), st.text(alphabet="ab é🙂x\x00", max_size=200))
def test_native_search_equals_its_twin_on_any_vocabulary(
    rows: dict[str, tuple[float, int]], with_bytes: bool, text: str
) -> None:
    native, twin = (any_vocabulary(rows, with_bytes, flag) for flag in (True, False))
    ids = native.encode(text, add_special=False)
    assert ids == twin.encode(text, add_special=False)
    assert not set(ids) & native.control_ids
    if with_bytes:  # a space without a piece comes back as the three bytes of its mark
        assert native.decode(ids).replace("▁", " ") == text
    stream = StreamDecoder(native)
    assert "".join(map(stream.push, ids)) + stream.flush() == native.decode(ids)


@needs_native
@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(alphabet="abé", min_size=1, max_size=4), st.text(max_size=4)), st.text(alphabet="abéx"))
def test_native_map_equals_its_twin(table: dict[str, str], text: str) -> None:
    made = []
    for native in (True, False):
        one = CharsMap.__new__(CharsMap)
        one.set_table(table, native)
        made.append(one.apply(text))
    assert made[0] == made[1]


@needs_native
def test_native_calls_check_their_arguments() -> None:
    ffi, lib = clib.library()
    out, n = ffi.new("el_unigram **"), ffi.new("int64_t *")
    given = {
        "text": ffi.new("uint8_t[]", b"baab"), "offsets": ffi.new("int64_t[]", [0, 1, 2, 4]),
        "scores": ffi.new("double[]", [-1, -1, -1.5]), "n": 3, "order": ffi.new("int32_t[]", [1, 2, 0]), "used": 3,
        "unknown": -9.0, "bytes": ffi.new("int32_t[256]", [-1] * 256), "unk": 0,
    }  # fmt: skip

    def make(**changes: Any) -> int:
        return lib.el_unigram_new(out, *(given | changes).values())

    assert make() == clib.EL_OK
    unigram = ffi.gc(out[0], lib.el_unigram_free)
    for change in (
        {"text": ffi.NULL}, {"order": ffi.NULL}, {"n": 0}, {"n": -1}, {"n": 2**40}, {"used": -1}, {"used": 4},
        {"unk": 3}, {"unk": -1}, {"order": ffi.new("int32_t[]", [0, 1, 2])}, {"unknown": float("nan")},
        {"order": ffi.new("int32_t[]", [1, 1, 2])}, {"order": ffi.new("int32_t[]", [1, 2, 3])},
        {"order": ffi.new("int32_t[]", [-1, 1, 2])}, {"offsets": ffi.new("int64_t[]", [0, 2, 1, 4])},
        {"offsets": ffi.new("int64_t[]", [1, 2, 3, 4])}, {"bytes": ffi.new("int32_t[256]", [3] * 256)},
        {"scores": ffi.new("double[]", [-1, float("inf"), 0])}, {"offsets": ffi.new("int64_t[]", [0, 1, 1, 4])},
    ):  # fmt: skip
        assert make(**change) == clib.EL_E_ARGUMENT, change
    ids, text = ffi.new("int32_t[4]"), given["text"]
    assert lib.el_unigram_encode(unigram, text, 4, ids, 4, n) == clib.EL_OK and list(ids[0 : n[0]]) == [0, 1, 2]
    for args in ((text, 4, ids, 3), (text, -1, ids, 4), (ffi.NULL, 4, ids, 4), (text, 2**31, ids, 2**31)):
        assert lib.el_unigram_encode(unigram, *args, n) == clib.EL_E_ARGUMENT
    broken = ffi.new("uint8_t[]", b"\xff\x80\x80a\xf0ab\xf0")  # no UTF-8: no harm
    room = ffi.new("int32_t[8]")
    assert lib.el_unigram_encode(unigram, broken, 8, room, 8, n) == clib.EL_OK and n[0] <= 8


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
