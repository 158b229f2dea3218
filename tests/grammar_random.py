"""Random JSON Schemas out of every keyword that is held to, mixed without sense: what does not go together must be
refused, or held to all the same."""

from __future__ import annotations

import random
from typing import Any

_NAMES = ["a", "b", "aa", "ab", "c"]
_VALUES = [0, 1, 2, -3, 1.5, "a", "ab", "b", None, True, False, [], [1], ["a"], {}, {"a": 1}, {"a": "x", "b": 2}]
_TYPES = [
    "string", "integer", "number", "boolean", "null", "array", "object", ["string", "null"], ["integer", "string"],
    ["object", "array"], ["number", "object"],
]  # fmt: skip
_SIMPLE: dict[str, list[Any]] = {
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), [0, 1, 2, 3]),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
                    [-5, -1, 0, 0.5, 1, 2, 3.25, 7, 10, 99, 100, -100.75, 12345]),
    "multipleOf": [1, 2, 3, 7, 0.5, 0.25, 10],
    "pattern": ["^a", "b$", "^a|b$", "^[ab]+$", "a.b", "^(ab?)*$", "\\d{2}", "^\\w+$", "^[^a]*$"],
    "format": ["date", "ipv4", "uuid", "time"],
    "const": _VALUES,
    "$ref": ["#/$defs/x", "#/$defs/y"],
}  # fmt: skip
_INNER = ("anyOf", "oneOf", "allOf", "prefixItems", "items", "additionalProperties", "properties", "patternProperties")
_KEYWORDS = [*_SIMPLE, "enum", "required", *_INNER]


def random_schema(seed: int) -> Any:
    r = random.Random(seed)
    schema = _schema(r, 0)
    return schema if isinstance(schema, bool) else {"$defs": {"x": _schema(r, 2), "y": _schema(r, 1)}, **schema}


def _schema(r: random.Random, depth: int) -> Any:
    if r.random() < 0.05:
        return True
    schema: dict[str, Any] = {"type": r.choice(_TYPES)} if r.random() < 0.6 else {}
    for word in r.choices(_KEYWORDS, k=r.choice([1, 1, 2, 2, 3, 4])):
        if word in _SIMPLE:
            schema[word] = r.choice(_SIMPLE[word])
        elif word == "enum":
            schema[word] = r.sample(_VALUES, r.randint(1, 4))
        elif word == "required":
            schema[word] = r.sample(_NAMES, r.randint(0, 3))
        elif depth < 3:
            schema[word] = _inner(r, word, depth + 1)
    return schema


def _inner(r: random.Random, word: str, depth: int) -> Any:
    if word in ("items", "additionalProperties"):
        return False if r.random() < 0.3 else _schema(r, depth)
    if word in ("properties", "patternProperties"):
        names = _NAMES if word == "properties" else ["^a", "b$", "^c$", "a"]
        return {name: _schema(r, depth) for name in r.sample(names, r.randint(1, 3))}
    return [_schema(r, depth) for _ in range(r.randint(1, 3))]
