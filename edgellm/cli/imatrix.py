"""`edgellm imatrix`: measure on a text which columns of the weights matter."""

from __future__ import annotations

import os
from typing import Any

import click

from edgellm.cli.common import model_path, progress_bar


@click.command("imatrix")
@click.argument("model", metavar="MODEL")
@click.option("-f", "--file", "text_file", metavar="TEXT", required=True, help="Text to measure on (UTF-8).")
@click.option("-o", "--output", "out", metavar="FILE", default="imatrix.gguf", show_default=True,
              help="The file to write; a name that ends in .dat gives llama.cpp's older form.")  # fmt: skip
@click.option("-c", "--chunk-size", metavar="N", default=512, show_default=True, help="Tokens in a chunk.")
@click.option("--chunks", "n_chunks", metavar="N", type=int, help="Run at most N chunks [default: all].")
@click.option("--from-chunk", "first_chunk", metavar="N", default=0, show_default=True, help="Leave out the first N.")
@click.option("--in-file", "in_files", metavar="FILE", multiple=True, help="Go on with these statistics. Repeatable.")
@click.option("--save-every", metavar="N", default=10, show_default=True, help="Write the file after every N chunks.")
@click.option("--process-output", is_flag=True, help="Measure the output head too.")
@click.option("--backend", default="auto", show_default=True, help="native, numba or reference.")
@click.option("-t", "--threads", metavar="N", type=int, help="Threads [default: chosen for this machine].")
def command(
    model: str, text_file: str, out: str, in_files: tuple[str, ...], save_every: int, threads: int | None,
    **options: Any,
) -> None:  # fmt: skip
    """Run TEXT through MODEL and write the mean squared inputs of its matrices, for `edgellm quantize --imatrix`.

    Use the unquantised model or its Q8_0, and some hundred kilobytes of text like that which the model will see.
    """
    from edgellm.calibrate import collect
    from edgellm.cli.common import read_text
    from edgellm.imatrix import Imatrix, read_imatrix

    text, total, path = read_text(text_file), Imatrix(), model_path(model)
    for name in in_files:
        total.merge(read_imatrix(name))

    def save(imatrix: Imatrix) -> None:
        if save_every > 0 and imatrix.n_chunks % save_every == 0:
            imatrix.write(out)

    with progress_bar() as progress:
        collect(
            path, text, into=total, dataset=os.path.basename(text_file), progress=progress, on_chunk=save,
            threads=threads or "auto", **options,
        )  # fmt: skip
    total.write(out)
    click.echo(f"{out}: {len(total.entries)} matrices, {total.n_chunks} chunks of {total.chunk_size} tokens", err=True)
