"""Byte-level BPE from a `tokenizer.json` (https://github.com/huggingface/tokenizers): pieces, merges, split rule."""

from __future__ import annotations

from typing import Any

from ..errors import TokenizerError
from ..tokenizers.pattern_syntax import PatternError, parse
from ..tokenizers.pretokenizers import ALL_WORDS, BYTE_DIGITS, DIGIT, DIGITS, GPT2, NO_WORDS, PUNCTUATION, RULES
from .hf_vocabulary import Vocabulary
from .pieces import NORMAL


def fill(v: Vocabulary, table: dict[str, Any], path: str) -> None:
    """Raises TokenizerError for BPE without byte-level pieces, and for a split rule that has no name in GGUF."""
    model = table["model"]
    if not _is_byte_level(table):
        raise TokenizerError(
            "this kind of tokenizer.json is not supported; a folder with tokenizer.model beside it can be converted",
            path=path, field="model.type", value="BPE without byte-level pieces", limit="byte-level BPE",
        )  # fmt: skip
    v.model = "gpt2"
    for text, i in _vocab(model, path).items():
        v.place(i, text, NORMAL, path)
    v.merges = _merges(model, path)
    v.pre = _pre_name(table, path)
    _refuse_more(table, path)
    if _normalizer(table) == "NFC":
        v.notes.append("text is not put into Unicode form NFC before it is cut: decoding gives back what was encoded")


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


def _pre_name(table: dict[str, Any], path: str) -> str:
    """The GGUF name of the rule by which this file cuts text, found by what it does, not by any name."""
    steps = _parts(table)
    kinds = [step.get("type") for step in steps]
    wanted = [_expression(step, path, "ByteLevel" in kinds[:i]) for i, step in enumerate(steps)]
    wanted = tuple(parse(text) for text in wanted if text)
    whole = ALL_WORDS if table["model"].get("ignore_merges") else NO_WORDS
    for name, rule in RULES.items():
        if rule.whole_words == whole and tuple(map(parse, rule.expressions)) == wanted:
            return name
    raise TokenizerError(
        "the rule by which this tokenizer cuts text into words has no name in GGUF", path=path, field="pre_tokenizer",
        value=table.get("pre_tokenizer"), limit=f"the rules of {', '.join(RULES)}", rule="V7",
    )  # fmt: skip


def _expression(step: dict[str, Any], path: str, bytes_done: bool) -> str | None:
    """One step of the pre-tokenizer as a regular expression whose matches become words; None: it cuts nothing.
    `bytes_done`: an earlier step has written bytes as letters."""
    kind, pattern = step.get("type"), step.get("pattern")
    text = None
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        text = GPT2 if step.get("use_regex", True) else ""
    elif kind == "Digits":
        text = DIGIT if step.get("individual_digits") else BYTE_DIGITS if bytes_done else DIGITS
    elif kind == "Punctuation" and step.get("behavior") == "Contiguous":
        text = PUNCTUATION
    elif kind == "Split" and isinstance(pattern, dict) and isinstance(pattern.get("Regex"), str):
        kept = step.get("behavior") == "Isolated" and not step.get("invert")
        turned = step.get("behavior") == "Removed" and step.get("invert")  # as good when the rule leaves nothing out
        text = pattern["Regex"] if kept or turned else None
    if text is None:
        raise TokenizerError(
            "a step of the pre-tokenizer is not supported", path=path, field="pre_tokenizer", value=step, rule="V7"
        )
    try:
        parse(text)
    except PatternError as error:
        raise TokenizerError(
            f"a split rule is not supported: {error}", path=path, field="pre_tokenizer", value=text, rule="V7"
        ) from None
    return text or None


def _refuse_more(table: dict[str, Any], path: str) -> None:
    """Refuses what would change tokens and has no place in GGUF."""
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if table["model"].get(name):
            raise TokenizerError(
                "this setting of BPE is not supported", path=path, field=f"model.{name}", value=table["model"][name]
            )
    kind = _normalizer(table)
    if kind not in (None, "NFC"):
        raise TokenizerError(
            "this normaliser is not supported", path=path, field="normalizer", value=kind, limit="none or NFC"
        )


def _normalizer(table: dict[str, Any]) -> Any:
    """The kind of the normaliser, None where there is none; a sequence of one is that one."""
    step = table.get("normalizer")
    if isinstance(step, dict) and step.get("type") == "Sequence" and isinstance(step.get("normalizers"), list):
        if len(step["normalizers"]) > 1:
            return "Sequence"
        step = step["normalizers"][0] if step["normalizers"] else None
    return step.get("type", "unknown") if isinstance(step, dict) else step
