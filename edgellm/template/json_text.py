"""The `tojson` filter: JSON text as `json.dumps` writes it, in which texts keep their marks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from edgellm.template.budget import check_width, current, pay_deep, size_of
from edgellm.template.marked import MarkedText, concat, parts_of


def to_json(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """`x` as JSON, with transformers' defaults: nothing is escaped for HTML, and no character for being foreign.

    Raises what `json.dumps` raises.
    """
    n = pay_deep(x, indent, separators)
    extra = size_of(indent) if isinstance(indent, str) else check_width(indent)
    extra = 8 + 4 * extra + sum(map(len, separators or ()))  # indents are charged for four levels;
    current().text(n * extra)
    depth = _depth(x)
    if indent is not None and depth > 4:  # what is deeper pays for its levels
        current().text(n * extra * depth)
    plain = json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    current().text(len(plain))
    if not _has_marks(x):
        return plain
    comma, colon = separators or (", " if indent is None else ",", ": ")
    step = " " * indent if isinstance(indent, int) else indent
    made = concat(_pieces(x, ensure_ascii, step, "\n", (comma, colon), sort_keys))
    return made if str.__eq__(made, plain) else plain


def _depth(value: Any) -> int:
    """How deep lists and mappings are nested. `value` is paid for already."""
    depth, level = 0, [value]
    while level:
        depth += 1
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.values()
            elif isinstance(item, (list, tuple)):
                below += item
        level = below
    return depth


def _has_marks(value: Any) -> bool:
    stack = [value]
    while stack:
        value = stack.pop()
        if isinstance(value, MarkedText):
            if value._spans:
                return True
        elif isinstance(value, dict):
            stack += value.keys()
            stack += value.values()
        elif isinstance(value, (list, tuple)):
            stack += value
    return False


def _text(text: str, ensure_ascii: bool) -> str:
    """A JSON string with the marks of its characters; the quotes are nobody's."""
    pieces = ['"']
    for part, own in parts_of(text):
        quoted = json.dumps(part, ensure_ascii=ensure_ascii)[1:-1]
        pieces.append(MarkedText.template(quoted) if own else quoted)
    return concat([*pieces, '"'])


def _pieces(
    value: Any, ensure_ascii: bool, step: str | None, line: str, separators: tuple[str, str], sort_keys: bool
) -> Iterator[str]:
    """The JSON text of `value` piece by piece; `line` is the line break of this level with its indent."""
    if isinstance(value, str):
        yield _text(value, ensure_ascii)
    elif isinstance(value, (dict, list, tuple)) and value:
        comma, colon = separators
        inner = line + step if step is not None else ""
        mapping = isinstance(value, dict)
        items = (sorted(value.items()) if sort_keys else list(value.items())) if mapping else [("", v) for v in value]
        for i, (key, item) in enumerate(items):
            yield (comma if i else "{" if mapping else "[") + inner
            if mapping:
                quoted = _text(key, ensure_ascii) if isinstance(key, str) else json.dumps(json.dumps(key))
                yield concat((quoted, colon))
            yield from _pieces(item, ensure_ascii, step, inner, separators, sort_keys)
        yield (line if step is not None else "") + ("}" if mapping else "]")
    else:
        yield json.dumps(value)
