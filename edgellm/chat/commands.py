"""The commands of the conversation: one function each, listed in one table."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgellm.chat.lines import context_line, stats_line
from edgellm.chat.settings import changed, value_of
from edgellm.chat.terminal import size_text
from edgellm.errors import EdgeLLMError, InvalidArgumentError, one_line

if TYPE_CHECKING:
    from edgellm.chat.repl import Repl
    from edgellm.session import Session


class Leave(Exception):
    """The person wants to leave."""


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _leave(repl: Repl, rest: str) -> None:
    raise Leave


def _help(repl: Repl, rest: str) -> None:
    for name, (_, usage, text) in COMMANDS.items():
        if text:
            _say(f"  {f'{name} {usage}':<20} {text}")
    _say(
        '\nA message of several lines: begin and end it with """, or end a line with \\, or press Alt-Enter.\n'
        "Ctrl-C stops an answer and keeps it. Ctrl-D leaves."
    )


def _clear(repl: Repl, rest: str) -> None:
    repl.session.clear()
    repl.attached.clear()
    repl.last = None
    _say("A new conversation.")


def _regen(repl: Repl, rest: str) -> None:
    question = repl.session.undo()
    if question is None:
        _say("There is no answer yet.")
        return
    repl.answer(_text(question))


def _undo(repl: Repl, rest: str) -> None:
    question = repl.session.undo()
    left = len(repl.session.messages)
    _say("There is nothing to take back." if question is None else f"Taken back; {left} messages are left.")


def _text(message: Any) -> str:
    """What somebody typed, of a message."""
    return str(message["content"]).removeprefix("\n")


def _save(repl: Repl, rest: str) -> None:
    if not rest:
        raise InvalidArgumentError("/save FILE: give the path of the file to write")
    path = os.path.expanduser(rest)
    repl.session.save(path)
    _say(f"{path}: {len(repl.session.messages)} messages, {size_text(os.path.getsize(path))}")


def _load(repl: Repl, rest: str) -> None:
    from edgellm.session import Session

    if not rest:
        raise InvalidArgumentError("/load FILE: give the path of a file that /save wrote")
    before, repl.session = repl.session, Session.load(repl.session.model, os.path.expanduser(rest))
    before.close()
    repl.last = None
    _say(where_we_were(repl.session))


def where_we_were(session: Session) -> str:
    """The end of a conversation that was loaded, for who has forgotten it."""
    messages = session.messages
    lines = [f"{len(messages)} messages; {context_line(session)}"]
    lines += [f"{message['role']}: {one_line(str(message['content']), 200)}" for message in messages[-2:]]
    return "\n".join(lines)


def _set(repl: Repl, rest: str) -> None:
    words = rest.split(maxsplit=1)
    if words[:1] == ["parameter"]:  # Ollama's spelling
        words = words[1].split(maxsplit=1) if len(words) > 1 else []
    if not words:
        _show_params(repl)
        return
    name, value = words[0], words[1] if len(words) > 1 else ""
    session = repl.session
    if name == "system":
        session.system = value or None
        _say("system message set; it counts from the next message on" if value else "system message removed")
        return
    if name in ("stats", "verbose"):
        repl.stats = value.lower() not in ("off", "0", "false", "no")
        _say(f"stats are {'on' if repl.stats else 'off'}")
        return
    session.options, full = changed(session.options, name, value)
    _say(f"{full} = {value_of(session.options, full)}")


def _show(repl: Repl, rest: str) -> None:
    what = rest or "info"
    if what not in _SHOWN:
        raise InvalidArgumentError(f"/show {what}: choose one of {', '.join(_SHOWN)}")
    _SHOWN[what](repl)


def _show_info(repl: Repl) -> None:
    from math import prod

    from edgellm.chat.terminal import count_text

    model = repl.session.model
    weights = sum(prod(shape) for shape in model.plan.weights.values())
    _say(
        f"{model.name}: {model.arch}, {count_text(weights)} parameters\nfile     {model.path}\n"
        f"runs on  {model.backend} ({model.isa}), {model.threads} threads ({model.thread_reason})\n"
        f"context  {model.n_ctx} tokens, KV cache {model.kv_type}"
    )


def _show_params(repl: Repl) -> None:
    from dataclasses import asdict

    session = repl.session
    chosen = asdict(session.options.sampling)
    chosen["seed"] = f"random ({session.seed})" if chosen["seed"] is None else chosen["seed"]
    chosen["stop"] = ", ".join(map(repr, chosen["stop"])) or "none"
    limit = session.options.max_tokens
    more = {"max_tokens": "no limit" if limit is None else limit, "overflow": session.overflow}
    for name, value in {**chosen, **more, "system": session.system or "none"}.items():
        _say(f"  {name:<18} {f'{value:g}' if isinstance(value, float) else value}")


def _show_template(repl: Repl) -> None:
    _say(repl.session.model.chat_template or "The file has no chat template.")


def _show_context(repl: Repl) -> None:
    session = repl.session
    used, size = session.context.used, session.context.n_ctx
    _say(
        f"{used} of {size} tokens used ({100 * used // size} %), {len(session.messages)} messages; when it is full: "
        f"{session.overflow}"
    )
    if session.context.dropped:
        _say(context_line(session))


def _show_system(repl: Repl) -> None:
    _say(repl.session.system or "There is no system message.")


_SHOWN: dict[str, Callable[[Repl], None]] = {
    "info": _show_info,
    "params": _show_params,
    "template": _show_template,
    "context": _show_context,
    "system": _show_system,
}


def _stats(repl: Repl, rest: str) -> None:
    _say("There is no answer yet." if repl.last is None else stats_line(repl.last))


def _read(repl: Repl, rest: str) -> None:
    from pathlib import Path

    if not rest:
        raise InvalidArgumentError("/read FILE: give the path of a text file")
    path = Path(rest).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise EdgeLLMError(f"{path}: cannot be read: {reason}") from None
    repl.attached.append(text)
    _say(f"{path}: {len(text)} characters; they go with your next message")


# name -> (function, arguments, what it does); no text: another name of the one above
COMMANDS: dict[str, tuple[Callable[[Any, str], None], str, str]] = {
    "/help": (_help, "", "this list"),
    "/?": (_help, "", ""),
    "/clear": (_clear, "", "forget the conversation and begin a new one"),
    "/regen": (_regen, "", "answer the last message again"),
    "/undo": (_undo, "", "take the last message and its answer back"),
    "/set": (_set, "NAME VALUE", "set temperature, top_p, seed, max_tokens, stop, stats on|off, ..."),
    "/set system": (_set, "TEXT", "set the system message"),
    "/show": (_show, "[WHAT]", f"show {', '.join(_SHOWN)}"),
    "/stats": (_stats, "", "speed and size of the last answer"),
    "/read": (_read, "FILE", "send a text file along with the next message"),
    "/save": (_save, "FILE", "write the conversation to a file, to go on another day"),
    "/load": (_load, "FILE", "go on with a conversation from a file"),
    "/bye": (_leave, "", "leave"),
    "/exit": (_leave, "", "leave"),
    "/quit": (_leave, "", ""),
}


def run_command(repl: Repl, name: str, rest: str) -> None:
    """Run one command. Raises Leave, EdgeLLMError."""
    COMMANDS[name][0](repl, rest)


def completions() -> dict[str, Any]:
    """What Tab offers: commands and their words."""
    from edgellm.sampling import Sampling

    settings = dict.fromkeys(["system", "max_tokens", "stats", *Sampling.__dataclass_fields__])
    words: dict[str, Any] = {name: None for name in COMMANDS if " " not in name}
    return words | {"/set": settings, "/show": dict.fromkeys(_SHOWN)}
