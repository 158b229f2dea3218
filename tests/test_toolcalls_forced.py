"""`tool_choice`: answers that must be a call, with arguments that keep to the tool's schema."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from test_toolcalls import ASK, WEATHER, model, path  # noqa: F401 (fixtures)

from edgellm.errors import GrammarError, InvalidArgumentError
from edgellm.toolcalls import FORMATS
from edgellm.toolcalls.forced import _schema

pytest.importorskip("llguidance")

ONE_OF = {"enum": ["x", "y"]}
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object", "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "b": ONE_OF},
            "required": ["a", "b"], "additionalProperties": False,
        },
    },
}  # fmt: skip
NOTHING = {"type": "function", "function": {"name": "now"}}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", [None, "add"])
def test_random_logits_make_valid_calls(model: Any, form: str, name: str | None) -> None:  # noqa: F811
    choice = "required" if name is None else {"type": "function", "function": {"name": name}}
    seen = set()
    for seed in range(8):
        result = model.chat([ASK], tools=[ADD, NOTHING], tool_choice=choice, tool_format=form, temperature=2.0,
                            seed=seed, max_tokens=600)  # fmt: skip
        assert (result.text, result.finish_reason, len(result.tool_calls)) == ("", "tool_calls", 1)
        call = result.tool_calls[0]
        seen.add(call.name)
        if call.name == "add":
            assert 0 <= call.arguments["a"] <= 99 and call.arguments["b"] in ("x", "y") and len(call.arguments) == 2
    assert seen == ({"add"} if name else {"add", "now"})


def test_what_cannot_be_forced_is_refused(model: Any) -> None:  # noqa: F811
    with pytest.raises(InvalidArgumentError, match="another form"):
        model.chat([ASK], tools=[ADD], tool_choice="required", regex="a")
    bad = {"type": "function", "function": {"name": "x", "parameters": {"type": "objekt"}}}
    with pytest.raises(GrammarError):
        model.chat([ASK], tools=[bad], tool_choice="required")


def test_without_the_extra_an_error_says_so(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(GrammarError, match="edgellm.grammar"):
        model.chat([ASK], tools=[WEATHER], tool_choice="required")


def test_shared_definitions_stand_at_the_root() -> None:
    def tool(kind: str) -> dict[str, Any]:
        return {"name": kind, "parameters": {"$ref": "#/$defs/c", "$defs": {"c": {"type": kind}}}}

    schema = _schema(FORMATS["hermes"], [tool("object")])
    assert schema["$defs"] == {"c": {"type": "object"}} and "$defs" not in schema["properties"]["arguments"]
    with pytest.raises(InvalidArgumentError, match="different .defs"):
        _schema(FORMATS["hermes"], [tool("object"), tool("array")])
