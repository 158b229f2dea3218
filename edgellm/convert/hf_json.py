"""A `tokenizer.json` (https://github.com/huggingface/tokenizers) of any kind: its reader, and what all kinds share."""

from __future__ import annotations

from typing import Any

from ..errors import TokenizerError, one_line
from . import hf_bpe, hf_unigram, hf_wordpiece
from .hf_vocabulary import Vocabulary, looks_special
from .pieces import CONTROL, UNKNOWN, UNUSED, USER_DEFINED
from .strict_json import read_object

READERS = {"BPE": hf_bpe.fill, "Unigram": hf_unigram.fill, "WordPiece": hf_wordpiece.fill}


def from_tokenizer_json(path: str, n_vocab: int) -> Vocabulary:
    """Raises TokenizerError for other kinds of tokenizer, and for whatever changes tokens and has no place in GGUF."""
    table = read_object(path)
    model = table.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    if kind not in READERS:
        raise TokenizerError(
            "this kind of tokenizer.json is not supported", path=path, field="model.type", value=kind,
            limit=", ".join(READERS),
        )  # fmt: skip
    v = Vocabulary("", "default", [f"[PAD{i}]" for i in range(n_vocab)], [UNUSED] * n_vocab)
    READERS[kind](v, table, path)
    _add_tokens(v, table, path)
    first, last = _around(table)
    v.flags = {"add_bos_token": first, "add_eos_token": last and kind == "Unigram", **v.flags}
    if kind == "WordPiece":
        v.flags["add_sep_token"] = last
    return v


def _add_tokens(v: Vocabulary, table: dict[str, Any], path: str) -> None:
    for row in table.get("added_tokens") or []:
        text, i = (row.get("content"), row.get("id")) if isinstance(row, dict) else (None, None)
        if not isinstance(text, str) or not text:
            raise TokenizerError("an added token has no content", path=path, field="added_tokens", value=row)
        unknown = type(i) is int and 0 <= i < len(v.types) and v.types[i] == UNKNOWN
        kind = CONTROL if row.get("special") or looks_special(text) else USER_DEFINED
        v.place(i, text, UNKNOWN if unknown else kind, path)
        v.set_attributes(i, row)
    normalized = v.attributes.get("normalized", [])
    changed = [v.pieces[i] for i in normalized if v.types[i] == USER_DEFINED]
    if changed and v.model != "gpt2":
        v.notes.append(f"these added tokens are found as they are written only: {one_line(', '.join(changed), 120)}")


def _around(table: dict[str, Any]) -> tuple[bool, bool]:
    """Whether the post-processor puts a special token before the text, and one behind it."""
    post = table.get("post_processor")
    steps = post.get("processors") if isinstance(post, dict) and post.get("type") == "Sequence" else [post]
    for step in steps or []:
        if isinstance(step, dict) and step.get("type") == "TemplateProcessing":
            single = step.get("single")
            if not isinstance(single, list) or not all(isinstance(part, dict) for part in single) or not single:
                return False, False
            return "SpecialToken" in single[0], "SpecialToken" in single[-1] and len(single) > 1
        if isinstance(step, dict) and step.get("type") in ("BertProcessing", "RobertaProcessing"):
            return True, True
    return False, False
