"""The line editor: prompt_toolkit with our keys, completion and status line."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import (
    CompleteEvent,
    Completer,
    Completion,
    PathCompleter,
    get_common_complete_suffix,
)
from prompt_toolkit.document import Document
from prompt_toolkit.filters import is_searching
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from edgellm.chat.history import history_file
from edgellm.chat.reader import CONTINUED, PROMPT, Completions, is_complete, message_of
from edgellm.chat.terminal import say


class LineEditor:
    """A reader (`edgellm.chat.reader.Reader`) with history, completion, several lines and a status line.

    `terminal`: the `input` and `output` of prompt_toolkit to use, for tests; without them the process's own terminal.
    """

    def __init__(
        self, use_history: bool, completions: Completions, status: Callable[[], str], **terminal: Any
    ) -> None:
        self._session: PromptSession[str] = PromptSession(
            history=_history(use_history),
            completer=_Words(completions),
            complete_while_typing=False,
            multiline=True,
            prompt_continuation=CONTINUED,
            key_bindings=_keys(),
            enable_open_in_editor=True,
            tempfile_suffix=".md",
            bottom_toolbar=status,
            **terminal,
        )

    def __call__(self) -> str:
        return message_of(self._session.prompt(PROMPT))


def _history(keep: bool) -> History:
    file = history_file() if keep else None
    if keep and file is None:
        say("[what you type will not be kept for the next time: the history file cannot be written]")
    return InMemoryHistory() if file is None else FileHistory(str(file))


class _Words(Completer):
    """Tab: commands, the words that go with one, and names of files."""

    def __init__(self, completions: Completions) -> None:
        self._completions, self._paths = completions, PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        words, typed = self._completions(text)
        if isinstance(words, str):
            path = text[len(text) - typed :]
            for found in self._paths.get_completions(Document(path, len(path)), complete_event):
                folder = "/" if found.display_text.endswith("/") else ""
                yield Completion(found.text + folder, found.start_position, found.display)
            return
        for word in words:
            yield Completion(word, start_position=-typed)


def _keys() -> KeyBindings:
    """Enter sends a complete message, Alt-Enter makes a new line, Ctrl-C empties the line, Ctrl-G opens $EDITOR."""
    keys, typing = KeyBindings(), ~is_searching  # the search line (Ctrl-R) has its own meanings of these keys

    @keys.add("enter", filter=typing)
    def _send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_complete(buffer.text):
            buffer.validate_and_handle()
        else:
            buffer.insert_text("\n")

    @keys.add("escape", "enter", filter=typing)
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c", filter=typing)
    def _clear(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

    @keys.add("c-g", filter=typing)
    def _edit(event: KeyPressEvent) -> None:
        event.current_buffer.open_in_editor(validate_and_handle=False)

    @keys.add("tab", filter=typing)
    def _complete(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.complete_state:
            buffer.complete_next()
            return
        found = list(buffer.completer.get_completions(buffer.document, CompleteEvent(completion_requested=True)))
        common = get_common_complete_suffix(buffer.document, found)
        if common:  # at once: Enter may be the next key
            buffer.insert_text(common)
        elif len(found) > 1:
            buffer.start_completion()

    return keys
