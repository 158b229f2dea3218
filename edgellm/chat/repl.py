"""The loop of `edgellm chat`: read a message, stream the answer, obey commands."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from edgellm.chat.commands import COMMANDS, Leave, completions, run_command
from edgellm.chat.session import Conversation
from edgellm.chat.terminal import make_reader, no_echo, terminal_safe
from edgellm.errors import ContextOverflowError, EdgeLLMError
from edgellm.results import Result

HOW_TO_LEAVE = "Ctrl-D or /bye leaves. (Ctrl-C stops an answer.)"
# A factory of progress bars: `with bar() as report` gives an on_prefill callback or None.
Bar = Callable[[], AbstractContextManager[Any]]


class Repl:
    """One conversation at the keyboard. Answers go to stdout, everything else to stderr."""

    def __init__(self, conversation: Conversation, bar: Bar, *, use_history: bool = True, stats: bool = False) -> None:
        self.conversation, self.bar, self.stats = conversation, bar, stats
        self.attached: list[str] = []  # texts of /read that go with the next message
        self._read = make_reader(use_history, completions())

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
        conversation = self.conversation
        result: Result | None = None
        try:
            with self.bar() as report, no_echo():
                stream = conversation.ask(text, on_prefill=report)
                result = _show(stream, conversation.is_chat)
        except ContextOverflowError as error:
            say(_too_long(error) if conversation.is_chat and conversation.messages else f"error: {error}")
        finally:
            conversation.finish(result)
        if result is None:
            return
        if result.finish_reason == "cancelled":
            say("[stopped]" if result.text else "[stopped before the answer began]")
        elif result.finish_reason == "length" and result.context.used >= result.context.n_ctx:
            say("[the context window is full; /clear starts a new conversation]")
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


def stats_line(result: Result) -> str:
    """One line on the last answer."""
    s, c = result.stats, result.context
    prompt = result.usage.prompt_tokens
    return (
        f"[ {result.usage.completion_tokens} tokens at {s.generation_tps:.1f} t/s | prompt {prompt} tokens, {c.reused} "
        f"reused, {s.prompt_tps:.1f} t/s | first token after {s.ttft:.2f} s | context {c.used}/{c.n_ctx} | "
        f"{s.backend} {s.isa}, {s.threads} threads | seed {result.seed} ]"
    )


def say(text: str) -> None:
    """A line for the person, not part of the conversation."""
    print(text, file=sys.stderr, flush=True)
