"""What the merges and pieces of a BPE vocabulary stand for: which pieces a merge joins, which bytes a piece is.

Both are loops over hundreds of thousands of strings, so they are done in C (native/strings.c) where a file's own tables
are at hand; `slow_merges` and `slow_spellings` are what they must give.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from edgellm import clib
from edgellm.errors import TokenizerError, one_line
from edgellm.strings import StringIndex, StringTable, table_arguments
from edgellm.tokenizers.spm import NEVER_PIECE
from edgellm.tokenizers.vocab import CONTROL, UNKNOWN, Vocab


@lru_cache(maxsize=1)
def byte_alphabet() -> dict[str, int]:
    """Character -> byte: bytes that print stand for themselves, the others for U+0100 onwards (GPT-2)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


def piece_to_bytes(piece: str) -> bytes | None:
    """The bytes that a piece of the byte alphabet stands for; None: it has other characters too."""
    alphabet = byte_alphabet()
    try:
        return bytes([alphabet[c] for c in piece])
    except KeyError:
        return None


# ---- merges ----------------------------------------------------------------------------------------------------------


def merge_table(vocab: Vocab, native: bool | None = None) -> np.ndarray:
    """(n_merges, 3) int32: ids of left, right and result, by rank (rule V4). A merge that could only make a control
    piece is never done: its row is -1. `native` False takes the twin. Raises TokenizerError."""
    if vocab.merges is None:
        raise vocab.refuse("a BPE vocabulary needs merges: this key is missing", key="merges", rule="K11")
    rows = None
    if native is not False and isinstance(vocab.ids, StringIndex) and isinstance(vocab.merges, StringTable):
        rows = _fast_merges(vocab.ids, vocab.merges)
    if rows is None:
        rows = slow_merges(vocab)
    _refuse_twins(vocab, rows)
    rows[np.isin(vocab.types, (CONTROL, UNKNOWN))[rows].any(axis=1)] = -1
    return rows


def slow_merges(vocab: Vocab) -> np.ndarray:
    """(n_merges, 3) int32: ids of left, right and result. Raises TokenizerError for the first bad merge."""
    merges, get = vocab.merges or (), vocab.ids.get
    rows = np.empty((len(merges), 3), np.int32)
    for rank, merge in enumerate(merges):
        cut = merge.find(" ", 1)
        left, right = merge[:cut], merge[cut + 1 :]
        row = (get(left, -1), get(right, -1), get(left + right, -1))
        if cut < 0 or min(row) < 0:
            raise _bad_merge(vocab, rank, merge, cut, left, right)
        rows[rank] = row
    return rows


def _fast_merges(ids: StringIndex, merges: StringTable) -> np.ndarray | None:
    """The same in C; None where a merge is bad."""
    ffi, lib = clib.library()
    rows, bad = np.empty((len(merges), 3), np.int32), ffi.new("int64_t *")
    out = ffi.from_buffer("int32_t[]", rows) if len(rows) else ffi.new("int32_t[3]")
    rc = lib.el_bpe_merges(ids.handle, *table_arguments(ffi, merges), len(merges), out, bad)
    if rc == clib.EL_E_UNSUPPORTED:
        return None
    clib.check(rc, "reading the merges")
    return rows


def _refuse_twins(vocab: Vocab, rows: np.ndarray) -> None:
    keys = rows[:, 0].astype(np.int64) << 32 | rows[:, 1]
    ordered = np.sort(keys)
    if len(keys) < 2 or not (ordered[1:] == ordered[:-1]).any():
        return
    first = np.unique(keys, return_index=True)[1]
    again = np.setdiff1d(np.arange(len(keys)), first)[0]
    raise vocab.refuse(f"merge {again} is there twice", key="merges", value=vocab.merges[again], rule="V4")


def _bad_merge(vocab: Vocab, rank: int, merge: str, cut: int, left: str, right: str) -> TokenizerError:
    if cut < 0 or not right:
        what = "is no pair of pieces with one space between them"
    else:
        missing = next(text for text in (left, right, left + right) if text not in vocab.ids)
        what = f"names '{one_line(missing, 60)}', which is no piece"
    return vocab.refuse(f"merge {rank} {what}", key="merges", value=merge, rule="V4")


# ---- pieces ----------------------------------------------------------------------------------------------------------


def spellings(
    pieces: StringTable, kinds: np.ndarray, characters: bool, native: bool | None = None
) -> tuple[StringTable, np.ndarray]:
    """The bytes that text has to be to become a piece, and kinds (n,) uint8 (enum el_piece_kind of native/edgellm.h).

    Pieces that are NEVER_PIECE in `kinds`, or have characters outside the byte alphabet, are so in the result, as "?".
    `characters`: pieces are spelled as they are.
    """
    if characters:
        return pieces, kinds
    if native is False or not clib.available():
        return slow_spellings(pieces, kinds)
    ffi, lib = clib.library()
    alphabet = np.full(lib.EL_ALPHABET, -1, np.int16)
    for c, value in byte_alphabet().items():
        alphabet[ord(c)] = value
    kinds, offsets = kinds.copy(), np.empty(len(pieces) + 1, np.int64)
    out = np.empty(max(1, len(pieces.text)), np.uint8)
    arrays = [("int16_t[]", alphabet), ("uint8_t[]", kinds), ("uint8_t[]", out), ("int64_t[]", offsets)]
    buffers = [ffi.from_buffer(kind, array) for kind, array in arrays]
    rc = lib.el_bpe_spell(*table_arguments(ffi, pieces), len(pieces), *buffers)
    clib.check(rc, "reading the pieces")
    return StringTable(out[: offsets[-1]].tobytes(), offsets), kinds


def slow_spellings(pieces: StringTable, kinds: np.ndarray) -> tuple[StringTable, np.ndarray]:
    """The twin of el_bpe_spell."""
    never = kinds == NEVER_PIECE
    texts = [None if hidden else piece_to_bytes(piece) for piece, hidden in zip(pieces, never, strict=True)]
    found = np.where([text is None for text in texts], NEVER_PIECE, kinds).astype(np.uint8)
    shown = [b"?" if text is None else text for text in texts]
    offsets = np.zeros(len(shown) + 1, np.int64)
    np.cumsum([len(text) for text in shown], out=offsets[1:])
    return StringTable(b"".join(shown), offsets), found
