"""Methods of texts, lists and mappings as templates may call them: which there are, and what they cost.

A call of a method is C code that cannot be stopped, so it is paid for before it runs, by what it will read and write.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from string import Formatter
from typing import Any

from jinja2.exceptions import SecurityError

from edgellm.template.budget import check_width, current, pay_deep, pay_list, pay_search, size_of
from edgellm.template.marked import MarkedText

_NO_METHODS = frozenset(["encode", "translate", "maketrans", "format", "format_map"])  # the last two are done elsewhere
TEXT_METHODS = frozenset(name for name in dir(str) if not name.startswith("_")) - _NO_METHODS
_FALLS_APART = frozenset(["split", "rsplit", "splitlines"])
# Methods of MarkedText to use also for data: those that put marked arguments into their result, and those that would
# give back their marked argument where data has the same text.
_TAKES_TEXT = frozenset(["join", "partition", "replace", "rpartition"])
_OTHER = {
    list: frozenset(["copy", "count", "index"]),
    tuple: frozenset(["count", "index"]),
    dict: frozenset(["copy", "get", "items", "keys", "values"]),
    int: frozenset(["bit_length"]),
    float: frozenset(["is_integer"]),
}


def call_method(owner: Any, name: str, method: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
    """`owner.name(*args, **kwargs)`, paid for. Raises SecurityError where templates may not call it."""
    if isinstance(owner, str):
        if name not in TEXT_METHODS:
            raise SecurityError(f"templates cannot call {name}() of a text")
        if type(owner) is str and name in _TAKES_TEXT:
            owner = MarkedText(owner)
            method = getattr(owner, name)
        if name == "join":
            args = _pay_join(owner, args)
        else:
            _pay_text(owner, name, args, kwargs)
        result = method(*args, **kwargs)
        if isinstance(result, str):
            current().text(size_of(result))
        return result
    kind = next((kind for kind in _OTHER if isinstance(owner, kind)), None)
    if kind is None or name not in _OTHER[kind]:
        raise SecurityError(f"templates cannot call {name}() of a {type(owner).__name__}")
    if name in ("count", "index"):
        pay_deep(owner)
        current().step(len(owner))
        pay_deep(*args)
    elif name == "copy":
        pay_list(len(owner))
    else:
        pay_deep(*args)
    return method(*args, **kwargs)


def _pay_text(owner: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    given = (*args, *kwargs.values())
    pay_deep(*given)
    pay_search(owner, sum(len(arg) for arg in given if isinstance(arg, str)))
    if name in _FALLS_APART:
        current().step(len(owner) // 4)
    elif name == "replace":
        pay_replace(owner, given)
    elif name == "expandtabs":
        current().text(str.count(owner, "\t") * (max(map(check_width, given), default=0) or 8))
    elif given:  # center, ljust, rjust, zfill; other methods take numbers as places in the text, which cost nothing
        current().text(max(map(check_width, given)) if name in ("center", "ljust", "rjust", "zfill") else 0)


def pay_replace(text: str, args: tuple[Any, ...]) -> None:
    """For `text.replace(old, new)`."""
    if len(args) < 2 or not (isinstance(args[0], str) and isinstance(args[1], str)):
        return  # str says what is wrong
    n = str.count(text, args[0])
    current().text(n * size_of(args[1]))
    current().step(3 * n)


def _pay_join(owner: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """For `owner.join(items)`: gives the arguments with the items as a list."""
    if len(args) != 1:
        return args  # str says what is wrong
    budget = current()
    texts, size = [], 0
    for item in args[0]:
        budget.step()
        texts.append(item)
        size += size_of(owner) + (size_of(item) if isinstance(item, str) else 0)
        if size > budget.chars:
            break
    budget.text(size)
    return (texts,)


# ---- formats ---------------------------------------------------------------------------------------------------------

_NUMBERS = re.compile(r"\d+")
_PERCENT = re.compile(r"%(?:\([^()]*\))?([#0\- +]*)(\*|\d*)(?:\.(\*|\d*))?")


def pay_format(text: str, values: Any) -> None:
    """For `text % values`. Raises SecurityError where a field would be too wide."""
    pay_search(text, 0)
    times = 0
    for match in _PERCENT.finditer(text):
        times += 1
        current().step(2)
        for width in match.groups()[1:]:
            if width == "*":
                raise SecurityError("the width of a field must be written in its format")
            if width:
                _check_digits(width)
                current().text(int(width))
    budget = current()
    steps, chars = budget.steps, budget.chars
    pay_deep(values)
    if times > 1 and not isinstance(values, tuple):  # one value may be written many times
        budget.step((times - 1) * (steps - budget.steps))
        budget.text((times - 1) * (chars - budget.chars))


def _check_digits(digits: str) -> None:
    if len(digits) > 5:
        raise SecurityError(f"a field as wide as {digits[:20]} is over the limit")
    check_width(int(digits))


class PayingFormatter:
    """Mixin for `string.Formatter`: each field is paid for, and none may be too wide."""

    def format_field(self, value: Any, format_spec: str) -> str:
        for digits in _NUMBERS.findall(format_spec):
            _check_digits(digits)
            current().text(int(digits))
        current().step(4)
        pay_deep(value)
        if isinstance(value, (list, tuple, dict)) and format_spec:
            raise TypeError(f"a {type(value).__name__} has no format '{format_spec[:20]}'")
        return Formatter.format_field(self, value, format_spec)  # type: ignore[arg-type]

    def convert_field(self, value: Any, conversion: Any) -> Any:
        if conversion is not None:
            pay_deep(value)
        return Formatter.convert_field(self, value, conversion)  # type: ignore[arg-type]
