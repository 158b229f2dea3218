"""Reading messages and showing text in a terminal, or in a pipe where there is none."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgellm.folders import data_folder

PROMPT = ">>> "
CONTINUED = "... "
FENCE = '"""'
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def terminal_safe(text: str) -> str:
    """`text` without the control characters that move the cursor or change a terminal: they are shown as \\x1b."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text.replace("\r\n", "\n"))


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


def history_file() -> Path | None:
    """The file of typed messages, made readable by its owner only; None where it cannot be written."""
    try:
        path = data_folder() / "history"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        return path if os.access(path, os.W_OK) else None
    except (OSError, RuntimeError):  # no home folder raises RuntimeError
        return None


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


def make_reader(use_history: bool, completions: dict[str, Any], status: Callable[[], str]) -> Callable[[], str]:
    """A function that reads one message. It raises EOFError at the end (Ctrl-D), KeyboardInterrupt for Ctrl-C.

    `status` gives the text of the line at the bottom of the screen while somebody types. The line editor runs where
    both ends are terminals and prompt_toolkit is there; else lines come from `input`.
    """
    if sys.stdin.isatty() and sys.stdout.isatty():
        try:
            return _editor(use_history, completions, status)
        except ImportError:
            pass
    return _plain_reader(PROMPT if sys.stdin.isatty() else "", CONTINUED if sys.stdin.isatty() else "")


def _plain_reader(prompt: str, continued: str) -> Callable[[], str]:
    def read() -> str:
        text = input(prompt)
        while not is_complete(text):
            try:
                text += "\n" + input(continued)
            except EOFError:
                break
        return message_of(text)

    return read


def _editor(use_history: bool, completions: dict[str, Any], status: Callable[[], str]) -> Callable[[], str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    file = history_file() if use_history else None
    session: Any = PromptSession(
        history=FileHistory(str(file)) if file is not None else InMemoryHistory(),
        completer=_completer(completions),
        complete_while_typing=False,
        multiline=True,
        prompt_continuation=CONTINUED,
        key_bindings=_keys(),
        enable_open_in_editor=True,
        bottom_toolbar=status,
    )

    def read() -> str:
        return message_of(session.prompt(PROMPT))

    return read


def _completer(words: dict[str, Any]) -> Any:
    """Tab: commands, then the words that go with one. `words`: command -> its words (a dict) or None."""
    from prompt_toolkit.completion import Completer, Completion

    class Commands(Completer):
        def get_completions(self, document: Any, complete_event: Any) -> Any:
            first, space, rest = document.text_before_cursor.partition(" ")
            offered = (words.get(first) or {}) if space else words
            typed = rest if space else first
            if first.startswith("/") and " " not in rest:
                for word in offered:
                    if word.startswith(typed):
                        yield Completion(word, start_position=-len(typed))

    return Commands()


def _keys() -> Any:
    """Enter sends a complete message, Alt-Enter makes a new line, Ctrl-C empties the line first."""
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: Any) -> None:
        buffer = event.current_buffer
        if is_complete(buffer.text):
            buffer.validate_and_handle()
        else:
            buffer.insert_text("\n")

    @keys.add("escape", "enter")
    def _new_line(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def _clear(event: Any) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

    return keys
