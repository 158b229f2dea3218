"""Text that knows which of its characters a template wrote.

`MarkedText` is a str with spans. Unmarked is the safe side: a plain str is data, and an operation that is not written
here gives a plain str, so marks can get lost but never appear on text that came from a message.
"""

from __future__ import annotations

import re
import string
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from operator import itemgetter
from typing import Any, SupportsIndex

Spans = tuple[tuple[int, int], ...]  # ascending, disjoint, none empty
_start, _end = itemgetter(0), itemgetter(1)


def spans_of(text: str) -> Spans:
    """The spans of `text` that a template wrote."""
    return text._spans if isinstance(text, MarkedText) else ()


def parts_of(text: str) -> list[tuple[str, bool]]:
    """`text` as (text, is_template) spans; both kinds in turn, none empty."""
    plain, parts, at = str.__str__(text), [], 0
    for start, end in spans_of(text):
        if start > at:
            parts.append((plain[at:start], False))
        parts.append((plain[start:end], True))
        at = end
    if at < len(plain):
        parts.append((plain[at:], False))
    return parts


def concat(items: Iterable[str]) -> str:
    """The texts joined, marks and all. A result without marks is a plain str."""
    texts: list[str] = []
    spans: list[tuple[int, int]] = []
    at = 0
    for item in items:
        texts.append(item)
        more = spans_of(item)
        if more:
            if at:
                more = tuple((at + start, at + end) for start, end in more)
            if spans and spans[-1][1] == more[0][0]:
                spans[-1] = (spans[-1][0], more[0][1])
                more = more[1:]
            spans += more
        at += len(item)
    return _make("".join(texts), tuple(spans))


def _make(plain: str, spans: Spans) -> str:
    return MarkedText(plain, spans) if spans else plain


def _cut(text: str, start: int, end: int) -> str:
    """text[start:end] for 0 <= start <= end <= len(text)."""
    if start == end:
        return ""
    all_spans = spans_of(text)
    first = bisect_right(all_spans, start, key=_end)  # the first that ends behind `start`
    last = bisect_left(all_spans, end, first, key=_start)
    spans = tuple((max(a, start) - start, min(b, end) - start) for a, b in all_spans[first:last])
    return _make(str.__getitem__(text, slice(start, end)), spans)


def _cuts(text: str, pieces: list[str], skip: int = 0) -> list[str]:
    """`pieces` of `text`, each found behind the one before it (and `skip` characters more), with their marks."""
    out, at = [], 0
    for piece in pieces:
        at = str.find(text, piece, at)
        out.append(_cut(text, at, at + len(piece)))
        at += len(piece) + skip
    return out


def _recased(method: Callable[..., str]) -> Callable[..., str]:
    @wraps(method)
    def recase(self: MarkedText) -> str:
        plain = method(self)
        if len(plain) == len(self):
            return _make(plain, self._spans)
        made = concat(MarkedText.template(method(part)) if own else method(part) for part, own in parts_of(self))
        return made if str.__eq__(made, plain) else plain

    return recase


def _stripped(method: Callable[..., str]) -> Callable[..., str]:
    @wraps(method)
    def strip(self: MarkedText, chars: str | None = None) -> str:
        plain = method(self, chars)
        start = len(self) - len(str.lstrip(self, chars)) if method is not str.rstrip else 0
        return _cut(self, start, start + len(plain))

    return strip


def _padded(method: Callable[..., str]) -> Callable[..., str]:
    """For methods that put the same character before or behind a text."""

    @wraps(method)
    def pad(self: MarkedText, width: SupportsIndex, fill: str = " ") -> str:
        plain = method(self, width, fill)
        before = {str.ljust: 0, str.rjust: len(plain) - len(self)}.get(method)
        if before is None:  # center: the odd one goes to the left or right by a rule of its own
            before = len(method("x" * len(self), width, " ")) - len(method("x" * len(self), width, " ").lstrip())
        behind = len(plain) - len(self) - before
        return concat((str.__mul__(fill, before), self, str.__mul__(fill, behind))) if self else plain

    return pad


class MarkedText(str):
    """A str some of whose characters a template wrote. `MarkedText(text)` has no marks, `template(text)` is all marked.

    Methods that are not written here are those of str, and give plain text.
    """

    _spans: Spans

    def __new__(cls, text: str = "", spans: Spans = ()) -> MarkedText:
        made = str.__new__(cls, text)
        made._spans = spans
        return made

    @classmethod
    def template(cls, text: str) -> MarkedText:
        """`text` as written by a template."""
        return cls(text, ((0, len(text)),) if text else ())

    def is_template(self) -> bool:
        """True when a template wrote all of it."""
        return self._spans == ((0, len(self)),) or not self

    def __str__(self) -> str:  # str(x) keeps the marks: Jinja calls it on everything that it writes
        return self

    def __add__(self, other: Any) -> str:
        if not isinstance(other, str) or hasattr(other, "__html__"):
            return NotImplemented
        return concat((self, other))

    def __radd__(self, other: Any) -> str:
        return concat((other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, times: SupportsIndex) -> str:
        plain = str.__mul__(self, times)
        if self.is_template():
            return MarkedText.template(plain) if plain else ""
        return concat([self] * (len(plain) // len(self)))

    __rmul__ = __mul__

    def __getitem__(self, key: Any) -> str:
        if isinstance(key, slice):
            start, end, step = key.indices(len(self))
            if step == 1:
                return _cut(self, start, max(start, end))
            return concat(_cut(self, at, at + 1) for at in range(start, end, step))
        plain = str.__getitem__(self, key)
        at = key.__index__() % len(self)
        return _make(plain, spans_of(_cut(self, at, at + 1)))

    def __iter__(self) -> Iterator[str]:
        return (_cut(self, i, i + 1) for i in range(len(self)))

    def __mod__(self, values: Any) -> str:
        plain = str.__mod__(self, values)
        marked = _percent(self, values)
        return marked if marked is not None and str.__eq__(marked, plain) else plain

    def join(self, items: Iterable[str]) -> str:
        items = list(items)
        str.join(self, items)  # raises what str raises
        between = [self] * (2 * len(items) - 1) if items else []
        between[::2] = items
        return concat(between)

    def replace(self, old: str, new: str, count: SupportsIndex = -1) -> str:
        str.replace(self, "", "", 0), str.count(self, old), str.count(self, new)  # raises what str raises
        if not old:  # `new` comes before each of the first characters, and behind the last
            n = len(self) + 1 if count.__index__() < 0 else min(len(self) + 1, count.__index__())
            gaps = [new if i < n else "" for i in range(len(self) + 1)]
            return concat(part for i, gap in enumerate(gaps) for part in (gap, _cut(self, i, min(i + 1, len(self)))))
        return concat(_interleave(_cuts(self, str.split(self, old, count), len(old)), new))

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return _cuts(self, str.split(self, sep, maxsplit), len(sep or ""))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return _cuts(self, str.rsplit(self, sep, maxsplit), len(sep or ""))

    def splitlines(self, keepends: bool = False) -> list[str]:
        whole = _cuts(self, str.splitlines(self, True))
        return whole if keepends else [_cut(a, 0, len(b)) for a, b in zip(whole, str.splitlines(self), strict=True)]

    def partition(self, sep: str) -> tuple[str, str, str]:
        return _three(self, str.partition(self, sep))

    def rpartition(self, sep: str) -> tuple[str, str, str]:
        return _three(self, str.rpartition(self, sep))

    def removeprefix(self, prefix: str) -> str:
        return _cut(self, len(self) - len(str.removeprefix(self, prefix)), len(self))

    def removesuffix(self, suffix: str) -> str:
        return _cut(self, 0, len(str.removesuffix(self, suffix)))

    def expandtabs(self, tabsize: SupportsIndex = 8) -> str:
        plain, stop = str.expandtabs(self, tabsize), tabsize.__index__()
        made = []
        for line in self.splitlines(True):  # tab stops are counted anew in each line
            column = 0
            for i, piece in enumerate(line.split("\t")):
                if i:
                    made.append(" " * (stop - column % stop) if stop > 0 else "")
                    column = 0
                made.append(piece)
                column += len(piece)
        marked = concat(made)
        return marked if str.__eq__(marked, plain) else plain

    center, ljust, rjust = (_padded(method) for method in (str.center, str.ljust, str.rjust))
    strip, lstrip, rstrip = (_stripped(method) for method in (str.strip, str.lstrip, str.rstrip))
    upper, lower, title = (_recased(method) for method in (str.upper, str.lower, str.title))
    capitalize, swapcase, casefold = (_recased(method) for method in (str.capitalize, str.swapcase, str.casefold))


def _interleave(items: list[str], between: str) -> Iterator[str]:
    for i, item in enumerate(items):
        if i:
            yield between
        yield item


def _three(text: str, pieces: tuple[str, str, str]) -> tuple[str, str, str]:
    first = len(pieces[0])
    second = first + len(pieces[1])
    return _cut(text, 0, first), _cut(text, first, second), _cut(text, second, len(text))


_PERCENT = re.compile(r"%(?:\((?P<key>[^()]*)\))?(?P<spec>[#0\- +]*\d*(?:\.\d+)?[hlL]?[diouxXeEfFgGcrsa%])")


def _percent(text: MarkedText, values: Any) -> str | None:
    """`text % values` with marks, as far as its conversions are simple; None where they are not."""
    waiting = list(values) if isinstance(values, tuple) else [values]
    out, at = [], 0
    for match in _PERCENT.finditer(text):
        out.append(_cut(text, at, match.start()))
        at = match.end()
        key, spec = match["key"], match["spec"]
        if spec == "%":
            out.append(_cut(text, at - 1, at))
            continue
        if key is None and not waiting:
            return None
        value = values[key] if key is not None else waiting.pop(0)
        out.append(value if spec == "s" and isinstance(value, str) else str.__mod__("%" + spec, (value,)))
    return concat([*out, _cut(text, at, len(text))])


def format_marked(text: MarkedText, formatter: string.Formatter, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """`text.format(*args, **kwargs)` with marks. `formatter` looks names up and formats them (the sandbox's own)."""
    plain_form = "".join((text,))
    plain = formatter.vformat(plain_form, args, kwargs)
    if not text.is_template() or any("{" in (spec or "") for _, _, spec, _ in formatter.parse(plain_form)):
        return plain
    out: list[str] = []
    auto = 0
    for literal, name, spec, conversion in formatter.parse(plain_form):
        out.append(MarkedText.template(literal))
        if name is None:
            continue
        if name == "":
            name, auto = str(auto), auto + 1
        value, _ = formatter.get_field(name, args, kwargs)
        simple = isinstance(value, str) and not spec and conversion in (None, "s")
        out.append(
            value
            if simple
            else formatter.vformat(f"{{0{'!' + conversion if conversion else ''}:{spec}}}", (value,), {})
        )
    marked = concat(out)
    return marked if str.__eq__(marked, plain) else plain
