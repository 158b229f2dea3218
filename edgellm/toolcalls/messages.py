"""Calls of earlier answers, in the shape that a chat template expects."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgellm.errors import TemplateError
from edgellm.toolcalls.json_end import parse

_ASK: list[dict[str, Any]] = [{"role": "user", "content": "x"}]


def for_template(messages: Sequence[Mapping[str, Any]], as_text: bool) -> list[Mapping[str, Any]]:
    """`messages` with the arguments of tool calls as JSON text, or as mappings, whatever they were.

    A missing content is the empty text: OpenAI's messages have null there, on which many templates fail.
    """
    return [_shaped(message, as_text) if message.get("tool_calls") else message for message in messages]


def _shaped(message: Mapping[str, Any], as_text: bool) -> Mapping[str, Any]:
    calls = message["tool_calls"]
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        return message
    content = message.get("content")
    return {**message, "content": "" if content is None else content, "tool_calls": [_call(c, as_text) for c in calls]}


def _call(call: Any, as_text: bool) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        return call
    given = function.get("arguments")
    if as_text and isinstance(given, Mapping):
        given = json.dumps(given, ensure_ascii=False)
    elif not as_text and isinstance(given, str):
        value = parse(given)
        given = value if isinstance(value, dict) else given
    return {**call, "function": {**function, "arguments": given}}


def wants_text(render: Callable[[list[dict[str, Any]]], str]) -> bool:
    """Whether a template takes arguments as JSON text: those that write mappings as JSON themselves do not."""
    arguments = {"probe_key": "probe_value"}
    function = {"name": "probe", "arguments": arguments}
    calls = [{"id": "probe0000", "type": "function", "function": function}]
    said = {"role": "assistant", "content": "", "tool_calls": calls}
    try:
        return '"probe_key"' not in render([*_ASK, said])
    except TemplateError:
        return True


def shows_tools(render: Callable[[list[dict[str, Any]], list[dict[str, Any]]], str]) -> bool:
    """Whether a template writes the tools that it is given."""
    schema = {"type": "object", "properties": {"probe_key": {"type": "string"}}}
    tool = {"type": "function", "function": {"name": "probe_tool", "description": "probe", "parameters": schema}}
    try:
        return "probe_tool" in render(_ASK, [tool])
    except TemplateError:
        return True  # it wants other messages; what is asked will tell
