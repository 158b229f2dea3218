"""What one render of a template may use: steps, characters and depth.

A template is code from a stranger, so it pays for what it does *before* it is done: a step for each piece of an
expression that it evaluates, each loop round, call and list item; a character for each character of text that an
operation reads or writes. The prices bound both time and memory (a step stands for about a microsecond and 200 bytes),
also of work that happens inside one C call, where nothing could interrupt it. Nothing here needs signals, threads or
child processes.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from contextvars import ContextVar
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

from edgellm.template.marked import MarkedText

SPAN_CHARS = 8  # a marked span costs as much memory as this many characters
ITEM_CHARS = 8  # bytes of a place in a list
MAX_DEPTH = 64  # calls within calls
MAX_WIDTH = 10_000  # of a field in `'%9d'`, `center(9)`, `indent(9)`
MAX_BITS = 4096  # of a whole number


class Budget:
    """The steps, characters and depth that are left."""

    __slots__ = ("_all_chars", "_all_steps", "chars", "depth", "steps")

    def __init__(self, steps: int, chars: int) -> None:
        self.steps = self._all_steps = steps
        self.chars = self._all_chars = chars
        self.depth = 0

    @property
    def used(self) -> tuple[int, int]:
        """Steps and characters so far."""
        return self._all_steps - self.steps, self._all_chars - self.chars

    def step(self, n: int = 1) -> None:
        self.steps -= n
        if self.steps < 0:
            raise SecurityError(f"the template takes more than {self._all_steps} steps")

    def text(self, n: int) -> None:
        self.chars -= n
        if self.chars < 0:
            raise SecurityError(f"the template works on more than {self._all_chars} characters of text")

    def enter(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise SecurityError(f"the template nests calls more than {MAX_DEPTH} deep")

    def leave(self) -> None:
        self.depth -= 1


_NOTHING = Budget(0, 0)
_current: ContextVar[Budget] = ContextVar("edgellm_template_budget", default=_NOTHING)
current = _current.get  # the budget of the render that runs in this thread; outside of a render everything is too much


class spending:  # noqa: N801 (used like a function)
    """A context manager: what runs in it pays from this budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget

    def __enter__(self) -> Budget:
        self._token = _current.set(self._budget)
        return self._budget

    def __exit__(self, *exc: object) -> None:
        _current.reset(self._token)


class Rounds:
    """An iterable each of whose rounds costs `price` steps."""

    def __init__(self, items: Any, price: int = 1) -> None:
        self._items, self._price = items, price

    def __iter__(self) -> Iterator[Any]:
        budget = current()
        for item in self._items:
            budget.step(self._price)
            yield item


class SizedRounds(Rounds):
    """Rounds over something that has a length."""

    def __len__(self) -> int:
        return len(self._items)


_VIEWS = (KeysView, ValuesView, ItemsView)


def size_of(text: str) -> int:
    """What a text costs, in characters."""
    return len(text) + SPAN_CHARS * len(text._spans) if isinstance(text, MarkedText) else len(text)


def pay_list(n: int) -> None:
    """For a list of `n` items that is made or walked in C."""
    budget = current()
    budget.step(1 + n // 8)
    budget.text(ITEM_CHARS * n)


def pay_deep(*values: Any) -> int:
    """For work on all that is inside of `values` (to compare, print, sort or hash them); the number of things in them.

    What is there twice costs twice, as C walks it twice: a list of two times the same list of two times the same list
    may hold more than there are atoms.
    """
    budget = current()
    stack = list(values)
    seen = chars = 0
    while stack:
        value = stack.pop()
        seen += 1
        if isinstance(value, str):
            chars += size_of(value)
        elif isinstance(value, dict):
            _room(budget, seen, len(stack) + 2 * len(value))
            stack += value.keys()
            stack += value.values()
        elif isinstance(value, (list, tuple)):
            _room(budget, seen, len(stack) + len(value))
            stack += value
        elif isinstance(value, _VIEWS):
            _room(budget, seen, len(stack) + 2 * len(value))
            stack += value
        elif isinstance(value, range):
            seen += len(value) // 8
        elif isinstance(value, Namespace):
            stack.append(object.__getattribute__(value, "_Namespace__attrs"))
        if seen > budget.steps:
            break
    budget.step(seen)
    budget.text(chars)
    return seen


def _room(budget: Budget, seen: int, more: int) -> None:
    if seen + more > budget.steps:
        budget.step(seen + more)


def pay_search(text: str, needle: int) -> None:
    """For a walk through `text` that looks for `needle` characters: some searches compare all with all."""
    current().text(size_of(text) * (1 + needle // 16))


def check_width(width: Any) -> int:
    """A width that a template asks for, as a number of characters. Raises SecurityError where it is too much."""
    if isinstance(width, int) and width > MAX_WIDTH:
        raise SecurityError(f"a width of {str(width)[:20]} characters is over the limit of {MAX_WIDTH}")
    return max(0, width) if isinstance(width, int) else 0


def check_bits(bits: int) -> None:
    if bits > MAX_BITS:
        raise SecurityError(f"a number of {bits} bits is over the limit of {MAX_BITS}")
