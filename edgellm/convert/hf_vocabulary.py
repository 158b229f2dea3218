"""A vocabulary on its way from a Hugging Face folder to a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..errors import TokenizerError, one_line

# What an added token may be besides a text: keys edgellm.tokenizer.NAME of the file, each a list of ids.
ATTRIBUTES = ("lstrip", "rstrip", "single_word", "normalized")


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
    own_flags: dict[str, bool] = field(default_factory=dict)  # edgellm.tokenizer.NAME
    attributes: dict[str, list[int]] = field(default_factory=dict)  # name of `ATTRIBUTES` -> ids
    charsmap: bytes = b""
    notes: list[str] = field(default_factory=list)

    def place(self, i: Any, text: str, kind: int, path: str) -> None:
        """Gives id `i` its piece. Raises TokenizerError for what is no id; ids beyond the table become a remark."""
        if type(i) is not int or i < 0:
            raise TokenizerError("a token id is no whole number", path=path, field=one_line(text), value=i)
        if i < len(self.pieces):
            self.pieces[i], self.types[i] = text, kind
        else:
            self.notes.append(f"token {i} '{one_line(text, 40)}' lies beyond the embedding table and was left out")

    def set_attributes(self, i: int, row: dict[str, Any]) -> None:
        """The attributes of added token `i`, as its row in a JSON file has them."""
        for name in ATTRIBUTES:
            ids = self.attributes.setdefault(name, [])
            if i in ids:
                ids.remove(i)
            if row.get(name) is True and i < len(self.pieces):
                ids.append(i)


def looks_special(text: str) -> bool:
    """Names that no ordinary text has, as llama.cpp's converter judges them."""
    ends = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))
    return text in ("<pad>", "<mask>", "[@BOS@]") or any(text.startswith(a) and text.endswith(b) for a, b in ends)
