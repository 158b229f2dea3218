"""Chat templates: messages become the text a model was trained on, and every character knows where it came from.

Templates are Jinja, as transformers runs them (`tokenizer.chat_template` of a GGUF file). They are code from strangers,
so they run in Jinja's immutable sandbox without loaders, on a budget of steps, characters and depth. What the template
wrote is marked (see `marked`), what came from messages or tools is not; `Tokenizer.encode_parts` makes control tokens
from marked text only, so no user text can become one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from edgellm.errors import InvalidArgumentError, TemplateError, one_line
from edgellm.template.continued import REASONING, cut_at_tag, tag_final
from edgellm.template.marked import MarkedText, parts_of

# Roles are names that the template builds control pieces from (`'<|' + message.role + '|>'`). These count as the
# template's own text; any other role is data.
ROLES = frozenset(
    ["system", "user", "assistant", "tool", "developer", "function", "ipython", "model", "observation", "tool_response"]
)

# What a render may use (`budget`): this much whatever it was given, and more for each character and message. The square
# is for templates that go over all messages for each message.
MIN_STEPS, STEPS_PER_CHAR, STEPS_PER_PAIR = 60_000, 16, 32
MIN_CHARS, CHARS_PER_CHAR = 2**22, 64


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
        continue_final_message: bool | str = False,
        **variables: Any,
    ) -> Rendered:
        """The chat as text with marks.

        `messages` are mappings with `role` and `content` (text, or a list of parts such as
        `{"type": "text", "text": ...}`) and what else a template reads: `tool_calls`, `reasoning_content`, `name`.
        `tools` are JSON schemas. With `continue_final_message` the text ends where the last message's content ends (or
        the field of that name), so that a model goes on with it. `variables` are more names for the template
        (`enable_thinking=False`; those that end in `_token` count as the template's own text).

        Raises TemplateError when the template refuses the messages, fails, or does more than its budget allows;
        InvalidArgumentError when the messages are no messages.
        """
        from edgellm.template.budget import Budget
        from edgellm.template.sandbox import run_template

        if continue_final_message and add_generation_prompt:
            raise InvalidArgumentError("continue_final_message and add_generation_prompt exclude each other")
        size = _Size()
        values: dict[str, Any] = {name: size.data(value) for name, value in variables.items()}
        tokens = {**self._tokens, **{name: value for name, value in variables.items() if name.endswith("_token")}}
        values |= {name: MarkedText.template(value) for name, value in tokens.items() if isinstance(value, str)}
        values["messages"] = [_message(message, size) for message in _listed(messages)]
        values["tools"] = None if tools is None else size.data(list(tools))
        values.setdefault("documents", None)
        values["add_generation_prompt"] = bool(add_generation_prompt)
        n = len(values["messages"])
        budget = Budget(
            MIN_STEPS + STEPS_PER_CHAR * size.chars + STEPS_PER_PAIR * n * n,
            MIN_CHARS + (CHARS_PER_CHAR + n) * size.chars,
        )
        if not continue_final_message:
            return Rendered(parts_of(run_template(self._template, values, budget)))
        field = continue_final_message if isinstance(continue_final_message, str) else "content"
        final = tag_final(values["messages"], field, self.text)
        return Rendered(parts_of(cut_at_tag(run_template(self._template, values, budget), final)))


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
            items = [self.data(item, depth + 1) for item in value]
            return items if isinstance(value, list) else tuple(items)
        raise InvalidArgumentError(
            f"messages, tools and variables of a template must be text, numbers, lists and mappings, "
            f"not {type(value).__name__}"
        )


def _listed(messages: Any) -> list[Any]:
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Iterable):
        raise InvalidArgumentError(f"messages must be a list of mappings, not {type(messages).__name__}")
    return list(messages)


def _message(message: Mapping[str, Any], size: _Size) -> dict[str, Any]:
    """One message out of plain types; its role is marked where it is a known one.

    Reasoning text is also given under the other names that templates read, as transformers does.
    """
    plain = size.data(message)
    if not isinstance(plain, dict):
        raise InvalidArgumentError(f"a message must be a mapping with 'role' and 'content', not {one_line(message)}")
    reasoning = next((plain[name] for name in REASONING if plain.get(name) is not None), None)
    if reasoning is not None:
        plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
    role = plain.get("role")
    if isinstance(role, str) and role in ROLES:
        plain["role"] = MarkedText.template(role)
    return plain


__all__ = ["ChatTemplate", "Rendered"]
