"""`edgellm draft`: find out which parts of a model's layers its guesses can do without."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from edgellm.cli.common import ThreadCount, model_path, print_json, progress_bar, read_text

if TYPE_CHECKING:
    from edgellm.skip_search import DraftReport, Trial


@click.command("draft")
@click.argument("model", metavar="MODEL.gguf")
@click.option("-f", "--file", "text_file", metavar="TEXT",
              help="Text (UTF-8) like that which the model will go on with [default: it begins by itself].")
@click.option("-o", "--output", "out", metavar="OUT.gguf", help="Write a copy [default: MODEL itself is changed].")
@click.option("--dry-run", is_flag=True, help="Write nothing, only tell.")
@click.option("--positions", type=int, default=128, show_default=True, metavar="N",
              help="Compare each set with the model at N positions.")
@click.option("--rounds", type=int, default=48, show_default=True, metavar="N", help="Try N changes in the end.")
@click.option("-s", "--seed", type=int, default=0, show_default=True, help="Of the texts and of the changes.")
@click.option("-t", "--threads", type=ThreadCount(), default="auto", show_default=True, help="Threads.")
@click.option("--backend", type=click.Choice(["auto", "native", "numba", "reference"]), default="auto",
              show_default=True, help="What runs the model.")
@click.option("--no-overwrite", is_flag=True, help="Refuse to replace an existing OUT.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(
    model: str, out: str | None, text_file: str | None, no_overwrite: bool, as_json: bool, **options: Any
) -> None:  # fmt: skip
    """Find the parts of MODEL's layers that it can leave out and still guess its next tokens, and write that into the
    file's metadata. `--speculate auto` and `self` use it: a guess costs what is left of the model, answers stay the
    same.

    Sets of attention and feed-forward parts are tried at places of texts that the model writes: how often is the most
    probable token the same, and how much is still read? The set that promises the most tokens per time is taken.
    """
    from edgellm.skip_search import find_skip_set

    text = None if text_file is None else read_text(text_file)
    path = model_path(model)
    with progress_bar() as progress:
        report = find_skip_set(path, out, text=text, overwrite=not no_overwrite, progress=progress, **options)
    if as_json:
        print_json(asdict(report) | {"steps": [asdict(trial) for trial in report.steps]})
    else:
        _print(report)


def _print(report: DraftReport) -> None:
    """For people, all on stderr: the data is the file."""
    lines = ["parts left out   right    read  tokens per time"]
    lines += [_row(trial) for trial in report.steps]
    lines.append(f"best of {report.n_tried} sets, measured again at {report.n_positions} other positions:")
    lines.append(_row(report.best))
    skip = report.best.skip
    lines.append(f"without attention of layers {_layers(skip.attention)}; feed-forward of {_layers(skip.feed_forward)}")
    written = "nothing was written" if report.path is None else f"written into {report.path}"
    lines.append(f"{written}; {report.seconds:.1f} s")
    for line in [*lines, *(f"note: {note}" for note in report.notes)]:
        click.echo(line, err=True)


def _row(trial: Trial) -> str:
    n = len(trial.skip.parts)
    return f"{n:14d}  {trial.acceptance:6.1%}  {trial.cost:6.1%}  {trial.gain:.2f} (drafts of {trial.length})"


def _layers(layers: tuple[int, ...]) -> str:
    return ", ".join(map(str, layers)) if layers else "none"
