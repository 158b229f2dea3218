"""Unigram (`tokenizer.ggml.model = "t5"`).

Kudo 2018, "Subword Regularization": of all ways to spell a text with pieces, the one with the largest sum of scores
(log probabilities), found from left to right. A character that is no piece costs 10 more than the worst piece; runs of
such characters are one unknown token. Same results as the sentencepiece package.

The text is normalised first by the map in the file (charsmap.py), spaces become U+2581, and with
`remove_extra_whitespaces` runs of spaces are one and those at the ends go.
"""

from __future__ import annotations

import numpy as np

from edgellm.errors import BackendError
from edgellm.tokenizers.charsmap import CharsMap
from edgellm.tokenizers.spm import NEVER_PIECE, SPACE, TEXT_PIECE, byte_values
from edgellm.tokenizers.vocab import BYTE, CONTROL, UNKNOWN, USER_DEFINED, Vocab

UNKNOWN_PENALTY = 10.0
MAX_SEGMENTS_IN_CACHE = 100_000


def defaults(vocab: Vocab) -> tuple[dict[str, int], dict[str, bool]]:
    """Special ids and flags where the file says nothing: those of T5."""
    usual = {"eos": 1, "unknown": 2, "padding": 0}
    special = {name: i for name, i in usual.items() if i < vocab.n_vocab and vocab.types[i] in (CONTROL, UNKNOWN)}
    flags = {"add_bos_token": False, "add_eos_token": True, "add_space_prefix": False}
    return special, {**flags, "remove_extra_whitespaces": False}


class UnigramModel:
    """Turns text into ids, and ids into bytes. There is no compiled loop: words are remembered instead."""

    def __init__(self, vocab: Vocab, native: bool | None = None) -> None:
        if native:
            raise BackendError("Unigram has no compiled loop")
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
        kinds = np.where(np.isin(vocab.types, (UNKNOWN, CONTROL, BYTE)), NEVER_PIECE, TEXT_PIECE)
        normal = vocab.scores[kinds == TEXT_PIECE]
        self.unknown_score = float(normal.min(initial=0.0)) - UNKNOWN_PENALTY
        free = vocab.types == USER_DEFINED
        scores = np.where(free, 0.0, vocab.scores.astype(np.float64)).tolist()
        self.pieces = {vocab.pieces[i]: (scores[i], i) for i in np.flatnonzero(kinds == TEXT_PIECE).tolist()}
        self.max_chars = max(map(len, self.pieces), default=0)
        # Where no piece has a space behind its first character, words are spelled one by one: the sums are apart.
        self.by_words = not any(SPACE in piece[1:] for piece in self.pieces)
        self.starts = {piece[:n] for piece in self.pieces for n in range(1, len(piece) + 1)}
        self.charsmap = CharsMap(vocab)
        self._cache: dict[str, tuple[int, ...]] = {}

    def encode(self, text: str, space_prefix: bool) -> list[int]:
        """Ids of a text without special pieces."""
        text = self.normalise(text, space_prefix)
        if not self.by_words:
            return self._joined([self._spell(text)])
        words = text.split(SPACE)
        return self._joined([self._spell(SPACE * (i > 0) + word) for i, word in enumerate(words)])

    def normalise(self, text: str, space_prefix: bool) -> str:
        """The text that is spelled, with U+2581 for spaces."""
        text = self.charsmap.apply(text)
        if self.vocab.flags["remove_extra_whitespaces"]:
            text = " ".join(part for part in text.split(" ") if part)
        if space_prefix and text:
            text = " " + text
        return text.replace(" ", SPACE)

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
        """The best spelling (Viterbi). Unknown characters are -1 - code point."""
        n, pieces, starts = len(text), self.pieces, self.starts
        best = [0.0] + [-np.inf] * n  # (n + 1) the best sum up to here
        came = [(0, 0)] * (n + 1)  # (n + 1) where its last piece begins, and which it is
        for at in range(n):
            here = best[at]
            single = False
            for end in range(at + 1, min(n, at + self.max_chars) + 1):
                piece = text[at:end]
                if piece not in starts:
                    break
                hit = pieces.get(piece)
                if hit is None:
                    continue
                single |= end == at + 1
                if here + hit[0] > best[end]:
                    best[end], came[end] = here + hit[0], (at, hit[1])
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

    def piece_bytes(self, token: int) -> bytes:
        """What a text, byte or user-defined piece stands for."""
        value = self.bytes_of.get(token)
        if value is not None:
            return bytes([value])
        return self.vocab.pieces[token].replace(SPACE, " ").encode()
