"""OpenAI's arguments, and what they are as options of edgellm's calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from edgellm.errors import InvalidArgumentError, one_line

if TYPE_CHECKING:
    from edgellm.prompt import Message, Tool

MAX_CHOICES = 128


class _Common(TypedDict, total=False):
    model: str | None  # there is one model: any name will do, the answer has its real one
    stream_options: Mapping[str, Any] | None
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    n: int | None
    stop: str | Sequence[str] | None
    seed: int | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[str, float] | Mapping[int, float] | None
    user: str | None  # nobody is told
    extra_body: (
        Mapping[str, Any] | None
    )  # options of `Model.chat` that OpenAI has not: top_k, min_p, cancel, timeout, ...


class ChatOptions(_Common, total=False):
    """Arguments of `chat.completions.create`, but `stream`."""

    messages: Sequence[Message]
    max_completion_tokens: int | None
    response_format: Any
    tools: Sequence[Tool] | None
    tool_choice: str | Mapping[str, Any] | None
    logprobs: bool | None
    top_logprobs: int | None


class TextOptions(_Common, total=False):
    """Arguments of `completions.create`, but `stream`."""

    prompt: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
    echo: bool | None
    logprobs: int | None


_SAME = (
    "max_tokens", "temperature", "top_p", "stop", "seed", "presence_penalty", "frequency_penalty", "logit_bias",
    "response_format", "tools", "tool_choice",
)  # fmt: skip


def call_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `Model.chat` and `Model.generate`. Raises InvalidArgumentError."""
    options = {name: given[name] for name in _SAME if name in given}
    if "max_completion_tokens" in given:
        if "max_tokens" in given:
            raise InvalidArgumentError("max_tokens and max_completion_tokens mean the same; choose one")
        options["max_tokens"] = given["max_completion_tokens"]
    extra = given.get("extra_body", {})
    if not isinstance(extra, Mapping) or set(extra) & (set(options) | {"stream"}):
        raise InvalidArgumentError("extra_body must be a mapping of options that are not among the other arguments")
    return {**options, **extra}


def n_choices(given: Mapping[str, Any]) -> int:
    """How many answers are wanted. Raises InvalidArgumentError."""
    n = given.get("n", 1)
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= MAX_CHOICES:
        raise InvalidArgumentError(f"n is {one_line(n)}; choose 1 to {MAX_CHOICES}")
    return n


def wants_usage(given: Mapping[str, Any], stream: bool) -> bool:
    """Whether a stream ends with a chunk that holds the usage. Raises InvalidArgumentError."""
    options = given.get("stream_options", {})
    if not isinstance(options, Mapping) or set(options) - {"include_usage"} or (options and not stream):
        raise InvalidArgumentError("stream_options takes {'include_usage': True}, and only goes with stream=True")
    return bool(options.get("include_usage", False))


def plain_messages(messages: Any) -> list[dict[str, Any]]:
    """Messages as chat templates know them: contents as one text, "developer" under its older name "system".

    Raises InvalidArgumentError for parts that are no text.
    """
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
        raise InvalidArgumentError("messages must be a list of mappings with 'role' and 'content'")
    return [_plain_message(i, message) for i, message in enumerate(messages)]


def _plain_message(i: int, message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InvalidArgumentError(f"message {i} must be a mapping with 'role' and 'content'")
    plain = {name: value for name, value in message.items() if value is not None or name == "content"}
    if plain.get("role") == "developer":
        plain["role"] = "system"
    content = plain.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str):
        for part in content:
            if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                kind = part.get("type") if isinstance(part, Mapping) else part
                raise InvalidArgumentError(f"message {i} has a part '{one_line(kind)}'; this model reads text only")
        plain["content"] = "".join(part["text"] for part in content)
    elif content is None and "tool_calls" in plain:
        plain["content"] = ""
    return plain
