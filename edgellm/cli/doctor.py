"""`edgellm doctor`: what this machine gives, what was installed, whether a file fits."""

from __future__ import annotations

import click

from edgellm.cli.common import model_path, print_json


@click.command("doctor")
@click.argument("model", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, to be pasted into a bug report.")
def command(model: str | None, as_json: bool) -> None:
    """Show the CPU and the kernels chosen for it, threads and memory and why, versions; with MODEL, whether it fits."""
    from edgellm.doctor import as_text, examine

    facts = examine(None if model is None else model_path(model))
    if as_json:
        print_json(facts)
    else:
        click.echo(as_text(facts))
