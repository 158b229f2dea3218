"""Regular expressions over Unicode, matched by Python's `re` on one byte per character.

Pre-tokenizer rules use `\\p{L}` and its like, which `re` does not know. All sets of characters of a rule cut the code
points into a few dozen groups that no set tells apart. A text becomes one byte per character, the number of its group,
and each expression is rewritten for these bytes. That is exact, linear where the expression is, needs no other package,
and gives the same words under every Python version (the categories are those of `unicode_categories.py`).

The language is what tokenizer.json files use: alternatives, groups, `(?i:...)`, look-ahead, sets, `\\p{..}`, `\\s \\d
\\r \\n \\t`, `.`, `$` and greedy repeats. Anything else is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from edgellm.tokenizers.characters import N_CODE_POINTS
from edgellm.tokenizers.pattern_syntax import PatternError, Set, parse

BORDER = 255  # a byte that is no group: the border between two words


def _sets(tree: Any) -> list[Set]:
    if tree[0] in ("set", "not behind"):
        return [tree[1]]
    parts = tree[1] if tree[0] in ("seq", "alt") else tree[1:2] if tree[0] in ("repeat", "ahead") else ()
    return [found for part in parts for found in _sets(part)]


def _all_ranges(one: Set) -> list[tuple[int, int]]:
    return [*one[1], *(r for inner in one[2] for r in _all_ranges(inner))]


def _members(one: Set, points: np.ndarray) -> np.ndarray:
    """(n) bool: which code points of `points` are in the set."""
    found = np.zeros(len(points), bool)
    if one[1]:
        edges = np.array(one[1], dtype=np.int64).reshape(-1)  # first, end, first, end, ...
        found = np.searchsorted(edges, points, side="right") % 2 == 1
    for inner in one[2]:
        found |= _members(inner, points)
    return found != one[0]


def anchored(tree: Any) -> Any:
    """`S+$` with a node in front that holds only where no character of S stands before.

    A run of S can match from its beginning only; to try every other place in it would take the square of its length.
    """
    parts = tree[1] if tree[0] == "seq" else ()
    if len(parts) == 2 and parts[0][0] == "repeat" and parts[0][1][0] == "set" and parts[1] == ("end",):
        return ("seq", (("not behind", parts[0][1][1]), *parts))
    return tree


class Patterns:
    """Compiled expressions that share one table of character groups. Raises PatternError for what is not supported."""

    def __init__(self, expressions: Sequence[str]) -> None:
        trees = [anchored(parse(text)) for text in expressions]
        sets = list(dict.fromkeys(s for tree in trees for s in _sets(tree)))
        edges = {0} | {edge for s in sets for pair in _all_ranges(s) for edge in pair}
        points = np.array(sorted(edges - {N_CODE_POINTS}), dtype=np.int64)  # in between, no set changes
        groups = np.zeros(len(points), np.int64)
        inside = [_members(s, points) for s in sets]
        for member in inside:
            groups = np.unique(groups * 2 + member, return_inverse=True)[1].reshape(-1)
        if groups.max() >= BORDER:
            raise PatternError(f"it tells more than {BORDER} groups of characters apart")
        lengths = np.diff(np.append(points, N_CODE_POINTS))
        self.table = np.repeat(groups.astype(np.uint8), lengths)  # (0x110000) group of each code point
        self._values = {s: np.unique(groups[m]) for s, m in zip(sets, inside, strict=True)}
        self._steps = [self._step(tree) for tree in trees]

    def _step(self, tree: Any) -> _Step:
        """One expression: as a set of groups where it is nothing but a set, alone or repeated, else compiled."""
        one = tree[1][0] if tree[0] == "seq" and len(tree[1]) == 1 else ("none",)
        alone = one[0] == "set"
        if alone or (one[0] == "repeat" and one[1][0] == "set" and one[2:] == (1, None)):
            members = np.zeros(256, bool)
            members[self._values[one[1] if alone else one[1][1]]] = True
            return _Step(members=members, alone=alone)
        return _Step(pattern=re.compile(b"(" + self._rewrite(tree) + b")", re.DOTALL))

    def _rewrite(self, tree: Any) -> bytes:
        kind = tree[0]
        if kind == "set":
            return _byte_class(self._values[tree[1]])
        if kind == "not behind":
            return b"(?<!" + _byte_class(self._values[tree[1]]) + b")"
        if kind == "seq":
            return b"".join(self._rewrite(part) for part in tree[1])
        if kind == "alt":
            return b"(?:" + b"|".join(self._rewrite(part) for part in tree[1]) + b")"
        if kind == "ahead":
            return (b"(?=" if tree[2] else b"(?!") + self._rewrite(tree[1]) + b")"
        if kind == "end":
            return rb"(?=[\x%02x]|\Z)" % BORDER
        _, part, low, high = tree
        inner = self._rewrite(part)
        if part[0] != "set":
            inner = b"(?:" + inner + b")"
        short = {(0, None): b"*", (1, None): b"+", (0, 1): b"?"}.get((low, high))
        return inner + (short or b"{%d,%s}" % (low, b"" if high is None else b"%d" % high))

    def split(self, codes: np.ndarray) -> np.ndarray:
        """Ends of the words of a text: (n_words,) int64, ascending. `codes`: (n,) uint32 code points.

        Each expression in turn cuts every word into its matches and what lies between them.
        """
        groups = self.table[codes]
        ends = np.array([len(groups)] if len(groups) else [], dtype=np.int64)
        for step in self._steps:
            ends = step.cut(groups, ends)
        return ends


@dataclass(frozen=True)
class _Step:
    pattern: re.Pattern[bytes] | None = None
    members: np.ndarray | None = None  # (256) bool, for an expression that is a set of groups
    alone: bool = False  # the set is not repeated: each of its characters is a word

    def cut(self, groups: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """The ends of the new words. `groups` (n,) uint8; words end at `ends`."""
        n = len(groups)
        if n == 0:
            return ends
        if self.members is None:
            return self._search(groups, ends)
        found = self.members[groups]
        is_end = np.zeros(n + 1, bool)
        is_end[ends] = True
        is_end[1:n] |= found[1:] != found[:-1]
        if self.alone:
            is_end[1:] |= found
        return np.flatnonzero(is_end)

    def _search(self, groups: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """With `re`; a byte that no set has stands between the words, so that no match crosses their borders."""
        sizes = np.diff(ends, prepend=0)
        long = sizes > 1  # one character cannot be cut
        where = np.flatnonzero(np.repeat(long, sizes))  # (n_kept) the characters that are searched
        if not len(where):
            return ends
        inner = np.cumsum(sizes[long])[:-1]
        if not len(inner):
            data = groups[where].tobytes()
            found = np.fromiter(map(len, self.pattern.findall(data)), np.int64)
            if len(where) == len(groups) == found.sum():  # nothing lies between the matches
                return np.cumsum(found[found > 0])
        else:
            data = np.insert(groups[where], inner, BORDER).tobytes()
        pieces = self.pattern.split(data)  # between, match, between, ...
        at = np.cumsum(np.fromiter(map(len, pieces), np.int64))
        at -= np.searchsorted(inner + np.arange(len(inner)), at)  # borders before this place are no characters
        is_end = np.zeros(len(groups) + 1, bool)
        is_end[where[at[at > 0] - 1] + 1] = True
        is_end[ends] = True
        return np.flatnonzero(is_end)


def _byte_class(values: np.ndarray) -> bytes:
    """A set of byte values as a regular expression."""
    listed = b"".join(b"\\x%02x" % v for v in values.tolist())
    if len(values) == 0:
        return rb"(?!)"
    return b"[" + listed + b"]"


@lru_cache(maxsize=8)
def compiled(expressions: tuple[str, ...]) -> Patterns:
    """Patterns of some expressions; made once."""
    return Patterns(expressions)
