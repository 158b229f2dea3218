"""Cutting text at special pieces.

User-defined pieces are found anywhere in a text. Control pieces are found only inside the spans that the caller vouches
for (template text, or everything with `parse_special=True`), and only when such a span holds the whole of them: text of
a user never becomes a control token. Of pieces that start at one place the longest wins, and the leftmost place first.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from edgellm.tokenizers.characters import WHITE_SPACE

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
    """The special pieces of one vocabulary. `anywhere` and `vouched`: piece text -> id.

    `attributes` are the lists of Hugging Face's added tokens (ids): `lstrip` and `rstrip` take the white space beside
    them too, `single_word` ones do not count inside a word, and `normalized` ones are looked for after all others, in
    what is left between them.
    """

    def __init__(
        self, anywhere: dict[str, int], vouched: dict[str, int], attributes: Mapping[str, frozenset[int]] | None = None
    ) -> None:
        found = attributes or {}
        self._ids = {**anywhere, **vouched}
        self._left, self._right = found.get("lstrip", frozenset()), found.get("rstrip", frozenset())
        self._word = found.get("single_word", frozenset())
        later = found.get("normalized", frozenset())
        self._plain = not any(found.values())
        self._later: SpecialPieces | None = None
        if later & set(anywhere.values()):
            own = {name: ids for name, ids in found.items() if name != "normalized"}
            self._later = SpecialPieces({text: i for text, i in anywhere.items() if i in later}, {}, own)
            anywhere = {text: i for text, i in anywhere.items() if i not in later}
        self._anywhere = _pattern(list(anywhere))
        self._vouched = _pattern(list(vouched))

    def cuts(self, text: str, trusted: Sequence[Span], low: int = 0, high: int | None = None) -> Iterator[Cut]:
        """The special pieces of `text[low:high]` in order, with the white space that goes with them.

        `trusted`: ascending, disjoint spans where control pieces count.
        """
        high = len(text) if high is None else high
        if self._plain:
            yield from self._found(text, trusted, low, high)
            return
        at = low
        for start, end, token in self._found(text, trusted, low, high):
            if start < at:  # inside white space that was taken
                continue
            if token in self._word and (
                (start > low and is_word(text[start - 1])) or (end < high and is_word(text[end]))
            ):
                continue
            if token in self._left:
                start = max(_spaces_before(text, start), at)
            if token in self._right:
                end = _SPACE.match(text, end, high).end()
            if self._later is not None and start > at:
                yield from self._later.cuts(text, (), at, start)
            yield start, end, token
            at = end
        if self._later is not None and high > at:
            yield from self._later.cuts(text, (), at, high)

    def _found(self, text: str, trusted: Sequence[Span], low: int, high: int) -> Iterator[Cut]:
        if not trusted:
            ids = self._ids
            for match in self._anywhere.finditer(text, low, high) if self._anywhere else ():
                yield match.start(), match.end(), ids[match.group()]
            return
        free = _Cursor(self._anywhere, text, [(low, high)])
        control = _Cursor(self._vouched, text, trusted)
        at = low
        while True:
            hits = [hit for hit in (free.first_from(at), control.first_from(at)) if hit is not None]
            if not hits:
                return
            start, at = min(hits, key=lambda hit: (hit[0], -hit[1]))
            yield start, at, self._ids[text[start:at]]


_SPACE = re.compile("[" + "".join(f"{re.escape(chr(a))}-{re.escape(chr(b - 1))}" for a, b in WHITE_SPACE) + "]*")
_CIRCLED = ((0x24B6, 0x24EA), (0x1F130, 0x1F14A), (0x1F150, 0x1F16A), (0x1F170, 0x1F18A))  # letters among the symbols


def _spaces_before(text: str, at: int) -> int:
    """Where the white space that ends at `at` begins."""
    while at > 0 and _SPACE.match(text, at - 1, at).end() == at:
        at -= 1
    return at


def is_word(c: str) -> bool:
    """Whether a character belongs to a word: `\\w` of Unicode Technical Standard 18, as Hugging Face uses it."""
    kind = unicodedata.category(c)
    if kind[0] in "LM" or kind in ("Nd", "Nl", "Pc"):
        return True
    return c in "\u200c\u200d" or any(a <= ord(c) < b for a, b in _CIRCLED)
