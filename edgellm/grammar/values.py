"""Constants, numbers and names in a schema: what llguidance writes exactly as they are."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

from edgellm.errors import GrammarError, one_line

EXACT = 2**53  # integers up to it are their own float64
MAX_LIMIT = 1_000_000  # of lengths and counts
MAX_CONSTANT_DEPTH = 40
# Characters that strings are written without: those that need \u, and DEL, which llguidance never writes.
_UNWRITTEN = frozenset(chr(i) for i in range(32)) - set("\b\f\n\r\t") | {"\x7f"}


def _error(pointer: str, text: str) -> GrammarError:
    keyword = next((part for part in reversed(pointer.split("/")) if not part.isdigit()), None)
    return GrammarError(text, keyword=keyword, pointer=f"#{pointer}")


def check_number(value: Any, pointer: str) -> int | float:
    """A bound. It goes through float64, so it must be exact there."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _error(pointer, "this must be a number")
    if abs(value) > EXACT:
        raise _error(pointer, f"{one_line(str(value), 40)} is too large to be held to; the limit is 2^53")
    if value and abs(value) < 1e-15:
        raise _error(pointer, f"{value} is too close to 0 to be held to; the limit is 1e-15")
    return value


def check_limit(value: Any, pointer: str) -> int:
    """A length or count."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _error(pointer, "this must be an integer, 0 or more")
    if value > MAX_LIMIT:
        raise _error(pointer, f"{value} is too large; the limit is {MAX_LIMIT}")
    return value


def check_multiple(value: Any, pointer: str) -> int | float:
    """llguidance takes a decimal fraction apart by multiplying the float with 10 until nothing is left behind the
    point; what does not come out exactly is refused."""
    number = check_number(value, pointer)
    if number <= 0:
        raise _error(pointer, "this must be more than 0")
    shifted, places = float(number), 0
    while shifted % 1 and places < 10:
        shifted, places = shifted * 10, places + 1
    if shifted % 1 or shifted >= 2**32 or Decimal(str(number)).scaleb(places) != Decimal(shifted):
        raise _error(pointer, f"{number} has too many digits to be held to")
    return number


def check_name(value: Any, pointer: str) -> None:
    """A property's name."""
    if not isinstance(value, str):
        raise _error(pointer, "a name must be a string")
    _check_text(value, pointer)


def check_constant(value: Any, pointer: str, depth: int = 0) -> None:
    """A value of `const` or `enum`."""
    if depth > MAX_CONSTANT_DEPTH:
        raise _error(pointer, f"a constant is nested more than {MAX_CONSTANT_DEPTH} deep")
    if isinstance(value, str):
        _check_text(value, pointer)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        check_number(value, pointer)
    elif isinstance(value, list):
        for each in value:
            check_constant(each, pointer, depth + 1)
    elif isinstance(value, dict):
        for name, each in value.items():
            check_name(name, pointer)
            check_constant(each, pointer, depth + 1)
    elif value is not None and not isinstance(value, bool):
        raise _error(pointer, f"a constant must be JSON, not {type(value).__name__}")


def _check_text(text: str, pointer: str) -> None:
    bad = next((c for c in text if c in _UNWRITTEN or "\ud800" <= c <= "\udfff"), None)
    if bad is not None:
        raise _error(pointer, f"the character U+{ord(bad):04X} cannot be written in a constant or name")
