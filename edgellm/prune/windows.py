"""The text of a pruning: windows that weights are chosen by, and windows at its end that quality is measured on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..calibrate import chunks_of
from ..errors import InvalidArgumentError

CHUNK_SIZE = 512  # tokens, where the model was trained for so many
CHUNKS = 64
_MOST_HELD_OUT = 32


@dataclass(frozen=True)
class Windows:
    """int32 (n, n_ctx) each, both in the order of the text; they share no token."""

    n_ctx: int
    chosen_by: np.ndarray
    held_out: np.ndarray


def split(
    tokenizer: Any, text: str | None, n_ctx: int, n_chunks: int | None, held_out: int | None, need: bool
) -> Windows:
    """Cut a text: the last `held_out` windows (None: a fifth, at most 32) and the first `n_chunks` (None: 64) of the
    others. `need`: there must be windows to choose weights by. Without a text both are empty.

    Raises InvalidArgumentError.
    """
    check(n_ctx, n_chunks, held_out)
    if text is None:
        if need:
            raise InvalidArgumentError("this method needs a text to choose weights by; give one (-f TEXT)")
        nothing = np.empty((0, n_ctx), np.int32)
        return Windows(n_ctx, nothing, nothing)
    found = list(chunks_of(tokenizer, text, n_ctx))
    last = min(max(len(found) // 5, 1), _MOST_HELD_OUT) if held_out is None else held_out
    left = len(found) - last
    if left < 1 and (need or last < 1 or left < 0):
        raise InvalidArgumentError(
            f"the text has {len(found)} windows of {n_ctx} tokens, {last + 1} are needed; take a longer text or "
            "smaller windows (-c)"
        )
    windows = np.array(found, np.int32).reshape(len(found), n_ctx)
    return Windows(n_ctx, windows[: min(left, n_chunks or CHUNKS) if need else 0], windows[left:])


def check(n_ctx: int, n_chunks: int | None, held_out: int | None) -> None:
    """Raises InvalidArgumentError for numbers that make no sense."""
    for what, value, least in (("chunk_size", n_ctx, 4), ("n_chunks", n_chunks, 1), ("held_out", held_out, 0)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise InvalidArgumentError(f"{what} is {value!r}; choose a whole number of {least} or more")
