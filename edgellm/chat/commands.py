"""The commands of the conversation: one function each, listed in one table."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgellm.errors import EdgeLLMError, InvalidArgumentError

if TYPE_CHECKING:
    from edgellm.chat.repl import Repl


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
    repl.conversation.clear()
    repl.attached.clear()
    _say("A new conversation.")


def _regen(repl: Repl, rest: str) -> None:
    text = repl.conversation.take_back()
    if text is None:
        _say("There is no answer yet.")
        return
    repl.answer(text)


def _set(repl: Repl, rest: str) -> None:
    words = rest.split(maxsplit=1)
    if words[:1] == ["parameter"]:  # Ollama's spelling
        words = words[1].split(maxsplit=1) if len(words) > 1 else []
    if not words:
        _show_params(repl)
        return
    name, value = words[0], words[1] if len(words) > 1 else ""
    conversation = repl.conversation
    if name == "system":
        if value and not conversation.is_chat:
            raise InvalidArgumentError("this model has no chat template, so it takes no system message")
        conversation.system = value or None
        _say("system message set; it counts from the next message on" if value else "system message removed")
        return
    if name in ("stats", "verbose"):
        repl.stats = value.lower() not in ("off", "0", "false", "no")
        _say(f"stats are {'on' if repl.stats else 'off'}")
        return
    full = conversation.set(name, value)
    _say(f"{full} = {conversation.settings[full]}")


def _show(repl: Repl, rest: str) -> None:
    what = rest or "info"
    if what not in _SHOWN:
        raise InvalidArgumentError(f"/show {what}: choose one of {', '.join(_SHOWN)}")
    _SHOWN[what](repl)


def _show_info(repl: Repl) -> None:
    from math import prod

    from edgellm.chat.terminal import count_text

    model = repl.conversation.model
    weights = sum(prod(shape) for shape in model.plan.weights.values())
    _say(
        f"{model.name}: {model.arch}, {count_text(weights)} parameters\nfile     {model.path}\n"
        f"runs on  {model.backend} ({model.isa}), {model.threads} threads ({model.thread_reason})\n"
        f"context  {model.n_ctx} tokens, KV cache {model.kv_type}"
    )


def _show_params(repl: Repl) -> None:
    from dataclasses import asdict

    conversation = repl.conversation
    samplers = {k: v for k, v in conversation.settings.items() if k not in ("max_tokens", "stop")}
    chosen = asdict(conversation.model.sampling(stop=conversation.settings.get("stop", ()), **samplers))
    chosen["seed"] = "random" if chosen["seed"] is None else chosen["seed"]
    chosen["stop"] = ", ".join(map(repr, chosen["stop"])) or "none"
    limit = conversation.settings.get("max_tokens")
    for name, value in {**chosen, "max_tokens": "no limit" if limit is None else limit}.items():
        _say(f"  {name:<18} {value}")
    _say(f"  {'system':<18} {conversation.system or 'none'}")


def _show_template(repl: Repl) -> None:
    _say(repl.conversation.model.chat_template or "The file has no chat template.")


def _show_context(repl: Repl) -> None:
    conversation = repl.conversation
    used, size = conversation.context_used(), conversation.model.n_ctx
    _say(f"{used} of {size} tokens used ({100 * used // size} %), {len(conversation.messages)} messages")


def _show_system(repl: Repl) -> None:
    _say(repl.conversation.system or "There is no system message.")


_SHOWN: dict[str, Callable[[Repl], None]] = {
    "info": _show_info,
    "params": _show_params,
    "template": _show_template,
    "context": _show_context,
    "system": _show_system,
}


def _stats(repl: Repl, rest: str) -> None:
    from edgellm.chat.repl import stats_line

    last = repl.conversation.last
    _say("There is no answer yet." if last is None else stats_line(last))


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
    "/set": (_set, "NAME VALUE", "set temperature, top_p, seed, max_tokens, stop, stats on|off, ..."),
    "/set system": (_set, "TEXT", "set the system message"),
    "/show": (_show, "[WHAT]", f"show {', '.join(_SHOWN)}"),
    "/stats": (_stats, "", "speed and size of the last answer"),
    "/read": (_read, "FILE", "send a text file along with the next message"),
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
