"""Code blocks in an answer: shown plain while they come, painted over in colours when they end.

The painting goes over the lines where they stand on the screen, with the same characters, so nothing moves. For that it
must be known how many rows the lines take; where that is not certain (odd characters in lines that wrap, a window whose
size was changed, lines that have scrolled away) they stay as they are.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from typing import Any

MAX_LINES, MAX_CHARS = 2000, 100_000  # of a block that is painted; a lexer's time can grow faster than its text
_OPEN = re.compile(r"[ \t]*(`{3,}|~{3,})[ \t]*([A-Za-z0-9_+#.-]*)[^`]*$")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_TAB = 8


def may_colour(stream: Any) -> bool:
    """Whether colours and cursor movements may be written to `stream` (https://no-color.org, TERM=dumb)."""
    if not stream.isatty() or os.environ.get("NO_COLOR"):
        return False
    if sys.platform == "win32":
        return "WT_SESSION" in os.environ or "TERM" in os.environ  # the old console window takes no escapes
    return os.environ.get("TERM", "dumb") not in ("dumb", "")


class CodePainter:
    """Writes an answer through `write`, piece by piece. The text must hold no control characters but newlines and tabs.

    `size` gives (columns, rows) of the window.
    """

    def __init__(self, write: Callable[[str], Any], size: Callable[[], tuple[int, int]]) -> None:
        self._write, self._size = write, size
        self._line = ""  # the one that is not complete
        self._fence = ""  # what opened the block; "": not inside of one
        self._language = ""
        self._lines: list[str] = []  # of the block
        self._chars = 0
        self._window = (0, 0)

    def feed(self, text: str) -> None:
        """Show the next piece."""
        *lines, last = text.split("\n")
        for line in lines:
            self._write(line + "\n")
            complete, self._line = self._line + line, ""
            self._take(complete)
        if last:
            self._write(last)
            self._line += last

    def forget(self) -> None:
        """What is on the screen is not certain any more: the block that is open is not painted."""
        self._window = (0, 0)

    def _take(self, line: str) -> None:
        if not self._fence:
            found = _OPEN.match(line)
            if found:
                self._fence, self._language = found[1], found[2]
                self._lines, self._chars, self._window = [], 0, self._size()
        elif _closes(line, self._fence):
            self._fence = ""
            if self._window == self._size() and self._chars <= MAX_CHARS and len(self._lines) < MAX_LINES:
                self._paint(line)
        else:
            self._chars += len(line) + 1
            if self._chars <= MAX_CHARS and len(self._lines) < MAX_LINES:
                self._lines.append(line)

    def _paint(self, closing: str) -> None:
        columns, height = self._window
        painted = coloured("\n".join(self._lines), self._language)
        if painted is None or rows_of(closing, columns) != 1:
            return
        n_lines, n_rows = 0, 0
        for line in reversed(self._lines):  # those that are still on the screen, with the fence and the cursor's row
            rows = rows_of(line, columns)
            if rows is None or n_rows + rows > height - 2:
                break
            n_lines, n_rows = n_lines + 1, n_rows + rows
        if n_lines:
            self._write(f"\x1b[{n_rows + 1}A" + "\n".join([*painted[-n_lines:], closing, ""]))


def _closes(line: str, fence: str) -> bool:
    stripped = line.strip()
    return len(stripped) >= len(fence) and not stripped.strip(fence[0])


def rows_of(line: str, columns: int) -> int | None:
    """Rows that a line takes in a window `columns` wide; None: terminals do not agree about it."""
    if not line.isascii():  # up to two columns a character, and whole lines may be less than their parts
        return 1 if 2 * len(line) + _TAB * line.count("\t") < columns else None
    width = len(line.expandtabs(_TAB))
    if width < columns:
        return 1
    if "\t" in line or columns < 1 or width % columns == 0:  # does the cursor stay at the end of a full row?
        return None
    return -(-width // columns)


def coloured(code: str, language: str) -> list[str] | None:
    """The lines of `code` with colours in them; None: no such language, or no library that knows it."""
    if not code or not language:
        return None
    try:
        from pygments import highlight
        from pygments.formatters import TerminalFormatter
        from pygments.lexers import get_lexer_by_name
        from pygments.util import ClassNotFound
    except ImportError:
        return None
    try:
        lexer = get_lexer_by_name(language.lower(), stripnl=False, ensurenl=False)
    except ClassNotFound:
        return None
    painted = highlight(code, lexer, TerminalFormatter(bg="dark")).removesuffix("\n" * (not code.endswith("\n")))
    if _COLOUR.sub("", painted) != code:  # a lexer that changed the text would move what is on the screen
        return None
    return list(painted.split("\n"))
