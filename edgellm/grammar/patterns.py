"""Regular expressions of JSON Schemas (ECMA-262) and of callers, written out without anything left to interpretation.

Engines differ in what `\\d`, `.`, `\\s` and `$` mean. Expressions are therefore parsed here, by ECMA-262's meaning with
the flag u, and written again with sets of code points, groups, `|` and counted repeats only. Look-around, back
references and word boundaries, which no such expression can hold, are refused.
"""

from __future__ import annotations

import re
from typing import Any

from edgellm.errors import GrammarError, one_line
from edgellm.tokenizers.characters import N_CODE_POINTS, Ranges
from edgellm.tokenizers.pattern_syntax import Parser, PatternError, merged

MAX_WRITTEN = 200_000  # characters of a written expression
_DIGIT: Ranges = ((0x30, 0x3A),)
_WORD: Ranges = ((0x30, 0x3A), (0x41, 0x5B), (0x5F, 0x60), (0x61, 0x7B))
# ECMA-262: WhiteSpace and LineTerminator.
_SPACE: Ranges = (
    (0x09, 0x0E), (0x20, 0x21), (0xA0, 0xA1), (0x1680, 0x1681), (0x2000, 0x200B), (0x2028, 0x202A), (0x202F, 0x2030),
    (0x205F, 0x2060), (0x3000, 0x3001), (0xFEFF, 0xFF00),
)  # fmt: skip
_LINE_ENDS: Ranges = ((0x0A, 0x0B), (0x0D, 0x0E), (0x2028, 0x202A))
_CLASSES = {"d": _DIGIT, "w": _WORD, "s": _SPACE}
_SURROGATES: Ranges = ((0xD800, 0xE000),)  # are in no text
ANY = r"[\x{0}-\x{10FFFF}]"


class _Ecma(Parser):
    """The parser of pre-tokenizer expressions with ECMA-262's classes, anchors, named groups and lazy repeats."""

    def item(self, any_case: bool) -> tuple[Any, ...]:
        if self.take("^"):
            return ("begin",)
        if self.take("."):
            return ("set", (True, _LINE_ENDS, ()))
        if self.peek("]") or self.peek("}"):
            raise PatternError(f"'{self.next()}' at {self.at - 1} must be written with a backslash")
        return super().item(any_case)

    def group(self, any_case: bool) -> tuple[Any, ...]:
        if match := re.compile(r"\?<([A-Za-z_$][\w$]*)>").match(self.text, self.at):
            self.at = match.end()
        elif self.peek("?") and not self.peek("?:"):
            raise PatternError(f"the group '({self.text[self.at : self.at + 3]}' is not supported")
        return super().group(any_case)

    def repeated(self, part: tuple[Any, ...]) -> tuple[Any, ...]:
        """Lazy repeats (`*?`) match the same texts."""
        match = re.compile(r"([*+?]|\{\d+(?:,\d*)?\})\?").match(self.text, self.at)
        if match and part[0] not in ("begin", "end"):
            mark = match.end() - 1
            self.text = self.text[:mark] + self.text[mark + 1 :]
        if part[0] == "begin" and self.text[self.at : self.at + 1] in ("*", "+", "?", "{"):
            raise PatternError("'^' cannot be repeated")
        return super().repeated(part)

    def escape(self, any_case: bool) -> Any:
        c = self.text[self.at : self.at + 1]
        if c and c.lower() in _CLASSES:
            self.at += 1
            return (c.isupper(), _CLASSES[c.lower()], ())
        return super().escape(any_case)

    def bracket(self, any_case: bool) -> Any:
        if self.peek("]") or self.peek("^]"):
            raise PatternError("an empty set is not supported")
        return super().bracket(any_case)


def _complement(ranges: Ranges) -> Ranges:
    out, at = [], 0
    for a, b in merged(ranges):
        if a > at:
            out.append((at, a))
        at = max(at, b)
    return tuple([*out, (at, N_CODE_POINTS)] if at < N_CODE_POINTS else out)


def _points(chosen: Any) -> Ranges:
    """The code points of a parsed set."""
    negated, ranges, inner = chosen
    every = [*ranges]
    for each in inner:
        every += _points(each)
    found = merged(every)
    return _complement(found) if negated else found


def points_of(tree: tuple[Any, ...]) -> Ranges:
    """The code points that a ("set", ...) stands for, without surrogates."""
    return _without_surrogates(_points(tree[1]))


def _without_surrogates(ranges: Ranges) -> Ranges:
    return _complement((*_complement(ranges), *_SURROGATES))


def write_set(ranges: Ranges) -> str:
    """A set of code points as an expression. Raises PatternError where it is empty."""
    ranges = _without_surrogates(ranges)
    if not ranges:
        raise PatternError("a set without any character")
    if len(ranges) == 1 and ranges[0][1] == ranges[0][0] + 1:
        return _character(ranges[0][0])
    return "[" + "".join(_character(a) + (f"-{_character(b - 1)}" if b > a + 1 else "") for a, b in ranges) + "]"


def _character(point: int) -> str:
    c = chr(point)
    return c if c.isascii() and c.isalnum() else f"\\x{{{point:X}}}"


def write_text(text: str) -> str:
    """A text as an expression that matches just it."""
    return "".join(_character(ord(c)) for c in text)


def write(tree: tuple[Any, ...]) -> str:
    """A parsed expression without anchors, written out."""
    kind = tree[0]
    if kind == "set":
        return write_set(_points(tree[1]))
    if kind == "seq":
        return "".join(write(part) for part in tree[1])
    if kind == "alt":
        return "(?:" + "|".join(write(part) for part in tree[1]) + ")"
    if kind == "repeat":
        _, part, low, high = tree
        inner = write(part)
        return f"(?:{inner}){{{low},{'' if high is None else high}}}" if inner else ""
    raise PatternError(f"{'an anchor' if kind in ('begin', 'end') else 'look-around'} inside an expression")


def _whole(tree: tuple[Any, ...], around: str) -> str:
    """An expression for whole texts that match `tree`, with `around` where no anchor stands."""
    if tree[0] == "alt":
        return "(?:" + "|".join(_whole(part, around) for part in tree[1]) + ")"
    parts = list(tree[1]) if tree[0] == "seq" else [tree]
    if len(parts) == 1 and parts[0][0] in ("alt", "seq"):
        return _whole(parts[0], around)
    before = after = around
    while parts and parts[0] == ("begin",):
        before, parts = "", parts[1:]
    while parts and parts[-1] == ("end",):
        after, parts = "", parts[:-1]
    return before + write(("seq", tuple(parts))) + after


def explicit_regex(pattern: str, *, search: bool, pointer: str | None = None) -> str:
    """`pattern` as an expression for whole texts, in the syntax that all engines read alike.

    `search`: the pattern may be found anywhere in the text, as JSON Schema has it; else it must match all of it.
    Raises GrammarError for what is not supported.
    """
    try:
        # Not this class of the parser, but the expression itself may nest too deeply for it.
        text = _whole(_Ecma(pattern).parse(), f"{ANY}*" if search else "")
    except PatternError as error:
        raise GrammarError(
            f"the regular expression '{one_line(pattern, 100)}' cannot be held to: {error}", keyword="pattern",
            pointer=pointer,
        ) from None  # fmt: skip
    if len(text) > MAX_WRITTEN:
        raise GrammarError("a regular expression is too large; use fewer repeats", keyword="pattern", pointer=pointer)
    return text
