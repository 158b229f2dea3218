"""Conversations that templates are compared on, and the clock that they are compared with."""

from __future__ import annotations

# ruff: noqa: E501 (a template reads best on one line)
from datetime import datetime
from typing import Any

NOW = datetime(2026, 1, 15, 12, 0, 0)

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a place, with <html> & 'quotes' and ümlauts.",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "City, e.g. Zürich"},
                "unit": {"type": "string", "enum": ["C", "F"], "default": "C"},
                "days": {"type": "array", "items": {"type": "integer"}},
            },
            "required": ["place"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "description": "", "parameters": {"type": "object", "properties": {}}}}  # fmt: skip


def _say(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def _calls(*calls: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"id": f"call{i:05d}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for i, (name, arguments) in enumerate(calls)
    ]


_SYSTEM, _HI = _say("system", "Be  brief.\n"), _say("user", "Hello there")
_TALK = [_HI, _say("assistant", "Hi! How can I help?"), _say("user", "Count to 3.\n"), _say("assistant", "1 2 3"),
         _say("user", "  And on? ")]  # fmt: skip
_TOOLS = [
    _say("user", "Weather in Zürich?"),
    _say("assistant", "", tool_calls=_calls(("get_weather", {"place": "Zürich", "days": [1, 2], "unit": None}))),
    _say("tool", '{"temp": 21.5, "sky": "☀"}', name="get_weather", tool_call_id="call00000"),
    _say("assistant", "It is 21.5 degrees."),
    _say("user", "Thanks"),
]
_TWO = [
    _SYSTEM,
    _say("user", "Weather and time?"),
    _say("assistant", "Let me see.", tool_calls=_calls(("get_weather", {"place": "Bern"}), ("clock", {}))),
    _say("tool", "cold", name="get_weather", tool_call_id="call00000"),
    _say("tool", "12:00", name="clock", tool_call_id="call00001"),
]
_THOUGHT = [_HI, _say("assistant", "Four.", reasoning_content="2+2\nis 4"), _say("user", "Sure?")]
_INLINE = [_HI, _say("assistant", "<think>\nhm\n</think>\n\nYes."), _say("user", "Sure?")]
_PARTS = [_say("user", [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}])]

CHATS: dict[str, dict[str, Any]] = {
    "one question": {"messages": [_HI], "add_generation_prompt": True},
    "no prompt": {"messages": [_HI]},
    "system": {"messages": [_SYSTEM, _HI], "add_generation_prompt": True},
    "many turns": {"messages": [_SYSTEM, *_TALK], "add_generation_prompt": True},
    "answer last": {"messages": _TALK[:4]},
    "unicode": {"messages": [_say("user", "naïve 日本語 🦙🏽 \u200d <|im_end|> {{ x }}\t")], "add_generation_prompt": True},
    "empty text": {"messages": [_say("user", ""), _say("assistant", ""), _say("user", " ")], "add_generation_prompt": True},
    "no messages": {"messages": [], "add_generation_prompt": True},
    "tools offered": {"messages": [_SYSTEM, _HI], "tools": [WEATHER, CLOCK], "add_generation_prompt": True},
    "tool result": {"messages": _TOOLS, "tools": [WEATHER], "add_generation_prompt": True},
    "two calls": {"messages": _TWO, "tools": [WEATHER, CLOCK], "add_generation_prompt": True},
    "calls without tools": {"messages": _TOOLS[:3], "add_generation_prompt": True},
    "reasoning": {"messages": _THOUGHT, "add_generation_prompt": True},
    "reasoning in the text": {"messages": _INLINE, "add_generation_prompt": True},
    "thinking on": {"messages": [_HI], "add_generation_prompt": True, "enable_thinking": True, "thinking": True},
    "thinking off": {"messages": [_HI], "add_generation_prompt": True, "enable_thinking": False, "thinking": False},
    "parts": {"messages": _PARTS, "add_generation_prompt": True},
    "continue": {"messages": [*_TALK[:3], _say("assistant", "One, two, ")], "continue_final_message": True},
    "continue parts": {"messages": [_HI, _say("assistant", _PARTS[0]["content"])], "continue_final_message": True},
    "wrong order": {"messages": [_say("assistant", "Hi"), _HI, _HI], "add_generation_prompt": True},
    "unknown role": {"messages": [_say("critic", "no"), _HI], "add_generation_prompt": True},
}  # fmt: skip
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
