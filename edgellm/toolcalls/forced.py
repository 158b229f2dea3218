"""Answers that must be a call of a tool: `tool_choice="required"`, or one that names a tool."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.errors import InvalidArgumentError
from edgellm.sampling import Constraint
from edgellm.toolcalls.formats import ToolFormat

if TYPE_CHECKING:
    from edgellm.tokenizers import Tokenizer


class Forced:
    """Tokens that must come, then what `inner` allows until it is finished, then tokens that must come."""

    def __init__(self, before: Sequence[int], inner: Constraint, after: Sequence[int], n_vocab: int) -> None:
        self._before, self._inner, self._after = list(before), inner, list(after)
        self._n_vocab, self._begins = n_vocab, not before

    def begin(self, at_start: bool) -> None:
        """Where tokens come before it, `inner` goes on with a text."""
        self._inner.begin(at_start and self._begins)

    def mask(self) -> np.ndarray:
        """bool (n_vocab,): the tokens that may come next."""
        forced = self._before or (self._after if self._inner.finished else [])
        if not forced:
            return self._inner.mask()
        mask = np.zeros(self._n_vocab, dtype=bool)
        mask[forced[0]] = True
        return mask

    def accept(self, token: int) -> None:
        """`token` was chosen."""
        if self._before:
            self._before.pop(0)
        elif self._inner.finished:
            self._after.pop(0)
        else:
            self._inner.accept(token)

    @property
    def finished(self) -> bool:
        """Whether the call is whole."""
        return not self._before and not self._after and self._inner.finished


def forced_call(
    form: ToolFormat, tools: Sequence[Mapping[str, Any]], name: str | None, tokenizer: Tokenizer
) -> Callable[[], Constraint]:
    """What makes the constraint of an answer that is one call of the tool `name` (None: of any of `tools`).

    Its arguments keep to the tool's JSON Schema. Raises GrammarError (`edgellm[grammar]` is not installed, or a schema
    cannot be held to), InvalidArgumentError (schemas that cannot stand in one).
    """
    from edgellm.grammar import compile_constraint

    functions = [tool["function"] for tool in tools if name in (None, tool["function"]["name"])]
    make = compile_constraint(tokenizer, response_format={"type": "json_schema", "schema": _schema(form, functions)})
    assert make is not None
    line = "\n" if form.closing else ""
    opening, closing = "" if form.bare else form.opening + line, line + form.closing

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special=False, parse_special=True, at_start=False)

    before, after = ids(opening), ids(closing)
    return lambda: Forced(before, make(), after, tokenizer.n_vocab)


def _schema(form: ToolFormat, functions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The schema of a call: an object with the name and the arguments; a list of one for Mistral."""
    shared: dict[str, Any] = {}
    calls = [_call_schema(form, function, shared) for function in functions]
    schema = calls[0] if len(calls) == 1 else {"anyOf": calls}
    if form.named:
        schema = {"type": "array", "items": schema, "minItems": 1, "maxItems": 1}
    return {**schema, "$defs": shared} if shared else schema


def _call_schema(form: ToolFormat, function: Mapping[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
    given = dict(function.get("parameters") or {"type": "object", "properties": {}, "additionalProperties": False})
    for key, value in (given.pop("$defs", None) or {}).items():  # references go from the root, so they must stand there
        if shared.setdefault(key, value) != value:
            raise InvalidArgumentError(f"two tools have different $defs '{key}'; rename one of them")
    key = "parameters" if form.name == "llama3" else "arguments"
    properties = {"name": {"const": function["name"]}, key: given}
    return {"type": "object", "properties": properties, "required": ["name", key], "additionalProperties": False}
