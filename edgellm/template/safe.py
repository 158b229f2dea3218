"""What the `safe` filter makes: text that counts as HTML, so that text which is added to it is escaped.

Chat templates are not HTML and nothing else is escaped in them, but some call `safe`, and what it does is in the texts
that their models were trained on.
"""

from __future__ import annotations

from typing import Any

from markupsafe import Markup, escape

from edgellm.template.marked import MarkedText, concat, parts_of, spans_of


class SafeText(MarkedText):
    """Marked text that is not escaped when it meets other HTML (markupsafe's protocol `__html__`)."""

    def __html__(self) -> str:
        return self.__str__()

    def __str__(self) -> str:
        return MarkedText("".join((self,)), self._spans)

    def __add__(self, other: Any) -> str:
        return _safe(concat((self, _escaped(other)))) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: Any) -> str:
        return _safe(concat((_escaped(other), self))) if isinstance(other, str) else NotImplemented

    def __mod__(self, values: Any) -> str:
        return Markup("".join((self,))) % values


def make_safe(text: str) -> str:
    """`text` as it is, for the `safe` filter."""
    return text if hasattr(text, "__html__") else _safe(text)


def _safe(text: str) -> SafeText:
    return SafeText("".join((text,)), spans_of(text))


def _escaped(text: str) -> str:
    if hasattr(text, "__html__"):
        return text
    pieces = ((str.__str__(escape(part)), own) for part, own in parts_of(text))
    return concat(MarkedText.template(part) if own else part for part, own in pieces)
