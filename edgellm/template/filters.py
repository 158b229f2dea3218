"""The filters and tests of chat templates: Jinja's own where they will do, each with its price; others with marks.

Filters that no chat template needs and that would be hard to bound (`urlize`, `wordwrap`, `pprint`, `xmlattr`,
`striptags`, `random`) are left out; a template that uses one is refused by that name.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from typing import Any

from jinja2 import filters as jinja
from jinja2.defaults import DEFAULT_TESTS
from jinja2.exceptions import SecurityError
from jinja2.utils import pass_environment
from markupsafe import soft_str

from edgellm.template.budget import (
    Rounds,
    SizedRounds,
    check_width,
    current,
    pay_deep,
    pay_list,
    size_of,
)
from edgellm.template.codegen import ROUNDS
from edgellm.template.json_text import to_json
from edgellm.template.marked import MarkedText, concat
from edgellm.template.methods import pay_format, pay_replace
from edgellm.template.safe import make_safe

_FLAT = ("attr", "count", "d", "default", "first", "items", "last", "length")
_WALKS = ("list", "map", "reject", "rejectattr", "reverse", "select", "selectattr")
_DEEP = (
    "abs", "capitalize", "dictsort", "e", "escape", "filesizeformat", "float", "forceescape", "groupby", "lower", "max",
    "min", "sort", "string", "trim", "truncate", "unique", "upper", "urlencode", "wordcount",
)  # fmt: skip
_DEEP_TESTS = frozenset([
    "in", "lower", "upper", "==", "eq", "equalto", "!=", "ne", ">", "gt", "greaterthan", "ge", ">=",
    "<", "lt", "lessthan", "<=", "le",
])  # fmt: skip
MAX_DIGITS = 1000  # of a text that becomes a number


# ---- prices ----------------------------------------------------------------------------------------------------------


def _at(function: Callable[..., Any]) -> int:
    """Where the filtered value is among the arguments: Jinja may hand a context to the function first."""
    return 1 if hasattr(function, "jinja_pass_arg") else 0


def _flat(function: Callable[..., Any]) -> Callable[..., Any]:
    """For work that does not grow with its input."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        current().step(2)
        return _counted(function(*args, **kwargs))

    return run


def _walks(function: Callable[..., Any]) -> Callable[..., Any]:
    """For work that goes once over the items of its input."""
    at = _at(function)

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        pay_items(args[at])
        return _counted(function(*args, **kwargs))

    return run


def _deep(function: Callable[..., Any]) -> Callable[..., Any]:
    """For work on all that is inside its input and its arguments."""
    at = _at(function)

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        values = [*args[:at], listed(args[at]), *args[at + 1 :]]
        n = pay_deep(*values[at:], *kwargs.values())
        current().step(n * n.bit_length() // 4)  # for those that sort
        result = function(*values, **kwargs)
        if isinstance(result, str):
            current().text(size_of(result))
        return _counted(result)

    return run


def pay_items(value: Any) -> None:
    """For a walk over a value: its length, where it has one; other iterables are paid for round by round."""
    if isinstance(value, str):
        current().text(size_of(value))
        current().step(1 + len(value))  # a text falls apart into its characters
    elif hasattr(value, "__len__"):
        pay_list(len(value))
    else:
        current().step()


def listed(value: Any) -> Any:
    """Items that come one by one as a list, so that they can be weighed before they are used."""
    if isinstance(value, range):
        current().step(len(value))  # each of them is compared or looked into in Python
    return list(value) if isinstance(value, (Rounds, range)) else value


def _counted(result: Any) -> Any:
    """A result whose items come one by one pays for each."""
    if hasattr(result, "__next__"):
        return Rounds(result)
    return result


def _rounds(items: Any, price: int) -> Any:
    """Around everything that a template iterates over (`codegen.count_rounds`)."""
    return (SizedRounds if hasattr(items, "__len__") else Rounds)(items, max(1, price))


# ---- filters with marks, or with a price of their own ----------------------------------------------------------------


def _marked(value: Any) -> MarkedText:
    """str(value) as a text whose methods keep the marks of what they are given."""
    pay_deep(value)
    text = soft_str(value)
    return text if isinstance(text, MarkedText) else MarkedText(str(text))


@pass_environment
def _join(environment: Any, value: Iterable[Any], d: str = "", attribute: Any = None) -> str:
    if attribute is not None:
        value = map(jinja.make_attrgetter(environment, attribute), value)
    budget = current()
    texts, size, between = [], 0, size_of(str(d))
    for item in value:
        budget.step()
        pay_deep(item)
        texts.append(str(item))
        size += between
        if size > budget.chars:
            break
    budget.text(size)
    return _marked(d).join(texts)


def _replace(s: str, old: str, new: str, count: int | None = None) -> str:
    text, old, new = _marked(s), str(_marked(old)), str(_marked(new))
    pay_replace(text, (old, new, -1 if count is None else count))
    return text.replace(old, new, -1 if count is None else count)


def _indent(s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    """Each line but the first moved in by `width` spaces, or by a text; empty lines only if `blank`."""
    if not isinstance(s, str):
        raise TypeError(f"only text can be indented, not {type(s).__name__}")
    before = width if isinstance(width, str) else " " * check_width(width)
    current().step(len(s) // 4)
    lines = MarkedText.splitlines(_marked(s) + "\n")  # type: ignore[arg-type]
    current().text(size_of(before) * len(lines))
    out: list[str] = []
    for i, line in enumerate(lines):
        if i:
            out.append("\n")
        if (i and (line or blank)) or (first and not i):
            out.append(before)
        out.append(line)
    return concat(out)


def _center(value: Any, width: int = 80) -> str:
    current().text(check_width(width))
    return _marked(value).center(width)


_WORDS = re.compile(r"([-\s({\[<]+)")  # what is between two words


def _title(s: Any) -> str:
    text = _marked(s)
    current().step(len(text) // 2)
    pieces, at = [], 0
    for match in _WORDS.finditer(text):
        pieces += [text[at : match.start()], text[match.start() : match.end()]]
        at = match.end()
    pieces.append(text[at:])
    return concat(part for piece in pieces if piece for part in (piece[0].upper(), piece[1:].lower()))


def _format(value: Any, *args: Any, **kwargs: Any) -> str:
    if args and kwargs:
        raise TypeError("give the format filter values by place or by name, not both")
    text = _marked(value)
    pay_format(text, kwargs or args)
    return text % (kwargs or args)


def _safe(value: Any) -> str:
    pay_deep(value)
    return make_safe(value if isinstance(value, str) else soft_str(value))


@pass_environment
def _sum(environment: Any, iterable: Iterable[Any], attribute: Any = None, start: Any = 0) -> Any:
    if isinstance(start, str):
        raise TypeError("sum() cannot add texts; use join")
    if attribute is not None:
        iterable = map(jinja.make_attrgetter(environment, attribute), iterable)
    for item in iterable:
        current().step(2)
        start = environment.call_binop(None, "+", start, item)
    return start


def _batch(value: Any, linecount: int, fill_with: Any = None) -> Any:
    current().step(check_width(linecount))
    pay_items(value)
    return _counted(jinja.do_batch(value, linecount, fill_with))


def _slice(value: Any, slices: int, fill_with: Any = None) -> Any:
    current().step(check_width(slices))
    pay_items(value)
    return _counted(jinja.sync_do_slice(value, slices, fill_with))


def _round(value: Any, precision: int = 0, method: str = "common") -> float:
    if not isinstance(precision, int) or abs(precision) > 300:
        raise SecurityError("a number is rounded to 300 digits at most")
    return jinja.do_round(value, precision, method)  # type: ignore[arg-type]


def _int(value: Any, default: int = 0, base: int = 10) -> int:
    if isinstance(value, str) and len(value) > MAX_DIGITS:
        raise SecurityError(f"a number of {len(value)} digits is over the limit of {MAX_DIGITS}")
    return jinja.do_int(value, default, base)


def make_filters() -> dict[str, Callable[..., Any]]:
    """All filters of a template by name."""
    out: dict[str, Callable[..., Any]] = {}
    for names, price in ((_FLAT, _flat), (_WALKS, _walks), (_DEEP, _deep)):
        out |= {name: price(jinja.FILTERS[name]) for name in names}
    own = {
        "batch": _batch, "center": _center, "format": _format, "indent": _indent, "int": _int, "join": _join,
        "replace": _replace, "round": _round, "safe": _safe, "slice": _slice, "sum": _sum, "title": _title,
        "tojson": to_json,
    }  # fmt: skip
    return {**out, **own, ROUNDS: _rounds}


def make_tests() -> dict[str, Callable[..., Any]]:
    """All tests (`is ...`) of a template by name."""
    return {name: (_deep if name in _DEEP_TESTS else _flat)(test) for name, test in DEFAULT_TESTS.items()}
