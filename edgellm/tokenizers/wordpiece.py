"""WordPiece (`tokenizer.ggml.model = "bert"`).

Devlin et al. 2018 (BERT): text is cleaned, cut at white space and punctuation, and each word is spelled with the
longest pieces that fit, from the left; a word that cannot be spelled, or of more than 100 characters, is the unknown
token. In GGUF a piece that begins a word has U+2581 in front and one that continues a word stands as it is.

Case and accents are dropped unless the file says otherwise (`tokenizer.ggml.normalizer.lowercase`, `.strip_accents`).
Results are those of Hugging Face's BertNormalizer and BertPreTokenizer.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import Any

import numpy as np

from edgellm.tokenizers.characters import N_CODE_POINTS, WHITE_SPACE, category
from edgellm.tokenizers.native import WordPieceHandle, checked_bytes, native_model
from edgellm.tokenizers.spm import SPACE
from edgellm.tokenizers.vocab import BYTE, CONTROL, UNKNOWN, Vocab

MAX_WORD_CHARS = 100  # max_input_chars_per_word of BERT
MAX_WORDS_IN_CACHE = 100_000

# Characters that are words of their own (tokenizers' is_chinese_char; its 2B920 is what models were trained with).
_CJK = (
    (0x4E00, 0xA000), (0x3400, 0x4DC0), (0x20000, 0x2A6E0), (0x2A700, 0x2B740), (0x2B740, 0x2B820),
    (0x2B920, 0x2CEB0), (0xF900, 0xFB00), (0x2F800, 0x2FA20),
)  # fmt: skip
_DROP, _SPACE, _ALONE = 1, 2, 3  # what the cleaning does with a character; 0: nothing


def defaults(vocab: Vocab) -> tuple[dict[str, int], dict[str, bool]]:
    """Special ids and flags where the file says nothing: those of BERT."""
    usual = {"cls": 101, "seperator": 102, "unknown": 100, "padding": 0, "mask": 103}  # GGUF spells it so
    n, types = vocab.n_vocab, vocab.types
    special = {name: i for name, i in usual.items() if i < n and types[i] in (CONTROL, UNKNOWN)}
    special.update(vocab.special)
    if "cls" in special:
        special.setdefault("bos", special["cls"])
    # The space in front of a text's first word is not shown again.
    return special, {"add_bos_token": True, "add_eos_token": False, "add_sep_token": True, "add_space_prefix": True}


@lru_cache(maxsize=1)
def _kinds() -> np.ndarray:
    """(0x110000,) uint8: what the cleaning does with each character."""
    table = np.zeros(N_CODE_POINTS, np.uint8)
    ascii_marks = ((33, 48), (58, 65), (91, 97), (123, 127))
    controls = (*category("Cc"), *category("Cf"), *category("Co"), (0xFFFD, 0xFFFE))
    for ranges, kind in ((category("P"), _ALONE), (ascii_marks, _ALONE), (_CJK, _ALONE), (WHITE_SPACE, _SPACE),
                         (controls, _DROP), (((9, 11), (13, 14)), _SPACE)):  # fmt: skip
        for a, b in ranges:
            table[a:b] = kind
    return table


class WordPieceModel:
    """Turns text into ids, and ids into bytes, for one checked vocabulary.

    `native` False uses the Python loop; None takes the compiled one when it is there.
    """

    def __init__(self, vocab: Vocab, native: bool | None = None) -> None:
        self.vocab = vocab
        unk_id = vocab.special.get("unknown")
        if unk_id is None:
            raise vocab.refuse("a WordPiece vocabulary needs an unknown token", key="unknown_token_id", rule="K11")
        self.unk_id = unk_id
        self.lowercase = vocab.flags.get("normalizer.lowercase", True)
        self.strip_accents = vocab.flags.get("normalizer.strip_accents", self.lowercase)
        usable = np.flatnonzero(~np.isin(vocab.types, (CONTROL, UNKNOWN, BYTE))).tolist()
        rows = [(vocab.pieces[i], i) for i in usable]
        self.begin = {piece[1:]: i for piece, i in rows if piece[:1] == SPACE and len(piece) > 1}
        self.follow = {piece: i for piece, i in rows if piece[:1] != SPACE or piece == SPACE}
        self.max_chars = max(map(len, [*self.begin, *self.follow]), default=0)
        self._native = native_model(native, self._handle)
        self._cache: dict[str, tuple[int, ...]] = {}

    def _handle(self) -> Any:
        return WordPieceHandle(self.begin, self.follow, self.vocab.n_vocab, self.unk_id, MAX_WORD_CHARS)

    def encode(self, text: str, space_prefix: bool) -> list[int]:
        """Ids of a text without special pieces."""
        text = self.clean(text)
        if self._native is not None:
            return self._native.encode(checked_bytes(text))
        out: list[int] = []
        cache = self._cache
        for word in text.split(" "):
            ids = cache.get(word)
            if ids is None:
                ids = self._spell(word)
                if len(cache) >= MAX_WORDS_IN_CACHE:
                    cache.clear()
                if len(word) <= MAX_WORD_CHARS:
                    cache[word] = ids
            out += ids
        return out

    def clean(self, text: str) -> str:
        """The words of a text with spaces between them."""
        text = _spaced(text)
        if self.strip_accents and not text.isascii():
            text = without_accents(text)
        if self.lowercase:
            text = text.replace("\u03a3", "\u03c3").lower()  # the form of a last sigma would depend on its neighbours
        return _apart(text)

    def _spell(self, word: str) -> tuple[int, ...]:
        """The twin of spell in native/wordpiece.c."""
        if not word:
            return ()
        if len(word) > MAX_WORD_CHARS:
            return (self.unk_id,)
        rest, ids, table = word, [], self.begin
        while rest:
            n = next((n for n in range(min(len(rest), self.max_chars), 0, -1) if rest[:n] in table), 0)
            if n == 0:
                return (self.unk_id,)
            ids.append(table[rest[:n]])
            rest, table = rest[n:], self.follow
        return tuple(ids)

    def piece_bytes(self, token: int) -> bytes:
        """What a piece stands for; the space in front of a word is part of it."""
        return self.vocab.pieces[token].replace(SPACE, " ").encode()


_DROPPED, _DROPPED_STARTER = 255, 254  # a non-spacing mark; one that no mark behind it may be moved over


@lru_cache(maxsize=1)
def _marks() -> np.ndarray:
    """(0x110000,) uint8: the combining class of a character, or one of the two above for non-spacing marks."""
    table = np.zeros(N_CODE_POINTS, np.uint8)
    for a, b in category("M"):
        table[a:b] = [unicodedata.combining(chr(point)) for point in range(a, b)]
    for a, b in category("Mn"):
        table[a:b] = np.where(table[a:b] > 0, _DROPPED, _DROPPED_STARTER)
    return table


def without_accents(text: str) -> str:
    """Unicode form NFD without non-spacing marks (category Mn), in linear time.

    Python's own NFD sorts long runs of marks by insertion, so each character is taken apart by itself, and the few
    marks that stay (of category Mc) are sorted here, by their combining class.
    """
    codes = _decomposed(_codes(text))
    marks = _marks()[codes]
    keep = np.flatnonzero(marks < _DROPPED_STARTER)
    if marks[keep].any():
        run = np.cumsum((marks == 0) | (marks == _DROPPED_STARTER))
        keep = keep[np.lexsort((marks[keep], run[keep]))]
    return _text(codes[keep])


def _decomposed(codes: np.ndarray) -> np.ndarray:
    """Each character taken apart (its form NFD); marks are not sorted. (n,) uint32 -> (m,) uint32."""
    present = np.zeros(N_CODE_POINTS, bool)
    present[codes] = True
    points = np.flatnonzero(present)
    forms = [unicodedata.normalize("NFD", chr(point)) for point in points.tolist()]
    sizes = np.array([len(form) for form in forms])
    if sizes.max(initial=0) < 2 and "".join(forms) == _text(points.astype(np.uint32)):
        return codes
    which = np.searchsorted(points, codes)  # (n)
    starts, counts = (np.cumsum(sizes) - sizes)[which], sizes[which]
    inner = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)  # (m) 0, 1, ... in each form
    return _codes("".join(forms))[np.repeat(starts, counts) + inner]


def _codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)


def _text(codes: np.ndarray) -> str:
    return codes.astype("<u4").tobytes().decode("utf-32-le")


def _spaced(text: str) -> str:
    """Without control characters, white space as spaces, Chinese characters between spaces."""
    codes = _codes(text)
    kinds = _kinds()[codes]
    keep = kinds != _DROP
    codes, kinds = codes[keep], kinds[keep]
    codes = np.where(kinds == _SPACE, np.uint32(32), codes)
    return _with_spaces(codes, (kinds == _ALONE) & (codes >= 0x3400))


def _apart(text: str) -> str:
    """Punctuation between spaces."""
    codes = _codes(text)
    return _with_spaces(codes, _kinds()[codes] == _ALONE)


def _with_spaces(codes: np.ndarray, alone: np.ndarray) -> str:
    """The text of `codes` with a space before and after each character of `alone`."""
    if alone.any():
        at = np.flatnonzero(alone)
        codes = np.insert(codes, np.concatenate([at, at + 1]), 32)
    return _text(codes)
