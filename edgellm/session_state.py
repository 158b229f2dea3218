"""What a session file says, as checked values: the description of formats/session.md and back."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.cache import Overflow
from edgellm.errors import InvalidArgumentError, one_line
from edgellm.sampling import Sampling
from edgellm.sampling.params import MAX_SEED
from edgellm.transcript import Turn

if TYPE_CHECKING:
    from edgellm.plan import Plan
    from edgellm.sessionfile import SessionFile

MAX_POSITION = 2**53  # positions that a float64 tells apart
MAX_MESSAGES = 10_000_000
_HEX = re.compile(r"[0-9a-f]{64}")
_ANY = object()


@dataclass(frozen=True)
class ModelMark:
    """Which model it was. `identity`: 64 hexadecimal digits (`edgellm.identity`)."""

    identity: str
    name: str
    arch: str


@dataclass(frozen=True)
class CacheMark:
    """What its pages are. `rotation`: 64 hexadecimal digits, `rotation_digest` of the plan."""

    kv_type: str
    n_layers: int
    n_kv_heads: int
    head_dim: int
    n_ctx: int
    rotation: str


@dataclass(frozen=True)
class SequenceMark:
    """What of the sequence is there (`edgellm.cache.Span`); `n_exact`: tokens that exact passes have made."""

    length: int
    n_exact: int
    keep: int
    first: int
    window: int


@dataclass(frozen=True)
class SessionState:
    """Everything in a session file but ids and pages. Fields are those of `formats/session.md`."""

    model: ModelMark
    cache: CacheMark
    sequence: SequenceMark
    overflow: Overflow
    system: str | None
    messages: list[dict[str, Any]]
    turns: list[Turn]
    dropped: int
    text: str | None
    waiting: list[int]
    sampling: Sampling
    max_tokens: int | None
    seed: int
    n_sent: int

    def describe(self) -> dict[str, Any]:
        """As plain types for JSON."""
        options = asdict(self.sampling) | {"stop": list(self.sampling.stop), "max_tokens": self.max_tokens}
        return {
            "model": asdict(self.model),
            "cache": asdict(self.cache),
            "sequence": asdict(self.sequence),
            "overflow": asdict(self.overflow),
            "options": options,
            "turns": [[t.message, t.length, t.chars, list(t.waiting), t.start, t.start_chars] for t in self.turns],
            **{name: getattr(self, name) for name in _PLAIN},
        }


_PLAIN = ("system", "messages", "dropped", "text", "waiting", "seed", "n_sent")


def rotation_digest(plan: Plan) -> str:
    """SHA-256 of the rotation tables: keys in the cache were turned by them, and the context window may choose them."""
    sha = hashlib.sha256()
    for rope in plan.ropes:
        sha.update(len(rope.inv_freq).to_bytes(8, "little"))
        sha.update(np.ascontiguousarray(rope.inv_freq, dtype="<f8").tobytes())
        sha.update(np.array([rope.magnitude], dtype="<f8").tobytes())
    return sha.hexdigest()


class _Fields:
    """The fields of one object of the description, each to be taken once, with its type and limits (rule D5)."""

    def __init__(self, file: SessionFile, value: Any, where: str = "") -> None:
        self.file, self.where = file, where
        if not isinstance(value, Mapping):
            self.fail("", type(value).__name__, "an object")
        self.left = dict(value)

    def fail(self, name: str, value: Any, limit: Any) -> Any:
        message = "the description of the session does not say what it must"
        return self.file.fail("D5", message, f"{self.where}{name}", one_line(value), limit, 96)

    def take(self, name: str) -> Any:
        if name not in self.left:
            self.fail(name, "missing", "a value")
        return self.left.pop(name)

    def number(self, name: str, low: int, high: int) -> int:
        return self.checked(name, self.take(name), low, high)

    def checked(self, name: str, value: Any, low: int, high: int) -> int:
        if type(value) is not int or not low <= value <= high:
            self.fail(name, value, f"an integer from {low} to {high}")
        return value

    def maybe_number(self, name: str, low: int, high: int) -> int | None:
        value = self.take(name)
        return None if value is None else self.checked(name, value, low, high)

    def text(self, name: str) -> str:
        value = self.take(name)
        return value if isinstance(value, str) else self.fail(name, value, "a text")

    def maybe_text(self, name: str) -> str | None:
        value = self.take(name)
        return value if value is None or isinstance(value, str) else self.fail(name, value, "a text or null")

    def digest(self, name: str) -> str:
        value = self.text(name)
        return value if _HEX.fullmatch(value) else self.fail(name, value, "64 hexadecimal digits")

    def items(self, name: str) -> list[Any]:
        value = self.take(name)
        if not isinstance(value, list) or len(value) > MAX_MESSAGES:
            self.fail(name, value, f"a list of up to {MAX_MESSAGES}")
        return value

    def inner(self, name: str) -> _Fields:
        return _Fields(self.file, self.take(name), f"{self.where}{name}.")

    def end(self) -> None:
        for name, value in self.left.items():
            self.fail(one_line(name), value, "no such field")


def read_state(file: SessionFile, n_vocab: int) -> SessionState:
    """The description of an open session file, checked by itself (rules D5 and D8). Raises SessionFileError."""
    top = _Fields(file, file.description)
    waiting = [top.checked("waiting", i, 0, n_vocab - 1) for i in top.items("waiting")]
    sampling, max_tokens = _options(top.inner("options"))
    state = SessionState(
        model=_model(top.inner("model")),
        cache=_cache(top.inner("cache")),
        sequence=_sequence(top.inner("sequence")),
        overflow=_overflow(top.inner("overflow")),
        system=top.maybe_text("system"),
        messages=_messages(top),
        turns=_turns(top, n_vocab),
        dropped=top.number("dropped", 0, MAX_MESSAGES),
        text=top.maybe_text("text"),
        waiting=waiting,
        sampling=sampling,
        max_tokens=max_tokens,
        seed=top.number("seed", 0, MAX_SEED),
        n_sent=top.number("n_sent", 0, 2**53),
    )
    top.end()
    _check(file, state)
    return state


def _model(fields: _Fields) -> ModelMark:
    mark = ModelMark(fields.digest("identity"), fields.text("name"), fields.text("arch"))
    fields.end()
    return mark


def _cache(fields: _Fields) -> CacheMark:
    sizes = {name: fields.number(name, 1, 2**31 - 1) for name in ("n_layers", "n_kv_heads", "head_dim", "n_ctx")}
    mark = CacheMark(kv_type=fields.text("kv_type"), rotation=fields.digest("rotation"), **sizes)
    fields.end()
    return mark


def _sequence(fields: _Fields) -> SequenceMark:
    names = ("length", "n_exact", "keep", "first", "window")
    mark = SequenceMark(**{name: fields.number(name, 0, MAX_POSITION) for name in names})
    fields.end()
    return mark


def _overflow(fields: _Fields) -> Overflow:
    values: dict[str, Any] = {"kind": fields.text("kind"), "n_sinks": fields.number("n_sinks", 0, 2**31 - 1)}
    values |= {name: fields.maybe_number(name, 0, 2**31 - 1) for name in ("window", "keep")}
    fields.end()
    try:
        return Overflow(**values)
    except InvalidArgumentError as error:
        return fields.fail("", values, str(error))


def _options(fields: _Fields) -> tuple[Sampling, int | None]:
    max_tokens = fields.maybe_number("max_tokens", 0, 2**63 - 1)
    values = {name: fields.take(name) for name in Sampling.__dataclass_fields__}
    fields.end()
    try:
        if not isinstance(values["stop"], list):
            raise InvalidArgumentError("stop must be a list")
        return Sampling(**values), max_tokens
    except InvalidArgumentError as error:
        return fields.fail("", "see limit", str(error))


def _messages(fields: _Fields) -> list[dict[str, Any]]:
    messages = fields.items("messages")
    for i, message in enumerate(messages):
        good = isinstance(message, dict) and isinstance(message.get("role"), str) and "content" in message
        if not good:
            fields.fail(f"messages[{i}]", message, "an object with role and content")
    return messages


def _turns(fields: _Fields, n_vocab: int) -> list[Turn]:
    turns = []
    for i, item in enumerate(fields.items("turns")):
        name = f"turns[{i}]"
        if not isinstance(item, list) or len(item) != 6 or not isinstance(item[3], list):
            fields.fail(name, item, "[message, length, chars, ids, start, start_chars]")
        message, length, chars, ids, start, start_chars = item
        turns.append(
            Turn(
                fields.checked(name, message, 0, MAX_MESSAGES),
                fields.checked(name, length, -1, MAX_POSITION),
                fields.checked(name, chars, 0, MAX_POSITION),
                tuple(fields.checked(name, token, 0, n_vocab - 1) for token in ids),
                fields.checked(name, start, 0, MAX_POSITION),
                fields.checked(name, start_chars, 0, MAX_POSITION),
            )
        )
    return turns


def _check(file: SessionFile, state: SessionState) -> None:
    """Rule D8, as far as the description alone can break it."""

    def fail(field: str, value: Any, limit: Any) -> None:
        file.fail("D8", "the description of the session contradicts itself", field, value, limit, 96)

    n_messages, length, n_chars = len(state.messages), state.sequence.length, len(state.text or "")
    if state.dropped > n_messages:
        fail("dropped", state.dropped, f"up to {n_messages}, the number of messages")
    if state.sequence.n_exact > length:
        fail("sequence.n_exact", state.sequence.n_exact, f"up to {length}, the length")
    before = Turn(-1, -1, 0, (), 0, 0)
    for i, turn in enumerate(state.turns):
        if not before.message < turn.message < n_messages or turn.start < before.start or turn.length > length:
            fail(f"turns[{i}]", (turn.message, turn.length, turn.start), f"ascending, below {n_messages} and {length}")
        if state.text is not None and turn.length >= 0 and not turn.chars <= turn.start_chars <= n_chars:
            fail(f"turns[{i}]", (turn.chars, turn.start_chars), f"ascending, up to {n_chars} characters")
        before = turn
