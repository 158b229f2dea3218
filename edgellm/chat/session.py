"""A conversation: its messages and settings, and nothing about terminals."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgellm.errors import InvalidArgumentError
from edgellm.results import Result

if TYPE_CHECKING:
    from edgellm.model import Model
    from edgellm.stream import Stream

# other names that people type -> the setting
ALIASES = {
    "temp": "temperature",
    "typical": "typical_p",
    "n": "max_tokens",
    "num_predict": "max_tokens",
    "predict": "max_tokens",
}


class Conversation:
    """Messages with a model that has a chat template; with one that has none, single texts that it continues.

    `settings` are keyword options of `Model.generate` (samplers, `max_tokens`, `stop`). A turn is `ask`, the stream,
    and `finish` with what came of it.
    """

    def __init__(self, model: Model, system: str | None = None, **settings: Any) -> None:
        self.model, self.system, self.settings = model, system, settings
        self.is_chat = model.chat_template is not None
        self.messages: list[dict[str, str]] = []
        self.last: Result | None = None
        self.check()

    def check(self) -> None:
        """Raises InvalidArgumentError where a setting is not allowed."""
        samplers = {k: v for k, v in self.settings.items() if k not in ("max_tokens", "stop")}
        self.model.sampling(**samplers)

    def ask(self, text: str, on_prefill: Callable[[Any], Any] | None = None) -> Stream:
        """Start the answer to `text`. Raises as `Model.chat`; the conversation is then as it was."""
        message = {"role": "user", "content": text}
        if self.is_chat:
            stream = self.model.chat(
                [*self._system(), *self.messages, message], stream=True, on_prefill=on_prefill, **self.settings
            )
            self.messages.append(message)
        else:
            stream = self.model.generate(text, stream=True, on_prefill=on_prefill, **self.settings)
            self.messages = [message]
        return stream

    def _system(self) -> list[dict[str, str]]:
        return [{"role": "system", "content": self.system}] if self.system else []

    def finish(self, result: Result | None) -> None:
        """Take the answer in. Without one (it failed, or nothing was said), the question goes too."""
        if result is None or not (result.text or result.finish_reason == "stop"):
            if self.messages and self.messages[-1]["role"] == "user":
                self.messages.pop()
            return
        self.last = result
        self.messages.append({"role": "assistant", "content": result.text})

    def take_back(self) -> str | None:
        """Remove the last question and its answer; the question's text, None when there is none."""
        while self.messages:
            message = self.messages.pop()
            if message["role"] == "user":
                return message["content"]
        return None

    def clear(self) -> None:
        """Forget what was said. The system message and the settings stay."""
        self.messages.clear()
        self.last = None

    def set(self, name: str, value: str) -> str:
        """Set a setting from text; returns its full name. Raises InvalidArgumentError and then changes nothing."""
        name = ALIASES.get(name, name)
        before = dict(self.settings)
        self.settings[name] = self._parse(name, value)
        try:
            self.check()
        except InvalidArgumentError:
            self.settings = before
            raise
        return name

    def _parse(self, name: str, value: str) -> Any:
        from edgellm.sampling import Sampling

        if name == "stop":
            return [] if value.lower() in ("", "none", "off") else [value.encode().decode("unicode_escape")]
        if name == "max_tokens":
            number = _number(name, value)
            return None if number < 0 else int(number)
        if name not in Sampling.__dataclass_fields__:
            known = ["max_tokens", *Sampling.__dataclass_fields__]
            raise InvalidArgumentError(f"there is no setting '{name}'; settings are {', '.join(known)}, system")
        if name == "seed" and value.lower() in ("none", "random", "-1"):
            return None
        number = _number(name, value)
        return int(number) if number == int(number) and name in ("top_k", "repeat_last_n", "seed") else number

    def context_used(self) -> int:
        """Tokens of the conversation in the context window, as of the last answer."""
        return self.last.context.used if self.last is not None else 0


def _number(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise InvalidArgumentError(f"{name} needs a number, not '{value}'") from None
