"""Which parts of a grammar may be read as one lexeme.

llguidance reads a text in lexemes, each as long as it can be, and has no way back: `[a-z]+ "x"` as two lexemes would
never see its x. A grammar of single characters has no such trouble but is slow, some lexemes for each token. So parts
without recursion become one lexeme each, and the whole is kept only where one character ahead always tells what to do
(LL(1)): no two lexemes that may come at one place begin alike, and nothing that may follow a lexeme could continue it.
Then the longest way to read a lexeme is the only one.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from typing import Any

from edgellm.tokenizers.characters import N_CODE_POINTS, Ranges

Tree = tuple[Any, ...]
Chars = int  # a set of characters: bit i is the i-th stretch of code points between two borders of any set


class Alphabet:
    """Code points cut at the borders of all sets, so that sets are numbers."""

    def __init__(self, sets: Iterable[Ranges]) -> None:
        borders = {0, N_CODE_POINTS}
        for ranges in sets:
            for a, b in ranges:
                borders |= {a, b}
        self._place = {point: i for i, point in enumerate(sorted(borders))}

    def chars(self, ranges: Ranges) -> Chars:
        out = 0
        for a, b in ranges:
            out |= (1 << self._place[b]) - (1 << self._place[a])
        return out


class Lexeme:
    """An expression without rules: the characters that it begins with, those that can go on where it might end, and
    whether it may be empty. Positions as in Glushkov's automaton; counted repeats count as free ones."""

    def __init__(self, tree: Tree, ranges_of: Any, alphabet: Alphabet) -> None:
        self._ranges_of, self._alphabet = ranges_of, alphabet
        self._sets: list[Chars] = []  # of each position
        self._next: list[set[int]] = []  # positions that may come behind each
        self.nullable, first, last = self._visit(tree)
        self.first = self._union(first)
        self.more = self._union(set().union(*(self._next[p] for p in last)))

    def _union(self, positions: Iterable[int]) -> Chars:
        return reduce(lambda chars, p: chars | self._sets[p], positions, 0)

    def _visit(self, tree: Tree) -> tuple[bool, set[int], set[int]]:
        """(may be empty, first positions, last positions)"""
        kind = tree[0]
        if kind == "set":
            self._sets.append(self._alphabet.chars(self._ranges_of(tree)))
            self._next.append(set())
            place = {len(self._sets) - 1}
            return False, place, place
        if kind == "repeat":
            _, part, low, high = tree
            nullable, first, last = self._visit(part)
            if high is None or high > 1:
                for p in last:
                    self._next[p] |= first
            return nullable or low == 0, first, last
        parts = [self._visit(part) for part in tree[1]]
        if kind == "alt":
            return any(p[0] for p in parts), set().union(*(p[1] for p in parts)), set().union(*(p[2] for p in parts))
        return self._sequence(parts)

    def _sequence(self, parts: list[tuple[bool, set[int], set[int]]]) -> tuple[bool, set[int], set[int]]:
        nullable, first, last = True, set[int](), set[int]()
        for empty, begin, end in parts:
            for p in last:
                self._next[p] |= begin
            first = first | begin if nullable else first
            last = last | end if empty else end
            nullable = nullable and empty
        return nullable, first, last


class Lookahead:
    """FIRST and FOLLOW of rules whose bodies are made of ("lexeme", i), ("rule", name), seq, alt and repeat.

    `clear`: whether one character ahead always tells what to do.
    """

    def __init__(self, rules: dict[str, Tree], lexemes: list[Lexeme]) -> None:
        self.lexemes = lexemes
        self.first: dict[str, Chars] = dict.fromkeys(rules, 0)
        self.nullable: dict[str, bool] = dict.fromkeys(rules, False)
        self.follow: dict[str, Chars] = dict.fromkeys(rules, 0)
        self.clear = True
        while self._grow({name: self._begins(body) for name, body in rules.items()}):
            pass
        before: dict[str, Chars] = {}
        while before != self.follow:
            before = dict(self.follow)
            for name, body in rules.items():
                self._ahead(body, self.follow[name])

    def _grow(self, found: dict[str, tuple[bool, Chars]]) -> bool:
        grown = any((self.nullable[name], self.first[name]) != value for name, value in found.items())
        self.nullable = {name: nullable for name, (nullable, _) in found.items()}
        self.first = {name: first for name, (_, first) in found.items()}
        return grown

    def _begins(self, tree: Tree) -> tuple[bool, Chars]:
        """(may be empty, characters that it begins with)"""
        kind = tree[0]
        if kind == "lexeme":
            return self.lexemes[tree[1]].nullable, self.lexemes[tree[1]].first
        if kind == "rule":
            return self.nullable[tree[1]], self.first[tree[1]]
        if kind == "repeat":
            nullable, first = self._begins(tree[1])
            return nullable or tree[2] == 0, first
        parts = [self._begins(part) for part in tree[1]]
        if kind == "alt":
            return any(p[0] for p in parts), reduce(lambda a, p: a | p[1], parts, 0)
        chars = 0
        for nullable, first in parts:
            chars |= first
            if not nullable:
                return False, chars
        return True, chars

    def _ahead(self, tree: Tree, after: Chars) -> None:
        """Walks a body that `after` may follow; where a choice is not clear, nothing is."""
        kind = tree[0]
        if kind == "lexeme":
            lexeme = self.lexemes[tree[1]]
            self._apart(lexeme.more, after)
            if lexeme.nullable:
                self._apart(lexeme.first, after)
        elif kind == "rule":
            self.follow[tree[1]] |= after
        elif kind == "seq":
            for part in reversed(tree[1]):
                self._ahead(part, after)
                nullable, first = self._begins(part)
                after = first | (after if nullable else 0)
        elif kind == "alt":
            self._alternatives([self._begins(part) for part in tree[1]], after)
            for part in tree[1]:
                self._ahead(part, after)
        else:
            _, part, low, high = tree
            nullable, first = self._begins(part)
            if low != high:
                self._apart(first, after)
            self.clear = self.clear and not nullable
            self._ahead(part, after | (first if high is None or high > 1 else 0))

    def _alternatives(self, parts: list[tuple[bool, Chars]], after: Chars) -> None:
        seen = 0
        for _, first in parts:
            self._apart(seen, first)
            seen |= first
        empty = sum(nullable for nullable, _ in parts)
        self.clear = self.clear and empty < 2
        if empty:
            self._apart(seen, after)

    def _apart(self, one: Chars, other: Chars) -> None:
        self.clear = self.clear and not one & other
