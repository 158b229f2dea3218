"""The commands of the conversation: one table, and the functions that are about the conversation itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgellm.chat import files, show
from edgellm.chat.settings import NAMES, changed, is_on, overridden, shown, value_of
from edgellm.chat.terminal import counted, say

if TYPE_CHECKING:
    from edgellm.chat.repl import Repl


class Leave(Exception):
    """The person wants to leave."""


@dataclass(frozen=True)
class Command:
    """`run(repl, rest of the line)`; `usage` and `text` are for /help, which leaves out what has no text (other names
    of the command above); `words` is what Tab offers next, or "path". Several lines are a message that was pasted, but
    for commands that take `lines`."""

    run: Callable[[Any, str], None]
    usage: str = ""
    text: str = ""
    words: tuple[str, ...] | str = ()
    lines: bool = False


def _leave(repl: Repl, rest: str) -> None:
    raise Leave


def _help(repl: Repl, rest: str) -> None:
    for name, command in COMMANDS.items():
        if command.text:
            say(f"  {f'{name} {command.usage}':<22} {command.text}")
    say(
        '\nA message of several lines: begin and end it with """, end a line with \\, or press Alt-Enter.\n'
        "Tab completes, Ctrl-R searches what was typed before, Ctrl-G opens your editor ($EDITOR).\n"
        "Ctrl-C stops an answer and keeps it; pressed again it leaves, like Ctrl-D."
    )


def _clear(repl: Repl, rest: str) -> None:
    repl.session.clear()
    repl.attached.clear()
    repl.last = None
    say("A new conversation.")


def _regen(repl: Repl, rest: str) -> None:
    """Without another answer the old one stays."""
    options, _ = overridden(repl.session.options, rest)
    session, before = repl.session, repl.session.fork()
    before.seed = session.seed
    answered = False
    try:
        question = session.undo()
        if question is None:
            say("There is no answer yet.")
            return
        message = question if isinstance(question["content"], list) else question["content"].removeprefix("\n")
        answered = repl.answer(message, options if rest else None)
        if not answered:
            say("[the answer before stays]")
    finally:
        repl.session = session if answered else before
        (before if answered else session).close()


def _undo(repl: Repl, rest: str) -> None:
    question = repl.session.undo()
    left = len(repl.session.messages)
    say("There is nothing to take back." if question is None else f"Taken back; {counted(left, 'message')} left.")


def _set(repl: Repl, rest: str) -> None:
    name, _, value = rest.partition(" ")
    if name == "parameter":  # Ollama's spelling
        name, _, value = value.strip().partition(" ")
    if not value and "=" in name:
        name, _, value = name.partition("=")
    value = value.strip()
    if not name:
        show.params(repl)
    elif name in _SWITCHES:
        _SWITCHES[name](repl, value)
    else:
        session = repl.session
        session.options, full = changed(session.options, name, value)
        say(f"{full} = {shown(full, value_of(session.options, full))}")


def _set_system(repl: Repl, text: str) -> None:
    repl.session.system = text or None
    say("system message set; it counts from the next message on" if text else "system message removed")


def _set_stats(repl: Repl, value: str) -> None:
    repl.stats = is_on(value)
    say(f"stats are {'on' if repl.stats else 'off'}")


def _set_format(repl: Repl, value: str) -> None:
    """`json`, a file with a JSON Schema, or none."""
    if value in ("", "none", "off", "text"):
        repl.form = None
        say("answers may have any form")
    elif value in ("json", "json_object"):
        repl.form = {"type": "json_object"}
        say("answers are JSON objects")
    else:
        from edgellm.grammar import check_form
        from edgellm.grammar.forms import parse_schema

        path = files.path_in(value)
        form = parse_schema(files.text_of(Path(path)))
        check_form(response_format=form)  # what cannot be held to is said here, not after the next question
        repl.form = form
        say(f"answers are JSON of the schema in {path}")


# what /set takes beside the settings of `edgellm.chat.settings`; some are Ollama's
_SWITCHES: dict[str, Callable[[Any, str], None]] = {
    "system": _set_system,
    "stats": _set_stats,
    "verbose": _set_stats,
    "quiet": lambda repl, value: _set_stats(repl, "off"),
    "format": _set_format,
    "noformat": lambda repl, value: _set_format(repl, "none"),
}


def _system(repl: Repl, rest: str) -> None:
    if rest:
        _set_system(repl, "" if rest == "none" else rest)
    else:
        show.SHOWN["system"](repl)


COMMANDS: dict[str, Command] = {
    "/help": Command(_help, "", "this list"),
    "/?": Command(_help),
    "/clear": Command(_clear, "", "forget the conversation and begin a new one"),
    "/regen": Command(_regen, "[NAME=VALUE]", "answer the last message again, perhaps with temp=1.0",
                      tuple(f"{name}=" for name in NAMES)),
    "/undo": Command(_undo, "", "take the last message and its answer back"),
    "/set": Command(_set, "NAME VALUE", "set temperature, top_p, seed, max_tokens, stop, stats on|off, ...",
                    (*_SWITCHES, *NAMES), lines=True),
    "/system": Command(_system, "[TEXT]", "show or set the system message; none removes it", lines=True),
    "/show": Command(show.show, "[WHAT]", f"show {', '.join(show.SHOWN)}", tuple(show.SHOWN)),
    "/stats": Command(show.stats, "", "speed and size of the last answer"),
    "/tokens": Command(show.tokens, "[TEXT]", "how many tokens the messages have, or how TEXT is cut", lines=True),
    "/read": Command(files.read, "FILE", "send a text file along with the next message", "path"),
    "/glob": Command(files.read, words="path"),
    "/save": Command(files.save, "FILE", "write the conversation to a file, to go on another day", "path"),
    "/load": Command(files.load, "FILE", "go on with a conversation from a file", "path"),
    "/bye": Command(_leave, "", "leave (also /exit, Ctrl-D)"),
    "/exit": Command(_leave),
    "/quit": Command(_leave),
}  # fmt: skip


def run_command(repl: Repl, name: str, rest: str) -> None:
    """Run one command. Raises Leave, EdgeLLMError."""
    COMMANDS[name].run(repl, rest)


def completions(text: str) -> tuple[list[str] | str, int]:
    """What Tab offers behind `text`, the beginning of a command (`edgellm.chat.reader.Completions`)."""
    name, space, rest = text.partition(" ")
    if not space:
        return [word for word in COMMANDS if word.startswith(name)], len(name)
    words = COMMANDS[name].words if name in COMMANDS else ()
    if isinstance(words, str):
        typed = rest.lstrip()
        return words, len(typed)
    first, _, more = rest.partition(" ")
    if name == "/set" and first == "format" and rest != first:
        return "path", len(more)
    if name == "/set" and first in ("stats", "verbose") and rest != first:
        words, rest = ("on", "off"), more
    elif name == "/set" and first == "parameter" and rest != first:
        words, rest = NAMES, more
    elif name == "/regen":
        rest = rest.rpartition(" ")[2]
    return ([] if " " in rest else [word for word in words if word.startswith(rest)]), len(rest)


def similar(name: str) -> str | None:
    """The command that somebody who typed `name` may have meant."""
    from difflib import get_close_matches

    found = [word for word in COMMANDS if word.startswith(name)] or get_close_matches(name, COMMANDS, 1)
    return found[0] if found else None


__all__ = ["COMMANDS", "Command", "Leave", "completions", "run_command", "similar"]
