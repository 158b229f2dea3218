"""From what a caller asks for to a checked grammar."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgellm.errors import GrammarError, InvalidArgumentError
from edgellm.grammar.constraint import CompiledGrammar, limits, reason
from edgellm.grammar.forms import schema_of
from edgellm.grammar.patterns import explicit_regex
from edgellm.grammar.schema import check_schema, n_characters
from edgellm.grammar.vocabulary import llguidance

if TYPE_CHECKING:
    from edgellm.grammar.constraint import GrammarConstraint
    from edgellm.tokenizers import Tokenizer

# Between the parts of a JSON text: nothing, one space, or one line break and its indentation. Without a bound a model
# may write white space for ever.
WHITE_SPACE = r"[ \t]|\n[ \t]{0,20}"
# How strings are written: every character in one way only, so that "\u0061" cannot stand for a key "a" that is taken.
ESCAPES = 'nrbtf\\"'
MAX_SCHEMA = 1 << 20  # characters of a schema
_HEAD = '%llguidance {"no_forcing": true}\n'  # a forced text would be spelled by llguidance; the model shall choose


def compile_constraint(
    tokenizer: Tokenizer, *, response_format: Any = None, grammar: str | None = None, regex: str | None = None
) -> Callable[[], GrammarConstraint] | None:
    """A factory of constraints for one of the three forms; None where none is asked for.

    - `response_format`: JSON of a schema, see `edgellm.grammar.forms.schema_of`
    - `grammar`: GBNF (llama.cpp's notation) or Lark
    - `regex`: an expression that the whole answer matches

    Everything is checked here. Raises GrammarError: not installed, not understood, or not to be held to exactly;
    InvalidArgumentError where more than one is given.
    """
    text = check_form(response_format=response_format, grammar=grammar, regex=regex)
    if text is None:
        return None
    if tokenizer.kind == "missing":
        raise GrammarError("this model's vocabulary cannot be read, so its answers cannot be held to a form")
    return CompiledGrammar(tokenizer, text)


def check_form(*, response_format: Any = None, grammar: str | None = None, regex: str | None = None) -> str | None:
    """The form in llguidance's notation, checked; None where none is given. Errors as in `compile_constraint`."""
    if sum(form is not None for form in (response_format, grammar, regex)) > 1:
        raise InvalidArgumentError("give one of response_format, grammar and regex, not several")
    text = _grammar_text(response_format, grammar, regex)
    if text is not None:
        problem = llguidance().LLMatcher.validate_grammar(text, None, limits=limits())
        if problem and not problem.startswith("WARNING"):
            raise GrammarError(f"this form cannot be held to: {reason(problem)}")
    return text


def _grammar_text(response_format: Any, grammar: str | None, regex: str | None) -> str | None:
    """The form in llguidance's notation."""
    if grammar is not None:
        from edgellm.grammar.text import lark_of

        return _HEAD + lark_of(grammar)
    if regex is not None:
        return f"{_HEAD}start: /{explicit_regex(regex, search=False)}/"
    schema = schema_of(response_format)
    if schema is None:
        return None
    if (size := n_characters(schema)) > MAX_SCHEMA:
        raise GrammarError(f"the schema has {size} characters; the limit is {MAX_SCHEMA}")
    checked = check_schema(schema)
    checked["x-guidance"] = {
        "json_allowed_escapes": ESCAPES, "whitespace_pattern": WHITE_SPACE, "whitespace_flexible": True,
    }  # fmt: skip
    return f"{_HEAD}start: %json {json.dumps(checked)}"
