"""GBNF, Lark and regular expressions: the same languages as slow twins find them, and what is refused."""

from __future__ import annotations

import contextlib
import itertools
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("llguidance")

from grammar_walk import byte_tokenizer, walk  # noqa: E402

from edgellm.errors import GrammarError  # noqa: E402
from edgellm.grammar import compile_constraint  # noqa: E402
from edgellm.grammar.gbnf import parse_gbnf  # noqa: E402
from edgellm.grammar.patterns import explicit_regex, points_of  # noqa: E402
from edgellm.grammar.text import lark_of  # noqa: E402

TOKENIZER = byte_tokenizer()
BYTES = {bytes([i]): 3 + i for i in range(256)}  # the ids of the byte pieces
WORDS = ["".join(w) for n in range(5) for w in itertools.product("abc", repeat=n)]
SLOW = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))

JSON_GBNF = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws
array  ::=
  "[" ws (value ("," ws value)*)? "]" ws
string ::= "\"" ([^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}))* "\"" ws   # with escapes
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""


def accepts(make, text):
    """Whether the constraint lets the bytes of a text through, and lets it end there."""
    constraint = make()
    constraint.begin(False)
    for byte in text.encode():
        if constraint.finished:
            return False
        token = BYTES[bytes([byte])]
        try:
            if not constraint.mask()[token]:
                return False
        except GrammarError:
            return False
        constraint.accept(token)
    if constraint.finished:
        return True
    try:
        return bool(constraint.mask()[2])
    except GrammarError:
        return False


def language(rules, text):
    """The twin: whether `root` derives a text, by filling a table of spans until nothing is added."""
    n = len(text)
    spans = {name: frozenset() for name in rules}

    def then(first, second):
        return frozenset((i, k) for i, j in first for m, k in second if j == m)

    here = frozenset((i, i) for i in range(n + 1))

    def of(tree):
        kind = tree[0]
        if kind == "set":
            ranges = points_of(tree)
            return frozenset((i, i + 1) for i in range(n) if any(a <= ord(text[i]) < b for a, b in ranges))
        if kind == "rule":
            return spans[tree[1]]
        if kind == "alt":
            return frozenset().union(*map(of, tree[1]))
        if kind == "seq":
            out = here
            for part in tree[1]:
                out = then(out, of(part))
            return out
        _, part, low, high = tree
        one, out = of(part), here
        for _ in range(low):
            out = then(out, one)
        all_of = out
        for _ in range(n + 1 if high is None else high - low):
            out = then(out, one)
            all_of |= out
        return all_of

    while (grown := {name: of(body) for name, body in rules.items()}) != spans:
        spans = grown
    return (0, n) in spans["root"]


def bodies(names):
    atoms = st.sampled_from(['"a"', '"b"', '"ab"', '"abc"', "[ab]", "[^a]", "[a-c]", '""', *names])
    return st.recursive(
        atoms,
        lambda inner: st.one_of(
            st.tuples(inner, inner).map(" ".join),
            st.tuples(inner, inner).map(lambda pair: f"({pair[0]} | {pair[1]})"),
            st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{0,}"])).map(lambda p: f"({p[0]}){p[1]}"),
        ),
        max_leaves=6,
    )


@SLOW
@given(st.fixed_dictionaries({name: bodies(["x", "y"]) for name in ("root", "x", "y")}))
def test_gbnf_is_the_language_that_the_twin_finds(rules):
    text = "\n".join(f"{name} ::= {body}" for name, body in rules.items())
    parsed = parse_gbnf(text)
    try:
        make = compile_constraint(TOKENIZER, grammar=text)
        make().mask()
    except GrammarError:  # no text at all
        assert not any(language(parsed, word) for word in WORDS)
        return
    for word in WORDS[:40] + WORDS[40::5]:
        assert accepts(make, word) == language(parsed, word), word


def test_lexemes_are_whole_where_one_character_ahead_tells_what_to_do():
    lark = lark_of(JSON_GBNF)
    assert "null" in lark and lark.count("/") < 30
    assert "n" in lark_of('root ::= "n" [a-z]+ "x" root | "end"')
    make = compile_constraint(TOKENIZER, grammar='root ::= "(" [a-z]+ "x" root? ")"')
    assert accepts(make, "(abxx)") and accepts(make, "(ax(bx))") and not accepts(make, "(x)")


def test_json_in_gbnf():
    make = compile_constraint(TOKENIZER, grammar=JSON_GBNF)
    for text in ('{}', '{"a":[1,-2.5e3,null] ,"b":{"c":"\\n\\u00e9"}}', '{"a":\n\t"日"}'):
        assert accepts(make, text), text
    for text in ("[]", "{", '{"a"}', '{"a":01}', '{"a":tru}', '{"a":1,}', "x"):
        assert not accepts(make, text), text


def test_a_rule_that_begins_with_itself():
    make = compile_constraint(TOKENIZER, grammar='root ::= root "+" [0-9] | [0-9]')
    assert accepts(make, "1+2+3") and not accepts(make, "1+") and not accepts(make, "+1")


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ("", "neither GBNF"),
        ("hello", "neither GBNF"),
        ('x ::= "a"', "no rule 'root'"),
        ("root ::= y", "does not define it"),
        ('root ::= "a', "line 1 .*not closed"),
        ('root ::= "a"\nroot ::= "b"', "line 2 .*twice"),
        ("root ::= [b-a]", "backwards"),
        ("root ::= []", "without any character"),
        ('root ::= "\\q"', "escape"),
        ('root ::= "a"{3,2}', "repeat"),
        ('root ::= ("a"', r"'\)' is missing"),
        ("root ::= <think>", "tokens cannot be named"),
        ('root ::= "\\uD800"', "names no character"),
        ("root ::= " + "(" * 100 + '"a"' + ")" * 100, "nested"),
        ("start: %json {}", "response_format"),
        ('%llguidance {"no_forcing": false}\nstart: "a"', "edgellm sets itself"),
        ("start: <|im_end|>", "tokens cannot be named"),
        ("start: x\nx[temperature=0.5]: /a/", "temperature"),
        ("start: x", "cannot be held to"),
        ('start: "a', "cannot be held to"),
        ("root ::= " + " ".join(f"r{i}" for i in range(30)) + "\n"
         + "\n".join(f'r{i} ::= "a" ' + (f"r{i + 1} r{i + 1}" if i < 29 else "") for i in range(30)), "too large"),
    ],
)  # fmt: skip
def test_what_is_refused(grammar, message):
    with pytest.raises(GrammarError, match=message):
        compile_constraint(TOKENIZER, grammar=grammar)


def test_lark_goes_to_llguidance_as_it_is():
    make = compile_constraint(TOKENIZER, grammar='start: "<" WORD ("," WORD)* ">" // words\nWORD: /[a-z]{1,3}/')
    assert accepts(make, "<ab,c>") and not accepts(make, "<>") and not accepts(make, "<abcd>")


# ---- regular expressions


def written(pattern, search):
    """The written form for Python, which spells code points in another way."""
    text = explicit_regex(pattern, search=search)
    return re.compile(re.sub(r"\\x\{([0-9A-F]+)\}", lambda m: f"\\U{int(m[1], 16):08x}", text))


PATTERNS = st.recursive(
    st.sampled_from(["a", "b", "ab", "[ab]", "[^a]", ".", r"\w", r"\d", r"\S", "c"]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"(?:{pair[0]}|{pair[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+?", "?", "{2}", "{1,2}", "*?"])).map(lambda p: f"({p[0]}){p[1]}"),
    ),
    max_leaves=5,
)


@SLOW
@given(PATTERNS, st.booleans(), st.booleans())
def test_expressions_match_what_python_matches(pattern, begin, end):
    """On texts where ECMA-262 and Python agree; both the written form and the constraint."""
    pattern = ("^" if begin else "") + pattern + ("$" if end else "")
    whole, found = written(pattern, search=False), written(pattern, search=True)
    for word in WORDS:
        assert bool(whole.fullmatch(word)) == bool(re.fullmatch(pattern, word))
        assert bool(found.fullmatch(word)) == bool(re.search(pattern, word))
    make = compile_constraint(TOKENIZER, regex=pattern)
    for word in WORDS[::7]:
        assert accepts(make, word) == bool(re.fullmatch(pattern, word))


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        (r"^\d$", "7", "٣"),  # Arabic-Indic three
        (r"^\w$", "k", "é"),
        (r"^\W$", "é", "k"),
        (r"^\s$", "\ufeff", "\x85"),
        (r"^.$", "\x0b", "\u2028"),
        (r"^[^\d]$", "٣", "3"),
        (r"^\u{1F600}$", "😀", "u"),
        (r"^\p{Lu}$", "É", "é"),
        (r"^(?<year>\d{4})$", "1999", "199"),
    ],
)
def test_classes_mean_what_ecma_says(pattern, good, bad):
    found = written(pattern, search=True)
    assert found.fullmatch(good) and not found.fullmatch(bad)


@pytest.mark.parametrize(
    "pattern",
    ["(?=a)", "(?!a)", "(?<=a)", r"(a)\1", r"\ba", "a^b", "a$b", "[", "(", ")", "a**", "[]", "a{2,1}", "]", "\\"],
)
def test_expressions_that_are_refused(pattern):
    with pytest.raises(GrammarError, match="cannot be held to"):
        compile_constraint(TOKENIZER, regex=pattern)


@pytest.mark.parametrize(
    "pattern", ["(((a{1,1000}){1,1000}){1,1000}){1,1000}", "(a|b|ab)*c" * 200, "(.*a){200}", "(.*a.{300}b){9}"]
)
def test_large_expressions_come_to_an_end(pattern):
    """They work, or end in a GrammarError: llguidance counts steps, so nothing hangs."""
    with contextlib.suppress(GrammarError):
        walk(compile_constraint(TOKENIZER, regex=pattern)(), TOKENIZER, np.random.default_rng(0), 50)
