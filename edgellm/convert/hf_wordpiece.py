"""WordPiece from a `tokenizer.json`: pieces with U+2581 where a word begins, and BERT's cleaning of text."""

from __future__ import annotations

from typing import Any

from ..errors import TokenizerError
from ..tokenizers.wordpiece import MAX_WORD_CHARS
from .hf_vocabulary import Vocabulary
from .pieces import NORMAL, SPACE, UNKNOWN

_PREFIX = "##"


def fill(v: Vocabulary, table: dict[str, Any], path: str) -> None:
    """Raises TokenizerError for every setting that GGUF cannot say."""
    model = table["model"]
    v.model = "bert"
    _demand(model, path, "continuing_subword_prefix", _PREFIX, "model.")
    _demand(model, path, "max_input_chars_per_word", MAX_WORD_CHARS, "model.")
    pre = table.get("pre_tokenizer")
    _demand(pre if isinstance(pre, dict) else {}, path, "type", "BertPreTokenizer", "pre_tokenizer.")
    unknown = model.get("unk_token")
    rows = model.get("vocab")
    if not isinstance(rows, dict) or unknown not in rows:
        raise TokenizerError("the vocabulary has no unknown token", path=path, field="model.unk_token", value=unknown)
    added = {row.get("content") for row in table.get("added_tokens") or [] if isinstance(row, dict)}
    for text, i in rows.items():
        if not text or text == _PREFIX or text.startswith(_PREFIX + SPACE + SPACE):
            raise TokenizerError("GGUF cannot hold this piece", path=path, field="model.vocab", value=text)
        if text in added or text == unknown:
            piece = text
        else:
            piece = text[len(_PREFIX) :] if text.startswith(_PREFIX) else SPACE + text
        v.place(i, piece, UNKNOWN if text == unknown else NORMAL, path)
    v.special = {"unknown": rows[unknown]}
    v.flags = _cleaning(table.get("normalizer"), path)


def _cleaning(step: Any, path: str) -> dict[str, bool]:
    step = step if isinstance(step, dict) else {}
    _demand(step, path, "type", "BertNormalizer", "normalizer.")
    _demand(step, path, "clean_text", True, "normalizer.")
    _demand(step, path, "handle_chinese_chars", True, "normalizer.")
    lowercase, accents = step.get("lowercase"), step.get("strip_accents")
    if not isinstance(lowercase, bool) or accents not in (None, True, False):
        raise TokenizerError("must be true or false", path=path, field="normalizer", value=step)
    return {"normalizer.lowercase": lowercase, "normalizer.strip_accents": lowercase if accents is None else accents}


def _demand(table: dict[str, Any], path: str, name: str, wanted: Any, where: str) -> None:
    if table.get(name) != wanted or type(table.get(name)) is not type(wanted):
        raise TokenizerError(
            "GGUF has no key for this setting of WordPiece", path=path, field=where + name, value=table.get(name),
            limit=wanted, rule="V7",
        )  # fmt: skip
