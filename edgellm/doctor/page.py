"""The facts as a page for people: plain lines, or with colours in a terminal."""

from __future__ import annotations

import textwrap
from typing import Any

from edgellm.errors import one_line

MARKS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}
COLOURS = {"ok": "\x1b[32m", "warn": "\x1b[33m", "fail": "\x1b[1;31m"}
_OFF = "\x1b[0m"
_INDENT = 17
MAX_CHARS = 2000  # of one check: names and values come out of files


def as_text(facts: dict[str, Any], width: int = 100, colour: bool = False) -> str:
    """The page, in lines of at most `width` characters where words allow it. `colour` paints the marks."""
    lines = [f"edgellm {facts['edgellm']}, Python {facts['python']}, {facts['system']}"]
    area = ""
    for check in facts["checks"]:
        title = "" if check["area"] == area else check["area"]
        area = check["area"]
        mark = MARKS[check["state"]]
        if colour:
            mark = f"{COLOURS[check['state']]}{mark}{_OFF}"
        lines += _entry(mark, title, check["text"], width)
        if check["advice"]:
            lines += _entry("    ", "", f"-> {check['advice']}", width)
        if area == "self-tests":
            lines += _kernels(facts["native"]["kernels"], width)
    if facts["environment"]:
        values = ", ".join(f"{k}={v}" for k, v in facts["environment"].items())
        lines += _entry("    ", "environment", values, width)
    return "\n".join([*lines, "", _summary(facts)])


def _entry(mark: str, title: str, text: str, width: int) -> list[str]:
    """A line for one check, folded where it is too long; control characters of names and values are shown."""
    text = one_line(text, MAX_CHARS)
    first, *rest = textwrap.wrap(text, max(40, width - _INDENT), break_on_hyphens=False, break_long_words=False) or [""]
    return [f"{mark} {title:<{_INDENT - 5}}{first}", *(" " * _INDENT + line for line in rest)]


def _kernels(kernels: dict[str, dict[str, Any]], width: int) -> list[str]:
    """Which level runs which weight types: types that share theirs are one row."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for name, kernel in kernels.items():
        key = tuple(str(kernel[part] or "-") for part in ("rows", "panels", "prompts"))
        groups.setdefault(key, []).append(name)  # type: ignore[arg-type]
    pad = " " * _INDENT
    lines = [f"{pad}{'rows':<13}{'panels':<13}{'prompts':<10}weight types"]
    for (rows, panels, prompts), names in groups.items():
        begin = f"{pad}{rows:<13}{panels:<13}{prompts:<10}"
        text = textwrap.wrap(" ".join(names), max(20, width - len(begin)))
        lines += [begin + text[0], *(" " * len(begin) + line for line in text[1:])]
    return lines


def _summary(facts: dict[str, Any]) -> str:
    states = [check["state"] for check in facts["checks"]]
    failed, warned = states.count("fail"), states.count("warn")
    if failed:
        return f"{failed} {'thing is' if failed == 1 else 'things are'} wrong (FAIL above)."
    what = "The model can run" if "model" in facts else "Everything works"
    return f"{what}; {warned} {'thing' if warned == 1 else 'things'} could be better." if warned else f"{what}."
