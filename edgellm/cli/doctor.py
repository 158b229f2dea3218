"""`edgellm doctor`: what this machine gives, what was installed, whether a file is sound and fits."""

from __future__ import annotations

import sys

import click

from edgellm.cli.common import model_path, print_json, progress_bar


@click.command("doctor")
@click.argument("model", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, to be pasted into a bug report.")
@click.option("--no-run", is_flag=True, help="Do not read the weights: no checksums, no short run in each backend.")
def command(model: str | None, as_json: bool, no_run: bool) -> int:
    """Check CPU, kernels, threads, memory, packages and folders; with MODEL also the file, its tokenizer, its chat
    template, whether it fits, and whether all backends compute the same with it.

    Warnings say what to do. The exit code is 0 unless something is wrong.
    """
    from edgellm.chat.paint import may_colour
    from edgellm.chat.terminal import window_size
    from edgellm.doctor import as_text, examine, exit_code

    path = None if model is None else model_path(model)
    with progress_bar() as progress:
        facts = examine(path, run=not no_run, progress=progress)
    if as_json:
        print_json(facts)
    else:
        colour = may_colour(sys.stdout)
        click.echo(as_text(facts, min(window_size()[0] or 100, 120), colour), color=colour)
    return exit_code(facts)
