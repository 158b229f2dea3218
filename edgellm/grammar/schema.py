"""JSON Schemas (Draft 2020-12), checked keyword by keyword and written anew with what is held to exactly.

Every keyword is in one of three tables: annotations, which say nothing about values; keywords that are held to; and
those that are refused, with the reason. Any other word is refused too, since it may be a keyword misspelled. What comes
out has no annotations, all references as `#/$defs/N`, and `pattern` and `format` as explicit expressions (patterns.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from edgellm.errors import GrammarError, one_line
from edgellm.grammar.closing import close_objects
from edgellm.grammar.formats import FORMATS
from edgellm.grammar.patterns import explicit_regex
from edgellm.grammar.references import prove_one_of, refuse_endless
from edgellm.grammar.values import check_constant, check_limit, check_multiple, check_name, check_number

MAX_DEPTH = 40  # schemas inside each other
MAX_SCHEMAS = 10_000
TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
ANNOTATIONS = {
    "$comment", "$defs", "$schema", "contentEncoding", "contentMediaType", "default", "definitions", "deprecated",
    "description", "discriminator", "example", "examples", "readOnly", "title", "writeOnly",
}  # fmt: skip
_COUNTING = "a text cannot be held to it token by token"
REFUSED = {
    "$anchor": "write the reference as a path, '#/$defs/NAME'",
    "$dynamicAnchor": "write the reference as a path, '#/$defs/NAME'",
    "$dynamicRef": "write the reference as a path, '#/$defs/NAME'",
    "$recursiveAnchor": "write the reference as a path, '#/$defs/NAME'",
    "$recursiveRef": "write the reference as a path, '#/$defs/NAME'",
    "$id": "it changes what references mean; leave it out",
    "id": "it changes what references mean; leave it out",
    "additionalItems": "since Draft 2020-12 it is 'items', beside 'prefixItems'",
    "contains": _COUNTING,
    "maxContains": _COUNTING,
    "minContains": _COUNTING,
    "dependencies": _COUNTING,
    "dependentRequired": _COUNTING,
    "dependentSchemas": _COUNTING,
    "else": _COUNTING,
    "if": _COUNTING,
    "then": _COUNTING,
    "not": "say what is allowed, with 'enum', 'pattern' or 'anyOf'",
    "nullable": 'write "type": ["...", "null"]',
    "propertyNames": "use 'patternProperties' with 'additionalProperties': false",
    "unevaluatedItems": "use 'items': false",
    "unevaluatedProperties": "use 'additionalProperties': false",
    "uniqueItems": _COUNTING,
    "x-guidance": "it would change how the schema is held to",
}
_DRAFTS = ("2020-12/schema", "2019-09/schema", "draft-07/schema", "draft-06/schema")

Schema = dict[str, Any] | bool
Keyword = Callable[["_Writer", Any, str, dict[str, Any]], dict[str, Any]]


def check_schema(schema: Schema) -> dict[str, Any]:
    """`schema` written anew. Raises GrammarError with `keyword` and `pointer` for what cannot be held to."""
    writer = _Writer(schema)
    root = writer.write(schema, "", 0)
    if isinstance(root, bool):
        if not root:
            raise GrammarError("the schema is false: no value is allowed", pointer="#")
        root = {}
    defs = writer.definitions()
    refuse_endless(root, defs)
    prove_one_of(root, defs)
    close_objects(root, defs)
    return root | ({"$defs": defs} if defs else {})


class _Writer:
    """Writes one schema; references are collected on the way and written when the rest is done."""

    def __init__(self, root: Schema) -> None:
        self.root = root
        self.count = 0
        self.names: dict[str, str] = {}  # pointer -> name in $defs
        self.old_references = False  # up to Draft 7, what stands beside $ref does not count
        if isinstance(root, dict) and "$schema" in root:
            self._draft(root["$schema"])

    def _draft(self, name: Any) -> None:
        if not isinstance(name, str) or not name.rstrip("#").endswith(_DRAFTS):
            raise refusal("$schema", "", f"the drafts {', '.join(d.split('/')[0] for d in _DRAFTS)} are known")
        self.old_references = "draft-0" in name

    def definitions(self) -> dict[str, Any]:
        """All schemas that references name, and those that these name."""
        defs: dict[str, Any] = {}
        while len(defs) < len(self.names):
            for pointer, name in list(self.names.items()):
                if name not in defs:
                    defs[name] = self.write(self.find(pointer), pointer, 0)
        return defs

    def find(self, pointer: str) -> Any:
        """What a JSON pointer (RFC 6901) names in the schema."""
        value: Any = self.root
        for part in pointer.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(value, dict) and key in value:
                value = value[key]
            elif isinstance(value, list) and key.isascii() and key.isdigit() and int(key) < len(value):
                value = value[int(key)]
            else:
                raise GrammarError("the reference names nothing in this schema", keyword="$ref", pointer=f"#{pointer}")
        return value

    def write(self, schema: Any, pointer: str, depth: int) -> Schema:
        """One schema, at `pointer`."""
        self.count += 1
        if self.count > MAX_SCHEMAS:
            raise GrammarError(f"the schema is made of more than {MAX_SCHEMAS} schemas", pointer=f"#{pointer}")
        if depth > MAX_DEPTH:
            raise GrammarError(f"schemas are nested more than {MAX_DEPTH} deep; use '$ref'", pointer=f"#{pointer}")
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise GrammarError("a schema must be an object, true or false", pointer=f"#{pointer}")
        self.depth = depth
        out: dict[str, Any] = {}
        for word, value in schema.items():
            if not isinstance(word, str):
                raise GrammarError("the names in a schema must be strings", pointer=f"#{pointer}")
            if word in ANNOTATIONS or (word.startswith("x-") and word not in REFUSED):
                continue
            if word in REFUSED:
                raise refusal(word, pointer, REFUSED[word])
            if word not in KEYWORDS:
                raise refusal(word, pointer, "it is no keyword of JSON Schema; look for a misspelling, or leave it out")
            self.depth = depth
            _merge(out, KEYWORDS[word](self, value, f"{pointer}/{escaped(word)}", schema))
        if self.old_references and "$ref" in out and len(out) > 1:
            raise refusal("$ref", pointer, "in this draft nothing may stand beside it; use Draft 2020-12")
        return out

    def inner(self, schema: Any, pointer: str) -> Schema:
        """A schema inside the one that is being written."""
        depth = self.depth
        written = self.write(schema, pointer, depth + 1)
        self.depth = depth
        return written


def _merge(out: dict[str, Any], more: dict[str, Any]) -> None:
    """Adds keywords; `const` beside `enum`, and `format` beside `pattern`, become an `allOf`."""
    for word, value in more.items():
        if word == "allOf":
            out["allOf"] = [*out.get("allOf", []), *value]
        elif word in ("pattern", "enum") and word in out:
            out["allOf"] = [*out.get("allOf", []), {word: value}]
        else:
            out[word] = value


def refusal(keyword: str, pointer: str, why: str) -> GrammarError:
    """The error for a keyword that is not held to; `pointer` is that of the schema it stands in."""
    return GrammarError(f"'{one_line(keyword, 60)}' is not supported: {why}", keyword=keyword, pointer=f"#{pointer}")


def escaped(name: str) -> str:
    """A name as part of a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")


def _wrong(pointer: str, want: str) -> GrammarError:
    return GrammarError(f"this must be {want}", keyword=pointer.rsplit("/", 1)[-1], pointer=f"#{pointer}")


def _type(w: _Writer, value: Any, pointer: str, schema: dict[str, Any]) -> dict[str, Any]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or any(name not in TYPES for name in names):
        raise _wrong(pointer, f"one of {', '.join(TYPES)}, or a list of them")
    return {"type": value}


def _enum(w: _Writer, value: Any, pointer: str, schema: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(value, list) or not value:
        raise _wrong(pointer, "a list of values, one at least")
    for i, each in enumerate(value):
        check_constant(each, f"{pointer}/{i}")
    return {"enum": value}


def _const(w: _Writer, value: Any, pointer: str, schema: dict[str, Any]) -> dict[str, Any]:
    check_constant(value, pointer)
    return {"enum": [value]}


def _several(w: _Writer, value: Any, pointer: str, schema: dict[str, Any]) -> dict[str, Any]:
    """anyOf, oneOf, allOf, prefixItems: a list of schemas."""
    if not isinstance(value, list) or not value:
        raise _wrong(pointer, "a list of schemas, one at least")
    return {pointer.rsplit("/", 1)[-1]: [w.inner(each, f"{pointer}/{i}") for i, each in enumerate(value)]}


def _single(w: _Writer, value: Any, pointer: str, schema: dict[str, Any]) -> dict[str, Any]:
    """items, additionalProperties: one schema."""
    word = pointer.rsplit("/", 1)[-1]
    if isinstance(value, list):
        raise refusal("items", pointer.rsplit("/", 1)[0], "a list of schemas is called 'prefixItems' by now")
    return {word: w.inner(value, pointer)}


def _properties(w: _Writer, value: Any, pointer: str, schema: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(pointer, "an object of schemas")
    for name in value:
        check_name(name, pointer)
    return {"properties": {name: w.inner(each, f"{pointer}/{escaped(name)}") for name, each in value.items()}}


def _pattern_properties(w: _Writer, value: Any, pointer: str, schema: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(pointer, "an object of schemas")
    out: dict[str, Any] = {}
    for pattern, each in value.items():
        written = _anchored(explicit_regex(pattern, search=True, pointer=f"#{pointer}"))
        if written in out:
            raise refusal("patternProperties", pointer, f"'{one_line(pattern, 60)}' is there twice")
        out[written] = w.inner(each, f"{pointer}/{escaped(pattern)}")
    return {"patternProperties": out}


def _required(w: _Writer, value: Any, pointer: str, schema: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(value, list):
        raise _wrong(pointer, "a list of names")
    for name in value:
        check_name(name, pointer)
    return {"required": list(dict.fromkeys(value))}


def _limit(w: _Writer, value: Any, pointer: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {pointer.rsplit("/", 1)[-1]: check_limit(value, pointer)}


def _min_properties(w: _Writer, value: Any, pointer: str, schema: dict[str, Any]) -> dict[str, Any]:
    """A free key may come twice and then counts once, so that only one more than the required ones can be demanded.
    Where there are no free keys, llguidance knows what to do or refuses."""
    least, required = check_limit(value, pointer), schema.get("required", [])
    free = schema.get("additionalProperties", True) is not False or schema.get("patternProperties")
    if least > 1 and free and (not isinstance(required, list) or least > len(set(map(str, required))) + 1):
        why = "free keys cannot be counted; name the properties and require them"
        raise refusal("minProperties", pointer.rsplit("/", 1)[0], why)
    return {"minProperties": least}


def _number(w: _Writer, value: Any, pointer: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {pointer.rsplit("/", 1)[-1]: check_number(value, pointer)}


def _multiple(w: _Writer, value: Any, pointer: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"multipleOf": check_multiple(value, pointer)}


def _anchored(explicit: str) -> str:
    return f"^(?:{explicit})$"


def _pattern(w: _Writer, value: Any, pointer: str, schema: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(value, str):
        raise _wrong(pointer, "a regular expression")
    return {"pattern": _anchored(explicit_regex(value, search=True, pointer=f"#{pointer}"))}


def _format(w: _Writer, value: Any, pointer: str, schema: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(value, str) or value not in FORMATS:
        known = ", ".join(sorted(FORMATS))
        what = one_line(str(value), 60)
        raise GrammarError(
            f"the format '{what}' is not known ({known}); use 'pattern', or leave it out", keyword="format",
            pointer=f"#{pointer}",
        )  # fmt: skip
    return {"pattern": _anchored(explicit_regex(FORMATS[value], search=False))}


def _reference(w: _Writer, value: Any, pointer: str, schema: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(value, str) or not (value == "#" or value.startswith("#/")):
        raise refusal("$ref", pointer.rsplit("/", 1)[0], "only references into the same schema are, '#/$defs/NAME'")
    target = unquote(value[1:])
    w.find(target)
    return {"$ref": f"#/$defs/{w.names.setdefault(target, f'd{len(w.names)}')}"}


KEYWORDS: dict[str, Keyword] = {
    "type": _type, "enum": _enum, "const": _const, "anyOf": _several, "oneOf": _several, "allOf": _several,
    "$ref": _reference, "items": _single, "prefixItems": _several, "minItems": _limit, "maxItems": _limit,
    "properties": _properties, "patternProperties": _pattern_properties, "additionalProperties": _single,
    "required": _required, "minProperties": _min_properties, "maxProperties": _limit, "minLength": _limit,
    "maxLength": _limit, "pattern": _pattern, "format": _format, "minimum": _number, "maximum": _number,
    "exclusiveMinimum": _number, "exclusiveMaximum": _number, "multipleOf": _multiple,
}  # fmt: skip


def n_characters(schema: Any) -> int:
    """The size of a schema as text. Raises GrammarError where it is no JSON."""
    try:
        return len(json.dumps(schema, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise GrammarError(f"the schema is not JSON: {one_line(str(error), 200)}") from None
