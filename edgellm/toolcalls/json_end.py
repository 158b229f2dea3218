"""Where a JSON value ends in text that comes in pieces, and the value."""

from __future__ import annotations

import json
from typing import Any

from edgellm.tokenizers.tokenizer import clean_text

MAX_DEPTH = 64
MAX_CHARS = 1 << 20


class JsonEnd:
    """Looks for the end of the object or array that begins at `start`. Each character is looked at once.

    `at` is behind what was looked at. `broken`: the text there cannot become a value that is taken (another beginning,
    brackets that do not match, too deep, too long).
    """

    def __init__(self, start: int) -> None:
        self._stack: list[str] = []
        self.at, self._limit = start, start + MAX_CHARS
        self._in_string = self._escaped = False
        self.broken = False

    def found(self, text: str) -> bool:
        """Whether the value is whole in `text`, the same as before and perhaps more; it then ends at `at`."""
        while self.at < len(text) and not self.broken:
            self.at += 1
            if self._take(text[self.at - 1]):
                return True
        return False

    def _take(self, char: str) -> bool:
        """Whether the value ends with this character."""
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif char == "\\":
                self._escaped = True
            elif char == '"':
                self._in_string = False
        elif char in "{[":
            self._stack.append("}" if char == "{" else "]")
        elif not self._stack or (char in "}]" and self._stack.pop() != char):
            self.broken = True
        elif char == '"':
            self._in_string = True
        self.broken = self.broken or len(self._stack) > MAX_DEPTH or self.at > self._limit
        return not self._stack and not self.broken


def parse(text: str) -> Any:
    """The value, or None where it is no JSON (NaN and infinity are none). Its texts can be written as UTF-8."""

    def refuse(name: str) -> Any:
        raise ValueError(name)

    try:
        return _clean(json.loads(text, parse_constant=refuse))
    except (ValueError, RecursionError):
        return None


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if isinstance(value, dict):
        return {clean_text(key): _clean(item) for key, item in value.items()}
    if isinstance(value, float) and value in (float("inf"), float("-inf")):  # 1e999
        raise ValueError("a number is too large")
    return value
