"""Tokenizers of Hugging Face folders: sentencepiece models, added tokens, special ids, byte-level tokenizer.json."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from convert_inputs import hf_folder, message, number, piece_bytes, sentencepiece_bytes, varint, write_json
from helpers import CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, tiny_vocab
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.convert import convert
from edgellm.convert.sentencepiece_model import read_model
from edgellm.errors import EdgeLLMError, ModelFormatError, TokenizerError
from edgellm.gguf import open_gguf

N = len(tiny_vocab()[0])
PREFIX = "tokenizer.ggml."


def converted(folder: Path, **kwargs: Any) -> dict[str, Any]:
    """The tokenizer's keys after a conversion of the tiny folder, without their prefix; `notes` are the remarks."""
    model = kwargs.pop("model", None)
    hf_folder(folder, **kwargs)
    if model is not None:
        (folder / "tokenizer.model").write_bytes(model)
    report = convert(folder, folder / "o.gguf", "q8_0")
    with open_gguf(folder / "o.gguf") as file:
        keys = {k.removeprefix(PREFIX): file.metadata[k] for k in file.metadata if k.startswith("tokenizer.")}
    return keys | {"notes": report.notes}


# ---- sentencepiece ---------------------------------------------------------------------------------------------------


def test_pieces_scores_types_and_ids(tmp_path: Path) -> None:
    keys = converted(tmp_path)
    pieces, scores, types = tiny_vocab()
    assert keys["model"] == "llama"
    assert keys["pre"] == "default"
    assert keys["tokens"] == pieces
    assert keys["scores"].tolist() == scores
    assert keys["token_type"].tolist() == types
    assert (keys["bos_token_id"], keys["eos_token_id"], keys["unknown_token_id"]) == (1, 2, 0)
    assert (keys["add_bos_token"], keys["add_eos_token"], keys["add_space_prefix"]) == (True, False, True)
    assert keys["notes"] == ()


def test_the_dummy_prefix_is_carried_over(tmp_path: Path) -> None:
    assert converted(tmp_path / "a", model=sentencepiece_bytes(dummy_prefix=False))["add_space_prefix"] is False
    settings = {"tokenizer_config.json": {"add_prefix_space": False, "add_bos_token": False, "add_eos_token": True}}
    keys = converted(tmp_path / "b", files=settings)
    assert (keys["add_space_prefix"], keys["add_bos_token"], keys["add_eos_token"]) == (False, False, True)


def test_missing_pieces_are_filled_up_and_further_ones_left_out(tmp_path: Path) -> None:
    keys = converted(tmp_path / "a", vocab_size=N + 3)
    assert keys["tokens"][N:] == [f"[PAD{i}]" for i in range(N, N + 3)]
    assert keys["token_type"].tolist()[N:] == [UNUSED] * 3
    keys = converted(tmp_path / "b", vocab_size=N - 2)
    assert len(keys["tokens"]) == N - 2
    assert "2 pieces beyond" in keys["notes"][0]


def test_user_defined_pieces_keep_their_type_and_get_real_spaces(tmp_path: Path) -> None:
    rows = list(zip(*tiny_vocab(), strict=True))
    rows[-1] = ("▁▁", 0.0, USER_DEFINED)
    keys = converted(tmp_path, model=sentencepiece_bytes(rows))
    assert keys["tokens"][-1] == "  "
    assert keys["token_type"][-1] == USER_DEFINED


def test_added_tokens_from_both_files(tmp_path: Path) -> None:
    files = {
        "added_tokens.json": {"<|tool|>": N, "plain words": N + 1},
        "tokenizer_config.json": {
            "added_tokens_decoder": {
                "0": {"content": "<unk>", "special": True},
                "1": {"content": "<s>", "special": True},
                str(N + 2): {"content": "<extra>", "special": True},
                str(N + 3): {"content": "more▁words", "special": False},
                str(N + 9): {"content": "<beyond>", "special": True},
            }
        },
    }
    keys = converted(tmp_path, vocab_size=N + 4, files=files)
    assert keys["tokens"][N:] == ["<|tool|>", "plain words", "<extra>", "more words"]
    assert keys["token_type"].tolist()[N:] == [CONTROL, USER_DEFINED, CONTROL, USER_DEFINED]
    assert keys["token_type"].tolist()[:3] == [UNKNOWN, CONTROL, CONTROL]
    assert any("<beyond>" in note for note in keys["notes"])


def test_an_added_token_that_replaces_a_piece_is_reported(tmp_path: Path) -> None:
    table = {"added_tokens_decoder": {"300": {"content": "<new>", "special": True}}}
    keys = converted(tmp_path, files={"tokenizer_config.json": table})
    assert keys["tokens"][300] == "<new>"
    assert any("replaces" in note for note in keys["notes"])


def test_special_ids_come_from_texts_then_numbers_then_the_model(tmp_path: Path) -> None:
    texts = {"tokenizer_config.json": {"eos_token": {"content": "<|im_end|>"}, "bos_token": "no such piece"}}
    keys = converted(tmp_path / "a", files=texts, bos_token_id=5, eos_token_id=2)
    assert (keys["eos_token_id"], keys["bos_token_id"]) == (N - 1, 1)  # 5 is an ordinary piece
    keys = converted(tmp_path / "b", bos_token_id=..., eos_token_id=None, pad_token_id=-1)
    assert (keys["bos_token_id"], keys["eos_token_id"]) == (1, 2)
    assert "padding_token_id" not in keys
    keys = converted(tmp_path / "c", model=sentencepiece_bytes(pad_id=7), eos_token_id=[2, 6])
    assert (keys["padding_token_id"], keys["eos_token_id"]) == (7, 2)


def test_several_end_tokens_become_eos_eot_and_eom(tmp_path: Path) -> None:
    files = {"generation_config.json": {"eos_token_id": [2, 9, N - 1]}}
    keys = converted(tmp_path / "a", files=files)
    assert (keys["eos_token_id"], keys["eot_token_id"], keys["eom_token_id"]) == (2, N - 1, 9)
    files = {"generation_config.json": {"eos_token_id": [2, 9, 10, 11]}}
    keys = converted(tmp_path / "b", files=files)
    assert any("further end tokens" in note for note in keys["notes"])
    assert "eot_token_id" not in converted(tmp_path / "c", files={"generation_config.json": {"eos_token_id": 2}})


@pytest.mark.parametrize(
    ("files", "changes", "match"),
    [
        ({}, {"bos_token_id": N}, "names no piece"),
        ({}, {"eos_token_id": "2"}, "names no piece"),
        ({"generation_config.json": {"eos_token_id": [2, -3]}}, {}, "names no piece"),
        ({"added_tokens.json": {"x": -1}}, {}, "added token"),
        ({"added_tokens.json": {"x": 1.0}}, {}, "added token"),
        ({"tokenizer_config.json": {"added_tokens_decoder": {"x": {"content": "y"}}}}, {}, "added_tokens_decoder"),
        ({"tokenizer_config.json": {"added_tokens_decoder": []}}, {}, None),
        ({"tokenizer_config.json": {"added_tokens_decoder": [1]}}, {}, "must be an object"),
        ({"tokenizer_config.json": {"added_tokens_decoder": {"300": {"content": "<s>"}}}}, {}, "same text"),
        ({"tokenizer_config.json": {"add_bos_token": "yes"}}, {}, "true or false"),
        ({"tokenizer_config.json": ["x"]}, {}, "not an object"),
    ],
)
def test_bad_tokenizer_settings_are_refused(tmp_path: Path, files: Any, changes: Any, match: str | None) -> None:
    if match is None:
        converted(tmp_path, files=files, **changes)
        return
    with pytest.raises(ModelFormatError, match=match):
        converted(tmp_path, files=files, **changes)
    assert not (tmp_path / "o.gguf").exists()


BAD_MODELS = [
    (b"\xff\xff\xff", "cut off"),
    (b"\x0a\x05ab", "ends after"),
    (b"\x08\x01", "no message"),
    (b"\x0b", "unknown kind"),
    (b"\x02\x00", "field 0"),
    (message(2, number(3, 2)), "no pieces"),
    (sentencepiece_bytes([("", 0.0, NORMAL)]), "empty"),
    (sentencepiece_bytes([("a", float("nan"), NORMAL)]), "not finite"),
    (sentencepiece_bytes([("a", 0.0, 9)]), "unknown type"),
    (sentencepiece_bytes([("<0xZZ>", 0.0, 6)]), "byte piece"),
    (piece_bytes(b"\xff", 0.0, NORMAL), "UTF-8"),
    (message(1, number(1, 3)), "wrong type"),
    (sentencepiece_bytes(model_type=1), "unigram"),
    (sentencepiece_bytes(escape=False), "marks for spaces"),
    (message(1, varint(1 << 70 >> 7)) + b"\xff" * 11, "not a sentencepiece"),
]


@pytest.mark.parametrize(("raw", "match"), BAD_MODELS)
def test_broken_sentencepiece_models_are_refused(tmp_path: Path, raw: bytes, match: str) -> None:
    with pytest.raises(TokenizerError, match=match):
        converted(tmp_path, model=raw)
    assert not (tmp_path / "o.gguf").exists()


def test_two_pieces_of_one_text_are_refused(tmp_path: Path) -> None:
    rows = list(zip(*tiny_vocab(), strict=True))
    rows[-1] = rows[-2]
    with pytest.raises(TokenizerError, match="same text"):
        converted(tmp_path, model=sentencepiece_bytes(rows))


def test_a_normaliser_is_reported(tmp_path: Path) -> None:
    assert "normaliser" in converted(tmp_path, model=sentencepiece_bytes(charsmap=b"x"))["notes"][0]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_give_a_model_or_a_typed_error(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "tokenizer.model"
    path.write_bytes(raw)
    try:
        model = read_model(path)
    except EdgeLLMError:
        return
    assert model.pieces


def test_the_model_is_read_as_the_sentencepiece_package_reads_it(tmp_path: Path) -> None:
    package = pytest.importorskip("sentencepiece")
    out = io.BytesIO()
    lines = [f"the {word} of hello world number {i}" for i in range(50) for word in ("quick", "brown", "fox")]
    package.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=out, vocab_size=330, model_type="bpe", byte_fallback=True,
        control_symbols=["<|a|>"], user_defined_symbols=["<u>"], pad_id=3, add_dummy_prefix=False, minloglevel=2,
        normalization_rule_name="identity", hard_vocab_limit=False,
    )  # fmt: skip
    path = tmp_path / "tokenizer.model"
    path.write_bytes(out.getvalue())
    ours, theirs = read_model(path), package.SentencePieceProcessor(model_proto=out.getvalue())
    assert len(ours.pieces) == theirs.vocab_size()
    for i, piece in enumerate(ours.pieces):
        assert piece.text == theirs.id_to_piece(i)
        assert piece.score == theirs.get_score(i)
        assert (piece.type == CONTROL) == theirs.is_control(i)
        assert (piece.type == 6) == theirs.is_byte(i)
        assert (piece.type == UNKNOWN) == theirs.is_unknown(i)
    assert ours.pieces[theirs.piece_to_id("<u>")].type == USER_DEFINED
    assert (ours.unk_id, ours.bos_id, ours.eos_id, ours.pad_id) == (0, 1, 2, 3)
    assert (ours.model_type, ours.add_dummy_prefix) == ("bpe", False)


# ---- byte-level tokenizer.json ---------------------------------------------------------------------------------------

LLAMA3_RULE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def bpe_json(rule: str = LLAMA3_RULE, **changes: Any) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": rule}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    table = {
        "added_tokens": [
            {"id": 5, "content": "<|end|>", "special": True},
            {"id": 6, "content": "word", "special": False},
        ],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}]},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4}, "merges": ["a b", ["ab", "c"]]},
    }
    table["model"].update(changes.pop("model", {}))
    return table | changes


def bpe_keys(folder: Path, table: Any, **changes: Any) -> dict[str, Any]:
    changes = {"vocab_size": 8, "bos_token_id": None, "eos_token_id": 5} | changes
    hf_folder(folder, **changes)
    (folder / "tokenizer.model").unlink()
    write_json(folder / "tokenizer.json", table)
    report = convert(folder, folder / "o.gguf", "f16")
    with open_gguf(folder / "o.gguf") as file:
        keys = {k.removeprefix(PREFIX): file.metadata[k] for k in file.metadata if k.startswith("tokenizer.")}
    return keys | {"notes": report.notes}


def test_byte_level_bpe_pieces_types_and_merges(tmp_path: Path) -> None:
    keys = bpe_keys(tmp_path, bpe_json())
    assert (keys["model"], keys["pre"]) == ("gpt2", "smaug-bpe")  # the rule of Llama 3 without whole words
    assert keys["tokens"] == ["a", "b", "c", "ab", "abc", "<|end|>", "word", "[PAD7]"]
    assert keys["token_type"].tolist() == [NORMAL] * 5 + [CONTROL, USER_DEFINED, UNUSED]
    assert keys["merges"] == ["a b", "ab c"]
    assert keys["eos_token_id"] == 5
    assert keys["add_bos_token"] is False
    assert "scores" not in keys


LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
THREE = {"type": "Split", "pattern": {"Regex": "[0-9][0-9][0-9]"}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    "changes, name",
    [
        ({"rule": LLAMA3_RULE.replace("{1,3}", "")}, "qwen2"),
        ({"rule": LLAMA3_RULE.replace("\\r", "\r").replace("\\n", "\n")}, "smaug-bpe"),  # the same, spelled otherwise
        ({"model": {"ignore_merges": True}}, "llama-bpe"),
        ({"pre_tokenizer": LEVEL}, "gpt-2"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [DIGITS, LEVEL]}}, "starcoder"),
        (
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Punctuation", "behavior": "Contiguous"}, LEVEL,
                {"type": "Digits", "individual_digits": False}, THREE]}},
            "falcon",
        ),
    ],
)  # fmt: skip
def test_split_rules_are_known_by_what_they_do(tmp_path: Path, changes: dict[str, Any], name: str) -> None:
    assert bpe_keys(tmp_path, bpe_json(**changes))["pre"] == name


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"rule": r"\w+"}, r"not supported: the escape.*V7"),
        ({"rule": r"(?<=a)b"}, "the group"),
        ({"rule": r"a++"}, "the repeat"),
        ({"rule": "[a"}, "ends too early"),
        ({"rule": "(a"}, "without"),
        ({"rule": r"[z-a]"}, "backwards"),
        ({"rule": r"\p{Greek}"}, "property"),
        ({"rule": "(" * 50 + ")" * 50}, "groups inside"),
        ({"rule": "a" * 20_000}, "characters"),
        ({"rule": r"\p{L}+"}, "no name in GGUF .rule V7.*the rules of gpt-2"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [LEVEL, {"type": "Metaspace"}]}}, "step.*Metaspace"),
        ({"pre_tokenizer": LEVEL | {"add_prefix_space": True}}, "step"),
        ({"pre_tokenizer": LEVEL, "model": {"ignore_merges": True}}, "no name in GGUF"),
        ({"normalizer": {"type": "Lowercase"}}, "normaliser.*Lowercase"),
        ({"model": {"end_of_word_suffix": "</w>"}}, "end_of_word_suffix"),
    ],
)
def test_split_rules_without_a_name_are_refused(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    with pytest.raises(TokenizerError, match=match):
        bpe_keys(tmp_path, bpe_json(**changes))
    assert not (tmp_path / "o.gguf").exists()


def test_nfc_is_reported(tmp_path: Path) -> None:
    assert any("NFC" in note for note in bpe_keys(tmp_path, bpe_json(normalizer={"type": "NFC"}))["notes"])


def test_a_first_token_of_the_post_processor_is_seen(tmp_path: Path) -> None:
    first = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|end|>", "type_id": 0}}]}
    assert bpe_keys(tmp_path / "a", bpe_json(post_processor=first))["add_bos_token"] is True
    both = {"type": "Sequence", "processors": [{"type": "ByteLevel"}, first]}
    assert bpe_keys(tmp_path / "b", bpe_json(post_processor=both))["add_bos_token"] is True


@pytest.mark.parametrize(
    "table",
    [
        {},
        {"model": {"type": "Unigram"}},
        bpe_json(pre_tokenizer=None),
        bpe_json(model={"type": "WordPiece"}),
        bpe_json(model={"vocab": []}),
        bpe_json(model={"vocab": {"a": "0"}}),
        bpe_json(model={"merges": None}),
        bpe_json(model={"merges": ["a b c"]}),
        bpe_json(model={"merges": ["ab"]}),
        bpe_json(model={"merges": [["a", 3]]}),
        bpe_json(added_tokens=[{"id": 5}]),
        bpe_json(added_tokens=["x"]),
    ],
)
def test_other_or_broken_tokenizer_json_is_refused(tmp_path: Path, table: Any) -> None:
    with pytest.raises(TokenizerError):
        bpe_keys(tmp_path, table)
    assert not (tmp_path / "o.gguf").exists()
