"""Compiled loops of the kinds that spell words by a tree of pieces: Unigram, WordPiece, and SentencePiece's normaliser.

Only `edgellm.clib` knows the compiled module; what is here turns vocabularies into its arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgellm.errors import BackendError, TokenizerError

MAX_TEXT_BYTES = 2**31 - 1


def native_model(native: bool | None, make: Callable[[], Any]) -> Any:
    """What `make` makes where the compiled library is there and wanted, else None.

    Raises BackendError where `native` is True and there is no library.
    """
    from edgellm import clib

    if native is not False and clib.available():
        return make()
    if native:
        raise BackendError("the compiled library is not there")
    return None


def checked_bytes(text: str) -> bytes:
    """The UTF-8 form of a text. Raises TokenizerError for more than the loops can count."""
    data = text.encode()
    if len(data) > MAX_TEXT_BYTES:
        raise TokenizerError("this text is too long", field="text", value=len(data), limit=MAX_TEXT_BYTES)
    return data


class _Handle:
    def __init__(self) -> None:
        from edgellm import clib

        self._clib = clib
        self._ffi, self._lib = clib.library()

    def _strings(self, strings: Sequence[bytes]) -> tuple[Any, Any]:
        """Strings as one text and (n + 1) offsets."""
        offsets = np.zeros(len(strings) + 1, dtype=np.int64)
        np.cumsum([len(data) for data in strings], out=offsets[1:])
        text = self._ffi.from_buffer("uint8_t[]", b"".join(strings) or b"?")
        return text, self._ffi.from_buffer("int64_t[]", offsets)

    def _numbers(self, values: Sequence[int]) -> Any:
        return self._ffi.from_buffer("int32_t[]", np.array([*values, 0], dtype=np.int32))  # one more: never empty

    def _encode(self, call: Callable[..., int], handle: Any, data: bytes) -> list[int]:
        ids = np.empty(len(data), dtype=np.int32)
        n = self._ffi.new("int64_t *")
        source, target = self._ffi.from_buffer("uint8_t[]", data), self._ffi.from_buffer("int32_t[]", ids)
        self._clib.check(call(handle, source, len(data), target, len(ids), n), f"tokenising {len(data)} bytes")
        return ids[: n[0]].tolist()


class UnigramHandle(_Handle):
    """native/unigram.c. `usable`: ids of the pieces that text can become; `scores` (n_pieces) float64."""

    def __init__(
        self, pieces: Sequence[str], scores: np.ndarray, usable: Sequence[int], unknown_score: float,
        byte_ids: Sequence[int], unk_id: int,
    ) -> None:  # fmt: skip
        super().__init__()
        encoded = [piece.encode() for piece in pieces]
        order = sorted(usable, key=encoded.__getitem__)
        costs = self._ffi.from_buffer("double[]", np.ascontiguousarray(scores, dtype=np.float64))
        out = self._ffi.new("el_unigram **")
        rc = self._lib.el_unigram_new(
            out, *self._strings(encoded), costs, len(encoded), self._numbers(order), len(order), unknown_score,
            self._ffi.new("int32_t[256]", list(byte_ids)), unk_id,
        )  # fmt: skip
        self._clib.check(rc, "reading the vocabulary")
        self._unigram = self._ffi.gc(out[0], self._lib.el_unigram_free)

    def encode(self, data: bytes) -> list[int]:
        """Ids of normalised UTF-8 text with U+2581 for spaces."""
        return self._encode(self._lib.el_unigram_encode, self._unigram, data)


class WordPieceHandle(_Handle):
    """native/wordpiece.c. `begin` and `follow`: text -> id of the pieces that begin a word and that continue one."""

    def __init__(
        self, begin: dict[str, int], follow: dict[str, int], n_pieces: int, unk_id: int, max_chars: int
    ) -> None:
        super().__init__()
        arguments: list[Any] = []
        for table in (begin, follow):
            rows = sorted((text.encode(), i) for text, i in table.items())
            arguments += [*self._strings([text for text, _ in rows]), self._numbers([i for _, i in rows]), len(rows)]
        out = self._ffi.new("el_wordpiece **")
        self._clib.check(
            self._lib.el_wordpiece_new(out, *arguments, n_pieces, unk_id, max_chars), "reading the vocabulary"
        )
        self._wordpiece = self._ffi.gc(out[0], self._lib.el_wordpiece_free)

    def encode(self, data: bytes) -> list[int]:
        """Ids of UTF-8 words with spaces between them."""
        return self._encode(self._lib.el_wordpiece_encode, self._wordpiece, data)


class CharsMapHandle(_Handle):
    """native/charsmap.c for a table of strings and what stands for each."""

    def __init__(self, table: dict[str, str]) -> None:
        super().__init__()
        rows = sorted((key.encode(), value.encode()) for key, value in table.items())
        arguments = [*self._strings([key for key, _ in rows]), *self._strings([value for _, value in rows])]
        out = self._ffi.new("el_charsmap **")
        self._clib.check(self._lib.el_charsmap_new(out, *arguments, len(rows)), "reading the normalisation map")
        self._map = self._ffi.gc(out[0], self._lib.el_charsmap_free)

    def apply(self, data: bytes) -> bytes:
        """The text with the longest matching strings replaced."""
        source, n = self._ffi.from_buffer("uint8_t[]", data), self._ffi.new("int64_t *")
        call, what = self._lib.el_charsmap_apply, f"normalising {len(data)} bytes"
        self._clib.check(call(self._map, source, len(data), self._ffi.NULL, 0, n), what)
        out = bytearray(n[0])
        target = self._ffi.from_buffer("uint8_t[]", out) if out else self._ffi.NULL
        self._clib.check(call(self._map, source, len(data), target, len(out), n), what)
        return bytes(out)
