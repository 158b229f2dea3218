"""Chat templates: messages become the text a model was trained on, and every character knows where it came from.

Templates are Jinja, as transformers runs them (`tokenizer.chat_template` of a GGUF file). They are code from strangers,
so they run in Jinja's immutable sandbox without loaders, and the result is limited in size. What the template itself
wrote is marked (see `marked`), what came from messages or tools is not; `Tokenizer.encode_parts` makes control tokens
from marked text only, so no user text can become one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from edgellm.errors import InvalidArgumentError, TemplateError, one_line
from edgellm.template.marked import MarkedText, concat, parts_of

# Roles are names that the template builds control pieces from (`'<|' + message.role + '|>'`). These count as the
# template's own text; any other role is data.
ROLES = frozenset(
    ["system", "user", "assistant", "tool", "developer", "function", "ipython", "model", "observation", "tool_response"]
)

MIN_OUTPUT_CHARS = 2**20  # a template may always write this much,
OUTPUT_FACTOR = 8  # and this many times what it was given
MIN_STEPS = 20_000  # loop rounds and calls that it may always take,
STEPS_FACTOR = 4  # and this many for each character and each pair of messages that it was given

_REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True)
class Rendered:
    """A rendered chat. `str()` is the text; `parts` are its (text, is_template) spans in order."""

    parts: list[tuple[str, bool]]

    def __str__(self) -> str:
        return "".join(text for text, _ in self.parts)


class ChatTemplate:
    """One parsed template. Raises TemplateError where there is none, or it does not parse."""

    def __init__(self, text: str | None, bos_token: str | None = None, eos_token: str | None = None) -> None:
        if not isinstance(text, str) or not text.strip():
            raise TemplateError("there is no chat template; give one, or use the model without chat messages")
        from edgellm.template.sandbox import compile_template

        self.text = text
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._template = compile_template(text)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> Rendered:
        """The chat as text with marks.

        `messages` are mappings with `role` and `content`; `tools` are JSON schemas; `variables` are more names for the
        template (`enable_thinking=False`; those that end in `_token` count as the template's own text). Raises
        TemplateError when the template refuses the messages, fails, or writes too much.
        """
        from edgellm.template.sandbox import run_template

        size = _Size()
        values: dict[str, Any] = {name: size.data(value) for name, value in variables.items()}
        tokens = {**self._tokens, **{name: value for name, value in variables.items() if name.endswith("_token")}}
        values |= {name: MarkedText.template(value) for name, value in tokens.items() if isinstance(value, str)}
        values["messages"] = [_message(message, size) for message in messages]
        values["tools"] = None if tools is None else size.data(list(tools))
        values.setdefault("documents", None)
        values["add_generation_prompt"] = bool(add_generation_prompt)
        limit = MIN_OUTPUT_CHARS + OUTPUT_FACTOR * size.chars
        steps = MIN_STEPS + STEPS_FACTOR * (size.chars + len(values["messages"]) ** 2)
        try:
            return Rendered(parts_of(concat(run_template(self._template, values, limit, steps))))
        except RecursionError:
            raise TemplateError("the chat template nests too deeply") from None


class _Size:
    """Rebuilds values out of plain types, so a template sees nothing with methods of its own; counts characters."""

    def __init__(self) -> None:
        self.chars = 0

    def data(self, value: Any, depth: int = 0) -> Any:
        if depth > 100:
            raise InvalidArgumentError("messages and tools may be nested 100 levels deep, not more")
        if value is None or type(value) in (bool, int, float):
            return value
        if isinstance(value, str):
            self.chars += len(value)
            return str.__str__(value) if type(value) is not str else value
        if is_dataclass(value) and not isinstance(value, type):
            value = {f.name: getattr(value, f.name) for f in fields(value)}
        if isinstance(value, Mapping):
            return {self.data(key, depth + 1): self.data(item, depth + 1) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.data(item, depth + 1) for item in value]
        raise InvalidArgumentError(
            f"messages, tools and variables of a template must be text, numbers, lists and mappings, "
            f"not {type(value).__name__}"
        )


def _message(message: Mapping[str, Any], size: _Size) -> dict[str, Any]:
    """One message out of plain types; its role is marked where it is a known one.

    Reasoning text is also given under the other names that templates read, as transformers does.
    """
    plain = size.data(message)
    if not isinstance(plain, dict):
        raise InvalidArgumentError(f"a message must be a mapping with 'role' and 'content', not {one_line(message)}")
    reasoning = next((plain[name] for name in _REASONING if plain.get(name) is not None), None)
    if reasoning is not None:
        plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
    role = plain.get("role")
    if isinstance(role, str) and role in ROLES:
        plain["role"] = MarkedText.template(role)
    return plain


__all__ = ["ChatTemplate", "Rendered"]
