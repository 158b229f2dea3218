"""Python functions as tools: their signature is the schema, their docstring the description."""

from __future__ import annotations

import enum
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from edgellm.errors import InvalidArgumentError, one_line

_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object", list: "array"}


def tool_of(function: Callable[..., Any]) -> dict[str, Any]:
    """A tool in OpenAI's shape. Every parameter needs a type: str, int, float, bool, list[...], dict, Literal, an Enum,
    or one of these or None; those without a default are required. Raises InvalidArgumentError."""
    name = getattr(function, "__name__", "")
    try:
        hints, signature = typing.get_type_hints(function), inspect.signature(function)
    except (TypeError, ValueError, NameError) as error:
        raise InvalidArgumentError(f"{one_line(function)} cannot be a tool: {one_line(str(error), 200)}") from None
    properties: dict[str, Any] = {}
    required = []
    for parameter in signature.parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise InvalidArgumentError(f"tool {name}: {parameter} cannot be given by name; write its parameters out")
        properties[parameter.name] = _schema(hints.get(parameter.name), f"tool {name}: {parameter.name}")
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    described = {"name": name, "description": inspect.getdoc(function) or "", "parameters": schema}
    return {"type": "function", "function": described}


def _schema(kind: Any, where: str) -> dict[str, Any]:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind in _PLAIN:
        return {"type": _PLAIN[kind]}
    if origin is typing.Literal:
        return {"enum": list(inner)}
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return {"enum": [member.value for member in kind]}
    if origin in (list, tuple) and len(inner) == 1:
        return {"type": "array", "items": _schema(inner[0], where)}
    if origin is dict:
        return {"type": "object"}
    if origin in (typing.Union, types.UnionType) and type(None) in inner and len(inner) == 2:
        return {"anyOf": [_schema(next(k for k in inner if k is not type(None)), where), {"type": "null"}]}
    raise InvalidArgumentError(
        f"{where} needs a type that JSON has (str, int, float, bool, list[...], dict, Literal, an Enum, or one of "
        f"these or None), not {one_line(kind)}"
    )


def as_tool(tool: Any) -> Any:
    """A function as a tool; anything else as it is."""
    return tool_of(tool) if callable(tool) and not isinstance(tool, Mapping) else tool
