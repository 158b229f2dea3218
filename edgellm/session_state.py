"""What a session file says, as checked values: the description of formats/session.md and back."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from edgellm.cache import Overflow
from edgellm.errors import InvalidArgumentError, one_line
from edgellm.sampling import Sampling
from edgellm.sampling.params import MAX_SEED
from edgellm.sampling.reference import philox
from edgellm.transcript import Turn

if TYPE_CHECKING:
    from edgellm.plan import Plan
    from edgellm.sessionfile import SessionFile

MAX_POSITION = 2**53  # positions that a float64 tells apart
MAX_ITEMS = 10_000_000  # of any list
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Options:
    """How a session's answers are made, where a call does not say otherwise. `sampling.seed` None: `Session.seed`."""

    sampling: Sampling
    max_tokens: int | None = None
    exact: bool = False


def turn_seed(seed: int, n: int) -> int:
    """Seed of answer `n` of a session: the session's own for the first, then 32 bits that follow from it."""
    return seed if n == 0 else philox([n & 0xFFFFFFFF, n >> 32, 0, 1], [seed & 0xFFFFFFFF, seed >> 32])[0]


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
    """What of the sequence is there: fields of `edgellm.cache.SavedSequence`, but those that are not in the text."""

    overflow: Overflow
    length: int
    exact: int
    first: int
    first_id: int
    turns: list[int]


@dataclass(frozen=True)
class SessionState:
    """Everything in a session file but ids and pages. Fields are those of `formats/session.md`."""

    model: ModelMark
    cache: CacheMark
    sequence: SequenceMark
    overflow: Overflow
    options: Options
    system: str | None
    messages: list[dict[str, Any]]
    turns: list[Turn]
    first: int
    gone: int
    text: str | None
    waiting: list[int]
    seed: int
    n_sent: int

    def describe(self) -> dict[str, Any]:
        """As plain types for JSON."""
        sampling = self.options.sampling
        return {
            "model": asdict(self.model),
            "cache": asdict(self.cache),
            "sequence": asdict(self.sequence),
            "overflow": asdict(self.overflow),
            "options": asdict(self.options) | {"sampling": asdict(sampling) | _lists(sampling)},
            "turns": [[t.message, t.length, t.chars, list(t.waiting), t.start, t.start_chars] for t in self.turns],
            **{name: getattr(self, name) for name in _PLAIN},
        }


_LISTS = ("dry_sequence_breakers", "logit_bias", "samplers")
# Fields of Sampling that the first session files did not have: their defaults are what held then.
_LATER = frozenset(
    (
        "top_n_sigma", "xtc_probability", "xtc_threshold", "dry_multiplier", "dry_base", "dry_allowed_length",
        "dry_penalty_last_n", "dynatemp_range", "dynatemp_exponent", "mirostat", "mirostat_tau", "mirostat_eta",
        *_LISTS,
    )
)  # fmt: skip


def _lists(sampling: Sampling) -> dict[str, Any]:
    """The fields that are no numbers, as JSON has them; it has no infinity, so what is banned has the bias false."""
    biases = [[token, False if bias == -math.inf else bias] for token, bias in sampling.biases]
    plain = {name: list(getattr(sampling, name)) for name in ("stop", "dry_sequence_breakers", "samplers")}
    return plain | {"logit_bias": biases}


_PLAIN = ("system", "messages", "first", "gone", "text", "waiting", "seed", "n_sent")


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

    def fail(self, name: str, value: Any, limit: Any) -> NoReturn:
        message = "the description of the session does not say what it must"
        self.file.fail("D5", message, f"{self.where}{name}", one_line(value), limit, 96)

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
        if not isinstance(value, list) or len(value) > MAX_ITEMS:
            self.fail(name, value, f"a list of up to {MAX_ITEMS}")
        return value

    def numbers(self, name: str, low: int, high: int) -> list[int]:
        return [self.checked(name, value, low, high) for value in self.items(name)]

    def inner(self, name: str) -> _Fields:
        return _Fields(self.file, self.take(name), f"{self.where}{name}.")

    def end(self) -> None:
        for name, value in self.left.items():
            self.fail(one_line(name), value, "no such field")


def read_state(file: SessionFile, n_vocab: int) -> SessionState:
    """The description of an open session file, checked by itself (rules D5 and D8). Raises SessionFileError."""
    top = _Fields(file, file.description)
    state = SessionState(
        model=_model(top.inner("model")),
        cache=_cache(top.inner("cache")),
        sequence=_sequence(top.inner("sequence")),
        overflow=_overflow(top.inner("overflow")),
        options=_options(top.inner("options")),
        system=top.maybe_text("system"),
        messages=_messages(top),
        turns=_turns(top, n_vocab),
        first=top.number("first", 0, MAX_ITEMS),
        gone=top.number("gone", 0, MAX_POSITION),
        text=top.maybe_text("text"),
        waiting=top.numbers("waiting", 0, n_vocab - 1),
        seed=top.number("seed", 0, MAX_SEED),
        n_sent=top.number("n_sent", 0, MAX_POSITION),
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
    numbers = {name: fields.number(name, 0, MAX_POSITION) for name in ("length", "exact", "first", "first_id")}
    turns = fields.numbers("turns", 0, MAX_POSITION)
    mark = SequenceMark(overflow=_overflow(fields.inner("overflow")), turns=turns, **numbers)
    fields.end()
    return mark


def _overflow(fields: _Fields) -> Overflow:
    values: dict[str, Any] = {"kind": fields.text("kind"), "n_sinks": fields.number("n_sinks", 0, 2**31 - 1)}
    values |= {name: fields.maybe_number(name, 0, 2**31 - 1) for name in ("window", "keep")}
    fields.end()
    try:
        return Overflow(**values)
    except InvalidArgumentError as error:
        fields.fail("", values, str(error))


def _options(fields: _Fields) -> Options:
    sampling, max_tokens = fields.inner("sampling"), fields.maybe_number("max_tokens", 0, MAX_POSITION)
    exact = fields.take("exact")
    if not isinstance(exact, bool):
        fields.fail("exact", exact, "true or false")
    there = [name for name in Sampling.__dataclass_fields__ if name not in _LATER or name in sampling.left]
    values = {name: sampling.take(name) for name in there}
    sampling.end()
    fields.end()
    for name in ("stop", *_LISTS):
        if not isinstance(values.get(name, []), list):
            sampling.fail(name, values[name], "a list")
    try:
        return Options(Sampling(**values), max_tokens, exact)
    except InvalidArgumentError as error:
        fields.fail("sampling", "not allowed", str(error))


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
                fields.checked(name, message, 0, MAX_ITEMS),
                fields.checked(name, length, -1, MAX_POSITION),
                fields.checked(name, chars, 0, MAX_POSITION),
                tuple(fields.checked(name, token, 0, n_vocab - 1) for token in ids),
                fields.checked(name, start, -1, MAX_POSITION),
                fields.checked(name, start_chars, 0, MAX_POSITION),
            )
        )
    return turns


def _check(file: SessionFile, state: SessionState) -> None:
    """Rule D8, as far as the description alone can break it."""

    def fail(field: str, value: Any, limit: Any) -> None:
        file.fail("D8", "the description of the session contradicts itself", field, value, limit, 96)

    n_messages, length, n_chars = len(state.messages), state.sequence.length, len(state.text or "")
    if state.first > n_messages:
        fail("first", state.first, f"up to {n_messages}, the number of messages")
    if state.text is None and state.waiting:
        fail("waiting", f"{len(state.waiting)} ids", "none where the text is not known")
    before = Turn(-1, -1, 0, (), -1, 0)
    for i, turn in enumerate(state.turns):
        if not before.message < turn.message < n_messages or turn.length > length or turn.start > length:
            fail(f"turns[{i}]", (turn.message, turn.length, turn.start), f"ascending, below {n_messages}, {length}")
        known = state.text is not None and (turn.length >= 0 or turn.start >= 0)
        if known and not max(turn.chars, turn.start_chars) <= n_chars:
            fail(f"turns[{i}]", (turn.chars, turn.start_chars), f"up to {n_chars} characters")
        before = turn
