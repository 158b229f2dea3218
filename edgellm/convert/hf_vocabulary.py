"""A vocabulary on its way from a Hugging Face folder to a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Vocabulary:
    """What goes into the file. `pieces`, `types` (and `scores`) have one entry for each row of the embedding table."""

    model: str  # tokenizer.ggml.model
    pre: str
    pieces: list[str]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    special: dict[str, int] = field(default_factory=dict)  # "bos", "eos", ... from the tokenizer itself
    flags: dict[str, bool] = field(default_factory=dict)  # add_bos_token, add_space_prefix, ...
    notes: list[str] = field(default_factory=list)


def looks_special(text: str) -> bool:
    """Names that no ordinary text has, as llama.cpp's converter judges them."""
    ends = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))
    return text in ("<pad>", "<mask>", "[@BOS@]") or any(text.startswith(a) and text.endswith(b) for a, b in ends)
