"""`edgellm convert`: a checkpoint becomes a GGUF file."""

from __future__ import annotations

import os
from typing import Any

import click

from edgellm.cli.common import print_json, print_report, progress_bar, quantize_options


@click.command("convert")
@click.argument("source", metavar="SRC")
@click.option("-o", "--outfile", "out", metavar="OUT.gguf", help="The file to write [default: SRC-OUTTYPE.gguf].")
@click.option("--outtype", metavar="TYPE", default="f16", show_default=True,
              help="Type of the weight matrices, as for `edgellm quantize`: f32, f16, bf16, q8_0, q4_k_m, ...")
@click.option("--tokenizer", metavar="FILE", help="Tokenizer file of a llama2.c checkpoint (tok512.bin).")
@click.option("--lora", metavar="DIR", help="Folder of a LoRA adapter (PEFT) to merge into the model.")
@quantize_options
@click.option("--no-overwrite", is_flag=True, help="Refuse to replace an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(
    source: str,
    out: str | None,
    outtype: str,
    tokenizer: str | None,
    lora: str | None,
    no_overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Turn SRC into a GGUF file: a Hugging Face folder (config.json, safetensors or PyTorch .bin, tokenizer) or a
    llama2.c .bin.

    Works tensor by tensor, so it needs far less memory than the model. Where it fails, no file is left behind.
    """
    from edgellm.convert import convert

    if out is None:
        stem, extension = os.path.splitext(os.path.normpath(source))
        out = f"{stem if extension == '.bin' else stem + extension}-{outtype.lower()}.gguf"
    with progress_bar() as report:
        done = convert(source, out, outtype.lower(), tokenizer, report, not no_overwrite, lora, **options)
    if as_json:
        from dataclasses import asdict

        print_json(asdict(done))
    else:
        print_report(done)
