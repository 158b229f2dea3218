"""What can only be seen when all references are followed: schemas without an end, and alternatives that exclude each
other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from edgellm.errors import GrammarError

MAX_FOLLOWED = 50  # references behind each other
_LISTS = ("anyOf", "oneOf", "allOf")
# Where schemas stand in a schema: in a list, alone, in a map by name.
INNER_LISTS, INNER_ONES = (*_LISTS, "prefixItems"), ("items", "additionalProperties")
INNER_MAPS = ("properties", "patternProperties")

Definitions = dict[str, Any]


def name_of(schema: dict[str, Any]) -> str:
    """The definition that a schema's `$ref` names."""
    return str(schema["$ref"]).rsplit("/", 1)[-1]


def refuse_endless(root: Any, defs: Definitions) -> None:
    """Raises GrammarError for a reference that leads to itself with nothing between, and for a schema whose values
    would have to go on for ever (an object that requires another of its kind)."""
    for name in defs:
        _refuse_loop(name, defs, (), set())
    finite: set[str] = set()
    grown = True
    while grown:
        new = {name for name in defs if name not in finite and _ends(defs[name], finite)}
        grown, finite = bool(new), finite | new
    if not _ends(root, finite):
        raise GrammarError("no value fits this schema: none has an end, or what it asks for excludes itself")


def _refuse_loop(name: str, defs: Definitions, path: tuple[str, ...], done: set[str]) -> None:
    if name in path:
        raise GrammarError("a reference leads to itself", keyword="$ref")
    if name in done:
        return
    if len(path) > MAX_FOLLOWED:
        raise GrammarError(f"more than {MAX_FOLLOWED} references lead to each other", keyword="$ref")
    for other in _direct(defs[name]):
        _refuse_loop(other, defs, (*path, name), done)
    done.add(name)


def _direct(schema: Any) -> Iterator[str]:
    """References that stand for the very same value."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield name_of(schema)
        for word in _LISTS:
            for each in schema.get(word, ()):
                yield from _direct(each)


def _ends(schema: Any, finite: set[str]) -> bool:
    """Whether the schema has a value with an end, as far as is known; `finite`: definitions that have one."""
    if isinstance(schema, bool):
        return schema
    if "$ref" in schema and name_of(schema) not in finite:
        return False
    if not all(_ends(each, finite) for each in schema.get("allOf", ())):
        return False
    if any(word in schema and not any(_ends(each, finite) for each in schema[word]) for word in ("anyOf", "oneOf")):
        return False
    types = _types(schema)
    if types - {"object", "array"}:
        return True
    return ("object" in types and _object_ends(schema, finite)) or ("array" in types and _array_ends(schema, finite))


def _object_ends(schema: dict[str, Any], finite: set[str]) -> bool:
    properties, more = schema.get("properties", {}), schema.get("additionalProperties", True)
    return all(_ends(properties.get(name, more), finite) for name in schema.get("required", ()) if name in properties)


def _array_ends(schema: dict[str, Any], finite: set[str]) -> bool:
    least, first, rest = schema.get("minItems", 0), schema.get("prefixItems", []), schema.get("items", True)
    return all(_ends(each, finite) for each in first[:least]) and (least <= len(first) or _ends(rest, finite))


_ALL = frozenset(("null", "boolean", "number", "string", "array", "object"))


def _types(schema: dict[str, Any]) -> frozenset[str]:
    """The types that `type` and `enum` leave; integers are numbers."""
    given = schema.get("type", sorted(_ALL))
    names = [given] if isinstance(given, str) else given
    types = frozenset("number" if name == "integer" else name for name in names)
    if "enum" in schema:
        types &= {_type_of(value) for value in schema["enum"]}
    return types


def _type_of(value: Any) -> str:
    for kind, name in ((bool, "boolean"), (str, "string"), (list, "array"), (dict, "object")):
        if isinstance(value, kind):
            return name
    return "null" if value is None else "number"


# ---- alternatives that exclude each other


def prove_one_of(schema: Any, defs: Definitions) -> None:
    """`oneOf` becomes `anyOf`, in place, wherever no value can be of two of its alternatives: their types differ, or a
    property that all require has different constants in them. What is left, llguidance proves or refuses."""
    for each in [schema, *defs.values()]:
        for inner in list(_all_schemas(each)):
            options = inner.get("oneOf")
            if options is not None and _exclusive([_followed(option, defs) for option in options], defs):
                del inner["oneOf"]
                if "anyOf" in inner:
                    inner["allOf"] = [*inner.get("allOf", []), {"anyOf": options}]
                else:
                    inner["anyOf"] = options


def _all_schemas(schema: Any) -> Iterator[dict[str, Any]]:
    if not isinstance(schema, dict):
        return
    yield schema
    for word in INNER_LISTS:
        for each in schema.get(word, ()):
            yield from _all_schemas(each)
    for word in INNER_ONES:
        yield from _all_schemas(schema.get(word))
    for word in INNER_MAPS:
        for each in schema.get(word, {}).values():
            yield from _all_schemas(each)


def _followed(schema: Any, defs: Definitions) -> dict[str, Any]:
    """What a bare reference names; loops were refused before."""
    while isinstance(schema, dict) and set(schema) == {"$ref"}:
        schema = defs[name_of(schema)]
    return {} if isinstance(schema, bool) else schema


def _exclusive(options: list[dict[str, Any]], defs: Definitions) -> bool:
    types = [_types(option) for option in options]
    if sum(map(len, types)) == len(frozenset().union(*types)):
        return True
    if any(kinds != {"object"} for kinds in types):
        return False
    shared = frozenset.intersection(*(frozenset(option.get("required", ())) for option in options))
    return any(_tells_apart(name, options, defs) for name in shared)


def _tells_apart(name: str, options: list[dict[str, Any]], defs: Definitions) -> bool:
    seen: list[str] = []
    for option in options:
        values = _followed(option.get("properties", {}).get(name, {}), defs).get("enum")
        if not values or not all(isinstance(value, str | bool | None) for value in values):
            return False
        seen += {json.dumps(value) for value in values}
    return len(set(seen)) == len(seen)
