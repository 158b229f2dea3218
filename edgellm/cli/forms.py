"""Options for answers of a given form: a JSON Schema, a grammar, a regular expression."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from edgellm.cli.common import apply_options, read_text

NAMES = ("json_schema", "json_schema_file", "grammar", "grammar_file", "regex", "format")


def form_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`take_form` takes them. Names are llama.cpp's, and Ollama's `--format json`."""
    return apply_options(
        [
            click.option("-j", "--json-schema", metavar="SCHEMA|FILE",
                         help="Answer with JSON of this schema: its text, or a file that has it."),
            click.option("-jf", "--json-schema-file", type=click.Path(), metavar="FILE",
                         help="The same, always from a file."),
            click.option("--format", type=click.Choice(["json"]), help="Answer with any JSON object."),
            click.option("--grammar", metavar="TEXT", help="Answer in the language of this grammar, GBNF or Lark."),
            click.option("--grammar-file", type=click.Path(), metavar="FILE", help="The same, from a file."),
            click.option("--regex", metavar="REGEX", help="Answer with a text that all of this expression matches."),
        ],
        function,
    )  # fmt: skip


def take_form(options: dict[str, Any]) -> dict[str, Any]:
    """Take the options that were given out of `options`, as `response_format`, `grammar` or `regex` of a call, checked
    before a model is loaded. Raises GrammarError, ModelFileNotFoundError, UsageError."""
    given = {name: value for name in NAMES if (value := options.pop(name, None)) is not None}
    if len(given) > 1:
        names = " and ".join("--" + name.replace("_", "-") for name in given)
        raise click.UsageError(f"give one form of the answer, not {names}")
    form: dict[str, Any] = {}
    for name, value in given.items():
        text = read_text(value) if name.endswith("_file") or (name == "json_schema" and _is_file(value)) else value
        form[{"regex": "regex", "grammar": "grammar", "grammar_file": "grammar"}.get(name, "response_format")] = text
    if form:
        from edgellm.grammar import check_form

        check_form(**form)
    return form


def _is_file(value: str) -> bool:
    """A schema as text is an object, true or false; all else is a path."""
    return not value.lstrip().startswith("{") and value.strip() not in ("true", "false")
