"""`edgellm list`: the models of this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from edgellm.cli.common import print_json

if TYPE_CHECKING:
    from edgellm.hub.catalog import LocalModel


_PLACES = {"hub": "hub cache", "folder": "models folder", "builtin": "built in"}


@click.command("list")
@click.option("--paths", is_flag=True, help="Show the path of each file instead of the kind of place.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(paths: bool, as_json: bool) -> None:
    """List the models of this machine: those in Hugging Face's cache, in edgellm's own folder, and the built-in one.

    The first column is what to write as MODEL. Only headers of files are read.
    """
    from edgellm.chat.terminal import size_text
    from edgellm.hub.catalog import local_models, unfinished

    models, parts = local_models(), unfinished()
    if as_json:
        print_json({
            "models": [m.to_dict() for m in models],
            "unfinished": [{"ref": ref, "bytes": size} for ref, size in parts],
        })  # fmt: skip
        return
    rows = [("MODEL", "FAMILY", "PARAMS", "QUANT", "SIZE", "PATH" if paths else "WHERE")]
    rows += [_row(model, paths) for model in models]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    for row in rows:
        cells = [f"{cell:>{w}}" if i in (2, 4) else f"{cell:<{w}}" for i, (cell, w) in
                 enumerate(zip(row, widths, strict=False))]
        click.echo("  ".join([*cells, row[5]]))
    for model in models:
        if model.problem is not None:
            click.echo(f"edgellm: warning: {model.ref} cannot be used: {model.problem}", err=True)
    for ref, size in parts:
        text = f"{size_text(size)} of a stopped download; pull it again to go on, or `edgellm rm --unfinished {ref}`"
        click.echo(f"edgellm: note: {ref}: {text}", err=True)


def _row(model: LocalModel, paths: bool) -> tuple[str, str, str, str, str, str]:
    from edgellm.chat.terminal import count_text, size_text
    from edgellm.errors import one_line

    names = ", ".join([*model.aliases, model.ref])
    family = "broken" if model.problem is not None else one_line(model.architecture or "?", 20)
    params = "" if model.parameters is None else count_text(model.parameters)
    where = one_line(model.path, 1000) if paths else _PLACES[model.where]
    return names, family, params, one_line(model.quant or "", 20), size_text(model.bytes), where
