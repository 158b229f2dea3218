"""GBNF, llama.cpp's notation of grammars, parsed.

A rule's body is a tuple as in `tokenizers/pattern_syntax.py`: ("set", set) | ("seq", parts) | ("alt", parts) |
("repeat", part, low, high), and ("rule", name). Rules that name tokens (`<think>`) are refused: control tokens are
never part of a text here.
"""

from __future__ import annotations

import re
from typing import Any

from edgellm.errors import GrammarError, one_line
from edgellm.tokenizers.characters import N_CODE_POINTS
from edgellm.tokenizers.pattern_syntax import merged

MAX_DEPTH = 60  # groups inside each other
MAX_REPEAT = 10_000
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE_AND_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_COUNTED = re.compile(r"\{\s*(\d{1,5})\s*(?:(,)\s*(\d{0,5})\s*)?\}")
_ESCAPE = re.compile(r"\\(?:([\"\\\[\]nrt/^-])|x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8}))")
_NAMED = {"n": "\n", "r": "\r", "t": "\t"}
ANYTHING = ("set", (True, (), ()))

Tree = tuple[Any, ...]


def parse_gbnf(text: str) -> dict[str, Tree]:
    """Rules by name, `root` among them. Raises GrammarError with the line."""
    rules = _Parser(text).rules()
    if "root" not in rules:
        raise GrammarError("the grammar has no rule 'root', with which a text begins")
    for name in sorted({name for body in rules.values() for name in names_in(body)} - set(rules)):
        raise GrammarError(f"the grammar uses the rule '{one_line(name, 60)}' but does not define it")
    return rules


def names_in(tree: Tree) -> set[str]:
    """The rules that an expression uses."""
    if tree[0] == "rule":
        return {tree[1]}
    if tree[0] == "repeat":
        return names_in(tree[1])
    return set().union(*map(names_in, tree[1])) if tree[0] in ("seq", "alt") else set()


class _Parser:
    def __init__(self, text: str) -> None:
        self.text, self.at, self.depth = text, 0, 0

    def error(self, what: str) -> GrammarError:
        line = self.text.count("\n", 0, self.at) + 1
        near = one_line(self.text[self.at : self.at + 20]) or "the end"
        return GrammarError(f"line {line} of the grammar, at '{near}': {what}")

    def take(self, text: str) -> bool:
        if not self.text.startswith(text, self.at):
            return False
        self.at += len(text)
        return True

    def skip(self, lines: bool) -> None:
        match = (_SPACE_AND_LINES if lines else _SPACE).match(self.text, self.at)
        assert match is not None
        self.at = match.end()

    def rules(self) -> dict[str, Tree]:
        found: dict[str, Tree] = {}
        self.skip(lines=True)
        while self.at < len(self.text):
            match = _NAME.match(self.text, self.at)
            if not match:
                raise self.error("a rule begins with its name")
            name, self.at = match[0], match.end()
            self.skip(lines=False)
            if not self.take("::="):
                raise self.error(f"'::=' is missing behind '{one_line(name, 60)}'")
            if name in found:
                raise self.error(f"the rule '{one_line(name, 60)}' is there twice")
            self.skip(lines=True)
            found[name] = self.alternatives(nested=False)
            if self.at < len(self.text) and self.text[self.at] not in "\r\n":
                raise self.error("this is no part of a rule")
            self.skip(lines=True)
        return found

    def alternatives(self, nested: bool) -> Tree:
        parts = [self.sequence(nested)]
        while self._more(nested):
            self.skip(lines=True)
            parts.append(self.sequence(nested))
        return parts[0] if len(parts) == 1 else ("alt", tuple(parts))

    def _more(self, nested: bool) -> bool:
        """Takes a '|'; it may stand at the beginning of the next line."""
        back = self.at
        self.skip(lines=True)
        if self.take("|"):
            return True
        self.at = self.at if nested else back
        return False

    def sequence(self, nested: bool) -> Tree:
        parts: list[Tree] = []
        while True:
            self.skip(lines=nested)
            c = self.text[self.at : self.at + 1]
            if not c or c in "|)\r\n":
                return ("seq", tuple(parts))
            parts.append(self.repeated(self.item(c)))

    def item(self, c: str) -> Tree:
        if c == '"':
            return self.literal()
        if c == "[":
            return self.characters()
        if c == "(":
            return self.group()
        if c == ".":
            self.at += 1
            return ANYTHING
        match = _NAME.match(self.text, self.at)
        if not match:
            raise self.error("tokens cannot be named in a grammar" if c in "<!" else "this is no part of a rule")
        self.at = match.end()
        return ("rule", match[0])

    def group(self) -> Tree:
        self.at += 1
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.error(f"groups are nested more than {MAX_DEPTH} deep")
        inner = self.alternatives(nested=True)
        self.depth -= 1
        if not self.take(")"):
            raise self.error("')' is missing")
        return inner

    def repeated(self, part: Tree) -> Tree:
        while True:
            self.skip(lines=False)
            if match := _COUNTED.match(self.text, self.at):
                self.at = match.end()
                low = int(match[1])
                high = low if match[2] is None else int(match[3]) if match[3] else None
                if max(low, high or 0) > MAX_REPEAT or (high is not None and high < low):
                    raise self.error(f"a repeat goes from a smaller to a larger number, {MAX_REPEAT} at most")
                part = ("repeat", part, low, high)
            elif self.take("*"):
                part = ("repeat", part, 0, None)
            elif self.take("+"):
                part = ("repeat", part, 1, None)
            elif self.take("?"):
                part = ("repeat", part, 0, 1)
            else:
                return part

    def character(self) -> int:
        """The code point of one character or escape."""
        if self.text.startswith("\\", self.at):
            match = _ESCAPE.match(self.text, self.at)
            if not match:
                raise self.error("this escape is not known")
            self.at = match.end()
            if match[1]:
                return ord(_NAMED.get(match[1], match[1]))
            point = int(match[2] or match[3] or match[4], 16)
            if point >= N_CODE_POINTS or 0xD800 <= point < 0xE000:
                raise self.error("this escape names no character")
            return point
        if self.at >= len(self.text) or self.text[self.at] in "\r\n":
            raise self.error("a quote or bracket is not closed in its line")
        self.at += 1
        return ord(self.text[self.at - 1])

    def literal(self) -> Tree:
        self.at += 1
        points: list[int] = []
        while not self.take('"'):
            points.append(self.character())
        return ("seq", tuple(("set", (False, ((p, p + 1),), ())) for p in points))

    def characters(self) -> Tree:
        self.at += 1
        negated = self.take("^")
        ranges: list[tuple[int, int]] = []
        while not self.take("]"):
            low = high = self.character()
            if self.text.startswith("-", self.at) and not self.text.startswith("-]", self.at):
                self.at += 1
                high = self.character()
                if high < low:
                    raise self.error("a range runs backwards")
            ranges.append((low, high + 1))
        if not ranges and not negated:
            raise self.error("a set without any character")
        return ("set", (negated, merged(ranges), ()))
