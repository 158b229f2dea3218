"""Thirty JSON Schemas like those that programs use. `tests/test_grammar.py` and `tools/grammar_check.py` walk them.

`BOUNDED`: every part has a largest size, so each answer has an end. `UNBOUNDED`: strings, lists or depth are free.
"""

from __future__ import annotations

from typing import Any


def _object(properties: dict[str, Any], optional: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False, **more}


def _text(most: int, least: int = 0) -> dict[str, Any]:
    return {"type": "string", "minLength": least, "maxLength": most}


def _integer(low: int, high: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": low, "maximum": high}


def _list(items: Any, most: int, least: int = 0) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


_ADDRESS = _object({"street": _text(40), "city": _text(20, 1), "zip": {"type": "string", "pattern": "^[0-9]{5}$"}})

BOUNDED: dict[str, Any] = {
    "person": _object({"name": _text(40, 1), "age": _integer(0, 150), "email": {"type": "string", "format": "email"}}),
    "address": {"$defs": {"address": _ADDRESS}, **_object({"home": {"$ref": "#/$defs/address"},
                "work": {"$ref": "#/$defs/address"}}, optional=("work",))},
    "sentiment": _object({"label": {"enum": ["positive", "neutral", "negative"]}, "score": _integer(-5, 5)}),
    "choice": {"enum": ["yes", "no", None, 0, 1.5, True, ["a", "b"], {"k": "v"}]},
    "invoice": _object({"number": {"type": "string", "pattern": "^INV-[0-9]{4}-[A-Z]{2}$"},
                        "date": {"type": "string", "format": "date"},
                        "lines": _list(_object({"item": _text(20), "count": _integer(1, 999),
                                                "cents": _integer(0, 99_999_999)}), 4, 1)}),
    "event": _object({"title": _text(60), "start": {"type": "string", "format": "date-time"},
                      "place": {"type": ["string", "null"], "maxLength": 30}, "tags": _list(_text(10, 1), 3)}),
    "tuple": {"type": "array", "prefixItems": [_integer(0, 9), _text(3), {"type": "boolean"}], "items": False,
              "minItems": 3},
    "shape": {"oneOf": [_object({"kind": {"const": "circle"}, "radius": _integer(1, 100)}),
                        _object({"kind": {"const": "square"}, "side": _integer(1, 100)})]},
    "result": {"anyOf": [_object({"ok": {"const": True}, "value": _text(20)}),
                         _object({"ok": {"const": False}, "error": _text(20)})]},
    "nullable": _object({"nickname": {"anyOf": [_text(12), {"type": "null"}]}, "admin": {"type": "boolean"}}),
    "coordinates": _list({"type": "array", "items": _integer(-180, 180), "minItems": 2, "maxItems": 2}, 3, 1),
    "network": _object({"ipv4": {"type": "string", "format": "ipv4"}, "ipv6": {"type": "string", "format": "ipv6"},
                        "id": {"type": "string", "format": "uuid"}, "port": _integer(1, 65535)}, optional=("ipv6",)),
    "time": _object({"at": {"type": "string", "format": "time"}, "every": {"type": "string", "format": "duration"}}),
    "site": _object({"host": {"type": "string", "format": "hostname"}, "path": {"type": "string",
                     "format": "json-pointer", "maxLength": 20}}),
    "both": {"allOf": [{"type": "object", "properties": {"a": _integer(0, 50)}, "required": ["a"]},
                       {"properties": {"a": {"multipleOf": 7}, "b": _text(5)}, "required": ["b"],
                        "maxProperties": 2}]},
    "multiples": _object({"even": _integer(-100, 100) | {"multipleOf": 2},
                          "price": {"type": "integer", "minimum": 5, "maximum": 995, "multipleOf": 5}}),
    "unicode": _object({"größe": {"enum": ["klein", "groß", "日本", "😀"]}, 'quo"te': _text(4), "sla/sh": _text(4)}),
    "call": _object({"name": {"const": "get_weather"}, "arguments": _object(
        {"city": _text(30, 1), "unit": {"enum": ["celsius", "fahrenheit"]}, "days": _integer(1, 14)},
        optional=("unit", "days"))}),
    "limits": {"type": "object", "properties": {"low": _integer(0, 9), "high": _integer(0, 9), "mid": _integer(0, 9)},
               "additionalProperties": False, "minProperties": 1},
    "password": {"type": "string", "minLength": 8, "maxLength": 12, "pattern": "^[A-Za-z0-9!?.]*$"},
}  # fmt: skip

UNBOUNDED: dict[str, Any] = {
    "any object": {"type": "object"},
    "anything": {},
    "article": _object({"title": {"type": "string"}, "body": {"type": "string"}, "words": {"type": "integer"},
                        "rating": {"type": "number", "minimum": 0, "maximum": 5}}, optional=("rating",)),
    "list": {"type": "array", "items": _object({"name": {"type": "string"}, "url": {"type": "string",
             "format": "uri"}})},
    "tree": {"$defs": {"node": _object({"value": {"type": "integer"}, "children": {"type": "array",
             "items": {"$ref": "#/$defs/node"}}})}, "$ref": "#/$defs/node"},
    "linked": {"type": "object", "properties": {"v": {"type": "string"}, "next": {"anyOf": [{"$ref": "#"},
               {"type": "null"}]}}, "required": ["v", "next"], "additionalProperties": False},
    "map": {"type": "object", "additionalProperties": {"type": "integer", "exclusiveMinimum": 0}, "minProperties": 1},
    "settings": {"type": "object", "properties": {"version": {"const": 2}},
                 "patternProperties": {"^x-": {"type": "string"}, "^[a-w]": {"type": "number"}},
                 "additionalProperties": False, "required": ["version"]},
    "expression": {"$defs": {"e": {"anyOf": [{"type": "number"}, _object({"op": {"enum": ["+", "-", "*"]},
                   "left": {"$ref": "#/$defs/e"}, "right": {"$ref": "#/$defs/e"}})]}}, "$ref": "#/$defs/e"},
    "mixed": {"type": ["object", "array", "string", "null"], "minItems": 1, "pattern": "^a.*z$",
              "properties": {"n": {"type": "number", "exclusiveMaximum": 0.5, "minimum": -2.25}}, "required": ["n"]},
}  # fmt: skip

ALL = {**BOUNDED, **UNBOUNDED}
