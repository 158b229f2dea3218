"""The commands that only show something: /show, /stats, /tokens."""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest
from typing import TYPE_CHECKING

from edgellm.chat.lines import context_line, stats_line
from edgellm.chat.settings import shown
from edgellm.chat.terminal import count_text, counted, say
from edgellm.errors import InvalidArgumentError, one_line

if TYPE_CHECKING:
    from edgellm.chat.repl import Repl

_COLUMN = 40  # of /show params, which has two
MAX_PIECES = 400  # of a text that /tokens lists


def show(repl: Repl, rest: str) -> None:
    """/show [WHAT]."""
    what = _ALIASES.get(rest, rest) or "info"
    if what not in SHOWN:
        raise InvalidArgumentError(f"/show {what}: choose one of {', '.join(SHOWN)}")
    SHOWN[what](repl)


def _info(repl: Repl) -> None:
    from math import prod

    model = repl.session.model
    weights = sum(prod(shape) for shape in model.plan.weights.values())
    say(
        f"{one_line(model.name)}: {model.arch}, {count_text(weights)} parameters\nfile     {model.path}\n"
        f"runs on  {model.backend} ({model.isa}), {counted(model.threads, 'thread')} ({model.thread_reason})\n"
        f"context  {model.n_ctx} tokens, KV cache {model.kv_type}"
    )


def params(repl: Repl) -> None:
    """All settings with their values."""
    from dataclasses import fields

    session = repl.session
    sampling, limit = session.options.sampling, session.options.max_tokens
    values = {field.name: shown(field.name, getattr(sampling, field.name)) for field in fields(sampling)}
    if sampling.seed is None:
        values["seed"] = f"random ({session.seed})"
    values |= {"max_tokens": shown("max_tokens", limit), "overflow": str(session.overflow),
               "stats": "on" if repl.stats else "off", "format": "any" if repl.form is None else one_line(repl.form),
               "system": session.system or "none"}  # fmt: skip
    cells = [f"  {name:<21} {value}" for name, value in values.items()]
    short = [cell for cell in cells if len(cell) < _COLUMN and "\n" not in cell]
    half = -(-len(short) // 2)
    for left, right in zip_longest(short[:half], short[half:], fillvalue=""):
        say(f"{left:<{_COLUMN}}{right}".rstrip())
    for cell in cells:
        if cell not in short:
            say(cell)


def _template(repl: Repl) -> None:
    say(repl.session.model.chat_template or "The file has no chat template.")


def _context(repl: Repl) -> None:
    session = repl.session
    used, size = session.context.used, session.context.n_ctx
    messages = counted(len(session.messages), "message")
    say(f"{used} of {size} tokens used ({100 * used // size} %), {messages}; when it is full: {session.overflow}")
    if session.context.dropped:
        say(context_line(session))


def _system(repl: Repl) -> None:
    say(repl.session.system or "There is no system message.")


SHOWN: dict[str, Callable[[Repl], None]] = {
    "info": _info,
    "params": params,
    "template": _template,
    "context": _context,
    "system": _system,
}
_ALIASES = {"parameters": "params", "model": "info"}


def stats(repl: Repl, rest: str) -> None:
    """/stats: the last answer's speed."""
    say("There is no answer yet." if repl.last is None else stats_line(repl.last))


def tokens(repl: Repl, rest: str) -> None:
    """/tokens: how many each message has; /tokens TEXT: how a text is cut."""
    session = repl.session
    model = session.model
    if rest:
        ids = model.tokenize(rest)
        pieces = [f"{token} {one_line(model.tokenizer.piece(token))}" for token in ids[:MAX_PIECES]]
        more = f", ... {len(ids) - MAX_PIECES} more" if len(ids) > MAX_PIECES else ""
        say(f"{counted(len(ids), 'token')}: {', '.join(pieces)}{more}")
        return
    if session.system:
        say(f"  {'system':<10} {len(model.tokenize(session.system)):>7}  {one_line(session.system, 60)}")
    for i, message in enumerate(session.messages):
        text = str(message["content"])
        left = "  (has left the window)" if i < session.dropped_messages else ""
        say(f"  {message['role']:<10} {len(model.tokenize(text)):>7}  {one_line(text.strip(), 60)}{left}")
    more = "with what the chat template adds: " if session.is_chat else ""
    say(f"{more}{context_line(session)}")
