"""Numbers and marks that the vocabularies of GGUF files use (`tokenizer.ggml.token_type`; ggml docs/gguf.md)."""

from __future__ import annotations

import re

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "\u2581"  # sentencepiece writes a space so

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


def byte_of_piece(text: str) -> int | None:
    """The byte that a piece such as `<0x0A>` stands for, None for other pieces."""
    match = _BYTE_PIECE.fullmatch(text)
    return int(match.group(1), 16) if match else None
