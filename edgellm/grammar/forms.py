"""What callers may give as `response_format`, as one JSON Schema."""

from __future__ import annotations

import json
from typing import Any

from edgellm.errors import GrammarError, one_line

ANY_OBJECT: dict[str, Any] = {"type": "object"}
MAX_TEXT = 1 << 20  # characters of a schema that comes as text


def schema_of(response_format: Any) -> dict[str, Any] | bool | None:
    """The schema that `response_format` asks for; None where any text will do.

    - OpenAI's: `{"type": "json_schema", "json_schema": {"schema": {...}}}`, `{"type": "json_object"}` or
      `{"type": "text"}`
    - Ollama's: `"json"`, or a schema
    - a JSON Schema, also as text
    - a class with `model_json_schema()`, as pydantic's models have it

    Raises GrammarError.
    """
    if response_format is None:
        return None
    if hasattr(response_format, "model_json_schema"):
        return _schema(response_format.model_json_schema())
    if isinstance(response_format, str):
        text = response_format.strip()
        return dict(ANY_OBJECT) if text in ("json", "json_object") else parse_schema(text)
    if isinstance(response_format, bool):
        return response_format
    if not isinstance(response_format, dict):
        raise GrammarError(
            f"response_format must be a JSON Schema, OpenAI's form, 'json', or a pydantic model, not "
            f"{type(response_format).__name__}"
        )
    return _from_mapping(response_format)


def _from_mapping(form: dict[str, Any]) -> dict[str, Any] | bool | None:
    kind = form.get("type")
    if kind == "text" and set(form) == {"type"}:
        return None
    if kind == "json_object" and set(form) <= {"type", "schema"}:
        return _schema(form.get("schema", dict(ANY_OBJECT)))
    if kind == "json_schema":
        inner = form.get("json_schema", form)  # the newer API has schema and name beside the type
        if not isinstance(inner, dict) or "schema" not in inner:
            raise GrammarError("response_format has the type json_schema but no schema; give json_schema.schema")
        return _schema(inner["schema"])
    return form


def _schema(value: Any) -> dict[str, Any] | bool:
    if not isinstance(value, dict | bool):
        raise GrammarError(f"a JSON Schema is an object, not {type(value).__name__}")
    return value


def parse_schema(text: str) -> dict[str, Any] | bool:
    """A JSON Schema from its text. Raises GrammarError."""
    if len(text) > MAX_TEXT:
        raise GrammarError(f"the schema has {len(text)} characters; the limit is {MAX_TEXT}")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise GrammarError(f"the schema has the key '{one_line(twice)}' twice in one object")
        return dict(pairs)

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise GrammarError(f"the schema is not JSON: {one_line(str(error), 200)}") from None
    return _schema(value)
