"""`edgellm prune`: the same model with weights that are zero."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from edgellm.cli.common import ThreadCount, model_path, print_json, progress_bar, read_text

if TYPE_CHECKING:
    from edgellm.prune import PruneReport


@click.command("prune")
@click.argument("source", metavar="IN.gguf")
@click.argument("out", metavar="OUT.gguf")
@click.option("--sparsity", type=float, metavar="S",
              help="Share of the weights, heads or layers that go [default: 0.5].")
@click.option("--pattern", default="unstructured", show_default=True, metavar="PATTERN",
              help="unstructured, 2:4, block16, heads or layers.")
@click.option("--method", metavar="METHOD", help="magnitude, wanda or sparsegpt [default: wanda].")
@click.option("--group", metavar="GROUP",
              help="For wanda: the share goes of each row or of the whole matrix [default: matrix].")
@click.option("-f", "--file", "text_file", metavar="TEXT",
              help="Text (UTF-8) that weights are chosen by, and whose end perplexity is measured on.")
@click.option("--type", "type", metavar="TYPE",
              help="Types of the output, as for `edgellm quantize` [default: as they are].")
@click.option("-c", "--chunk-size", type=int, metavar="N", help="Tokens in a window [default: 512].")
@click.option("--chunks", "n_chunks", type=int, metavar="N", help="At most N windows to choose by [default: 64].")
@click.option("--held-out", type=int, metavar="N",
              help="Measure on the last N windows [default: a fifth of them, at most 32].")
@click.option("--report", "by_tensor", is_flag=True, help="Print the zeros of each tensor.")
@click.option("-t", "--threads", type=ThreadCount(), default="auto", show_default=True, help="Threads.")
@click.option("--backend", type=click.Choice(["auto", "native", "numba", "reference"]), default="auto",
              show_default=True, help="What runs the model.")
@click.option("--no-overwrite", is_flag=True, help="Refuse to replace an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(
    source: str, out: str, text_file: str | None, no_overwrite: bool, by_tensor: bool, as_json: bool, **options: Any
) -> None:
    """Write the GGUF file IN again with a share S of its layers' weights set to zero.

    Weights are chosen by METHOD: the smallest (magnitude), the smallest times their inputs (wanda), or those that the
    others can best make up for, which are changed to do so (sparsegpt). PATTERN says which may go together: any
    (unstructured), two of every four in a row (2:4), or blocks of 16 rows x 64 columns (block16). Heads of attention
    and whole layers go by their measured influence, without a METHOD. TEXT goes through the model layer by layer; its
    last windows are held out, and perplexity is measured on them before and after. Where it fails, no file is left.
    """
    from edgellm.prune import prune

    text = None if text_file is None else read_text(text_file)
    path = model_path(source)
    with progress_bar() as progress:
        report = prune(
            path, out, progress=progress, text=text, dataset=os.path.basename(text_file or ""),
            overwrite=not no_overwrite, **options,
        )  # fmt: skip
    if as_json:
        from dataclasses import asdict

        print_json(asdict(report))
    else:
        _print(report, by_tensor)


def _print(report: PruneReport, by_tensor: bool) -> None:
    """For people, all on stderr: the data is the file."""
    from edgellm.chat.terminal import size_text
    from edgellm.quantize import kind_of

    kinds: dict[str, list[int]] = {}
    for t in report.tensors:
        sums = kinds.setdefault(t.name if by_tensor else kind_of(t.name), [0, 0])
        sums[0] += t.n_weights
        sums[1] += t.n_zeros
    width = max(map(len, kinds), default=0)
    lines = [f"{kind:{width}}  {zeros / n:7.2%} of {n:,} weights are 0" for kind, (n, zeros) in kinds.items()]
    types = ", ".join(f"{n} {name}" for name, n in report.types.items())
    lines.append(
        f"{report.path}: {size_text(report.bytes_after)}, before {size_text(report.bytes_before)} ({types}); "
        f"{report.zeros:.1%} zeros by {report.method}, {report.pattern}; {report.seconds:.1f} s"
    )
    if report.removed:
        told = ", ".join(f"{i}: {x:.3f}" for i, x in enumerate(report.influence))
        lines.append(f"layers that went: {', '.join(map(str, report.removed))}; block influence of each: {told}")
    lines.append(_perplexity(report))
    lines.append(f"speed: {report.speed}")
    for line in [*lines, *(f"note: {note}" for note in report.notes)]:
        click.echo(line, err=True)


def _perplexity(report: PruneReport) -> str:
    if report.ppl_before is None or report.ppl_after is None:
        return "perplexity: not measured; give a text with -f"
    return (
        f"perplexity: {report.ppl_before:.3f} before, {report.ppl_after:.3f} after (+/- {report.ppl_after_error:.3f}), "
        f"on {report.held_out} windows of {report.n_ctx} tokens; weights were chosen by {report.chunks} others"
    )
