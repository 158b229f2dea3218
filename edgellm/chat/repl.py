"""The loop of `edgellm chat`: read a message, stream the answer, obey commands."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from edgellm.chat.commands import COMMANDS, Leave, completions, run_command, similar
from edgellm.chat.lines import context_line, stats_line, status_line
from edgellm.chat.paint import CodePainter, may_colour
from edgellm.chat.reader import Reader, make_reader
from edgellm.chat.terminal import no_echo, say, say_error, terminal_safe, window_size
from edgellm.errors import ContextOverflowError, EdgeLLMError
from edgellm.results import Result
from edgellm.session import Session

if TYPE_CHECKING:
    from edgellm.session_state import Options
    from edgellm.stream import Stream

HOW_TO_LEAVE = "Ctrl-C again, Ctrl-D or /bye leaves."
# A factory of progress bars: `with bar() as report` gives an on_prefill callback or None.
Bar = Callable[[], AbstractContextManager[Any]]


class Repl:
    """One conversation at the keyboard. Answers go to stdout, everything else to stderr.

    `session_file` is where `/save` writes when no file is named; `reader` reads messages, where it is not to be the one
    that suits stdin and stdout.
    """

    def __init__(
        self, session: Session, bar: Bar, *, use_history: bool = True, stats: bool = False,
        session_file: str | None = None, reader: Reader | None = None,
    ) -> None:  # fmt: skip
        self.session, self.bar, self.stats, self.session_file = session, bar, stats, session_file
        self.last: Result | None = None  # the last answer
        self.form: Any = None  # `response_format` of answers
        self.attached: list[str] = []  # texts of /read that go with the next message
        self._pressed = False  # Ctrl-C, and nothing was typed since
        self._read = reader or make_reader(use_history, completions, lambda: status_line(self.session, self.last))

    def loop(self) -> None:
        """Until /bye, Ctrl-D, or the second Ctrl-C. Without a terminal the first one raises KeyboardInterrupt."""
        while True:
            try:
                line = self._read()
            except KeyboardInterrupt:
                if not sys.stdin.isatty():
                    raise
                if self._pressed:
                    return
                self._pressed = True
                say(HOW_TO_LEAVE)
                continue
            except EOFError:
                if sys.stdin.isatty():
                    say("")
                return
            try:
                self._pressed = False
                self.handle(line)
            except Leave:
                return
            except KeyboardInterrupt:
                self._pressed = True
                say("")
            except EdgeLLMError as error:
                say_error(str(error))
            except BrokenPipeError:  # nobody reads the answers any more
                raise
            except Exception as error:  # a fault of ours must not take the conversation along
                if os.environ.get("EDGELLM_DEBUG"):
                    traceback.print_exception(error)
                say(f"internal error, please report it: {type(error).__name__}: {error} (EDGELLM_DEBUG=1 shows more)")

    def handle(self, line: str) -> None:
        """Obey one line: a command, or a message. Raises Leave, EdgeLLMError."""
        word = line.split(maxsplit=1)[0] if line.strip() else ""
        if word in COMMANDS and (COMMANDS[word].lines or "\n" not in line.strip()):
            run_command(self, word, line.strip()[len(word) :].strip())
        elif word.startswith("/") and word[1:].isalpha() and "\n" not in line.strip():
            meant = similar(word)
            say(f"there is no command {word}{f', but {meant}' if meant else ''}; /help lists them")
        elif line.strip() or self.attached:
            self.answer("\n\n".join([*self.attached, line]).strip())
            self.attached.clear()

    def answer(self, message: str | Mapping[str, Any], options: Options | None = None) -> bool:
        """Stream the answer; True when it is in the conversation now. Ctrl-C stops it, and what was said so far stays.

        `options` counts instead of the session's, this once.
        """
        session, dropped = self.session, self.session.context.dropped
        if not session.is_chat and session.messages and isinstance(message, str):
            message = "\n" + message  # texts follow each other as lines, as they do on the screen
        once: dict[str, Any] = {} if self.form is None else {"response_format": self.form}
        if options is not None:
            once |= {"sampling": options.sampling, "max_tokens": options.max_tokens}
        try:
            with self.bar() as report, no_echo():
                result = self._show(session.send(message, stream=True, on_prefill=report, **once))
        except ContextOverflowError as error:
            say_error(self._too_long(error))
            return False
        kept = bool(result.token_ids) or result.finish_reason != "cancelled"
        if kept:
            self.last = result
        self._remark(result, dropped)
        return kept

    def _too_long(self, error: ContextOverflowError) -> str:
        """What does not fit: under a policy that makes room for it, the message alone."""
        if not self.session.is_chat:
            return str(error)
        size = f"{error.n_prompt} tokens, the context window holds {error.n_ctx}"
        if self.session.messages and self.session.overflow.kind == "error":
            return f"the conversation no longer fits: it has {size}; /clear starts a new one"
        return f"this message is too long: {size}; it was not sent" + ", nor what /read gave" * bool(self.attached)

    def _remark(self, result: Result, dropped: int) -> None:
        """What must be known about an answer beside its text. `dropped`: tokens that had left the window before it."""
        context = result.context
        if result.finish_reason == "cancelled":
            self._pressed = True
            say("[stopped]" if result.text else "[stopped before the answer began]")
        elif result.finish_reason == "length" and context.used >= context.n_ctx:
            more = "; /clear starts a new conversation" if context.policy == "error" else ""
            say(f"[the answer ends here because the context window is full{more}]")
        elif result.finish_reason == "length":
            say(f"[cut at max_tokens = {result.usage.completion_tokens}]")
        if context.dropped > dropped and not self.stats:
            say(f"[{context_line(self.session)}]")
        if self.stats:
            say(stats_line(result))
        if sys.stdin.isatty() and sys.stdout.isatty():
            say("")  # between an answer and the next prompt

    def _show(self, stream: Stream) -> Result:
        """Print the answer as it comes; the result. An interruption stops the model and keeps what it said."""
        last, strip = "", self.session.is_chat  # white space before the first word is left out
        painter = CodePainter(_write, window_size) if may_colour(sys.stdout) else None
        show = painter.feed if painter is not None else _write
        while True:
            try:
                for event in stream:
                    text = event.text if last or not strip else event.text.lstrip()
                    last = text[-1:] or last
                    show(terminal_safe(text))
                    sys.stdout.flush()
                result = stream.result
            except KeyboardInterrupt:
                stream.stop()
                if painter is not None:
                    painter.forget()
                continue
            except BaseException:
                if last:
                    show("\n")
                raise
            if last not in ("", "\n"):
                show("\n")
                sys.stdout.flush()
            return result


def _write(text: str) -> None:
    sys.stdout.write(text)
