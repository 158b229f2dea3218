"""`edgellm chat`: a conversation in the terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from edgellm.cli.common import (
    generate_options,
    limit_of,
    load_model,
    load_options,
    progress_bar,
    sampling_options,
    take_samplers,
)

if TYPE_CHECKING:
    from edgellm.model import Model


@click.command("chat")
@click.argument("model", required=False)
@generate_options
@sampling_options
@load_options
@click.option("--no-history", is_flag=True, help="Do not keep what is typed for the next time.")
@click.option("--stats", is_flag=True, help="Show speed after each answer.")
def command(model: str | None, **options: Any) -> None:
    """Talk to MODEL (a GGUF file), or to the small built-in model.

    /help lists the commands. Ctrl-C stops an answer and keeps it, Ctrl-D leaves.
    """
    from edgellm.chat.repl import Repl
    from edgellm.chat.session import Conversation

    settings = take_samplers(options)
    settings |= {"max_tokens": limit_of(options["max_tokens"]), "stop": list(options["stop"])}
    with load_model(model, options) as loaded:
        loaded.tokenize("")  # a vocabulary that cannot be read is better said now than after the first message
        system = options["system"]
        if system is not None and loaded.chat_template is None:
            raise click.UsageError("a system message cannot be used with this model: it has no chat template")
        conversation = Conversation(loaded, system, **settings)
        if sys.stdin.isatty():
            _welcome(loaded)
        Repl(conversation, progress_bar, use_history=not options["no_history"], stats=options["stats"]).loop()


def _welcome(model: Model) -> None:
    """What one must know before the first message, on stderr."""
    from math import prod

    import edgellm
    from edgellm.builtin import is_builtin
    from edgellm.chat.terminal import count_text
    from edgellm.errors import one_line

    size = count_text(sum(prod(shape) for shape in model.plan.weights.values()))
    click.echo(f"edgellm {edgellm.__version__}, {one_line(model.name)}, {size} parameters", err=True)
    if is_builtin(model.path):
        click.echo(
            f"This built-in model is a toy: {size} parameters, a thousandth of a useful model. It shows that\n"
            "everything works; do not trust what it says. For a real one, download a model as a GGUF file\n"
            "(1 to 8 billion parameters, Q4_0 or Q8_0) and run: edgellm chat path/to/model.gguf",
            err=True,
        )
    if model.chat_template is None:
        click.echo(
            "This file has no chat template, so it was not made for conversation: each text you type is\n"
            "continued as it is, and nothing is remembered from one to the next.",
            err=True,
        )
    click.echo("Type a message. /help lists commands, Ctrl-C stops an answer, Ctrl-D leaves.\n", err=True)
