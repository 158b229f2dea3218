"""What may be shown in a terminal, and sizes in words."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def terminal_safe(text: str) -> str:
    """`text` without the control characters that move the cursor or change a terminal: they are shown as \\x1b."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text.replace("\r\n", "\n"))


def say(text: str) -> None:
    """A line for the person, not part of the conversation. Control characters are shown, not obeyed."""
    print(terminal_safe(text), file=sys.stderr, flush=True)


def say_error(text: str) -> None:
    """What went wrong: one line, or lines that break between words where there is a window to fit."""
    line = f"error: {text}"
    say(wrapped(line) if window_size()[0] else line)


def window_size() -> tuple[int, int]:
    """(columns, rows) of the window that stdout is shown in; (0, 0) where there is none."""
    try:
        return tuple(os.get_terminal_size(sys.stdout.fileno()))  # type: ignore[return-value]
    except (OSError, ValueError):
        return 0, 0


def wrapped(text: str) -> str:
    """A paragraph in lines of words that fit the window, 100 characters at most."""
    from textwrap import fill

    return fill(text, max(20, min(100, window_size()[0] or 80)), break_long_words=False, break_on_hyphens=False)


def size_text(n: float) -> str:
    """Bytes in words: 12.3 MB (decimal, as file managers show them)."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000 or unit == "GB":
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return ""


def count_text(n: int) -> str:
    """A number of weights in words: 3.2 B."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if n >= limit:
            return f"{n / limit:.1f} {unit}"
    return str(n)


def counted(n: int, noun: str) -> str:
    """`n` things in words: 1 message, 2 messages."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


@contextmanager
def no_echo() -> Iterator[None]:
    """While an answer runs, what is typed is not shown in the middle of it; it becomes the next message."""
    try:
        import termios
    except ImportError:  # Windows, which does not echo what nobody reads
        termios = None  # type: ignore[assignment]
    if termios is None or not sys.stdin.isatty():
        yield
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    termios.tcsetattr(terminal, termios.TCSANOW, [*before[:3], before[3] & ~termios.ECHO, *before[4:]])
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSANOW, before)
