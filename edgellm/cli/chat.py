"""`edgellm chat`: a conversation in the terminal."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from edgellm.cli.common import (
    generate_options,
    limit_of,
    load_model,
    load_options,
    overflow_option,
    progress_bar,
    speculate_option,
)
from edgellm.cli.sampling import sampling_options, take_samplers
from edgellm.cli.sections import SectionedCommand, in_section

if TYPE_CHECKING:
    from edgellm.model import Model
    from edgellm.session import Session


@click.command("chat", cls=SectionedCommand)
@click.argument("model", required=False)
@generate_options
@partial(in_section, "Choosing tokens", [sampling_options])
@partial(in_section, "Loading and running", [load_options])
@overflow_option
@speculate_option
@click.option("--session", "session_file", type=click.Path(), metavar="FILE",
              help="Go on with the conversation in FILE, if it is there, and keep this one in it at the end.")
@click.option("--no-history", is_flag=True, help="Do not keep what is typed for the next time.")
@click.option("--stats", is_flag=True, help="Show speed after each answer.")
def command(model: str | None, **options: Any) -> None:
    """Talk to MODEL (a GGUF file), or to the small built-in model.

    /help lists the commands. Ctrl-C stops an answer and keeps it; pressed again it leaves, like Ctrl-D. When the
    context window is full, whole oldest turns leave it (--overflow chooses otherwise).
    """
    from edgellm.chat.lines import where_we_were
    from edgellm.chat.terminal import no_echo, say

    samplers = take_samplers(options)
    with no_echo():  # what is typed meanwhile becomes the first message
        loaded = load_model(model, options)
    with loaded:
        loaded.tokenize("")  # a vocabulary that cannot be read is better said now than after the first message
        if options["system"] is not None and loaded.chat_template is None:
            raise click.UsageError("a system message cannot be used with this model: it has no chat template")
        session = _session(loaded, samplers, options)
        if sys.stdin.isatty():
            _welcome(loaded)
        if session.messages:
            say(where_we_were(session))
        _talk(session, options)


def _session(model: Model, samplers: dict[str, Any], options: dict[str, Any]) -> Session:
    """The one in the session file, with what was given on the command line instead of what it says; or a new one."""
    from edgellm.chat.settings import default_overflow
    from edgellm.session import Session

    path, limit, stop = options["session_file"], limit_of(options["max_tokens"]), list(options["stop"])
    if path is None or not os.path.exists(path):
        overflow = options["overflow"] or default_overflow(model)
        if options["max_tokens"] is None and not overflow.startswith(("error", "drop-turns")):
            limit = model.n_ctx  # under these an answer never has to end
        return model.session(options["system"], overflow=overflow, max_tokens=limit, stop=stop, **samplers)
    session = Session.load(model, path)
    if options["overflow"] is not None and str(session.overflow) != options["overflow"]:
        raise click.UsageError(
            f"{path}: this conversation was begun with --overflow {session.overflow}; leave --overflow out, or begin a "
            "new one in another file"
        )
    old = session.options
    sampling = replace(old.sampling, **samplers, **({"stop": tuple(stop)} if stop else {}))
    limit = old.max_tokens if options["max_tokens"] is None else limit
    session.options = replace(old, sampling=sampling, max_tokens=limit, exact=model.exact or old.exact)
    if options["system"] is not None:
        session.system = options["system"]
    return session


def _talk(session: Session, options: dict[str, Any]) -> None:
    """The loop; what was said goes to the session file at the end, however that comes."""
    from edgellm.chat.repl import Repl

    path = options["session_file"]
    keep = not options["no_history"]
    repl = Repl(session, progress_bar, use_history=keep, stats=options["stats"], session_file=path)
    if path is None:
        repl.loop()
        return
    with _closing_lid():
        try:
            repl.loop()
        finally:
            repl.session.save(path)


@contextmanager
def _closing_lid() -> Iterator[None]:
    """A terminal that is closed, or a polite kill, ends the program in the ordinary way instead of at once."""

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {name: signal.signal(getattr(signal, name), leave) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


def _welcome(model: Model) -> None:
    """What one must know before the first message, on stderr."""
    from math import prod

    import edgellm
    from edgellm.builtin import is_builtin
    from edgellm.chat.terminal import count_text, say, wrapped
    from edgellm.errors import one_line

    size = count_text(sum(prod(shape) for shape in model.plan.weights.values()))
    say(f"edgellm {edgellm.__version__}, {one_line(model.name)}, {size} parameters")
    if is_builtin(model.path):
        say(wrapped(
            f"This built-in model is a toy: {size} parameters, a thousandth of a useful model. It shows that all "
            "works; do not trust what it says. For a real one, take a GGUF file of 1 to 8 billion parameters "
            "(edgellm chat path/to/model.gguf), or one of Hugging Face's hub (edgellm chat hf:owner/repo:Q4_K_M)."
        ))  # fmt: skip
    if model.chat_template is None:
        say(wrapped(
            "This file has no chat template, so it was not made for conversation: each text you type is continued as "
            "it stands, as a new line behind all that was written before. /clear begins anew."
        ))  # fmt: skip
    say(wrapped("Type a message. /help lists commands, Ctrl-C stops an answer, Ctrl-D leaves.") + "\n")
