"""Reads a sentencepiece `tokenizer.model`: pieces, scores, types and the switches that matter.

The file is a protocol buffer (sentencepiece_model.proto in https://github.com/google/sentencepiece). Its Python package
does not tell user-defined pieces from normal ones nor `add_dummy_prefix`, so the few fields are read here; a test
compares with the package.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import TokenizerError
from ..gguf.source import MappedFile
from .pieces import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, byte_of_piece

MAX_FILE = 64 << 20  # bytes
_TYPES = (NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE)  # the same numbers in both formats
_MODELS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}


@dataclass(frozen=True)
class Piece:
    text: str
    score: float
    type: int


@dataclass(frozen=True)
class SentencePieceModel:
    """`model_type` is unigram, bpe, word or char. Ids are -1 where the model has none."""

    pieces: tuple[Piece, ...]
    model_type: str
    unk_id: int
    bos_id: int
    eos_id: int
    pad_id: int
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool
    normalizer: str
    has_charsmap: bool


class _Fields:
    """The fields of one message: (number, value), where value is an int (varint or fixed) or the bytes of a field."""

    def __init__(self, data: bytes, path: str, base: int) -> None:
        self.data, self.path, self.base, self.at = data, path, base, 0

    def fail(self, message: str, value: Any = None) -> Any:
        raise TokenizerError(
            f"not a sentencepiece model: {message}", path=self.path, offset=self.base + self.at, value=value
        )

    def varint(self) -> int:
        value = shift = 0
        while True:
            if self.at >= len(self.data) or shift > 63:
                self.fail("a number is cut off or too long")
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value & (1 << 64) - 1
            shift += 7

    def take(self, n: int) -> bytes:
        if n > len(self.data) - self.at:
            self.fail("a field ends after the file", n)
        self.at += n
        return self.data[self.at - n : self.at]

    def __iter__(self) -> Iterator[tuple[int, int, Any]]:
        """(field number, offset of the value, value)."""
        while self.at < len(self.data):
            tag = self.varint()
            wire = tag & 7
            if tag >> 3 == 0:
                self.fail("field 0", tag)
            if wire == 0:
                yield tag >> 3, self.at, self.varint()
            elif wire == 1:
                yield tag >> 3, self.at, self.take(8)
            elif wire == 2:
                n = self.varint()
                yield tag >> 3, self.base + self.at, self.take(n)
            elif wire == 5:
                yield tag >> 3, self.at, self.take(4)
            else:
                self.fail("unknown kind of field", wire)


def read_model(path: str | os.PathLike[str]) -> SentencePieceModel:
    """Raises TokenizerError for anything that is not a sound sentencepiece model."""
    file = MappedFile(path)
    try:
        if file.size > MAX_FILE:
            raise TokenizerError(
                "too large for a sentencepiece model", path=file.path, field="size", value=file.size, limit=MAX_FILE
            )
        data = file.read_all()
    finally:
        file.close()
    return _parse(data, file.path)


def _parse(data: bytes, path: str) -> SentencePieceModel:
    pieces: list[Piece] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for number, at, value in _Fields(data, path, 0):
        if number in (1, 2, 3) and not isinstance(value, bytes):
            raise TokenizerError("not a sentencepiece model: a part is no message", path=path, offset=at)
        if number == 1:
            pieces.append(_piece(value, path, at, len(pieces)))
        elif number in (2, 3):
            (trainer if number == 2 else normalizer).update((n, v) for n, _, v in _Fields(value, path, at))
    if not pieces:
        raise TokenizerError("not a sentencepiece model: it has no pieces", path=path)
    return SentencePieceModel(
        pieces=tuple(pieces),
        model_type=_MODELS.get(_number(trainer, 3, 1), "unknown"),
        unk_id=_signed(_number(trainer, 40, 0)),
        bos_id=_signed(_number(trainer, 41, 1)),
        eos_id=_signed(_number(trainer, 42, 2)),
        pad_id=_signed(_number(trainer, 43, -1)),
        add_dummy_prefix=bool(_number(normalizer, 3, 1)),
        remove_extra_whitespaces=bool(_number(normalizer, 4, 1)),
        escape_whitespaces=bool(_number(normalizer, 5, 1)),
        normalizer=_text(normalizer.get(1, b"")),
        has_charsmap=bool(normalizer.get(2)),
    )


def _piece(data: bytes, path: str, at: int, index: int) -> Piece:
    def fail(message: str, value: Any = None) -> Any:
        raise TokenizerError(message, path=path, offset=at, field=f"piece {index}", value=value)

    text, score, kind = b"", 0.0, NORMAL
    for number, _, value in _Fields(data, path, at):
        if number == 1 and isinstance(value, bytes):
            text = value
        elif number == 2 and isinstance(value, bytes) and len(value) == 4:
            (score,) = struct.unpack("<f", value)
        elif number == 3 and isinstance(value, int):
            kind = value
        elif number in (1, 2, 3):
            fail("a field of a piece has the wrong type", number)
    if kind not in _TYPES:
        fail("unknown type of a piece", kind)
    if score != score or abs(score) == float("inf"):
        fail("the score of a piece is not finite", score)
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError:
        return fail("a piece is not UTF-8", text)
    if not decoded:
        fail("a piece is empty")
    if kind == BYTE and byte_of_piece(decoded) is None:
        fail("a byte piece must read <0x00> to <0xFF>", decoded)
    return Piece(decoded, score, kind)


def _number(table: dict[int, Any], field: int, default: int) -> int:
    value = table.get(field, default)
    return value if isinstance(value, int) else default


def _signed(value: int) -> int:
    """int32 fields are stored as 64-bit two's complement."""
    return value - (1 << 64) if value >= 1 << 63 else value


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else ""
