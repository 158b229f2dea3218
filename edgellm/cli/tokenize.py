"""`edgellm tokenize`: how a text becomes tokens."""

from __future__ import annotations

import sys

import click

from edgellm.cli.common import model_path, print_json


@click.command("tokenize")
@click.argument("model", required=False)
@click.argument("text", required=False, metavar="[TEXT|-]")
@click.option("--special", is_flag=True, help="Control tokens spelled out in the text count as such.")
@click.option("--no-bos", is_flag=True, help="Leave out the token that begins a text.")
@click.option("--ids", "only_ids", is_flag=True, help="Print only the ids, on one line.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    model: str | None, text: str | None, special: bool, no_bos: bool, only_ids: bool, as_json: bool
) -> None:
    """Show the token ids and pieces of TEXT. With one argument, it is the TEXT and the built-in model is used.

    Works on files that hold nothing but a vocabulary too.
    """
    from edgellm.tokenizers import Tokenizer

    if text is None:
        if model is None:
            raise click.UsageError("there is no text; give one, or - to read it from stdin")
        model, text = _split_lone(model)
    if text == "-":
        text = sys.stdin.read()
    tokenizer = Tokenizer.from_file(model_path(model))
    ids = tokenizer.encode(text, add_special=not no_bos, parse_special=special)
    if as_json:
        tokens = [{"id": i, "piece": tokenizer.piece(i)} for i in ids]
        print_json({"text": text, "token_ids": ids, "tokens": tokens, "count": len(ids)})
    elif only_ids:
        click.echo(" ".join(map(str, ids)))
    else:
        for i in ids:
            click.echo(f"{i:8d}  {_visible(tokenizer.piece(i))}")


def _split_lone(word: str) -> tuple[str | None, str]:
    """A lone argument is the text, unless it names a model: then the text was forgotten."""
    if word.lower().endswith(".gguf"):
        raise click.UsageError(f"there is no text to tokenize with {word}; give one, or - to read it from stdin")
    return None, word


def _visible(piece: str) -> str:
    """A piece on one line, control characters escaped."""
    from edgellm.errors import one_line

    return one_line(piece, 1000)
