"""Unigram (`tokenizer.ggml.model = "t5"`).

Kudo 2018, "Subword Regularization": of all ways to spell a text with pieces, the one with the largest sum of scores
(log probabilities), found from left to right. A character that is no piece costs 10 more than the worst piece; runs of
such characters are one unknown token. Same results as the sentencepiece package. The search is native/unigram.c;
`_Search` here is its twin in Python.

The text is normalised first by the map in the file (charsmap.py), spaces become U+2581, and with
`remove_extra_whitespaces` runs of spaces are one and those at the ends go.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from edgellm.tokenizers.charsmap import CharsMap
from edgellm.tokenizers.native import checked_bytes, native_model
from edgellm.tokenizers.spm import SPACE, byte_values
from edgellm.tokenizers.vocab import BYTE, CONTROL, UNKNOWN, USER_DEFINED, Vocab

UNKNOWN_PENALTY = 10.0
MAX_SEGMENTS_IN_CACHE = 100_000
_SPACES = re.compile(" {2,}")


def defaults(vocab: Vocab) -> tuple[dict[str, int], dict[str, bool]]:
    """Special ids and flags where the file says nothing: those of T5."""
    usual = {"eos": 1, "unknown": 2, "padding": 0}
    special = {name: i for name, i in usual.items() if i < vocab.n_vocab and vocab.types[i] in (CONTROL, UNKNOWN)}
    flags = {"add_bos_token": False, "add_eos_token": True, "add_space_prefix": False}
    return special, {**flags, "remove_extra_whitespaces": False}


class UnigramModel:
    """Turns text into ids, and ids into bytes, for one checked vocabulary.

    `native` False uses the Python loop; None takes the compiled one when it is there.
    """

    def __init__(self, vocab: Vocab, native: bool | None = None) -> None:
        if vocab.scores is None:
            raise vocab.refuse("a Unigram vocabulary needs scores: this key is missing", key="scores", rule="K11")
        if vocab.flags.get("treat_whitespace_as_suffix", False) or not vocab.flags.get("escape_whitespaces", True):
            raise vocab.refuse("this way to write spaces is not supported", key="escape_whitespaces", rule="V7")
        self.vocab = vocab
        self.bytes_of = byte_values(vocab)
        self.byte_ids = {value: i for i, value in self.bytes_of.items()}
        self.unk_id = vocab.special.get("unknown")
        if self.unk_id is None:
            raise vocab.refuse("a Unigram vocabulary needs an unknown token", key="unknown_token_id", rule="K11")
        self.usable = np.flatnonzero(~np.isin(vocab.types, (UNKNOWN, CONTROL, BYTE)))  # what text can become
        self.unknown_score = float(vocab.scores[self.usable].min(initial=0.0)) - UNKNOWN_PENALTY
        self.scores = np.where(vocab.types == USER_DEFINED, 0.0, vocab.scores.astype(np.float64))  # (n_pieces)
        self.prefix_if_missing = vocab.flags.get("prefix_if_missing", False)
        self._native = native_model(native, self._handle)
        self.charsmap = CharsMap(vocab, native)
        self._twin: _Search | None = None

    def _handle(self) -> Any:
        from edgellm.tokenizers.native import UnigramHandle

        byte_ids = [self.byte_ids.get(b, -1) for b in range(256)]
        return UnigramHandle(
            self.vocab.pieces, self.scores, self.usable.tolist(), self.unknown_score, byte_ids, self.unk_id
        )

    def encode(self, text: str, space_prefix: bool) -> list[int]:
        """Ids of a text without special pieces."""
        text = self.normalise(text, space_prefix)
        if self._native is not None:
            return self._native.encode(checked_bytes(text))
        if self._twin is None:
            self._twin = _Search(self)
        return self._twin.encode(text)

    def normalise(self, text: str, space_prefix: bool) -> str:
        """The text that is spelled, with U+2581 for spaces."""
        text = self.charsmap.apply(text)
        if self.vocab.flags["remove_extra_whitespaces"]:
            text = _SPACES.sub(" ", text).rstrip(" ")
            if not self.prefix_if_missing:  # else a space in front is the prefix
                text = text.lstrip(" ")
        if space_prefix and text and not (self.prefix_if_missing and text[0] in (" ", SPACE)):
            text = " " + text
        return text.replace(" ", SPACE)

    def piece_bytes(self, token: int) -> bytes:
        """What a text, byte or user-defined piece stands for."""
        value = self.bytes_of.get(token)
        if value is not None:
            return bytes([value])
        return self.vocab.pieces[token].replace(SPACE, " ").encode()


class _Search:
    """The search in Python, words remembered: the twin of native/unigram.c."""

    def __init__(self, model: UnigramModel) -> None:
        pieces, scores = model.vocab.pieces, model.scores.tolist()
        self.unknown_score, self.unk_id, self.byte_ids = model.unknown_score, model.unk_id, model.byte_ids
        self.pieces = {pieces[i]: (scores[i], i) for i in model.usable.tolist()}
        self.begun = {piece[:n] for piece in self.pieces for n in range(1, len(piece))}  # longer pieces begin so
        self.max_chars = max(map(len, self.pieces), default=0)
        # Where no piece has a space behind its first character, words are spelled one by one: the sums are apart.
        self.by_words = not any(SPACE in piece[1:] for piece in self.pieces)
        self._cache: dict[str, tuple[int, ...]] = {}

    def encode(self, text: str) -> list[int]:
        if not self.by_words:
            return self._joined([self._spell(text)])
        words = text.split(SPACE)
        return self._joined([self._spell(SPACE * (i > 0) + word) for i, word in enumerate(words)])

    def _spell(self, text: str) -> tuple[int, ...]:
        ids = self._cache.get(text)
        if ids is None:
            ids = self._best(text)
            if len(self._cache) >= MAX_SEGMENTS_IN_CACHE:
                self._cache.clear()
            if len(text) < 100:
                self._cache[text] = ids
        return ids

    def _best(self, text: str) -> tuple[int, ...]:
        """The best spelling (Viterbi). Unknown characters are -1 - code point.

        Where no piece can go across a place, the sums begin anew, so that rounding never depends on what is far away.
        """
        n, pieces, begun = len(text), self.pieces, self.begun
        best = [0.0] + [-np.inf] * n  # (n + 1) the best sum up to here
        came = [(0, 0)] * (n + 1)  # (n + 1) where its last piece begins, and which it is
        crossed = bytearray(n + 1)
        for at in range(n):
            here = best[at] = best[at] if crossed[at] else 0.0
            single = False
            for end in range(at + 1, min(n, at + self.max_chars) + 1):
                piece = text[at:end]
                hit = pieces.get(piece)
                if hit is not None:
                    single |= end == at + 1
                    if here + hit[0] > best[end]:
                        best[end], came[end] = here + hit[0], (at, hit[1])
                if piece not in begun:
                    break
                crossed[end] = 1
            if not single and here + self.unknown_score > best[at + 1]:
                best[at + 1], came[at + 1] = here + self.unknown_score, (at, -1 - ord(text[at]))
        ids: list[int] = []
        while n > 0:
            n, token = came[n]
            ids.append(token)
        return tuple(reversed(ids))

    def _joined(self, parts: list[tuple[int, ...]]) -> list[int]:
        """Ids of the parts: unknown characters become their bytes, or one unknown token for each run."""
        ids: list[int] = []
        after_unknown = False
        for part in parts:
            for token in part:
                if token >= 0:
                    ids.append(token)
                elif self.byte_ids:
                    ids += [self.byte_ids.get(b, self.unk_id) for b in chr(-1 - token).encode()]
                elif not after_unknown:
                    ids.append(self.unk_id)
                after_unknown = token < 0
        return ids
