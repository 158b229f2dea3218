"""The sampling parameters and their limits."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from edgellm.errors import InvalidArgumentError, one_line
from edgellm.sampling.order import SAMPLERS, parse_order

MAX_SEED = 2**64 - 1
MAX_STOPS = 256
MAX_BREAKERS = 64
MAX_BREAKER_BYTES = 40  # llama.cpp cuts longer ones

# field -> (lowest, highest) value; both are allowed
LIMITS: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 1000.0),
    "dynatemp_range": (0.0, 1000.0),
    "dynatemp_exponent": (0.0, 1000.0),
    "top_k": (0, 2**31 - 1),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "typical_p": (0.0, 1.0),
    "top_n_sigma": (-1.0, 1000.0),
    "xtc_probability": (0.0, 1.0),
    "xtc_threshold": (0.0, 1.0),
    "repeat_penalty": (0.001, 1000.0),
    "repeat_last_n": (-1, 2**31 - 1),
    "presence_penalty": (-1000.0, 1000.0),
    "frequency_penalty": (-1000.0, 1000.0),
    "dry_multiplier": (0.0, 1000.0),
    "dry_base": (1.0, 1000.0),
    "dry_allowed_length": (0, 2**31 - 1),
    "dry_penalty_last_n": (-1, 2**31 - 1),
    "mirostat": (0, 2),
    "mirostat_tau": (0.0, 1000.0),
    "mirostat_eta": (0.0, 1000.0),
    "seed": (0, MAX_SEED),
}
INTEGERS = frozenset(
    ("top_k", "repeat_last_n", "dry_allowed_length", "dry_penalty_last_n", "mirostat", "seed")
)  # fmt: skip
MAX_BIAS = 1e6

Biases = tuple[tuple["int | str", float], ...]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: llama.cpp's parameters, meanings and order (docs/sampling.md explains each).

    `logit_bias` comes first, then the samplers in the order of `samplers`, then one draw. Raises InvalidArgumentError
    that names the field, the value and the limits.
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
    top_n_sigma: float = -1.0  # keep logits down to so many standard deviations below the best; 0 or less: off
    xtc_probability: float = 0.0  # how often XTC works; 0: off
    xtc_threshold: float = 0.1  # it drops all tokens this probable but the least probable of them; above 0.5: off
    dry_multiplier: float = 0.0  # penalty of a token that would lengthen a repeated stretch; 0: off
    dry_base: float = 1.75  # the penalty grows by this factor with each token of the stretch
    dry_allowed_length: int = 2  # stretches may be repeated up to this length, in tokens
    dry_penalty_last_n: int = 64  # how many recent tokens DRY looks at; 0: none, -1: all
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")  # texts that no repeated stretch goes across
    dynatemp_range: float = 0.0  # temperature follows the entropy, from this much below to this much above; 0: off
    dynatemp_exponent: float = 1.0  # how the entropy, as a share of the highest possible one, becomes temperature
    mirostat: int = 0  # 2: Mirostat 2.0 in place of all samplers but temperature; 0: off
    mirostat_tau: float = 5.0  # the surprise, in bits, that Mirostat aims at
    mirostat_eta: float = 0.1  # how fast it learns
    logit_bias: Mapping[int | str, float] | Biases = ()  # added to logits, by id or text of a token; -inf or False bans
    samplers: tuple[str, ...] = SAMPLERS  # which work, in this order; also "top_k;top_p;temperature"

    def __post_init__(self) -> None:
        for name in LIMITS:
            if not (name == "seed" and self.seed is None):
                object.__setattr__(self, name, _number(name, getattr(self, name)))
        if self.mirostat == 1:
            raise InvalidArgumentError("mirostat 1, the first version, is not supported; choose 2, or 0 for none")
        object.__setattr__(self, "stop", _strings("stop", self.stop, MAX_STOPS))
        breakers = _strings("dry_sequence_breakers", self.dry_sequence_breakers, MAX_BREAKERS)
        if any(len(text.encode("utf-8", "replace")) > MAX_BREAKER_BYTES for text in breakers):
            raise InvalidArgumentError(f"dry_sequence_breakers must be at most {MAX_BREAKER_BYTES} bytes long each")
        object.__setattr__(self, "dry_sequence_breakers", breakers)
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))
        object.__setattr__(self, "samplers", parse_order(self.samplers))

    @property
    def greedy(self) -> bool:
        """True when the choice is not random."""
        return self.temperature == 0.0 and "temperature" in self.order

    @property
    def biases(self) -> Biases:
        """`logit_bias` as pairs of token and bias."""
        return cast(Biases, self.logit_bias)  # what it was made of is pairs since __post_init__

    @property
    def order(self) -> tuple[str, ...]:
        """The samplers that work, in their order."""
        return ("temperature",) if self.mirostat else self.samplers

    @property
    def has_penalties(self) -> bool:
        """True when the penalties look at recent tokens."""
        neutral = (self.repeat_penalty, self.presence_penalty, self.frequency_penalty) == (1.0, 0.0, 0.0)
        return not neutral and self.repeat_last_n != 0 and "penalties" in self.order

    @property
    def has_dry(self) -> bool:
        """True when DRY looks at recent tokens."""
        return self.dry_multiplier != 0.0 and self.dry_penalty_last_n != 0 and "dry" in self.order

    @property
    def history(self) -> int | None:
        """How many recent tokens matter; None: all."""
        looks = ((self.has_penalties, self.repeat_last_n), (self.has_dry, self.dry_penalty_last_n))
        counts = [n for used, n in looks if used]
        return None if -1 in counts else max(counts, default=0)

    def chain(self) -> dict[str, Any]:
        """The fields that the native sampler takes (struct el_sampling), by name; `samplers` as names."""
        values: dict[str, Any] = {name: getattr(self, name) for name in LIMITS if name != "seed"}
        if "temperature" not in self.order:
            values["temperature"], values["dynatemp_range"] = 1.0, 0.0
        return values | {"samplers": self.order}


def _number(name: str, value: Any) -> float | int:
    low, high = LIMITS[name]
    kind = "an integer" if name in INTEGERS else "a number"
    try:
        number: float | int = value.__index__() if name in INTEGERS else float(value)
    except (AttributeError, TypeError, ValueError):
        number = math.nan
    if isinstance(value, (bool, str, bytes)) or not low <= number <= high:
        raise InvalidArgumentError(f"{name} must be {kind} from {low:g} to {high:g}, not {one_line(value)}")
    return number


def _strings(name: str, value: Any, most: int) -> tuple[str, ...]:
    strings = (value,) if isinstance(value, str) else value
    strings = tuple(strings) if isinstance(strings, Iterable) else (strings,)
    for text in strings:
        if not isinstance(text, str) or not text:
            raise InvalidArgumentError(f"{name} must be non-empty strings, not {one_line(text) or 'an empty one'}")
    if len(strings) > most:
        raise InvalidArgumentError(f"{name} must be at most {most} strings, not {len(strings)}")
    return strings


def _biases(value: Any) -> Biases:
    """Pairs of token (id, or text) and bias. Ids may be written as text, as in JSON, whose keys are always text."""
    pairs = value.items() if isinstance(value, Mapping) else value
    try:
        given = [(token, bias) for token, bias in pairs]
    except (TypeError, ValueError):
        raise InvalidArgumentError(f"logit_bias must map tokens to numbers, not be {one_line(value)}") from None
    return tuple({_token(token): _bias(token, bias) for token, bias in given}.items())


def _token(token: Any) -> int | str:
    if isinstance(token, str) and token.isascii() and token.isdigit() and len(token) <= 10:
        return int(token)
    if isinstance(token, str) and token:
        return token
    if isinstance(token, bool) or not hasattr(token, "__index__") or token.__index__() < 0:
        raise InvalidArgumentError(f"logit_bias names tokens by id or text, not by {one_line(token) or 'no text'}")
    return int(token.__index__())


def _bias(token: Any, bias: Any) -> float:
    try:
        number = -math.inf if bias is False else float(bias)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(bias, (str, bytes)) or bias is True or not (abs(number) <= MAX_BIAS or number == -math.inf):
        what = f"a number from {-MAX_BIAS:g} to {MAX_BIAS:g}, or -inf or False to ban it, not {one_line(bias)}"
        raise InvalidArgumentError(f"logit_bias of token {one_line(token)} must be {what}")
    return number


def parse_bias(text: str) -> tuple[int, float]:
    """Token id and bias from `15043+1`, `15043-0.5`, `15043-inf`, as llama.cpp writes them. Raises
    InvalidArgumentError."""
    parts = re.fullmatch(r"\s*(\d{1,10})\s*([+-])\s*(\d+(?:\.\d*)?|\.\d+|inf)\s*", text, re.ASCII)
    if parts is None:
        raise InvalidArgumentError(f"'{one_line(text)}' is not of the form ID+NUMBER or ID-NUMBER, such as 15043-inf")
    return int(parts[1]), float(parts[2] + parts[3])
