"""The samplers by name, and the order in which they work, as people and files write it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from edgellm.errors import InvalidArgumentError, one_line

# llama.cpp's default order. After the last one a token is drawn.
SAMPLERS = (
    "penalties", "dry", "top_n_sigma", "top_k", "typical_p", "top_p", "min_p", "xtc", "temperature",
)  # fmt: skip
_ALIASES = {"typ_p": "typical_p", "typical": "typical_p", "typ": "typical_p", "nucleus": "top_p", "temp": "temperature"}


def _spellings() -> dict[str, str]:
    """Every way to write a name: `top_k`, `top-k`, `topk`."""
    names = {name: name for name in SAMPLERS} | _ALIASES
    return {name.replace("_", joint): to for name, to in names.items() for joint in "_-"} | {
        name.replace("_", ""): to for name, to in names.items()
    }


_SPELLINGS = _spellings()


def sampler_name(name: str) -> str | None:
    """The name in `SAMPLERS` for any of its spellings, or None."""
    return _SPELLINGS.get(name.strip().lower())


def parse_order(value: Any) -> tuple[str, ...]:
    """Names out of a list, or out of llama.cpp's form `"top_k;top_p;temperature"`. Raises InvalidArgumentError."""
    names = value
    if isinstance(value, str):
        names = value.split(";") if value.strip() else []
    if not isinstance(names, Iterable):
        raise InvalidArgumentError(f"samplers must be a list of names, not {one_line(value)}")
    order: list[str] = []
    for name in names:
        known = sampler_name(name) if isinstance(name, str) else None
        if known is None:
            raise InvalidArgumentError(f"there is no sampler '{one_line(name)}'; samplers are {', '.join(SAMPLERS)}")
        if known in order:
            raise InvalidArgumentError(f"sampler '{known}' is named twice; each may work once")
        order.append(known)
    return tuple(order)
