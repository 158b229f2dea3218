"""Objects that name their properties and say nothing of others get no others.

By JSON Schema they might have any. Nobody who writes (or generates) such a schema wants them from a model, and a model
that may go on often does. What is left is stricter than the schema, never looser. Where an object is met by another
schema (`allOf`, keywords beside `$ref` or `anyOf`), the other one may name further properties, so it is left as it is.
"""

from __future__ import annotations

from typing import Any

from edgellm.grammar.references import INNER_LISTS, INNER_MAPS, INNER_ONES, Definitions, name_of

_CHOICES = ("anyOf", "oneOf")


def close_objects(root: Any, defs: Definitions) -> None:
    """Adds `additionalProperties: false` in place, in a schema as `check_schema` writes it."""
    joined: set[str] = set()
    before = -1
    while before != len(joined):
        before = len(joined)
        _walk(root, False, joined, close=False)
        for name, schema in defs.items():
            _walk(schema, name in joined, joined, close=False)
    _walk(root, False, joined, close=True)
    for name, schema in defs.items():
        _walk(schema, name in joined, joined, close=True)


def _walk(schema: Any, met: bool, joined: set[str], close: bool) -> None:
    """`met`: other schemas hold for the same value. Collects definitions for which that is so, or closes objects."""
    if not isinstance(schema, dict):
        return
    alone = len(schema) == 1
    if "$ref" in schema and (met or not alone):
        joined.add(name_of(schema))
    for word in INNER_LISTS:
        for each in schema.get(word, ()):
            _walk(each, met or word == "allOf" or (word in _CHOICES and not alone), joined, close)
    for word in INNER_ONES:
        _walk(schema.get(word), met, joined, close)
    for word in INNER_MAPS:
        for each in schema.get(word, {}).values():
            _walk(each, met, joined, close)
    if close and not met and _names_all(schema):
        schema["additionalProperties"] = False


def _names_all(schema: dict[str, Any]) -> bool:
    properties = schema.get("properties")
    if not properties or schema.keys() & {"additionalProperties", "patternProperties", "allOf", "$ref", *_CHOICES}:
        return False
    named = sum(each is not False for each in properties.values())
    least: int = schema.get("minProperties", 0)
    return set(schema.get("required", ())) <= properties.keys() and least <= named
