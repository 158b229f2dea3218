"""BPE by merge rank: byte-level (`tokenizer.ggml.model = "gpt2"`) and on characters with byte pieces ("gemma4").

Sennrich et al. 2016; Radford et al. 2019 (GPT-2) for bytes as the alphabet. Text is cut into words by the rule that
`tokenizer.ggml.pre` names (pretokenizers.py); inside a word the neighbours with the lowest rank are merged, the
leftmost of equals first, until no merge is left. The loop is native/bpe.c; `merge_symbols` here is its twin in Python.
"""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np

from edgellm.errors import BackendError, TokenizerError, one_line
from edgellm.strings import as_table
from edgellm.tokenizers import patterns
from edgellm.tokenizers.merges import byte_alphabet, merge_table, spellings
from edgellm.tokenizers.pretokenizers import ALL_WORDS, LINE_FEEDS, NO_WORDS, RULES, Rule
from edgellm.tokenizers.spm import MAX_TEXT_BYTES, NEVER_PIECE, SPACE, TEXT_PIECE, byte_values
from edgellm.tokenizers.vocab import BYTE, CONTROL, UNKNOWN, Vocab

CHARACTERS = "gemma4"  # the kind whose words start as characters, not as bytes
MAX_WORDS_IN_CACHE = 20_000


def defaults(vocab: Vocab) -> tuple[dict[str, int], dict[str, bool]]:
    """Special ids and flags where the file says nothing."""
    rule = rule_of(vocab)
    return {}, {"add_bos_token": rule.add_bos, "add_eos_token": False, "add_space_prefix": False}


def rule_of(vocab: Vocab) -> Rule:
    """The pre-tokenizer rule of a vocabulary. Rule V7: an unknown name is refused, never guessed."""
    name = CHARACTERS if vocab.kind == CHARACTERS else vocab.pre
    if name not in RULES:
        known = ", ".join(RULES)
        raise vocab.refuse(
            f"pre-tokenizer '{one_line(name)}' is not supported; supported: {known}", key="pre", value=name, rule="V7"
        )
    return RULES[name]


class BpeModel:
    """Turns text into ids, and ids into bytes, for one checked vocabulary.

    `native` False uses the Python loop; None takes the compiled one when it is there.
    """

    def __init__(self, vocab: Vocab, native: bool | None = None) -> None:
        self.vocab, self.rule = vocab, rule_of(vocab)
        self.characters = vocab.kind == CHARACTERS
        self.bytes_of = byte_values(vocab)
        kinds = np.where(np.isin(vocab.types, (CONTROL, UNKNOWN, BYTE)), NEVER_PIECE, TEXT_PIECE).astype(np.uint8)
        # (n_pieces) what text a piece is made from, and whether it is: some become none by merges
        self.texts, self.kinds = spellings(as_table(vocab.pieces), kinds, self.characters, native)
        self.byte_ids = self._byte_ids()
        self.unk_id = vocab.special.get("unknown", -1)
        self.merges = merge_table(vocab, native)  # (n_merges, 3) left, right, result
        self._patterns = patterns.compiled(self.rule.expressions)
        self._native = self._native_handle() if native is not False else None
        if native and self._native is None:
            raise BackendError("the compiled library is not there")
        self._ranks: dict[tuple[int, int], int] | None = None
        self._ids: dict[bytes, int] | None = None
        self._cache: dict[bytes, list[int]] = {}

    def _byte_ids(self) -> list[int]:
        ids = [-1] * 256
        if self.characters:
            for i, value in self.bytes_of.items():
                ids[value] = i
            return ids
        for c, value in byte_alphabet().items():
            i = self.vocab.ids.get(c, -1)
            ids[value] = i if i >= 0 and self.kinds[i] != NEVER_PIECE else -1
        return ids

    def _native_handle(self) -> Any:
        from edgellm import clib

        if not clib.available():
            return None
        return clib.BpeHandle(
            self.texts.text, self.texts.offsets, self.kinds, self.merges, self.byte_ids, self.unk_id,
            self.rule.whole_words, self.characters,
        )  # fmt: skip

    # ---- text to ids -------------------------------------------------------------------------------------------

    def encode(self, text: str, space_prefix: bool) -> list[int]:
        """Ids of a text without special pieces."""
        if not text:
            return []
        if space_prefix:
            text = " " + text
        if self.characters:
            text = text.replace(" ", SPACE)
        data = text.encode()
        if len(data) > MAX_TEXT_BYTES:
            raise TokenizerError("this text is too long", field="text", value=len(data), limit=MAX_TEXT_BYTES)
        ends = self.word_ends(text)
        if self._native is not None:
            return self._native.encode(data, ends)
        ids, start = [], 0
        for end in ends.tolist():
            ids += self._word(data[start:end])
            start = end
        return ids

    def word_ends(self, text: str) -> np.ndarray:
        """(n_words,) int64: where the words of the UTF-8 form of `text` end, in bytes."""
        codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        ends = self._patterns.split(codes)
        if text.isascii():
            return ends
        sizes = 1 + (codes > 0x7F).astype(np.int8) + (codes > 0x7FF) + (codes > 0xFFFF)
        return np.cumsum(sizes, dtype=np.int64)[ends - 1]

    def _word(self, word: bytes) -> list[int]:
        """The twin of encode_word in native/bpe.c, with a cache."""
        ids = self._cache.get(word)
        if ids is None:
            ids = self._whole(word) or merge_symbols(self._symbols(word), self._merge_ranks(), self.merges)
            if len(self._cache) >= MAX_WORDS_IN_CACHE:
                self._cache.clear()
            self._cache[word] = ids
        return ids

    def _whole(self, word: bytes) -> list[int] | None:
        how = self.rule.whole_words
        if how == NO_WORDS or (how == LINE_FEEDS and word.strip(b"\n")):
            return None
        assert how in (ALL_WORDS, LINE_FEEDS)
        found = self._piece_ids().get(word)
        return None if found is None else [found]

    def _symbols(self, word: bytes) -> list[int]:
        """Ids that a word starts from: bytes, or characters (a character without a piece becomes its bytes).

        A byte without a piece is the unknown token, or left out where there is none (as in tokenizers and llama.cpp).
        """
        parts = [c.encode() for c in word.decode()] if self.characters else [bytes([b]) for b in word]
        out: list[int] = []
        for part in parts:
            found = self._piece_ids().get(part) if self.characters else None
            for i in [self.byte_ids[b] for b in part] if found is None else [found]:
                out.append(i if i >= 0 else self.unk_id)
        return [i for i in out if i >= 0]

    def _piece_ids(self) -> dict[bytes, int]:
        if self._ids is None:
            usable = np.flatnonzero(self.kinds != NEVER_PIECE).tolist()
            self._ids = {self.texts.bytes_of(i): i for i in usable}
        return self._ids

    def _merge_ranks(self) -> dict[tuple[int, int], int]:
        if self._ranks is None:
            pairs = self.merges[:, :2].tolist()
            self._ranks = {(left, right): rank for rank, (left, right) in enumerate(pairs) if left >= 0}
        return self._ranks

    # ---- ids to text -------------------------------------------------------------------------------------------

    def piece_bytes(self, token: int) -> bytes:
        """What a text, byte or user-defined piece stands for."""
        value = self.bytes_of.get(token)
        if value is not None:
            return bytes([value])
        if self.characters:
            return self.vocab.pieces[token].replace(SPACE, " ").encode()
        if self.vocab.is_text(token) and self.kinds[token] != NEVER_PIECE:
            return self.texts.bytes_of(token)
        return self.vocab.pieces[token].encode()


def merge_symbols(symbols: list[int], ranks: dict[tuple[int, int], int], merges: np.ndarray) -> list[int]:
    """The merge loop in Python, O(n log n): the twin of merge_word in native/bpe.c."""
    ids = list(symbols)
    n = len(ids)
    before, after = list(range(-1, n - 1)), list(range(1, n + 1))
    heap: list[tuple[int, int]] = []  # (rank, left)

    def propose(left: int) -> None:
        if left >= 0 and after[left] < n:
            rank = ranks.get((ids[left], ids[after[left]]))
            if rank is not None:
                heapq.heappush(heap, (rank, left))

    for i in range(n - 1):
        propose(i)
    while heap:
        rank, left = heapq.heappop(heap)
        right = after[left]
        if ids[left] < 0 or right >= n or ranks.get((ids[left], ids[right])) != rank:
            continue
        ids[left], ids[right] = int(merges[rank, 2]), -1
        after[left] = after[right]
        if after[left] < n:
            before[after[left]] = left
        propose(before[left])
        propose(left)
    return [i for i in ids if i >= 0]

