"""Drafts out of what was said: what came behind the same tokens before.

Where a text repeats itself (code, tables, quotations, an answer that repeats its question) such guesses are often
right, and they cost microseconds and no model. The index is C (native/suffix.c), else its twin in Python.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from edgellm import clib
from edgellm.errors import InvalidArgumentError
from edgellm.speculate.drafts import NOTHING, Draft
from edgellm.speculate.suffix_reference import MAX_DRAFT, Found, ReferenceSuffixIndex

LIMIT = 1 << 18  # tokens that are remembered; 16 to 32 bytes each

# A class of guesses: by the length of the match (3, 4, 5 and 6, 7 to 10, more), and by the share of places that went on
# so (less than half, half or more, all). How often guesses of each come true, before anything is known; rows: lengths.
_PRIORS: tuple[float, ...] = (0.15, 0.25, 0.35, 0.2, 0.35, 0.5, 0.3, 0.45, 0.6, 0.35, 0.5, 0.75, 0.4, 0.6, 0.85)
_LENGTH_CLASSES = (0, 0, 0, 0, 3, 6, 6, 9, 9, 9, 9, *[12] * 14)  # by length, 0 to 24
_NOTHING = Found()


class _Index(Protocol):
    def append(self, ids: Sequence[int]) -> None: ...
    def fix(self) -> None: ...
    def rewind(self) -> None: ...
    def propose(self, k: int) -> Found: ...


class NativeSuffixIndex:
    """The compiled index; see `ReferenceSuffixIndex` for the methods. `limit`: a power of 2, 1024 to 2^28.

    Raises BackendError where the library was not built, NotEnoughMemoryError.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._ffi, self._lib = clib.library()
        out = self._ffi.new("el_suffix **")
        clib.check(self._lib.el_suffix_new(out, limit), "making the suffix index")
        self._index = self._ffi.gc(out[0], self._lib.el_suffix_free)
        self._found, self._one = self._ffi.new("el_suffix_draft *"), self._ffi.new("int32_t[1]")

    def append(self, ids: Sequence[int]) -> None:
        if len(ids) == 1:  # as in decoding
            self._one[0] = ids[0]
            rc = self._lib.el_suffix_append(self._index, self._one, 1)
        else:
            array: Any = np.ascontiguousarray(ids, dtype=np.int32)
            rc = self._lib.el_suffix_append(self._index, self._ffi.from_buffer("int32_t[]", array), array.size)
        clib.check(rc, "adding to the suffix index")

    def fix(self) -> None:
        clib.check(self._lib.el_suffix_fix(self._index), "fixing the corpus of the suffix index")

    def rewind(self) -> None:
        self._lib.el_suffix_rewind(self._index)

    def propose(self, k: int) -> Found:
        clib.check(self._lib.el_suffix_propose(self._index, k, self._found), "asking the suffix index")
        found, n = self._found, self._found.n
        if not n:
            return _NOTHING
        return Found(tuple(found.tokens[0:n]), tuple(found.votes[0:n]), tuple(found.totals[0:n]), found.match)

    @property
    def n_bytes(self) -> int:
        """Memory that the index takes."""
        return int(self._lib.el_suffix_bytes(self._index))


class SuffixProposer:
    """A `Proposer` over prompt, history and answer. `corpus`: texts as ids, which are known from the start and stay.

    `native` False takes the Python twin, None the compiled index where it is there. Raises InvalidArgumentError for a
    corpus of more than half of `limit` tokens.
    """

    source = "suffix"
    priors, cost = _PRIORS, 0.0

    def __init__(self, corpus: Sequence[Sequence[int]] = (), *, limit: int = LIMIT, native: bool | None = None) -> None:
        if native is None:
            native = clib.available()
        self._index: _Index = NativeSuffixIndex(limit) if native else ReferenceSuffixIndex(limit)
        n_tokens = sum(len(text) + 1 for text in corpus)
        if n_tokens > limit // 2:
            raise InvalidArgumentError(f"a corpus of {n_tokens} tokens; choose up to {limit // 2}")
        for text in corpus:
            self._index.append([*text, -1])
        if corpus:
            self._index.fix()

    def begin(self, ids: Sequence[int]) -> None:
        self._index.rewind()
        self._index.append(ids)

    def accept(self, tokens: Sequence[int]) -> None:
        self._index.append(tokens)

    def propose(self, k: int) -> Draft:
        found = self._index.propose(min(k, MAX_DRAFT))
        if not found.tokens:
            return NOTHING
        classes = []
        for match, votes, total in zip(range(found.match, found.match + 8), found.votes, found.totals, strict=False):
            share = 2 if votes == total else 1 if 2 * votes >= total else 0
            classes.append(_LENGTH_CLASSES[match] + share)  # a token that came true makes the match longer
        return Draft(found.tokens, tuple(classes), self.source)

    def end(self) -> None:
        pass
