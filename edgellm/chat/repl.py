"""The loop of `edgellm chat`: read a message, stream the answer, obey commands."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from edgellm.chat.commands import COMMANDS, Leave, completions, run_command
from edgellm.chat.lines import context_line, stats_line
from edgellm.chat.terminal import make_reader, no_echo, terminal_safe
from edgellm.errors import ContextOverflowError, EdgeLLMError
from edgellm.results import Result
from edgellm.session import Session

HOW_TO_LEAVE = "Ctrl-D or /bye leaves. (Ctrl-C stops an answer.)"
# A factory of progress bars: `with bar() as report` gives an on_prefill callback or None.
Bar = Callable[[], AbstractContextManager[Any]]


class Repl:
    """One conversation at the keyboard. Answers go to stdout, everything else to stderr."""

    def __init__(self, session: Session, bar: Bar, *, use_history: bool = True, stats: bool = False) -> None:
        self.session, self.bar, self.stats = session, bar, stats
        self.last: Result | None = None  # the last answer
        self.attached: list[str] = []  # texts of /read that go with the next message
        self._read = make_reader(use_history, completions(), lambda: context_line(self.session))

    def loop(self) -> None:
        """Until /bye or Ctrl-D."""
        while True:
            try:
                line = self._read()
            except KeyboardInterrupt:
                say(HOW_TO_LEAVE)
                continue
            except EOFError:
                if sys.stdin.isatty():
                    say("")
                return
            try:
                self.handle(line)
            except Leave:
                return
            except KeyboardInterrupt:
                say("")
            except EdgeLLMError as error:
                say(f"error: {error}")

    def handle(self, line: str) -> None:
        """Obey one line: a command, or a message. Raises Leave, EdgeLLMError."""
        word = line.split(maxsplit=1)[0] if line.strip() else ""
        if word in COMMANDS:
            run_command(self, word, line.strip()[len(word) :].strip())
        elif word.startswith("/") and word[1:].isalpha():
            say(f"there is no command {word}; /help lists them")
        elif line.strip() or self.attached:
            self.answer("\n\n".join([*self.attached, line]).strip())
            self.attached.clear()

    def answer(self, text: str) -> None:
        """Stream the answer to `text`. Ctrl-C stops it, and what was said so far stays in the conversation."""
        session, dropped = self.session, self.session.context.dropped
        if not session.is_chat and session.messages:
            text = "\n" + text  # texts follow each other as lines, as they do on the screen
        try:
            with self.bar() as report, no_echo():
                result = _show(session.send(text, stream=True, on_prefill=report), session.is_chat)
        except ContextOverflowError as error:
            say(_too_long(error) if session.is_chat and session.messages else f"error: {error}")
            return
        if result.text or result.finish_reason == "stop":
            self.last = result
        if result.finish_reason == "cancelled":
            say("[stopped]" if result.text else "[stopped before the answer began]")
        elif result.finish_reason == "length" and result.context.used >= result.context.n_ctx:
            say("[the context window is full; /clear starts a new conversation]")
        if result.context.dropped > dropped and not self.stats:
            say(f"[{context_line(session)}]")
        if self.stats:
            say(stats_line(result))


def _too_long(error: ContextOverflowError) -> str:
    return (
        f"error: the conversation no longer fits: it has {error.n_prompt} tokens, the context window holds "
        f"{error.n_ctx}; /clear starts a new one"
    )


def _show(stream: Any, strip: bool) -> Result:
    """Print the answer as it comes; the result. An interruption stops the model and keeps what it said.

    `strip` leaves white space before the first word out.
    """
    begun = False
    while True:
        try:
            for event in stream:
                text = event.text if begun or not strip else event.text.lstrip()
                begun = begun or bool(text)
                sys.stdout.write(terminal_safe(text))
                sys.stdout.flush()
            result = stream.result
        except KeyboardInterrupt:
            stream.stop()
            continue
        except BaseException:
            if begun:
                sys.stdout.write("\n")
            raise
        if begun:
            sys.stdout.write("\n")
            sys.stdout.flush()
        return result


def say(text: str) -> None:
    """A line for the person, not part of the conversation."""
    print(text, file=sys.stderr, flush=True)
