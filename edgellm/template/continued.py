"""Renders that end inside the last message, so that a model goes on with it.

A template writes more behind a message (an end token, say). To find where the message's own text ends, a tag is put
behind it before the template runs, and the result is cut at the tag: what transformers does, with the same results.
"""

from __future__ import annotations

from typing import Any

from edgellm.errors import InvalidArgumentError, TemplateError, one_line

REASONING = ("reasoning_content", "thinking", "reasoning")  # names of one field
_TAG = "CONTINUE_FINAL_MESSAGE_TAG "


def tag_final(messages: list[dict[str, Any]], field: str, source: str) -> str:
    """Puts the tag behind `field` of the last message; gives the text that it is behind.

    Raises InvalidArgumentError where there is no such text, TemplateError where the template does not read the field.
    """
    value = messages[-1].get(field) if messages else None
    if value is None:
        raise InvalidArgumentError(f"there is no last message with {one_line(field)!r} to continue")
    names = [name for name in REASONING if messages[-1].get(name) == value] if field in REASONING else [field]
    if not any(name in source for name in names):
        raise TemplateError(f"the chat template does not read {one_line(field)!r}, so it cannot be continued")
    if isinstance(value, (list, tuple)):
        part = next((part for part in reversed(value) if isinstance(part, dict) and "text" in part), None)
        if part is None or not isinstance(part["text"], str):
            raise InvalidArgumentError("the last message has no text to continue")
        text = part["text"]
        part["text"] = text + _TAG
        return text
    if not isinstance(value, str):
        raise InvalidArgumentError("the last message has no text to continue")
    for name in names:
        messages[-1][name] = value + _TAG
    return value


def cut_at_tag(text: str, final: str) -> str:
    """`text` up to the tag. Raises TemplateError where the message or its tag is not in it."""
    at = str.rfind(text, _TAG.strip())
    if at < 0 or str.find(text, final.strip()) < 0:
        raise TemplateError("the chat template leaves out a part of the last message, so it cannot be continued")
    if str.startswith(text, _TAG, at):
        return text[:at]
    return text[:at].rstrip()  # the template took the white space behind the message away
