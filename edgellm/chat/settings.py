"""Settings of a conversation as people type them: `/set temp 0.5`, `/regen temp=1 n=50`."""

from __future__ import annotations

from dataclasses import MISSING, fields, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from edgellm.errors import InvalidArgumentError
from edgellm.sampling import Sampling
from edgellm.sampling.params import parse_bias

if TYPE_CHECKING:
    from edgellm.model import Model
    from edgellm.session_state import Options

# other names that people type (llama.cpp's, Ollama's) -> the setting
ALIASES = {
    "temp": "temperature",
    "typical": "typical_p",
    "n": "max_tokens",
    "num_predict": "max_tokens",
    "predict": "max_tokens",
    "n_predict": "max_tokens",
}
# what is fixed when a conversation begins -> how it is chosen
AT_START = {
    "overflow": "--overflow",
    "num_ctx": "-c",
    "n_ctx": "-c",
    "ctx_size": "-c",
    "num_thread": "-t",
    "threads": "-t",
    "kv_type": "-ctk",
    "speculate": "--speculate",
}
_DEFAULTS = {field.name: field.default for field in fields(Sampling) if field.default is not MISSING}
NAMES = ("max_tokens", *_DEFAULTS)


def default_overflow(model: Model) -> str:
    """What a conversation does when its window is full, where nobody chose: it goes on."""
    return "drop-turns" if model.chat_template is not None else "sink"


def changed(options: Options, name: str, value: str) -> tuple[Options, str]:
    """Options with one setting from text, and its full name. Raises InvalidArgumentError."""
    name = full_name(name)
    parsed = _parse(name, value)
    if name == "max_tokens":
        return replace(options, max_tokens=parsed), name
    return replace(options, sampling=replace(options.sampling, **{name: parsed})), name


def overridden(options: Options, words: str) -> tuple[Options, list[str]]:
    """Options with settings in the form `temp=1.0 n=50`, and their full names. Raises InvalidArgumentError."""
    names = []
    for word in words.split():
        name, equals, value = word.partition("=")
        if not equals:
            raise InvalidArgumentError(f"'{word}' is not of the form name=value, for instance temp=1.0")
        options, name = changed(options, name, value)
        names.append(name)
    return options, names


def full_name(name: str) -> str:
    """The setting that a typed name means. Raises InvalidArgumentError."""
    name = name.lstrip("-").replace("-", "_").lower()
    name = ALIASES.get(name, name)
    if name in AT_START:
        raise InvalidArgumentError(f"{name} is chosen when a conversation begins: edgellm chat {AT_START[name]} ...")
    if name not in NAMES:
        known = [*NAMES, "format", "system", "stats"]
        near = get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"settings are {', '.join(known)}"
        raise InvalidArgumentError(f"there is no setting '{name}'; {hint}")
    return name


def value_of(options: Options, name: str) -> Any:
    """The value of a setting by its full name."""
    return options.max_tokens if name == "max_tokens" else getattr(options.sampling, name)


def shown(name: str, value: Any) -> str:
    """A value in words."""
    if name == "max_tokens" and value is None:
        return "no limit"
    if name == "samplers":
        return " ".join(value)
    if name == "logit_bias":
        return " ".join(f"{token}{bias:+g}" for token, bias in value) or "none"
    if isinstance(value, tuple):
        return " ".join(map(repr, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value)


def _parse(name: str, value: str) -> Any:
    """The value of a setting from text; its type is that of the default."""
    if name == "stop":
        return () if value.lower() in ("", "none", "off") else (_unescaped(value),)
    if name == "max_tokens":
        number = _number(name, value)
        return None if number < 0 else int(number)
    default = _DEFAULTS[name]
    if name == "seed" and value.lower() in ("none", "random", "-1"):
        return None
    if isinstance(default, tuple):
        return _several(name, value)
    if isinstance(default, str):
        return value
    if isinstance(default, bool):
        return _switch(name, value)
    if (isinstance(default, int) or name == "seed") and value.lstrip("+-").isdecimal():
        return int(value)  # not by way of a float, which holds 53 bits
    return _number(name, value)


def _several(name: str, value: str) -> tuple[Any, ...]:
    """Words, of which a list is made: `top_k temp`, `15043-inf 7+1`, `\\n : none`."""
    words = [word for word in value.replace(";", " ").replace(",", " ").split() if word.lower() not in ("none", "off")]
    if name == "logit_bias":
        return tuple(map(parse_bias, words))
    return tuple(map(_unescaped, words))


def is_on(value: str) -> bool:
    """Whether a switch is on: everything but off, 0, false, no."""
    return value.lower() not in ("off", "0", "false", "no")


def _switch(name: str, value: str) -> bool:
    if value.lower() not in ("on", "off", "1", "0", "true", "false", "yes", "no"):
        raise InvalidArgumentError(f"{name} is on or off, not '{value}'")
    return is_on(value)


def _unescaped(value: str) -> str:
    """`\\n` and `\\t` are typed for a newline and a tab; all other characters stay as they are."""
    return value.replace("\\n", "\n").replace("\\t", "\t")


def _number(name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not abs(number) < float("inf"):
        raise InvalidArgumentError(f"{name} needs a number, not '{value}'")
    return number
