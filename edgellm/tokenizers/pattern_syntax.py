"""The language of pre-tokenizer expressions, parsed: what `patterns.py` compiles and the converter compares.

A parsed expression is a tuple: ("set", set) | ("seq", parts) | ("alt", parts) | ("repeat", part, low, high)
| ("ahead", part, wanted) | ("end",). A set is (negated, ranges, inner sets). All are hashable, and expressions that
differ in spelling only (`\\n` or a line feed) are equal.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from edgellm.tokenizers.characters import N_CODE_POINTS, WHITE_SPACE, Ranges, category

MAX_PATTERN = 10_000  # characters
MAX_DEPTH = 20
_SIMPLE = {"r": "\r", "n": "\n", "t": "\t", "f": "\f", "v": "\v"}
# Letters that another letter equals when case does not count, beyond upper and lower case (Unicode CaseFolding.txt).
_FOLDS = {"s": "\u017f", "k": "\u212a"}


class PatternError(ValueError):
    """The expression uses something that is not known here."""


Set = tuple[bool, Ranges, tuple[Any, ...]]


class Parser:
    def __init__(self, text: str) -> None:
        if len(text) > MAX_PATTERN:
            raise PatternError(f"it has more than {MAX_PATTERN} characters")
        self.text, self.at, self.depth = text, 0, 0

    def parse(self) -> tuple:
        tree = self.alternatives(False)
        if self.at < len(self.text):
            raise PatternError(f"')' without '(' at {self.at}")
        return tree

    def peek(self, text: str) -> bool:
        return self.text.startswith(text, self.at)

    def take(self, text: str) -> bool:
        if not self.peek(text):
            return False
        self.at += len(text)
        return True

    def next(self) -> str:
        if self.at >= len(self.text):
            raise PatternError("it ends too early")
        self.at += 1
        return self.text[self.at - 1]

    def alternatives(self, any_case: bool) -> tuple:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise PatternError("too many groups inside each other")
        parts = [self.sequence(any_case)]
        while self.take("|"):
            parts.append(self.sequence(any_case))
        self.depth -= 1
        return parts[0] if len(parts) == 1 else ("alt", tuple(parts))

    def sequence(self, any_case: bool) -> tuple:
        parts = []
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            parts.append(self.repeated(self.item(any_case)))
        return ("seq", tuple(parts))

    def item(self, any_case: bool) -> tuple:
        c = self.next()
        if c == "(":
            return self.group(any_case)
        if c == "[":
            return ("set", self.bracket(any_case))
        if c == "\\":
            return ("set", self.escape(any_case))
        if c == ".":
            return ("set", (True, ((10, 11),), ()))
        if c == "$":
            return ("end",)
        if c in "*+?{}^]":
            raise PatternError(f"'{c}' at {self.at - 1} is not supported")
        return ("set", (False, _letter(c, any_case), ()))

    def group(self, any_case: bool) -> tuple:
        kind = "group"
        if self.take("?i:"):
            any_case = True
        elif self.take("?="):
            kind = "ahead"
        elif self.take("?!"):
            kind = "not ahead"
        elif not self.take("?:") and self.peek("?"):
            raise PatternError(f"the group '({self.text[self.at : self.at + 3]}' is not supported")
        inner = self.alternatives(any_case)
        if not self.take(")"):
            raise PatternError("'(' without ')'")
        return inner if kind == "group" else ("ahead", inner, kind == "ahead")

    def repeated(self, part: tuple) -> tuple:
        low_high = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        c = self.text[self.at : self.at + 1]
        if c in low_high and c:
            self.at += 1
            low, high = low_high[c]
        elif match := re.compile(r"\{(\d{1,4})(,(\d{0,4}))?\}").match(self.text, self.at):
            self.at = match.end()
            low = int(match[1])
            high = low if match[2] is None else int(match[3]) if match[3] else None
        else:
            return part
        if self.text[self.at : self.at + 1] in ("+", "?", "*"):
            raise PatternError(f"the repeat '{c}{self.text[self.at]}' is not supported")
        if part[0] in ("ahead", "end") or (high is not None and high < low):
            raise PatternError("this cannot be repeated")
        return ("repeat", part, low, high)

    def escape(self, any_case: bool) -> Set:
        c = self.next()
        if c in "pP":
            return self.property(c == "P")
        if c in "sS":
            return (c == "S", WHITE_SPACE, ())
        if c in "dD":
            return (c == "D", category("Nd"), ())
        if c in _SIMPLE:
            return (False, _letter(_SIMPLE[c], False), ())
        if c in "xu":
            return (False, _letter(chr(self.hexadecimal(c)), any_case), ())
        if c.isalnum():
            raise PatternError(f"the escape '\\{c}' is not supported")
        return (False, _letter(c, any_case), ())

    def hexadecimal(self, kind: str) -> int:
        plain = "([0-9A-Fa-f]{2})" if kind == "x" else "([0-9A-Fa-f]{4})"
        match = re.compile(r"\{([0-9A-Fa-f]{1,6})\}|" + plain).match(self.text, self.at)
        if not match or int(match[1] or match[2], 16) >= N_CODE_POINTS:
            raise PatternError(f"the escape '\\{kind}' names no character")
        self.at = match.end()
        return int(match[1] or match[2], 16)

    def property(self, negated: bool) -> Set:
        match = re.compile(r"\{(\^?)([A-Z][a-z]?)\}").match(self.text, self.at)
        if not match or not category(match[2]):
            raise PatternError(f"the property '\\p{self.text[self.at : self.at + 8]}' is not supported")
        self.at = match.end()
        return (negated != bool(match[1]), category(match[2]), ())

    def bracket(self, any_case: bool) -> Set:
        negated = self.take("^")
        ranges: list[tuple[int, int]] = []
        inner: list[Set] = []
        first = True
        while first or not self.peek("]"):
            first = False
            low = self.member(any_case)
            if self.peek("-") and not self.peek("-]"):
                self.at += 1
                high = self.member(any_case)
                if len(low[1]) > 2 or len(high[1]) > 2 or low[0] or high[0]:
                    raise PatternError("a range needs a character at both ends")
                a, b = low[1][0][0], high[1][0][0]
                if b < a:
                    raise PatternError("a range runs backwards")
                ranges.append((a, b + 1))
            elif low[0]:
                inner.append(low)
            else:
                ranges += low[1]
        self.at += 1
        return (negated, merged(ranges), tuple(inner))

    def member(self, any_case: bool) -> Set:
        c = self.next()
        if c == "\\":
            return self.escape(any_case)
        if c == "[" or (c == "&" and self.peek("&")):
            raise PatternError("sets inside sets are not supported")
        return (False, _letter(c, any_case), ())


def _letter(c: str, any_case: bool) -> Ranges:
    """One character, or with `any_case` all that differ from it in case only."""
    if not any_case:
        return ((ord(c), ord(c) + 1),)
    forms = {c, c.lower(), c.upper(), *_FOLDS.get(c.lower(), "")}
    return merged([(ord(form), ord(form) + 1) for form in forms if len(form) == 1])


def merged(ranges: Sequence[tuple[int, int]]) -> Ranges:
    out: list[tuple[int, int]] = []
    for a, b in sorted(ranges):
        if out and a <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], b))
        else:
            out.append((a, b))
    return tuple(out)


def parse(text: str) -> tuple:
    """The parsed form of one expression. Raises PatternError that says what is not supported."""
    return Parser(text).parse()
