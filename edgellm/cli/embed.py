"""`edgellm embed`: texts as vectors."""

from __future__ import annotations

import csv
import io
import sys
from typing import TYPE_CHECKING, Any

import click

from edgellm.cli.common import load_model, load_options, print_json, progress_bar

if TYPE_CHECKING:
    import numpy as np

    from edgellm.embeddings import Pooling


@click.command("embed")
@click.argument("model")
@click.argument("texts", nargs=-1, metavar="[TEXT...|-]")
@click.option("--pooling", type=click.Choice(["auto", "mean", "cls", "last", "none"]), default="auto",
              show_default=True, help="How tokens become one vector; auto: as the file says, else mean.")
@click.option("--normalize/--no-normalize", default=True, show_default=True, help="Vectors of length 1.")
@click.option("--truncate", is_flag=True, help="Cut off what does not fit the context window.")
@click.option("--format", "form", type=click.Choice(["json", "npy", "csv"]), default="json", show_default=True,
              help="json: objects with text, tokens and embedding; npy: a NumPy array; csv: a row per vector.")
@click.option("-o", "--output", type=click.Path(dir_okay=False), metavar="FILE", help="Write there, not to stdout.")
@load_options
def command(
    model: str, texts: tuple[str, ...], pooling: Pooling, normalize: bool, truncate: bool, form: str,
    output: str | None, **options: Any,
) -> None:  # fmt: skip
    """Print the embedding of each TEXT; with - (or with none), of each line of stdin.

    MODEL is an encoder (BERT) or any model that writes text.
    """
    chosen = _texts(texts)
    if form == "npy" and output is None and sys.stdout.isatty():
        raise click.UsageError("an .npy file is no text for a terminal; give -o FILE or a pipe")
    if form == "npy" and pooling == "none" and len(chosen) != 1:
        raise click.UsageError("--pooling none gives arrays of different length; as npy, only of one text")
    with load_model(model, options) as loaded:
        with progress_bar() as report:
            vectors = loaded.embed(chosen, pooling=pooling, normalize=normalize, truncate=truncate, progress=report)
        used = loaded.pooling if pooling == "auto" else pooling
        counts = [min(len(loaded.tokenizer.encode(text)), loaded.n_ctx) for text in chosen]
    if form == "npy":
        _write(_npy(vectors[0] if pooling == "none" else vectors), output)
    elif form == "csv":
        _write(_csv(vectors, pooling == "none"), output)
    else:
        rows = [
            {"text": text, "tokens": n, "embedding": _plain(v)}
            for text, n, v in zip(chosen, counts, vectors, strict=True)
        ]
        _write_json({"model": str(loaded.path), "pooling": used, "normalized": normalize, "data": rows}, output)


def _texts(texts: tuple[str, ...]) -> list[str]:
    if texts in ((), ("-",)):
        if not texts and sys.stdin.isatty():
            raise click.UsageError("there is no text; give some, or - to read lines from stdin")
        return sys.stdin.read().splitlines()
    return list(texts)


def _plain(vectors: np.ndarray) -> list[Any]:
    """Numbers in as few digits as tell a float32 apart."""
    if vectors.ndim > 1:
        return [_plain(row) for row in vectors]
    return [float(str(value)) for value in vectors]


def _npy(vectors: np.ndarray) -> bytes:
    import numpy as np


    out = io.BytesIO()
    np.save(out, vectors)
    return out.getvalue()


def _csv(vectors: Any, tokens: bool) -> bytes:
    """A row per vector: the number of its text, with `tokens` that of its token, and the numbers."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for i, found in enumerate(vectors):
        for j, row in enumerate(found if tokens else [found]):
            writer.writerow([i, *([j] if tokens else []), *_plain(row)])
    return out.getvalue().encode()


def _write(data: bytes, output: str | None) -> None:
    if output is None:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        return
    from edgellm.gguf.output import AtomicFile

    file = AtomicFile(output)
    file.open(len(data))
    file.write(data)
    file.commit()


def _write_json(value: dict[str, Any], output: str | None) -> None:
    if output is None:
        print_json(value, compact=True)
        return
    import json

    _write(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace") + b"\n", output)
