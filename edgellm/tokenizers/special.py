"""Cutting text at special pieces.

User-defined pieces are found anywhere in a text. Control pieces are found only inside the spans that the caller vouches
for (template text, or everything with `parse_special=True`), and only when such a span holds the whole of them: text of
a user never becomes a control token. Of pieces that start at one place the longest wins, and the leftmost place first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

_TRIE_DEPTH = 24  # characters that get their own alternatives; longer common beginnings fall back to a plain list

Span = tuple[int, int]
Cut = tuple[int, int, int]  # start, end, piece id


def _alternatives(words: Sequence[str], depth: int = 0) -> str:
    """A regular expression that matches the longest of `words`, without trying each of them."""
    if depth >= _TRIE_DEPTH:
        return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    groups: dict[str, list[str]] = {}
    for word in words:
        groups.setdefault(word[:1], []).append(word[1:])
    ends_here = groups.pop("", None) is not None
    parts = []
    for first, rests in groups.items():
        common = _common_start(rests)
        rests = [rest[len(common) :] for rest in rests]
        tail = "" if rests == [""] else f"(?:{_alternatives(rests, depth + 1)})"
        parts.append(re.escape(first + common) + tail)
    body = "|".join(parts)
    return f"(?:{body})?" if ends_here and body else body


def _common_start(words: Sequence[str]) -> str:
    low, high = min(words), max(words)
    n = 0
    while n < len(low) and n < len(high) and low[n] == high[n]:
        n += 1
    return low[:n]


class _Cursor:
    """The hits of one pattern inside ascending spans of a text, asked for from left to right."""

    def __init__(self, pattern: re.Pattern[str] | None, text: str, spans: Sequence[Span]) -> None:
        self._pattern, self._text, self._spans = pattern, text, spans
        self._span = 0
        self._hit: Span | None = (-1, -1)

    def first_from(self, at: int) -> Span | None:
        """The first hit that starts at `at` or later; each place of the text is searched once."""
        if self._hit is None or self._hit[0] >= at:
            return self._hit
        self._hit = None
        while self._pattern is not None and self._span < len(self._spans):
            start, end = self._spans[self._span]
            match = self._pattern.search(self._text, max(at, start), end) if at < end else None
            if match:
                self._hit = match.span()
                break
            self._span += 1
        return self._hit


def _pattern(words: Sequence[str]) -> re.Pattern[str] | None:
    return re.compile(_alternatives(words)) if words else None


class SpecialPieces:
    """The special pieces of one vocabulary. `anywhere` and `vouched`: piece text -> id."""

    def __init__(self, anywhere: dict[str, int], vouched: dict[str, int]) -> None:
        self._ids = {**anywhere, **vouched}
        self._anywhere = _pattern(list(anywhere))
        self._vouched = _pattern(list(vouched))

    def cuts(self, text: str, trusted: Sequence[Span]) -> Iterator[Cut]:
        """The special pieces of `text` in order. `trusted`: ascending, disjoint spans where control pieces count."""
        free = _Cursor(self._anywhere, text, [(0, len(text))])
        control = _Cursor(self._vouched, text, trusted)
        at = 0
        while True:
            hits = [hit for hit in (free.first_from(at), control.first_from(at)) if hit is not None]
            if not hits:
                return
            start, at = min(hits, key=lambda hit: (hit[0], -hit[1]))
            yield start, at, self._ids[text[start:at]]
