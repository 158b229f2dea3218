"""Unigram from a `tokenizer.json`: pieces with scores, the normalisation map, and how spaces are treated.

What the steps of such a file do to spaces is one of a few things, which flags of GGUF and two of edgellm's own say
(formats/checkpoints.md). Other steps are refused by name.
"""

from __future__ import annotations

import base64
import binascii
import math
from typing import Any

import numpy as np

from ..errors import TokenizerError
from ..tokenizers.characters import WHITE_SPACE
from ..tokenizers.charsmap import CharsMap
from ..tokenizers.vocab import Vocab
from .hf_vocabulary import Vocabulary
from .pieces import BYTE, NORMAL, SPACE, UNKNOWN, byte_of_piece

_USUAL_SPACE = set("\t\n\r\u00a0\u3000")


def fill(v: Vocabulary, table: dict[str, Any], path: str) -> None:
    """Raises TokenizerError for every setting that GGUF cannot say."""
    model = table["model"]
    v.model, v.scores = "t5", [0.0] * len(v.pieces)
    rows, unk_id = model.get("vocab"), model.get("unk_id")
    if not isinstance(rows, list) or type(unk_id) is not int or not 0 <= unk_id < min(len(rows), len(v.pieces)):
        raise TokenizerError("the vocabulary has no unknown token", path=path, field="model.unk_id", value=unk_id)
    for i, row in enumerate(rows):
        text, score = row if isinstance(row, list) and len(row) == 2 else (None, None)
        if not isinstance(text, str) or not text or type(score) not in (int, float) or not math.isfinite(score):
            raise TokenizerError("must be a piece and its score", path=path, field=f"model.vocab[{i}]", value=row)
        is_byte = model.get("byte_fallback") is True and byte_of_piece(text) is not None
        v.place(i, text, UNKNOWN if i == unk_id else BYTE if is_byte else NORMAL, path)
        if i < len(v.scores):
            v.scores[i] = float(score)
    v.special = {"unknown": unk_id}
    steps = _Steps(path)
    steps.normalizer(table.get("normalizer"))
    steps.pre_tokenizer(table.get("pre_tokenizer"))
    v.flags = steps.flags([row[0] for row in rows])
    v.own_flags = steps.own_flags()
    v.charsmap = steps.charsmap
    v.notes += steps.notes


class _Steps:
    """What the steps of a file come to."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.charsmap = b""
        self.notes: list[str] = []
        self.stripped = self.merged = self.split_at_space = False
        self.prefix = "never"
        self.split = True

    def refuse(self, field: str, value: Any, why: str = "GGUF has no key for this step of a Unigram tokenizer") -> None:
        raise TokenizerError(why, path=self.path, field=field, value=value, rule="V7")

    def normalizer(self, step: Any) -> None:
        steps = step.get("normalizers") if isinstance(step, dict) and step.get("type") == "Sequence" else [step]
        for i, one in enumerate([s for s in steps or [] if s is not None]):
            kind = one.get("type") if isinstance(one, dict) else one
            if kind == "Precompiled" and i == 0:
                try:
                    self.charsmap = base64.b64decode(one.get("precompiled_charsmap") or "", validate=True)
                except (binascii.Error, TypeError, ValueError):
                    self.refuse("normalizer", kind, "the normalisation map is no base64 text")
            elif kind == "Strip" and one.get("strip_right") is True:
                self.stripped = True
            elif kind == "Replace" and one.get("pattern") == {"Regex": " {2,}"} and one.get("content") in (" ", SPACE):
                self.merged = True
            else:
                self.refuse("normalizer", one)

    def pre_tokenizer(self, step: Any) -> None:
        steps = step.get("pretokenizers") if isinstance(step, dict) and step.get("type") == "Sequence" else [step]
        kinds = [one.get("type") if isinstance(one, dict) else one for one in steps or []]
        if kinds not in (["Metaspace"], ["WhitespaceSplit", "Metaspace"]):
            self.refuse("pre_tokenizer", step)
        space = steps[-1]
        if space.get("replacement") != SPACE:
            self.refuse("pre_tokenizer.replacement", space.get("replacement"))
        old = {True: "always", False: "never", None: "always"}.get(space.get("add_prefix_space"))
        self.prefix = space.get("prepend_scheme", old)
        if self.prefix not in ("always", "first", "never"):
            self.refuse("pre_tokenizer.prepend_scheme", self.prefix)
        self.split_at_space, self.split = len(kinds) == 2, space.get("split", True)

    def flags(self, pieces: list[str]) -> dict[str, bool]:
        extra = self.split_at_space or (self.stripped and self.merged)
        if (self.stripped or self.merged) and not extra:
            self.refuse("normalizer", "only one of: strip, merge spaces")
        if extra:
            self._only_spaces()
        if self.split_at_space and self.prefix != "always":
            self.refuse("pre_tokenizer.prepend_scheme", self.prefix)
        crossing = [piece for piece in pieces if SPACE in piece[1:] and piece.strip(SPACE)]
        if (self.split or self.split_at_space) and crossing:
            self.refuse("model.vocab", crossing[0], "a piece goes over the end of a word, where this file cuts")
        return {"add_space_prefix": self.prefix != "never", "remove_extra_whitespaces": extra}

    def own_flags(self) -> dict[str, bool]:
        return {"prefix_if_missing": not self.split_at_space, "prefix_first_only": self.prefix == "first"}

    def _only_spaces(self) -> None:
        """Words end at any white space, in GGUF at spaces: the map must make its usual kinds spaces, or nothing."""
        one = np.ones(1, np.uint8)
        charsmap = CharsMap(Vocab("t5", "default", ["a"], None, one, {}, {}, charsmap=self.charsmap, path=self.path))
        kept = [c for a, b in WHITE_SPACE for c in map(chr, range(a, b)) if charsmap.apply(c).strip(" ")]
        names = [f"U+{ord(c):04X}" for c in kept]
        if set(kept) & _USUAL_SPACE:
            why = "words end at white space that the normalisation map leaves as it is"
            self.refuse("normalizer", ", ".join(names), why)
        if kept:
            self.notes.append(f"words do not end at these kinds of white space: {', '.join(names)}")
