"""tokenizer.json files of every kind against the package `tokenizers`: ids after conversion, and what is refused."""

from __future__ import annotations

import base64
import json
import random
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from convert_inputs import write_json
from test_unigram import charsmap_of, trained
from tokenizer_rules import hard_texts

from edgellm.convert.hf_tokenizer import tokenizer_keys
from edgellm.errors import TokenizerError
from edgellm.tokenizers import Tokenizer
from edgellm.tokenizers.vocab import read_vocab

tokenizers = pytest.importorskip("tokenizers")


def converted(folder: Path, table: dict[str, Any], settings: dict[str, Any] | None = None) -> tuple[Any, Tokenizer]:
    """The package's tokenizer for a file, and edgellm's for what the converter makes of it."""
    folder.mkdir(exist_ok=True)
    write_json(folder / "tokenizer.json", table)
    write_json(folder / "tokenizer_config.json", settings or {})
    n = 1 + max([row["id"] for row in table["added_tokens"]] + ids_of(table["model"]))
    config = SimpleNamespace(n_vocab=n, raw={}, path="config.json")
    keys, notes, _ = tokenizer_keys(str(folder), config)
    own = Tokenizer(read_vocab({name: value for name, value, _ in keys}, folder))
    own.notes = notes
    return tokenizers.Tokenizer.from_str(json.dumps(table)), own


def ids_of(model: dict[str, Any]) -> list[int]:
    vocab = model["vocab"]
    return list(vocab.values()) if isinstance(vocab, dict) else list(range(len(vocab)))


def added(i: int, text: str, special: bool = False, **flags: bool) -> dict[str, Any]:
    row = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": not special} | flags
    return {"id": i, "content": text, "special": special, **row}


# ---- added tokens ----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def byte_level() -> dict[str, Any]:
    from edgellm.tokenizers.bpe import byte_alphabet

    vocab = {piece: i for i, piece in enumerate(byte_alphabet())}
    for piece in ("ab", "Ġa", "abc"):
        vocab[piece] = len(vocab)
    step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": step,
        "post_processor": None, "decoder": None, "added_tokens": [],
        "model": {"type": "BPE", "vocab": vocab, "merges": ["a b", "Ġ a", "ab c"]},
    }  # fmt: skip


TEXTS = ["<m>", "<mm>", "tok", "ing", "token", "a b", "[x]", "\n"]
FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")


@pytest.mark.parametrize("seed", range(40))
def test_added_tokens_as_the_package_finds_them(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    n = len(byte_level()["model"]["vocab"])
    chosen = rng.sample(TEXTS[:-1], rng.randrange(1, 6))  # "\n" beside a token that strips: see below
    rows = []
    for i, text in enumerate(chosen):
        flags = {name: rng.random() < 0.35 for name in FLAGS}
        flags["normalized"] &= not flags["special"]
        rows.append(added(n + i, text, **flags))
    theirs, ours = converted(tmp_path, byte_level() | {"added_tokens": rows})
    alphabet = [*chosen, " ", "  ", "\n", "\t", "\u3000", "a", "b", "é", "_", "\u0301", "1", ".", "\u200d", "日", "Ⓐ"]
    for _ in range(150):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randrange(1, 9)))
        assert ours.encode(text, add_special=False, parse_special=True) == theirs.encode(text).ids, (rows, text)


def test_white_space_beside_tokens_in_parts(tmp_path: Path) -> None:
    """What a user writes never becomes the token, and the template's token takes the white space beside it."""
    n = len(byte_level()["model"]["vocab"])
    _, ours = converted(tmp_path, byte_level() | {"added_tokens": [added(n, "<m>", True, lstrip=True, rstrip=True)]})
    a, b = ours.id_of("a"), ours.id_of("b")
    assert ours.encode_parts([("a  <m> \n", True), (" b", False)]) == [a, n, b]
    assert n not in ours.encode_parts([("a  ", True), ("<m> \n", False)])


# ---- Unigram ---------------------------------------------------------------------------------------------------------

META = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
STRIP = {"type": "Strip", "strip_left": False, "strip_right": True}
MERGE = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}


def unigram(sp: Any, charsmap: bytes, meta: dict[str, Any], steps: list[Any], words: bool) -> dict[str, Any]:
    rows = [[sp.id_to_piece(i), sp.get_score(i)] for i in range(sp.get_piece_size())]
    special = [added(i, rows[i][0], True) for i in range(len(rows)) if sp.is_control(i) or sp.is_unknown(i)]
    first = [{"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()}] if charsmap else []
    normalizer = {"type": "Sequence", "normalizers": first + steps}
    pre = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, meta]} if words else meta
    eos = {"id": "</s>", "ids": [sp.eos_id()], "tokens": ["</s>"]}
    post = {
        "type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}},
                                                 {"SpecialToken": {"id": "</s>", "type_id": 0}}],
        "pair": [], "special_tokens": {"</s>": eos},
    }  # fmt: skip
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": normalizer,
        "pre_tokenizer": pre, "post_processor": post, "decoder": None,
        "model": {"type": "Unigram", "unk_id": sp.unk_id(), "vocab": rows, "byte_fallback": sp.is_byte(10)},
    }  # fmt: skip


LETTERS = [*"katomirésunquali日本", " ", "  ", "x", "🙂", "É", "ﬁ", "ｱ", "①", "\u00a0", "\t", "ka", " to", "▁"]


@pytest.mark.parametrize("byte_fallback", [True, False])
@pytest.mark.parametrize(
    "rule, scheme, steps, words",
    [
        ("nmt_nfkc", "always", [STRIP, MERGE], False),  # T5
        ("nmt_nfkc", "always", [], True),  # XLM-RoBERTa
        ("nmt_nfkc", "first", [STRIP, MERGE], False),
        ("nmt_nfkc", "never", [], False),
        ("identity", "always", [], False),
        ("identity", "first", [], False),
    ],
)
def test_unigram(tmp_path: Path, byte_fallback: bool, rule: str, scheme: str, steps: list[Any], words: bool) -> None:
    pytest.importorskip("sentencepiece")
    sp = trained(tmp_path, byte_fallback=byte_fallback, normalization_rule_name=rule)
    meta = META | {"prepend_scheme": scheme}
    table = unigram(sp, charsmap_of(tmp_path / "m.model"), meta, steps, words)
    theirs, ours = converted(tmp_path / "f", table, {"eos_token": "</s>", "unk_token": "<unk>"})
    assert (ours.kind, ours.add_eos, ours.add_bos) == ("t5", True, False)
    rng = random.Random(3)
    for _ in range(250):
        text = "".join(rng.choice(LETTERS) for _ in range(rng.randrange(0, 30)))
        if words:
            text = text.replace("▁", "")
        assert ours.encode(text) == theirs.encode(text).ids, text
        special = f"{text}</s>{text}"
        if "▁" not in text and not words:
            assert ours.encode(special, parse_special=True) == theirs.encode(special).ids, special


REFUSED = [
    ({"normalizer": {"type": "NFKC"}}, "NFKC"),
    ({"normalizer": {"type": "Sequence", "normalizers": [STRIP]}}, "only one of"),
    ({"normalizer": {"type": "Sequence", "normalizers": [STRIP, MERGE]}}, "V7.*U\\+0009"),
    ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "!"}}, "base64"),
    ({"pre_tokenizer": None}, "pre_tokenizer"),
    ({"pre_tokenizer": META | {"replacement": "_"}}, "replacement"),
    ({"pre_tokenizer": META | {"prepend_scheme": "last"}}, "prepend_scheme"),
    ({"model": {"type": "Unigram", "vocab": [["<unk>", 0.0]], "unk_id": None}}, "unknown"),
    ({"model": {"type": "Unigram", "vocab": [["<unk>", 0.0], ["a"]], "unk_id": 0}}, "piece and its score"),
    ({"model": {"type": "Unigram", "vocab": [["<unk>", 0.0], ["a▁b", 0.0]], "unk_id": 0}}, "over the end of a word"),
    ({"model": {"type": "WordLevel", "vocab": {"<unk>": 0}}}, "WordLevel.*BPE, Unigram, WordPiece"),
]


@pytest.mark.parametrize("changes, match", REFUSED)
def test_unigram_refused(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    table = {
        "added_tokens": [], "normalizer": None, "pre_tokenizer": META, "post_processor": None,
        "model": {"type": "Unigram", "vocab": [["<unk>", 0.0], ["a", -1.0]], "unk_id": 0},
    }  # fmt: skip
    with pytest.raises(TokenizerError, match=match):
        converted(tmp_path, table | changes)


# ---- WordPiece -------------------------------------------------------------------------------------------------------


def bert_table(shared_data: Path) -> dict[str, Any]:
    return json.loads((shared_data / "hf-tiny" / "bert" / "tokenizer.json").read_text(encoding="utf-8"))


def old_unicode(text: str) -> str:
    """Without characters about which the package's tables, of Unicode 8 in parts, think otherwise."""
    import unicodedata

    from tokenizer_rules import newer_punctuation

    kinds = ("Cf", "Co", "Mn", "Cn", "Mc", "Nd", "Lo", "Lu", "Ll", "Cs")
    return "".join(c for c in text if ord(c) < 0x500 or not (
        ord(c) in newer_punctuation() or (unicodedata.category(c) in kinds and ord(c) > 0x800 and not c.isalpha())
        or unicodedata.category(c) in ("Cn", "Co")))  # fmt: skip


@pytest.mark.parametrize("lowercase, accents", [(True, None), (False, None), (True, False), (False, True)])
def test_wordpiece(shared_data: Path, tmp_path: Path, lowercase: bool, accents: bool | None) -> None:
    table = bert_table(shared_data)
    table["normalizer"] |= {"lowercase": lowercase, "strip_accents": accents}
    settings = json.loads((shared_data / "hf-tiny" / "bert" / "tokenizer_config.json").read_text())
    theirs, ours = converted(tmp_path, table, settings)
    lines = (shared_data / "text" / "grimm.txt").read_text(encoding="utf-8").split("\n")
    lines += (shared_data / "text" / "wikitext2-test.txt").read_text(encoding="utf-8").split("\n")
    for line, found in zip(lines, theirs.encode_batch_fast(lines), strict=True):
        assert ours.encode(line) == found.ids, line
    for text in map(old_unicode, hard_texts(1500, 11)):
        assert ours.encode(text) == theirs.encode(text).ids, ascii(text)


@pytest.mark.parametrize(
    "part, changes",
    [
        ("normalizer", {"clean_text": False}), ("normalizer", {"handle_chinese_chars": False}),
        ("normalizer", {"type": "Lowercase"}), ("pre_tokenizer", {"type": "Whitespace"}),
        ("model", {"continuing_subword_prefix": "@@"}), ("model", {"max_input_chars_per_word": 50}),
        ("model", {"unk_token": "[NO]"}), ("model", {"vocab": {"[UNK]": 0, "##": 1}}),
        ("normalizer", {"lowercase": "yes"}),
    ],
)  # fmt: skip
def test_wordpiece_refused(shared_data: Path, tmp_path: Path, part: str, changes: dict[str, Any]) -> None:
    table = bert_table(shared_data)
    table[part] |= changes
    with pytest.raises(TokenizerError):
        converted(tmp_path, table)
