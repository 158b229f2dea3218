"""Settings of a conversation as people type them: `/set temp 0.5`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgellm.errors import InvalidArgumentError
from edgellm.sampling import Sampling

if TYPE_CHECKING:
    from edgellm.model import Model
    from edgellm.session_state import Options

# other names that people type -> the setting
ALIASES = {
    "temp": "temperature",
    "typical": "typical_p",
    "n": "max_tokens",
    "num_predict": "max_tokens",
    "predict": "max_tokens",
}


def default_overflow(model: Model) -> str:
    """What a conversation does when its window is full, where nobody chose: it goes on."""
    return "drop-turns" if model.chat_template is not None else "sink"


def changed(options: Options, name: str, value: str) -> tuple[Options, str]:
    """Options with one setting from text, and its full name. Raises InvalidArgumentError."""
    name = ALIASES.get(name, name)
    parsed = _parse(name, value)
    if name == "max_tokens":
        return replace(options, max_tokens=parsed), name
    return replace(options, sampling=replace(options.sampling, **{name: parsed})), name


def value_of(options: Options, name: str) -> Any:
    """The value of a setting by its full name."""
    return options.max_tokens if name == "max_tokens" else getattr(options.sampling, name)


def _parse(name: str, value: str) -> Any:
    if name == "stop":
        return () if value.lower() in ("", "none", "off") else (value.encode().decode("unicode_escape"),)
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


def _number(name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not abs(number) < float("inf"):
        raise InvalidArgumentError(f"{name} needs a number, not '{value}'")
    return number
