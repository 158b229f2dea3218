"""`edgellm alias`: short names for models."""

from __future__ import annotations

import click

from edgellm.cli.common import print_json


@click.command("alias")
@click.argument("name", required=False)
@click.argument("ref", required=False)
@click.option("--remove", is_flag=True, help="Forget NAME; the model stays.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(name: str | None, ref: str | None, remove: bool, as_json: bool) -> None:
    """Let NAME stand for REF (hf:owner/repo:QUANT or a file) wherever MODEL is asked for; without arguments, list all.

    \b
    edgellm alias small hf:owner/repo:Q4_K_M
    edgellm chat small
    """
    from edgellm.hub.aliases import read_aliases, remove_alias, set_alias

    if remove:
        if name is None or ref is not None:
            raise click.UsageError("--remove takes one NAME")
        shown = {name: remove_alias(name)}
    elif name is not None and ref is not None:
        shown = {name: set_alias(name, ref)}
    elif name is not None:
        raise click.UsageError("say what NAME shall stand for, as REF")
    else:
        shown = read_aliases()
    if as_json:
        print_json(shown)
    elif not shown:
        click.echo("no aliases yet; `edgellm alias NAME MODEL` makes one", err=True)
    else:
        for alias, target in shown.items():
            click.echo(f"{alias}  {target}", err=remove)
