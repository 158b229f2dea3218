"""SentencePiece BPE with scores (`tokenizer.ggml.model = "llama"`).

Kudo and Richardson 2018, "SentencePiece"; same results as that package and as llama.cpp. A space is written U+2581,
characters are merged by score, what is no piece falls back to its bytes. The loop is native/spm.c; `merge_pieces` here
is its twin in Python, used where the library is not there and compared with it by the tests.
"""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np

from edgellm.errors import BackendError, TokenizerError
from edgellm.strings import as_table
from edgellm.tokenizers.vocab import BYTE, CONTROL, UNKNOWN, UNUSED, Vocab

SPACE = "\u2581"
MAX_TEXT_BYTES = 2**31 - 1

# enum el_piece_kind of native/edgellm.h
TEXT_PIECE, UNUSED_PIECE, NEVER_PIECE = 0, 1, 2


def defaults(vocab: Vocab) -> tuple[dict[str, int], dict[str, bool]]:
    """Special ids and flags where the file says nothing."""
    usual = {"bos": 1, "eos": 2, "unknown": 0}
    special = {name: i for name, i in usual.items() if i < vocab.n_vocab and vocab.types[i] in (CONTROL, UNKNOWN)}
    return special, {"add_bos_token": True, "add_eos_token": False, "add_space_prefix": True}



def byte_values(vocab: Vocab) -> dict[int, int]:
    """Piece id -> byte value of the byte pieces `<0x00>` to `<0xFF>` (rule V3 refuses any other spelling)."""
    found: dict[int, int] = {}
    for i in np.flatnonzero(vocab.types == BYTE).tolist():
        piece = vocab.pieces[i]
        digits = piece[3:-1]
        if not (len(piece) == 6 and piece[:3] == "<0x" and piece[-1] == ">" and set(digits) <= set("0123456789ABCDEF")):
            raise vocab.refuse(
                f"byte piece {i} has a text that names no byte",
                key="tokens",
                value=piece,
                limit="<0x00> to <0xFF>",
                rule="V3",
            )
        found[i] = int(digits, 16)
    return found


class SpmModel:
    """Turns text into ids, and ids into bytes, for one checked vocabulary.

    `native` False uses the Python loop; None takes the compiled one when it is there.
    """

    def __init__(self, vocab: Vocab, native: bool | None = None) -> None:
        if vocab.scores is None:
            raise vocab.refuse("a SentencePiece vocabulary needs scores: this key is missing", key="scores", rule="K11")
        self.vocab = vocab
        self.bytes_of = byte_values(vocab)
        self.byte_ids = [-1] * 256
        for i, value in self.bytes_of.items():
            self.byte_ids[value] = i
        self.unk_id = vocab.special.get("unknown", -1)
        self.kinds = np.full(vocab.n_vocab, TEXT_PIECE, np.uint8)
        self.kinds[np.isin(vocab.types, (UNKNOWN, CONTROL, BYTE))] = NEVER_PIECE
        self.kinds[vocab.types == UNUSED] = UNUSED_PIECE
        self._native = self._native_handle() if native is not False else None
        if native and self._native is None:
            raise BackendError("the compiled library is not there")
        self._table: dict[str, tuple[float, int]] | None = None  # piece -> (-score, id), made when the twin is used

    def _native_handle(self) -> Any:
        from edgellm import clib

        if not clib.available():
            return None
        pieces = as_table(self.vocab.pieces)
        return clib.SpmHandle(
            pieces.text, pieces.offsets, self.vocab.scores, self.kinds, self.byte_ids, self.unk_id
        )

    def encode(self, text: str, space_prefix: bool) -> list[int]:
        """Ids of a text without special pieces, which starts a text or follows a special piece."""
        if not text:
            return []
        escaped = text.replace(" ", SPACE)
        if space_prefix:
            escaped = SPACE + escaped
        if self._native is not None:
            data = escaped.encode()
            if len(data) > MAX_TEXT_BYTES:
                raise TokenizerError("this text is too long", field="text", value=len(data), limit=MAX_TEXT_BYTES)
            ids = self._native.encode(data)
            if ids is None:
                raise no_piece_error(self.vocab)
            return ids
        return merge_pieces(self, escaped)

    def piece_bytes(self, token: int) -> bytes:
        """What a text, byte or user-defined piece stands for."""
        value = self.bytes_of.get(token)
        if value is not None:
            return bytes([value])
        return self.vocab.pieces[token].replace(SPACE, " ").encode()

    def table(self) -> dict[str, tuple[float, int]]:
        """Pieces that merges can make -> (-score, id)."""
        if self._table is None:
            scores = self.vocab.scores.tolist()
            usable = np.flatnonzero(self.kinds != NEVER_PIECE).tolist()
            self._table = {self.vocab.pieces[i]: (-scores[i] + 0.0, i) for i in usable}
        return self._table


def merge_pieces(model: SpmModel, text: str) -> list[int]:
    """The merge loop in Python, O(n log n): the twin of el_spm_encode in native/spm.c. `text` has U+2581 for spaces."""
    table = model.table()
    n = len(text)
    start = list(range(n))  # (n) first character of each symbol
    end = list(range(1, n + 1))  # (n) one past its last; equal to start: merged into its left neighbour
    before, after = list(range(-1, n - 1)), list(range(1, n + 1))
    if n:
        after[-1] = -1
    splits: dict[str, int] = {}  # unused piece -> length of the left half of the newest pair that made it
    heap: list[tuple[float, int, int, int]] = []  # (-score, left, right, length)

    def propose(left: int, right: int) -> tuple[float, int, int, int] | None:
        piece = text[start[left] : end[right]]
        hit = table.get(piece)
        if hit is None:
            return None
        if model.kinds[hit[1]] == UNUSED_PIECE:
            splits[piece] = end[left] - start[left]
        return hit[0], left, right, len(piece)

    for i in range(n - 1):
        if candidate := propose(i, i + 1):
            heap.append(candidate)
    heapq.heapify(heap)
    while heap:
        _, left, right, length = heapq.heappop(heap)
        sizes = end[left] - start[left], end[right] - start[right]
        if not sizes[0] or not sizes[1] or sizes[0] + sizes[1] != length:
            continue
        end[left], start[right] = end[right], end[right]
        after[left] = after[right]
        if after[right] >= 0:
            before[after[right]] = left
        if before[left] >= 0 and (candidate := propose(before[left], left)):
            heapq.heappush(heap, candidate)
        if after[left] >= 0 and (candidate := propose(left, after[left])):
            heapq.heappush(heap, candidate)

    symbols, i = [], 0 if n else -1
    while i >= 0:
        symbols.append(text[start[i] : end[i]])
        i = after[i]
    return _ids_of(model, symbols, splits)


def _ids_of(model: SpmModel, symbols: list[str], splits: dict[str, int]) -> list[int]:
    """Ids of the final symbols: unused pieces fall apart, unknown characters become bytes or one unknown token."""
    table = model.table()
    ids: list[int] = []
    waiting = symbols[::-1]
    after_unknown = False
    while waiting:
        symbol = waiting.pop()
        if symbol in splits:
            waiting += [symbol[splits[symbol] :], symbol[: splits[symbol]]]
            continue
        hit = table.get(symbol)
        is_piece = hit is not None and model.kinds[hit[1]] == TEXT_PIECE  # an unused character is as good as none
        found = [hit[1]] if is_piece else [model.byte_ids[b] for b in symbol.encode()]
        unknown = min(found) < 0
        if unknown and model.unk_id < 0:
            raise no_piece_error(model.vocab)
        if not unknown:
            ids += found
        elif not after_unknown:
            ids.append(model.unk_id)
        after_unknown = unknown
    return ids


def no_piece_error(vocab: Vocab) -> TokenizerError:
    return vocab.refuse(
        "a character of this text has no piece, and the vocabulary has neither byte pieces nor an unknown token",
        key="tokens",
        rule="V3",
    )
