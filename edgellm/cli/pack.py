"""`edgellm pack`: a model file that starts at once, and the way back."""

from __future__ import annotations

from dataclasses import asdict

import click

from edgellm.cli.common import model_path, print_json, print_report, progress_bar


@click.command("pack")
@click.argument("source", metavar="IN.gguf")
@click.argument("out", metavar="[OUT.gguf]", required=False)
@click.option("--unpack", is_flag=True, help="Write the file that a packed one was made from.")
@click.option("--check", is_flag=True, help="Only read a packed file and compare its checksums.")
@click.option("--no-overwrite", is_flag=True, help="Refuse to replace an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(source: str, out: str | None, unpack: bool, check: bool, no_overwrite: bool, as_json: bool) -> None:
    """Write the GGUF file IN so that a model starts from it at once: its matrices already lie as kernels read them.

    Without OUT the result is IN.packed.gguf, and --unpack takes that off again; nothing is replaced then. Packing loses
    nothing. Only edgellm reads packed files.
    """
    from edgellm import pack

    if check and (unpack or out):
        raise click.UsageError("--check takes one packed file and writes nothing")
    path = model_path(source)
    if path != source and out is None and not check:
        raise click.UsageError(f"{source} lies in a folder of models; say where to write, as OUT")
    source = path
    with progress_bar() as progress:
        if check:
            n_bytes = pack.verify(source, progress)
        else:
            work = pack.unpack if unpack else pack.pack
            report = work(source, out, progress, overwrite=not no_overwrite)
    if check:
        if as_json:
            print_json({"path": source, "bytes": n_bytes, "good": True})
        else:
            click.echo(f"{source}: {n_bytes / 1e6:.1f} MB have their checksums", err=True)
    elif as_json:
        print_json(asdict(report))
    else:
        print_report(report)
