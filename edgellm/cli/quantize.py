"""`edgellm quantize`: the same model with smaller weights."""

from __future__ import annotations

from typing import Any

import click

from edgellm.cli.common import model_path, print_json, print_report, progress_bar, quantize_options


@click.command("quantize")
@click.argument("source", metavar="IN.gguf")
@click.argument("out", metavar="OUT.gguf")
@click.argument("type_name", metavar="TYPE")
@quantize_options
@click.option("--report", "measure", is_flag=True, help="Measure the errors, print size and error by kind of tensor.")
@click.option("--allow-requantize", is_flag=True, help="Quantise a file that is quantised already; errors add up.")
@click.option("--no-overwrite", is_flag=True, help="Refuse to replace an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(
    source: str, out: str, type_name: str, no_overwrite: bool, as_json: bool, measure: bool, **options: Any
) -> None:
    """Write the GGUF file IN again with weight matrices of TYPE.

    TYPE is a mix as llama.cpp names them: Q4_K_M (a good choice), Q8_0, Q6_K, Q5_K_M, Q5_K_S, Q4_K_S, IQ4_XS, IQ4_NL,
    Q3_K_L, Q3_K_M, Q3_K_S, Q2_K, Q5_1, Q5_0, Q4_1, Q4_0, TQ2_0, TQ1_0, MXFP4_MOE, F16, BF16 or F32. Rows that are no
    multiple of a type's block get a type with a smaller block, and the report says so. Where it fails, no file is left.
    """
    from edgellm.quantize import quantize

    path = model_path(source)
    with progress_bar() as progress:
        done = quantize(
            path, out, type_name, progress=progress, overwrite=not no_overwrite, measure=measure, **options
        )
    if as_json:
        from dataclasses import asdict

        print_json(asdict(done))
        return
    print_report(done)
    if measure:
        _print_kinds(done)


def _print_kinds(report: Any) -> None:
    """The table by kind of tensor, on stdout."""
    width = max([len(row.kind) for row in report.kinds], default=0)
    click.echo(f"{'tensors':{width}}  {'MB':>9}  {'bits':>6}  {'RMSE':>10}  {'relative':>8}  types")
    for row in report.kinds:
        types = ", ".join(f"{n} {name}" for name, n in row.types.items())
        click.echo(
            f"{row.kind:{width}}  {row.n_bytes / 1e6:9.2f}  {row.bits_per_weight:6.2f}  {row.rmse:10.3e}  "
            f"{row.relative:8.2%}  {types}"
        )
