"""Where the turns of a rendered chat begin: what `drop-turns` needs to know to drop whole ones.

A template writes something in front of each question ("<|im_start|>user\\n"). What that is follows from rendering a
probe; a turn then begins wherever the template wrote it. What a person wrote is never taken for it: the marks tell.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from edgellm.errors import InvalidArgumentError, TemplateError

Parts = list[tuple[str, bool]]  # (text, whether the template wrote it), in order
# (messages, add_generation_prompt) -> parts; raises TemplateError
Render = Callable[[list[dict[str, Any]], bool], Parts]
Encode = Callable[[Parts, bool], list[int]]  # (parts, whether they begin the text) -> ids

_CUT_TAG = re.compile(r"^[^<>]*>")
_SYSTEM = {"role": "system", "content": "probe zero"}
_PROBES = [
    {"role": "user", "content": "probe one"},
    {"role": "assistant", "content": "probe two"},
    {"role": "user", "content": "probe three"},
]


def text_of(parts: Parts) -> str:
    """The text, without its marks."""
    return "".join(text for text, _ in parts)


def cut(parts: Parts, start: int, end: int | None = None) -> Parts:
    """Characters [start, end) of the text, with their marks."""
    out, at = [], 0
    for text, mark in parts:
        piece = text[max(0, start - at) : None if end is None else max(0, end - at)]
        if piece:
            out.append((piece, mark))
        at += len(text)
    return out


def question_header(render: Render) -> str | None:
    """What the template writes in front of every question; None where that cannot be seen.

    It is what the texts before a first question, with and without a system message, and between an answer and the next
    question end with. What closes an answer may be a part of it, where it closes a system message too: whoever cuts
    from one header to another then cuts closings instead of openings, which are the same.
    """
    ends = []
    for messages in ([_PROBES[0]], [_SYSTEM, _PROBES[0]], _PROBES):
        try:
            text = text_of(render(messages, True))
        except (TemplateError, InvalidArgumentError):  # no system messages, or no second question, in this template
            continue
        ends.append(text[: max(0, text.find(messages[-1]["content"]))])
    if not ends or "probe two" not in ends[-1]:
        return None
    ends[-1] = ends[-1].partition("probe two")[2]
    plain = [end for end in ends if "probe zero" not in end] or ends
    header = _common_suffix(ends) or _common_suffix(plain)  # a system message may stand inside of the first question
    return header or None


def _common_suffix(texts: Sequence[str]) -> str:
    """What all texts end with, but no part of a tag: of "<s>[INST]" and "</s>[INST]" it is "[INST]"."""
    common = os.path.commonprefix([text[::-1] for text in texts])[::-1]
    return _CUT_TAG.sub("", common) or common


def question_starts(parts: Parts, header: str | None) -> list[int]:
    """Characters at which the template wrote `header`, ascending."""
    out: list[int] = []
    at = 0
    for text, mark in parts:
        found = text.find(header) if mark and header else -1
        while header and found >= 0:
            out.append(at + found)
            found = text.find(header, found + len(header))
        at += len(text)
    return out


def first_question(render: Render, messages: Sequence[dict[str, Any]], header: str | None) -> int:
    """Character at which the first turn begins; what is before it is kept for ever.

    `messages` are the system message, if there is one, and the first question. A template without a place for system
    messages writes them into the question; then the turn begins behind them, where the question's own text begins.
    """
    parts = render([*messages], True)
    probe = "1" if str(messages[-1].get("content")).strip().startswith("0") else "0"  # differs from its first character
    other = text_of(render([*messages[:-1], {**messages[-1], "content": probe}], True))
    content = len(os.path.commonprefix([text_of(parts), other]))
    at = max((start for start in question_starts(parts, header) if start < content), default=content)
    return at if header and at + len(header) >= content else content


def token_offsets(parts: Parts, ids: Sequence[int], chars: Sequence[int], encode: Encode, at_start: bool) -> list[int]:
    """For each character offset in `chars` (ascending) how many of `ids`, what `parts` encode to, lie before it.

    Where a token goes across an offset, it lies behind it.
    """
    out: list[int] = []
    done = known = 0  # characters that the first `done` ids are
    for at in chars:
        piece = encode(cut(parts, known, at), at_start and not known)
        if list(ids[done : done + len(piece)]) == piece:
            done, known = done + len(piece), at
            out.append(done)
        else:  # the pieces meet inside a merge: count what the beginning up to here has in common with the whole
            out.append(common_prefix(encode(cut(parts, 0, at), at_start), ids))
    return out


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many of the first items of both are the same."""
    n = min(len(a), len(b))
    return next((i for i in range(n) if a[i] != b[i]), n)
