"""What happens when a sequence is longer than its context window: the policies, their text form, their rules.

- `error`: nothing is dropped; a token more than the window holds is refused.
- `sink`: the first tokens (sinks) and a window that slides over the rest: endless, in constant memory (StreamingLLM,
  Xiao et al. 2023).
- `shift`: when the window is full, the older half of what stands behind the kept prefix goes.
- `drop-turns`: when it is full, whole oldest turns go; the prefix (the system prompt) and later turns stay.

What is dropped is not seen any more, and nothing that stays is computed again (see span.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace

from ..errors import ContextOverflowError, InvalidArgumentError
from .span import Span

KINDS = ("error", "sink", "shift", "drop-turns")
N_SINKS = 4  # as StreamingLLM
PASS_TOKENS = 512  # most tokens of one pass: what a ring has room for beside the window
ENDLESS = 2**53  # positions that float64 angles tell apart


@dataclass(frozen=True)
class Overflow:
    """A policy. `n_sinks` and `window` (tokens) are those of `sink`; `keep` is the prefix that `shift` and `drop-turns`
    never drop, in tokens (None: n_sinks). `window` None: the context window less the sinks.

    Raises InvalidArgumentError for an unknown kind and for numbers that no context window could satisfy.
    """

    kind: str = "error"
    n_sinks: int = N_SINKS
    window: int | None = None
    keep: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidArgumentError(f"overflow is {self.kind!r}; choose {', '.join(KINDS)}")
        _number("n_sinks", self.n_sinks, 0)
        if self.window is not None:
            _number("window", self.window, 1)
            if self.kind != "sink":
                raise InvalidArgumentError(f"overflow '{self.kind}' has no window (it is {self.window}); only sink has")
            if self.window < self.n_sinks:
                raise InvalidArgumentError(
                    f"a window of {self.window} tokens is smaller than its {self.n_sinks} sinks; choose {self.n_sinks} "
                    "or more"
                )
        if self.keep is not None:
            _number("keep", self.keep, 0)
            if self.kind not in ("shift", "drop-turns"):
                raise InvalidArgumentError(f"overflow '{self.kind}' keeps no prefix (keep is {self.keep})")

    @classmethod
    def parse(cls, value: Overflow | str | None) -> Overflow:
        """A policy from its text: a kind, and numbers behind colons: "sink:4:2048" (n_sinks, window), "shift:100" and
        "drop-turns:100" (keep). None is `error`. Raises InvalidArgumentError."""
        if isinstance(value, Overflow):
            return value
        if value is None:
            return cls()
        if not isinstance(value, str):
            raise InvalidArgumentError(f"overflow is {value!r}; choose {', '.join(KINDS)}")
        kind, *parts = value.split(":")
        names = {"sink": ("n_sinks", "window"), "shift": ("keep",), "drop-turns": ("keep",)}.get(kind, ())
        if kind in KINDS and len(parts) > len(names):
            form = ":".join([kind, *(name.upper() for name in names)])
            raise InvalidArgumentError(f"overflow {value!r} has {len(parts)} numbers; the form is '{form}'")
        return cls(kind, **{name: _parsed(name, part) for name, part in zip(names, parts, strict=False)})

    def __str__(self) -> str:
        if self.kind == "sink":
            tail = "" if self.window is None else f":{self.window}"
            return f"sink:{self.n_sinks}{tail}" if tail or self.n_sinks != N_SINKS else "sink"
        return self.kind if self.keep is None else f"{self.kind}:{self.keep}"

    @property
    def head(self) -> int:
        """Tokens at the beginning that are never dropped."""
        if self.kind == "error":
            return 0
        return self.n_sinks if self.kind == "sink" or self.keep is None else self.keep

    def fit(self, n_ctx: int) -> Overflow:
        """This policy with its numbers filled in for a context window of `n_ctx` tokens.

        Raises InvalidArgumentError where they do not go together.
        """
        if isinstance(n_ctx, bool) or not isinstance(n_ctx, int) or not 1 <= n_ctx < 2**31:
            raise InvalidArgumentError(f"n_ctx is {n_ctx!r}; choose 1 to 2^31 - 1")
        if self.kind == "error":
            return self
        least = max(self.n_sinks, 1) if self.kind == "sink" else 2
        if self.head + least > n_ctx:
            what = "sinks" if self.kind == "sink" else "kept tokens"
            raise InvalidArgumentError(
                f"overflow '{self}' with n_ctx {n_ctx}: {self.head} {what} and {least} tokens behind them do not fit; "
                f"keep less or raise n_ctx"
            )
        if self.kind != "sink":
            return replace(self, keep=self.head)
        if self.window is None:
            return replace(self, window=n_ctx - self.n_sinks)
        if self.n_sinks + self.window > n_ctx:
            raise InvalidArgumentError(
                f"{self.n_sinks} sinks and a window of {self.window} tokens are more than n_ctx {n_ctx}; choose a "
                f"window up to {n_ctx - self.n_sinks}"
            )
        return self

    # ---- of a policy that `fit` has returned

    def limit(self, n_ctx: int) -> int:
        """Tokens that a sequence can have in its life."""
        return n_ctx if self.kind == "error" else ENDLESS

    def span(self) -> Span:
        """The span of a sequence that has dropped nothing yet."""
        return Span(self.head, 0, self.window or 0)

    def tail_tokens(self, n_ctx: int) -> int:
        """Most tokens behind the head that are needed at once, those of a pass aside."""
        return self.window if self.kind == "sink" and self.window else n_ctx - self.head

    def pass_tokens(self, n_ctx: int) -> int:
        """Most tokens of one pass."""
        return min(PASS_TOKENS, max(1, (n_ctx - self.head) // 2)) if self.kind == "shift" else PASS_TOKENS

    def check(self, total: int, n_ctx: int, turns: SequenceOf[int] = ()) -> None:
        """Raises ContextOverflowError where a prompt that ends at position `total` has no room, whatever is dropped."""
        if self.kind == "drop-turns":
            total = self.head + total - max(self.head, turns[-1] if turns else 0)
        if self.kind in ("error", "drop-turns") and total > n_ctx:
            raise ContextOverflowError(total, n_ctx)

    def room(self, span: Span, length: int, end: int, n_ctx: int, turns: Iterable[int] = ()) -> Span:
        """The span under which positions [length, end) can be added, by dropping where that must be.

        `turns` are the positions where turns begin, ascending. Raises ContextOverflowError where nothing may be
        dropped, or what may be is not enough.
        """
        if self.kind == "sink":
            return span
        begin = max(span.first, span.keep)  # of the tail
        visible = end - (begin - span.keep)
        if visible <= n_ctx:
            return span
        least = begin + visible - n_ctx  # the tail must begin here or later
        if self.kind == "shift":
            first = max(least, begin + (length - begin + 1) // 2)
        elif self.kind == "drop-turns":
            first = next((turn for turn in turns if turn >= least), end)
        else:
            raise ContextOverflowError(visible, n_ctx)
        if first > length:  # a token would be dropped before it was seen
            raise ContextOverflowError(visible, n_ctx)
        return replace(span, first=first)


    def spare(self, span: Span, length: int, n_ctx: int) -> int:
        """How many tokens can follow the `length` that are there before anything has to be dropped by hand."""
        if self.kind == "sink":
            return ENDLESS - length
        return n_ctx - length + max(span.first, span.keep) - span.keep


def _number(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
        raise InvalidArgumentError(f"{name} of overflow is {value!r}; choose {least} to 2^31 - 1")


def _parsed(name: str, text: str) -> int:
    if not text.isascii() or not text.removeprefix("-").isdigit() or len(text) > 20:
        raise InvalidArgumentError(f"{name} of overflow is {text[:40]!r}; it must be a number")
    return int(text)
