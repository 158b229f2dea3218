"""`edgellm quantize`: the same model with smaller weights."""

from __future__ import annotations

import click

from edgellm.cli.common import print_json, print_report, stage_bar


@click.command("quantize")
@click.argument("source", metavar="IN.gguf")
@click.argument("out", metavar="OUT.gguf")
@click.argument("type_name", metavar="TYPE")
@click.option("--no-overwrite", is_flag=True, help="Refuse to replace an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(source: str, out: str, type_name: str, no_overwrite: bool, as_json: bool) -> None:
    """Write the GGUF file IN again with weight matrices of TYPE: Q8_0, Q5_1, Q5_0, Q4_1, Q4_0, F16 or BF16.

    Rows that are no multiple of the type's block stay F16, and the report says so. Where it fails, no file is left.
    """
    from edgellm.quantize import quantize

    with stage_bar() as report:
        done = quantize(source, out, type_name, progress=report, overwrite=not no_overwrite)
    if as_json:
        from dataclasses import asdict

        print_json(asdict(done))
    else:
        print_report(done)
