"""Text of tokens as they come: whole characters only, and stop strings that are never shown in part."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import TYPE_CHECKING

from edgellm.errors import InvalidArgumentError

if TYPE_CHECKING:
    from edgellm.tokenizers.tokenizer import Tokenizer


class StreamDecoder:
    """Decodes one token at a time. The pieces that push and flush return, joined, are `Tokenizer.decode` of all ids.

    A token may hold part of a character (byte pieces); its text comes with the token that completes it. Bytes that
    cannot become a character any more are U+FFFD, at the latest at flush. `skip_special` and `at_start` as in decode:
    pass `at_start=False` when the tokens continue a text, so that their first space is kept.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = False, at_start: bool = True) -> None:
        self._tokenizer, self._skip_special, self._at_start = tokenizer, skip_special, at_start
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """Takes the next id; returns the text that is certain now (may be empty)."""
        data = self._tokenizer.token_bytes(token, self._skip_special)
        if data and self._at_start:
            data = self._tokenizer.without_prefix(token, data)
            self._at_start = False
        return self._utf8.decode(data)

    def flush(self) -> str:
        """Ends the text; returns U+FFFD for a character that never became whole."""
        return self._utf8.decode(b"", True)


class StopMatcher:
    """Looks for stop strings in text that comes in pieces.

    push returns the text that may be shown: what could still begin a stop string is held back. Once a stop string is
    complete, `stopped` is that string, the text before it has been returned, and later text is dropped. Of several stop
    strings the one that is complete first counts (of those the longest), however the text was cut into pieces.
    """

    def __init__(self, stop_strings: Iterable[str] = ()) -> None:
        self._stops = tuple(stop_strings)
        if any(not isinstance(stop, str) or not stop for stop in self._stops):
            raise InvalidArgumentError(f"stop strings must be non-empty strings, not {self._stops!r}")
        self._held = ""
        self.stopped: str | None = None

    def push(self, text: str) -> str:
        """Takes more text; returns what may be shown."""
        if self.stopped is not None:
            return ""
        text = self._held + text
        hits = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if hits:
            _, at, self.stopped = min(hits)
            self._held = ""
            return text[:at]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """Ends the text; returns what was held back (nothing after a stop)."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest beginning of `stop` (not all of it) that `text` ends with."""
    for n in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0
