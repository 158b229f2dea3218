"""Byte-level BPE from a `tokenizer.json` (https://github.com/huggingface/tokenizers): pieces, merges, split rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import TokenizerError, one_line
from .hf_vocabulary import Vocabulary, looks_special
from .pieces import CONTROL, NORMAL, UNUSED, USER_DEFINED
from .strict_json import read_object

UNKNOWN_PRE = "unknown"  # no reader knows this rule, so text is refused instead of cut wrongly; ids still work


def from_tokenizer_json(path: str, n_vocab: int, pre_names: Mapping[str, str]) -> Vocabulary:
    """`pre_names`: split rule -> its name in GGUF. Raises TokenizerError for other kinds of tokenizer."""
    table = read_object(path)
    model = table.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    if kind != "BPE" or not _is_byte_level(table):
        raise TokenizerError(
            "this kind of tokenizer.json is not supported yet", path=path, field="model.type",
            value=f"{kind} without byte-level pieces" if kind == "BPE" else kind, limit="byte-level BPE",
        )  # fmt: skip
    v = Vocabulary("gpt2", "default", [f"[PAD{i}]" for i in range(n_vocab)], [UNUSED] * n_vocab)
    for text, i in _vocab(model, path).items():
        _place(v, i, text, NORMAL, path)
    for row in table.get("added_tokens") or []:
        text, i = (row.get("content"), row.get("id")) if isinstance(row, dict) else (None, None)
        if not isinstance(text, str) or not text:
            raise TokenizerError("an added token has no content", path=path, field="added_tokens", value=row)
        _place(v, i, text, CONTROL if row.get("special") or looks_special(text) else USER_DEFINED, path)
    v.merges = _merges(model, path)
    v.pre = _pre_name(table, pre_names)
    if v.pre == UNKNOWN_PRE:
        v.notes.append("the split rule of tokenizer.json is not known: the file works with token ids, not with text")
    v.flags = {"add_bos_token": _adds_first(table), "add_eos_token": False}
    return v


def _place(v: Vocabulary, i: Any, text: str, kind: int, path: str) -> None:
    if type(i) is not int or i < 0:
        raise TokenizerError("a token id is no whole number", path=path, field=one_line(text), value=i)
    if i < len(v.pieces):
        v.pieces[i], v.types[i] = text, kind
    else:
        v.notes.append(f"token {i} '{one_line(text, 40)}' lies beyond the embedding table and was left out")


def _vocab(model: dict[str, Any], path: str) -> dict[str, Any]:
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or not vocab:
        raise TokenizerError("the tokenizer has no vocabulary", path=path, field="model.vocab")
    return vocab


def _merges(model: dict[str, Any], path: str) -> list[str]:
    """Merges as "left right": old files have such strings, new ones pairs."""
    out = []
    rows = model.get("merges")
    if not isinstance(rows, list):
        raise TokenizerError("the tokenizer has no merges", path=path, field="model.merges")
    for i, row in enumerate(rows):
        parts = row.split(" ") if isinstance(row, str) else row
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(p, str) and p for p in parts):
            raise TokenizerError("a merge is no pair of pieces", path=path, field=f"model.merges[{i}]", value=row)
        if any(" " in part for part in parts):
            raise TokenizerError("a byte-level piece holds a space", path=path, field=f"model.merges[{i}]", value=row)
        out.append(" ".join(parts))
    return out


def _parts(table: dict[str, Any]) -> list[dict[str, Any]]:
    """The pre-tokenizer as a flat list of steps."""
    pre = table.get("pre_tokenizer")
    steps = pre.get("pretokenizers") if isinstance(pre, dict) and pre.get("type") == "Sequence" else [pre]
    return [step for step in steps or [] if isinstance(step, dict)]


def _is_byte_level(table: dict[str, Any]) -> bool:
    return any(step.get("type") == "ByteLevel" for step in _parts(table))


def _pre_name(table: dict[str, Any], pre_names: Mapping[str, str]) -> str:
    steps = _parts(table)
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True) and not steps[0].get("add_prefix_space"):
        return "gpt-2"
    if kinds == ["Split", "ByteLevel"] and steps[0].get("behavior") == "Isolated" and not steps[0].get("invert"):
        pattern = steps[0].get("pattern")
        rule = pattern.get("Regex") if isinstance(pattern, dict) else None
        if isinstance(rule, str) and not steps[1].get("use_regex") and not steps[1].get("add_prefix_space"):
            return pre_names.get(rule, UNKNOWN_PRE)
    return UNKNOWN_PRE


def _adds_first(table: dict[str, Any]) -> bool:
    """Whether the post-processor puts a special token before the text."""
    post = table.get("post_processor")
    steps = post.get("processors") if isinstance(post, dict) and post.get("type") == "Sequence" else [post]
    for step in steps or []:
        if isinstance(step, dict) and step.get("type") == "TemplateProcessing":
            single = step.get("single")
            return bool(
                isinstance(single, list) and single and isinstance(single[0], dict) and "SpecialToken" in single[0]
            )
    return False
