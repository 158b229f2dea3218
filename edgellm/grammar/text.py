"""Grammars that callers write, GBNF or Lark, in llguidance's notation."""

from __future__ import annotations

import re
from typing import Any

from edgellm.errors import GrammarError, one_line
from edgellm.grammar.gbnf import names_in, parse_gbnf
from edgellm.grammar.lexemes import Alphabet, Lexeme, Lookahead
from edgellm.grammar.patterns import MAX_WRITTEN, points_of, write
from edgellm.tokenizers.pattern_syntax import PatternError

MAX_GRAMMAR = 1 << 20  # characters
Tree = tuple[Any, ...]

# Strings, expressions and comments of Lark: directives are looked for outside them.
_LARK_TEXT = re.compile(r'"(?:\\.|[^"\\\n])*"i?|/(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\n])+/[imslux]*|//[^\n]*|#[^\n]*')
_NOT_LARK = (
    (re.compile(r"%llguidance"), "%llguidance sets options that edgellm sets itself"),
    (re.compile(r"%json"), "give a JSON Schema as response_format"),
    (re.compile(r"<[^>\n]*>"), "tokens cannot be named in a grammar"),
    (re.compile(r"\btemperature\s*="), "give the temperature to the call"),
)


def lark_of(text: str) -> str:
    """A grammar in llguidance's notation, Lark with `start`. What has `::=` is GBNF. Raises GrammarError."""
    if not isinstance(text, str):
        raise GrammarError(f"a grammar is a text, not {type(text).__name__}")
    if len(text) > MAX_GRAMMAR:
        raise GrammarError(f"the grammar has {len(text)} characters; the limit is {MAX_GRAMMAR}")
    bare = _LARK_TEXT.sub(" ", text)
    if re.search(r"::=", bare):
        return lark_of_gbnf(text)
    if not re.search(r"(?m)^\s*start\s*:", bare):
        raise GrammarError("the grammar is neither GBNF ('root ::= ...') nor Lark ('start: ...')")
    for pattern, why in _NOT_LARK:
        if match := pattern.search(bare):
            raise GrammarError(f"'{one_line(match[0], 40)}' in the grammar is not supported: {why}")
    return text


def lark_of_gbnf(text: str) -> str:
    """GBNF with the same language in Lark: one expression where nothing is recursive, else rules over lexemes that are
    as large as they can be (lexemes.py), or over single characters."""
    rules = _reachable(parse_gbnf(text))
    writer = _Writer(rules)
    try:
        if "root" not in writer.recursive:
            return f"start: /{writer.expression(('rule', 'root'))}/"
        for whole in (True, False):
            bodies, lexemes = writer.bodies(whole)
            if not whole or Lookahead(bodies, [writer.measure(tree) for tree in lexemes]).clear:
                return writer.lark(bodies, lexemes)
    except PatternError as error:
        raise GrammarError(f"the grammar cannot be held to: {error}") from None
    raise AssertionError("single characters are always possible")


def _reachable(rules: dict[str, Tree]) -> dict[str, Tree]:
    found, new = {"root"}, ["root"]
    while new:
        more = names_in(rules[new.pop()]) - found
        found |= more
        new += sorted(more)
    return {name: body for name, body in rules.items() if name in found}


def _recursive(rules: dict[str, Tree]) -> frozenset[str]:
    """The rules that use themselves, through others or not, and those that use such rules."""
    uses = {name: names_in(body) for name, body in rules.items()}
    plain: set[str] = set()
    while new := {name for name in uses if name not in plain and uses[name] <= plain}:
        plain |= new
    return frozenset(uses) - plain


class _Writer:
    def __init__(self, rules: dict[str, Tree]) -> None:
        self.rules, self.recursive = rules, _recursive(rules)
        self._inlined: dict[str, Tree] = {}
        self._sizes: dict[str, int] = {}
        self.alphabet = Alphabet(points_of(tree) for body in rules.values() for tree in _sets(body))

    # ---- parts without recursion

    def is_plain(self, tree: Tree) -> bool:
        return not names_in(tree) & self.recursive

    def inlined(self, tree: Tree) -> Tree:
        """The tree with the rules that it uses put in their places."""
        kind = tree[0]
        if kind == "rule":
            name = tree[1]
            if name not in self._inlined:
                self._inlined[name] = self.inlined(self.rules[name])
            return self._inlined[name]
        if kind == "repeat":
            return ("repeat", self.inlined(tree[1]), *tree[2:])
        return (kind, tuple(self.inlined(part) for part in tree[1])) if kind in ("seq", "alt") else tree

    def size(self, tree: Tree) -> int:
        """Nodes of the inlined tree, of which there may be very many."""
        kind = tree[0]
        if kind == "rule":
            if tree[1] not in self._sizes:
                self._sizes[tree[1]] = self.size(self.rules[tree[1]])
            return self._sizes[tree[1]]
        parts = (tree[1],) if kind == "repeat" else tree[1] if kind in ("seq", "alt") else ()
        return 1 + sum(map(self.size, parts))

    def expression(self, tree: Tree) -> str:
        """A plain tree as a regular expression. Raises PatternError where it is too large."""
        if self.size(tree) > MAX_WRITTEN // 4:
            raise PatternError("it is too large, with all rules put in their places")
        text = write(self.inlined(tree))
        if len(text) > MAX_WRITTEN:
            raise PatternError("it is too large, with all rules put in their places")
        return text

    def measure(self, tree: Tree) -> Lexeme:
        if self.size(tree) > MAX_WRITTEN // 4:
            raise PatternError("it is too large, with all rules put in their places")
        return Lexeme(self.inlined(tree), points_of, self.alphabet)

    # ---- rules over lexemes

    def bodies(self, whole: bool) -> tuple[dict[str, Tree], list[Tree]]:
        """The rules with ("lexeme", i) in them, and the lexemes. `whole`: as large as they can be, else characters."""
        lexemes: dict[Tree, int] = {}

        def cut(tree: Tree) -> Tree:
            kind = tree[0]
            if kind == "set" or (whole and self.is_plain(tree) and tree != ("seq", ())):
                return ("lexeme", lexemes.setdefault(tree, len(lexemes)))
            if kind == "repeat":
                return ("repeat", cut(tree[1]), *tree[2:])
            if kind not in ("seq", "alt"):
                return tree
            parts = self._grouped(tree) if whole else tree[1]
            return (kind, tuple(cut(part) for part in parts))

        names = self.recursive if whole else self.rules
        return {name: cut(self.rules[name]) for name in names}, list(lexemes)

    def _grouped(self, tree: Tree) -> list[Tree]:
        """Parts of a seq or alt, with plain ones that stand together (in an alt: all of them) made one."""
        if tree[0] == "alt":
            plain = [part for part in tree[1] if self.is_plain(part)]
            rest = [part for part in tree[1] if not self.is_plain(part)]
            return ([plain[0] if len(plain) == 1 else ("alt", tuple(plain))] if plain else []) + rest
        out: list[Tree] = []
        run: list[Tree] = []
        for part in (*tree[1], None):
            if part is not None and self.is_plain(part):
                run.append(part)
                continue
            out += [("seq", tuple(run))] if run else []
            run = []
            out += [part] if part is not None else []
        return out

    def lark(self, bodies: dict[str, Tree], lexemes: list[Tree]) -> str:
        names = {"root": "start"} | {name: f"r{i}" for i, name in enumerate(bodies) if name != "root"}
        empty = [self.measure(tree).nullable for tree in lexemes]

        def show(tree: Tree) -> str:
            kind = tree[0]
            if kind == "lexeme":
                return f"L{tree[1]}?" if empty[tree[1]] else f"L{tree[1]}"
            if kind == "rule":
                return names[tree[1]]
            if kind == "repeat":
                low, high = tree[2:]
                return f"({show(tree[1])}){{{low},{'' if high is None else high}}}"
            if kind == "alt":
                return "(" + " | ".join(show(part) for part in tree[1]) + ")"
            return "(" + " ".join(show(part) for part in tree[1]) + ")" if tree[1] else '""'

        lines = [f"{names[name]}: {show(body)}" for name, body in bodies.items()]
        for i, tree in enumerate(lexemes):
            # A lexeme is never empty; where its expression may be, the rules leave it out instead.
            more = r" & /[\x{0}-\x{10FFFF}]+/" if empty[i] else ""
            lines.append(f"L{i}: /{self.expression(tree)}/{more}")
        return "\n".join(lines)


def _sets(tree: Tree) -> list[Tree]:
    if tree[0] == "set":
        return [tree]
    if tree[0] == "repeat":
        return _sets(tree[1])
    return [found for part in tree[1] for found in _sets(part)] if tree[0] in ("seq", "alt") else []
