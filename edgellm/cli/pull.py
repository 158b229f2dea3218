"""`edgellm pull`: a model of the hub onto this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from edgellm.cli.common import print_json, progress_bar

if TYPE_CHECKING:
    from edgellm.hub import PullReport


@click.command("pull")
@click.argument("ref", metavar="REF")
@click.option("--quant", metavar="QUANT", help="Quantisation, if REF names none: Q4_K_M, Q8_0, ...")
@click.option("--revision", metavar="NAME", help="Branch, tag or commit [default: main].")
@click.option("--to", type=click.Path(file_okay=False), metavar="DIR",
              help="Put the files into DIR [default: the cache that all programs of Hugging Face share].")
@click.option("--as", "name", metavar="NAME", help="Give the model a short name, as `edgellm alias` does.")
@click.option("--update", is_flag=True, help="Ask for a newer version even if the model is here.")
@click.option("--offline", is_flag=True, help="Only say where the model is; never touch the network.")
@click.option("--dry-run", is_flag=True, help="Show the files and their sizes; download nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(ref: str, name: str | None, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Download a model of Hugging Face's hub, unless it is here already, and print its path.

    \b
    edgellm pull hf:owner/repo                  its Q4_K_M, else the next best (--dry-run tells)
    edgellm pull hf:owner/repo:Q8_0             another quantisation
    edgellm pull hf:owner/repo/file.gguf        one file
    edgellm pull hf:owner/repo:Q8_0@v1.0        at a branch, tag or commit

    A download that is interrupted (Ctrl-C, no network) goes on where it was when the command is given again. Checksums
    are checked. HF_TOKEN, HF_HOME, HF_HUB_CACHE, HF_ENDPOINT and HF_HUB_OFFLINE count.
    """
    from edgellm.hub import fetch
    from edgellm.hub.aliases import check_alias_name, set_alias

    if name is not None:
        check_alias_name(name)
    try:
        with progress_bar() as report:
            done = fetch(ref, dry_run=dry_run, progress=report, **options)
    except KeyboardInterrupt:
        click.echo("edgellm: stopped; what has come is kept, and the same command goes on from there", err=True)
        raise
    if name is not None and not dry_run:
        set_alias(name, done.path if options["to"] else done.reference)
    if as_json:
        print_json(done.to_dict())
    elif dry_run:
        _print_plan(done)
    else:
        click.echo(done.path)


def _print_plan(report: PullReport) -> None:
    """The files, one on each line; the sum on stderr."""
    from edgellm.chat.terminal import size_text

    for file in report.files:
        missing = file.bytes - file.kept
        state = "is here" if missing == 0 else f"{size_text(missing)} are missing" if file.kept else "to download"
        click.echo(f"{size_text(file.bytes):>10}  {state}  {file.name}")
    click.echo(f"{report.reference}: {size_text(report.fetched)} to download of {size_text(report.bytes)}", err=True)
