"""The sampling parameters and their limits."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from edgellm.errors import InvalidArgumentError, one_line

MAX_SEED = 2**64 - 1
MAX_STOPS = 256

# field -> (lowest, highest) value; both are allowed
LIMITS: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 1000.0),
    "top_k": (0, 2**31 - 1),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "typical_p": (0.0, 1.0),
    "repeat_penalty": (0.001, 1000.0),
    "repeat_last_n": (-1, 2**31 - 1),
    "presence_penalty": (-1000.0, 1000.0),
    "frequency_penalty": (-1000.0, 1000.0),
    "seed": (0, MAX_SEED),
}
_INTEGERS = ("top_k", "repeat_last_n", "seed")


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: llama.cpp's parameters, meanings and order.

    The chain is: penalties on the tokens of the last `repeat_last_n`, `top_k`, `typical_p`, `top_p`, `min_p`,
    `temperature`, one draw. Raises InvalidArgumentError that names the field, the value and the limits.
    """

    temperature: float = 0.8  # 0: always the most probable token (the lowest id of equals)
    top_k: int = 40  # keep the k most probable tokens; 0: off
    top_p: float = 0.95  # keep the most probable tokens that together reach this probability; 1: off
    min_p: float = 0.05  # keep tokens at least this many times as probable as the best one; 0: off
    typical_p: float = 1.0  # keep the tokens whose surprise is nearest to the expected one; 1: off
    repeat_penalty: float = 1.0  # divides positive logits of recent tokens, multiplies negative ones; 1: off
    repeat_last_n: int = 64  # how many recent tokens the penalties look at; 0: none, -1: all
    presence_penalty: float = 0.0  # subtracted once from the logit of a recent token
    frequency_penalty: float = 0.0  # subtracted for each time that a token is among the recent ones
    seed: int | None = None  # None: a new random seed for each generation, which the result reports
    stop: tuple[str, ...] = ()  # strings that end the text; they are not shown

    def __post_init__(self) -> None:
        for name in LIMITS:
            if not (name == "seed" and self.seed is None):
                object.__setattr__(self, name, _number(name, getattr(self, name)))
        object.__setattr__(self, "stop", _stop_strings(self.stop))

    @property
    def greedy(self) -> bool:
        """True when the choice is not random."""
        return self.temperature == 0.0

    @property
    def has_penalties(self) -> bool:
        """True when recent tokens matter."""
        neutral = (self.repeat_penalty, self.presence_penalty, self.frequency_penalty) == (1.0, 0.0, 0.0)
        return not neutral and self.repeat_last_n != 0

    def chain(self) -> dict[str, float]:
        """The fields that the native sampler takes (struct el_sampling), by name."""
        skipped = ("repeat_last_n", "seed", "stop")
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in skipped}


def _number(name: str, value: Any) -> float | int:
    low, high = LIMITS[name]
    kind = "an integer" if name in _INTEGERS else "a number"
    try:
        number: Any = value.__index__() if name in _INTEGERS else float(value)
    except (AttributeError, TypeError, ValueError):
        number = math.nan
    if isinstance(value, (bool, str, bytes)) or not low <= number <= high:
        raise InvalidArgumentError(f"{name} must be {kind} from {low:g} to {high:g}, not {one_line(value)}")
    return number


def _stop_strings(value: Any) -> tuple[str, ...]:
    stops = (value,) if isinstance(value, str) else value
    stops = tuple(stops) if isinstance(stops, Iterable) else (stops,)
    for stop in stops:
        if not isinstance(stop, str) or not stop:
            raise InvalidArgumentError(f"stop must be non-empty strings, not {one_line(stop) or 'an empty one'}")
    if len(stops) > MAX_STOPS:
        raise InvalidArgumentError(f"stop must be at most {MAX_STOPS} strings, not {len(stops)}")
    return stops
