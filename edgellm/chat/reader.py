"""Reading what somebody types: where a message ends, and the reader for pipes and where the line editor is missing."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from edgellm.chat.terminal import say

PROMPT = ">>> "
CONTINUED = "... "
FENCE = '"""'


class Reader(Protocol):
    """Reads one message. Raises EOFError at the end (Ctrl-D), KeyboardInterrupt for Ctrl-C on an empty line."""

    def __call__(self) -> str: ...


# what Tab offers: text before the cursor -> (words, how many characters of the text they replace), or "path" for the
# name of a file, with the number of characters of it that are there already
Completions = Callable[[str], tuple["list[str] | str", int]]


def is_complete(text: str) -> bool:
    """Whether a message ends here, or goes on in the next line (an open block, or a backslash at the end)."""
    stripped = text.strip()
    if stripped.startswith(FENCE):
        return len(stripped) >= 2 * len(FENCE) and stripped.endswith(FENCE)
    return not text.endswith("\\")


def message_of(text: str) -> str:
    """The message that was typed: without the block's quotes, lines that a backslash joined as lines."""
    stripped = text.strip()
    if stripped.startswith(FENCE) and is_complete(text):
        return stripped[len(FENCE) : -len(FENCE)].strip("\n")
    return text.replace("\\\n", "\n").strip()


def make_reader(use_history: bool, completions: Completions, status: Callable[[], str]) -> Reader:
    """The line editor where both ends are terminals that it can draw in, else plain lines.

    `status` gives the text of the line at the bottom of the screen while somebody types.
    """
    if sys.stdin.isatty() and sys.stdout.isatty() and (sys.platform == "win32" or _can_draw()):
        try:
            from edgellm.chat.editor import LineEditor

            return LineEditor(use_history, completions, status)
        except ImportError:
            pass
    return plain_reader(*((PROMPT, CONTINUED) if sys.stdin.isatty() else ("", "")))


def _can_draw() -> bool:
    return os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")


def plain_reader(prompt: str, continued: str) -> Reader:
    """Lines of stdin. Prompts go to stderr where stdout is not a terminal, because that holds the answers only."""

    if prompt:
        with suppress(ImportError):
            import readline  # noqa: F401 (gives input() arrow keys and a history of this conversation)

    def line(prompt: str) -> str:
        if sys.stdout.isatty() or not prompt:
            return input(prompt)
        print(prompt, end="", file=sys.stderr, flush=True)
        return input()

    def read() -> str:
        try:
            text = line(prompt)
            while not is_complete(text):
                try:
                    text += "\n" + line(continued)
                except EOFError:
                    break
        except KeyboardInterrupt:
            if prompt:
                say("")  # what comes next begins a line
            raise
        return message_of(text)

    return read
