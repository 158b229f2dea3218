"""How models write calls of tools, and which of these ways a model has.

| format | what is written |
|---|---|
| hermes | `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, any number (Hermes 2 and 3, Qwen 2.5 and 3) |
| llama3 | `{"name": ..., "parameters": {...}}` begins the answer, or follows `<|python_tag|>` (Llama 3.1 to 3.3) |
| mistral | `[TOOL_CALLS][{"name": ..., "arguments": {...}}]`, or `[TOOL_CALLS]name[ARGS]{...}` (Nemo; Small 3.2) |
"""

from __future__ import annotations

from dataclasses import dataclass

from edgellm.errors import InvalidArgumentError, one_line


@dataclass(frozen=True)
class ToolFormat:
    """`opening` begins a call, `closing` ends it (it may be missing). `bare`: an answer that begins with `{` is a call
    too. `named`: the name may stand before the arguments, with `marks` between them."""

    name: str
    opening: str
    closing: str
    bare: bool = False
    named: bool = False
    marks: tuple[str, ...] = ()


FORMATS = {
    "hermes": ToolFormat("hermes", "<tool_call>", "</tool_call>"),
    "llama3": ToolFormat("llama3", "<|python_tag|>", "", bare=True),
    "mistral": ToolFormat("mistral", "[TOOL_CALLS]", "", named=True, marks=("[CALL_ID]", "[ARGS]")),
}
# What in a template tells that its calls have another form, though it writes an opening from above.
_OTHERS = ("<function=", "<arg_key>", "<parameter=", "<invoke", "<tool_sep>")


def find_format(name: str | None, template: str | None) -> ToolFormat:
    """The format called `name`; None: the one that `template` writes. Raises InvalidArgumentError."""
    known = ", ".join(FORMATS)
    if name is not None:
        if name not in FORMATS:
            raise InvalidArgumentError(f"there is no tool_format '{one_line(name)}'; choose {known}")
        return FORMATS[name]
    text = template or ""
    if not any(mark in text for mark in _OTHERS):
        for form in FORMATS.values():
            if form.opening in text:
                return form
        if "<|start_header_id|>" in text and '"parameters"' in text:
            return FORMATS["llama3"]
    raise InvalidArgumentError(
        "the chat template of this model writes calls of tools in a form that is not read, or none; choose "
        f"tool_format= {known}, or leave tools out"
    )
