"""From chat messages to token ids: the template, where turns begin, and what stays when they are too long."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgellm.errors import ContextOverflowError, InvalidArgumentError, TemplateError
from edgellm.toolcalls.functions import as_tool
from edgellm.toolcalls.messages import for_template, shows_tools, wants_text

if TYPE_CHECKING:
    from edgellm.cache import Overflow
    from edgellm.template import ChatTemplate, Rendered

Message = Mapping[str, Any]
Tool = Mapping[str, Any]  # in OpenAI's shape: {"type": "function", "function": {"name": ..., "parameters": ...}}
AnyTool = Tool | Callable[..., Any]  # or a function, of which such a mapping is made


class ChatPrompt:
    """Messages as one model sees them. `template` is Jinja text; None: the model is no chat model."""

    def __init__(self, template: str | None, tokenizer: Any, path: object) -> None:
        self._text, self._tokenizer, self._path = template, tokenizer, path
        self._template: ChatTemplate | None = None  # parsed when it is needed first
        self._tools: Sequence[Tool] | None = None
        self._learnt: dict[str, bool] = {}  # about the template, by trying

    def with_tools(self, tools: Sequence[AnyTool] | None) -> ChatPrompt:
        """The same, with `tools` shown to the template. Raises TemplateError where it does not write them."""
        if tools is None:
            return self
        template = self._parsed()
        shown = self._learn("tools", lambda: shows_tools(lambda said, probes: str(template.render(said, tools=probes))))
        if not shown:
            raise TemplateError(
                f"{self._path}: the chat template shows no tools to the model; leave tools out, or give chat_template= "
                "to load()"
            )
        other = copy.copy(self)
        other._tools = [as_tool(tool) for tool in tools]
        return other

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> Rendered:
        """The text with its marks. Raises TemplateError, InvalidArgumentError."""
        check_messages(messages)
        if any(message.get("tool_calls") for message in messages):
            template = self._parsed()
            as_text = self._learn("text", lambda: wants_text(lambda said: str(template.render(said))))
            messages = for_template(messages, as_text)
        return self._parsed().render(list(messages), add_generation_prompt=add_generation_prompt, tools=self._tools)

    def _learn(self, name: str, find_out: Callable[[], bool]) -> bool:
        if name not in self._learnt:
            self._learnt[name] = find_out()
        return self._learnt[name]

    def _parsed(self) -> ChatTemplate:
        if self._text is None:
            raise TemplateError(
                f"{self._path}: the file has no chat template, so it is no chat model; use generate(), or give "
                "chat_template= to load()"
            )
        if self._template is None:
            from edgellm.template import ChatTemplate

            pieces = self._tokenizer
            bos, eos = (pieces.piece(i) if i is not None else "" for i in (pieces.bos_id, pieces.eos_id))
            self._template = ChatTemplate(self._text, bos_token=bos, eos_token=eos)
        return self._template

    def ids(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[int]:
        """The token ids, the beginning-of-text token included once. Raises as `render`."""
        rendered = self.render(messages, add_generation_prompt)
        ids: list[int] = self._tokenizer.encode_parts(rendered.parts)
        bos = self._tokenizer.bos_id
        if self._tokenizer.add_bos and bos is not None and ids[:1] != [bos]:
            ids.insert(0, bos)  # a template may write it itself, then it is not doubled
        return ids

    def prefix(self, messages: Sequence[Message], n: int, ids: Sequence[int]) -> int | None:
        """How many of `ids`, those of `messages`, the first `n` messages are; None where the template tells them
        otherwise when they stand alone."""
        try:
            first = self.ids(messages[:n], add_generation_prompt=False) if n else []
        except TemplateError:
            return None
        return len(first) if first == list(ids[: len(first)]) else None

    def turns(self, messages: Sequence[Message], ids: Sequence[int]) -> list[int]:
        """Positions in `ids`, those of `messages`, where users' turns begin, except those that cannot be told."""
        found = (self.prefix(messages, i, ids) for i, m in enumerate(messages) if i and m["role"] == "user")
        return [n for n in found if n is not None]

    def fit(self, messages: Sequence[Message], n_ctx: int, overflow: Overflow) -> FittedPrompt:
        """What of `messages` goes into a context window of `n_ctx` tokens under the policy `drop-turns`: the system
        message and the latest turns, whole ones.

        Turns leave in steps of a quarter of the window, so that several answers in a row begin with the same tokens and
        find them in the cache. Raises ContextOverflowError where the last turn alone is too long; as `render`.
        """
        ids = self.ids(messages)
        starts = [i for i, message in enumerate(messages) if message["role"] == "user"]
        n_system = starts[0] if starts else 0
        kept, all_ids = list(messages), ids
        if len(ids) > n_ctx and len(starts) > 1:
            step = max(1, n_ctx // 4)
            most = len(ids) - -(-(len(ids) - n_ctx) // step) * step  # tokens that may stay
            low, high = 1, len(starts) - 1  # of `starts`: the first turn that stays
            while low < high:
                middle = (low + high) // 2
                fits = len(self.ids([*messages[:n_system], *messages[starts[middle] :]])) <= most
                low, high = (low, middle) if fits else (middle + 1, high)
            kept = [*messages[:n_system], *messages[starts[low] :]]
            ids = self.ids(kept)
        if len(ids) > n_ctx:
            raise ContextOverflowError(len(ids), n_ctx)
        if overflow.keep is None and n_system:
            keep = self.prefix(kept, n_system, ids)
            overflow = overflow if keep is None else replace(overflow, keep=max(0, min(keep, n_ctx - 2)))
        return FittedPrompt(self, kept, ids, overflow, len(all_ids) - len(ids))


class Renderer:
    """The template for a transcript (`edgellm.turns.Render`). `tools`: those of the question that is asked."""

    def __init__(self, prompt: ChatPrompt) -> None:
        self._prompt = prompt
        self.tools: Sequence[Tool] | None = None

    def __call__(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> list[tuple[str, bool]]:
        return self._prompt.with_tools(self.tools).render(messages, add_generation_prompt).parts


class FittedPrompt:
    """Messages that fit: their `ids`, the policy with the system message as its kept prefix, `dropped` tokens."""

    def __init__(
        self, prompt: ChatPrompt, messages: list[Message], ids: list[int], overflow: Overflow, dropped: int
    ) -> None:
        self._prompt, self._messages = prompt, messages
        self.ids, self.overflow, self.dropped = ids, overflow, dropped

    def turns(self) -> list[int]:
        """Positions in `ids` where turns begin: only looked for when an answer fills the window."""
        return self._prompt.turns(self._messages, self.ids)


def check_messages(messages: Sequence[Message]) -> None:
    """A template would print nothing for what is missing, so it is missed here. Raises InvalidArgumentError."""
    if isinstance(messages, (str, Mapping)) or not all(isinstance(m, Mapping) for m in messages):
        raise InvalidArgumentError(
            "messages must be a list of mappings with 'role' and 'content', as "
            '[{"role": "user", "content": "Hi"}]; '
            "`model.session().send(text)` takes a plain text, and so does `model.generate(text)`, which continues it"
        )
    if not messages:
        raise InvalidArgumentError("there are no messages to answer")
    for i, message in enumerate(messages):
        if not isinstance(message.get("role"), str) or not ("content" in message or "tool_calls" in message):
            raise InvalidArgumentError(f"message {i} must have a 'role' and a 'content'")
