"""`edgellm rm`: a model off this machine."""

from __future__ import annotations

import sys

import click

from edgellm.cli.common import print_json


@click.command("rm")
@click.argument("ref", metavar="MODEL")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--unfinished", is_flag=True, help="Remove only what stopped downloads of hf:owner/repo have left.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; needs --yes.")
def command(ref: str, yes: bool, unfinished: bool, as_json: bool) -> None:
    """Remove a model: an alias, a name that `edgellm list` shows, or hf:owner/repo for all files of a repository.

    Only files in Hugging Face's cache and in edgellm's own folder of models are removed, and what other revisions need
    stays. To forget no more than a short name, use `edgellm alias --remove`.
    """
    from edgellm.chat.terminal import size_text
    from edgellm.hub import parse
    from edgellm.hub.cache import CachedRepo
    from edgellm.hub.catalog import find_models, remove_models

    if as_json and not yes:
        raise click.UsageError("--json asks nothing, so it needs --yes")
    if unfinished:
        paths, freed = [], CachedRepo(parse(ref).repo).remove_parts()
    else:
        models = find_models(ref)
        for model in models:
            click.echo(f"{model.ref}  {size_text(model.bytes)}  {model.path}", err=True)
        if not yes:
            _ask(len(models))
        paths, freed = [f for m in models for f in m.files], remove_models(models)
    if as_json:
        print_json({"removed": paths, "bytes_freed": freed})
    else:
        click.echo(f"{size_text(freed)} are free again", err=True)


def _ask(n: int) -> None:
    """Raises click.Abort for no, UsageError where nobody can answer."""
    if not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask in; say --yes")
    click.confirm("Remove it?" if n == 1 else f"Remove these {n} models?", abort=True, err=True)
