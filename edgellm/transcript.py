"""A transcript: what was said in a session, and which token ids come of it.

The cache of a session holds a text: what the template made of the messages, with the answers as the model spelled them.
A new question is rendered with all messages before it; where that begins with the text that the cache holds, only the
rest is new. Where it does not (a template that takes thoughts out of old answers, or trims them), all of it becomes
ids, and what they have in common with the cached ones stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgellm.errors import ContextOverflowError, InvalidArgumentError, one_line
from edgellm.results import Result
from edgellm.tokenizers import Tokenizer
from edgellm.tokenizers.tokenizer import clean_text
from edgellm.turns import (
    Parts,
    Render,
    common_prefix,
    cut,
    first_question,
    question_header,
    question_starts,
    text_of,
    token_offsets,
)


@dataclass(frozen=True)
class Turn:
    """Where one question and its answer begin.

    `message`: index of the question. `length`, `chars`, `waiting`: positions in the cache, characters of its text, and
    ids chosen but not in the cache, before the question came (length -1: not known, the cache was made anew since).
    `start`, `start_chars`: positions and characters before the turn itself, behind what closes the answer before it
    (start -1: not in the cache, or it cannot be seen where; only `drop-turns` asks).
    """

    message: int
    length: int
    chars: int
    waiting: tuple[int, ...]
    start: int
    start_chars: int


@dataclass(frozen=True)
class Cached:
    """What a sequence holds: `ids` of the tokens that are seen; of these the first `keep`, the head, stand at positions
    0 .. keep - 1, the others `dropped` positions further than they stand in `ids`."""

    ids: Sequence[int] = ()
    keep: int = 0
    dropped: int = 0
    can_rewind: Callable[[int], bool] = lambda n: n == 0

    @property
    def length(self) -> int:
        """Position of the next token."""
        return len(self.ids) + self.dropped

    def position(self, n: int) -> int:
        """Position behind the first `n` of `ids`."""
        return n if n <= self.keep else n + self.dropped


@dataclass(frozen=True)
class Prompt:
    """What a question adds: the cache is rewound to position `base`, then `ids` follow; -1: they are all of it.

    `keep`: tokens before the first turn, never to be dropped. `text`: what the cache then holds. `turns`: of all
    questions, the new one last. `first`: the first message that is in the text; `gone`: tokens of those before it.
    """

    messages: list[dict[str, Any]]
    base: int
    ids: list[int]
    keep: int
    text: str
    turns: list[Turn]
    first: int
    gone: int


class Transcript:
    """Messages, and the text and ids that they are in the cache.

    `render` is the chat template; None: texts simply follow each other. `messages` are all that were said, from `first`
    on they count. Errors of templates pass through; nothing changes until `accept`.
    """

    def __init__(self, tokenizer: Tokenizer, render: Render | None, system: str | None = None) -> None:
        self.tokenizer, self.system = tokenizer, system
        self.is_chat = render is not None
        self._render = render if render is not None else _joined
        self._header: str | None = None
        self._header_known = False
        self.messages: list[dict[str, Any]] = []
        self.turns: list[Turn] = []
        self.first, self.gone = 0, 0  # the first message that counts; tokens that were in those before it
        self.text: str | None = ""  # what the cache holds; None: not known
        self.waiting: list[int] = []  # ids that belong to `text` but are not in the cache yet

    def copy(self, render: Render | None) -> Transcript:
        """One that goes its own way from here on, with a template of its own."""
        other = Transcript(self.tokenizer, render, self.system)
        other.__dict__.update({**self.__dict__, "_render": other._render})
        other.messages, other.turns, other.waiting = [*self.messages], [*self.turns], [*self.waiting]
        return other

    # ---- a question

    def prompt(self, question: list[dict[str, Any]], cached: Cached, n_ctx: int, by_turns: bool) -> Prompt:
        """The ids of `question`, a message or what several tools gave, after what the cache holds.

        `by_turns`: whole turns can be dropped (`drop-turns`).

        Raises TemplateError, ContextOverflowError (the question alone is too long, with `by_turns`).
        """
        parts = self._rendered(question, self.first)
        text = text_of(parts)
        if self.text is not None and text.startswith(self.text) and bool(self.text) == bool(cached.length):
            return self._appended(question, parts, text, cached, by_turns)
        return self._anew(question, parts, cached, n_ctx, by_turns)

    def _rendered(self, question: list[dict[str, Any]], first: int) -> Parts:
        return self._render([*self._opening(), *self.messages[first:], *question], True)

    def _opening(self) -> list[dict[str, Any]]:
        return [{"role": "system", "content": self.system}] if self.system else []

    def _appended(
        self, question: list[dict[str, Any]], parts: Parts, text: str, cached: Cached, by_turns: bool
    ) -> Prompt:
        begun, length = len(self.text or ""), cached.length
        rest = cut(parts, begun)
        ids = self._encode(rest, not begun)
        before = self.waiting
        bos = self._bos(ids) if not begun else []
        start, start_chars = -1, begun
        if by_turns and begins_turn(question[0]):
            header = self.header()
            if not begun:
                start_chars = first_question(self._render, [*self._opening(), question[0]], header)
            else:
                start_chars = begun + next(iter(question_starts(rest, header)), 0)
            start = token_offsets(rest, ids, [start_chars - begun], self._encode, not begun)[0]
            start += length + len(before) + len(bos)
        turn = Turn(len(self.messages), length, begun, tuple(before), start, start_chars)
        turns = [*self.turns, turn]
        return Prompt(question, length, [*before, *bos, *ids], max(start, 0), text, turns, self.first, self.gone)

    def _anew(self, question: list[dict[str, Any]], parts: Parts, cached: Cached, n_ctx: int, by_turns: bool) -> Prompt:
        first, gone = self.first, self.gone
        ids, n_bos = self._all_ids(parts)
        while by_turns and len(ids) > n_ctx:
            later = [i for i, said in self._questions(question) if i > first and begins_turn(said)]
            if not later:
                raise ContextOverflowError(len(ids), n_ctx)
            first = later[0]
            parts, before = self._rendered(question, first), len(ids)
            ids, n_bos = self._all_ids(parts)
            gone += before - len(ids)
        same = common_prefix(cached.ids, ids[:-1])  # one token is run at least: its logits are wanted
        base = cached.position(same)
        if same < max(1, cached.keep) or not cached.can_rewind(base):
            same, base = 0, -1
        turns, keep = [Turn(i, -1, 0, (), -1, 0) for i, _ in self._questions(question)], 0
        if by_turns:
            starts = self._starts(question, parts, ids, n_bos, first)
            keep = starts[0][0]
            if same > cached.keep:  # what is behind the head stands further in the cache
                starts = [(n + cached.dropped if n >= cached.keep else n, at) for n, at in starts]
            for i, (start, chars) in self._placed(question, starts, first):
                turns[i] = replace(turns[i], start=start, start_chars=chars)
        return Prompt(question, base, ids[same:], keep, text_of(parts), turns, first, gone)

    def _questions(self, question: list[dict[str, Any]]) -> list[tuple[int, dict[str, Any]]]:
        """(index, first message) of all questions, a new one last."""
        return [
            *((turn.message, self.messages[turn.message]) for turn in self.turns),
            (len(self.messages), question[0]),
        ]

    def _placed(
        self, question: list[dict[str, Any]], starts: list[tuple[int, int]], first: int
    ) -> list[tuple[int, tuple[int, int]]]:
        """(number of the turn, its start) for turns that others may be dropped up to.

        What tools gave belongs to the turn of its question, though some templates write it as one. Starts are given out
        from the last one back: the text may show less than there are.
        """
        questions = self._questions(question)
        begin = sum(i < first for i, _ in questions)
        behind = range(begin + 1, len(questions))
        begins = {i for i in behind if begins_turn(questions[i][1])}
        seen = behind if len(starts) - 1 > len(begins) else sorted(begins)
        placed = [*zip(reversed(seen), reversed(starts[1:]), strict=False), (begin, starts[0])]
        return [(i, start) for i, start in placed if i in begins or i == begin]

    def _all_ids(self, parts: Parts) -> tuple[list[int], int]:
        """Ids of a whole text, and how many of them no part of it spells (the one that begins a text)."""
        ids = self._encode(parts, True)
        bos = self._bos(ids)
        return bos + ids, len(bos)

    def _starts(
        self, question: list[dict[str, Any]], parts: Parts, ids: list[int], n_bos: int, first: int
    ) -> list[tuple[int, int]]:
        """(ids, characters) before each turn of a text that was rendered from message `first` on, as far as it shows
        where they begin."""
        header = self.header()
        opening = [*self._opening(), *self.messages[first:], *question][: 1 + bool(self.system)]
        begin = first_question(self._render, opening, header)
        chars = [begin, *(start for start in question_starts(parts, header) if start > begin)]
        offsets = token_offsets(parts, ids[n_bos:], chars, self._encode, True)
        return [(n + n_bos, at) for n, at in zip(offsets, chars, strict=True)]

    def header(self) -> str | None:
        """What the template writes in front of a question."""
        if not self._header_known:
            self._header, self._header_known = question_header(self._render), True
        return self._header

    # ---- its answer

    def accept(self, prompt: Prompt, result: Result, stop_ids: frozenset[int], first: int) -> int:
        """Take question and answer in. How many ids of the answer may stay in the cache, of those that are there.

        `first`: the position at which the tail of the sequence now begins (0: nothing was dropped).
        """
        said = [*result.token_ids]
        if said and said[-1] in stop_ids:
            said.pop()
        kept, rest = self._agreeing(said, result.text)
        in_cache = min(kept, max(0, len(result.token_ids) - 1))  # the last one that was chosen has not been run
        self.messages += [*prompt.messages, result.message]
        self.turns, self.first, self.gone = prompt.turns, prompt.first, prompt.gone
        self.text = prompt.text + result.text
        self.waiting = said[in_cache:kept] + self.tokenizer.encode(rest, False, at_start=False)
        if first:
            self._drop(first)
        return in_cache

    def _agreeing(self, ids: list[int], text: str) -> tuple[int, str]:
        """(n, what they leave of `text`): the most of `ids` that spell a beginning of `text`.

        All of them and nothing, but where a stop string was taken out of the text or half a character was replaced.
        """
        data, at, n, matched = text.encode("utf-8", "replace"), 0, 0, 0
        for i, token in enumerate(ids):
            piece = self.tokenizer.token_bytes(token)
            if not at and not data.startswith(piece):
                piece = self.tokenizer.without_prefix(token, piece)  # the space in front of a text is not shown
            if not data.startswith(piece, at):
                break
            at += len(piece)
            if at == len(data) or data[at] & 0xC0 != 0x80:  # no character goes on here
                n, matched = i + 1, at
        return n, data[matched:].decode()

    def _drop(self, first: int) -> None:
        """Turns that begin before position `first` have left the cache."""
        known = [turn for turn in self.turns if turn.start >= 0]
        gone = [turn for turn in known if turn.start < first]
        if not gone or len(gone) == len(known) or self.text is None:
            return
        begin = known[len(gone)]  # of what stays
        gap = begin.start_chars - gone[0].start_chars
        self.text = self.text[: gone[0].start_chars] + self.text[begin.start_chars :]
        self.first, self.gone = begin.message, self.gone + begin.start - gone[0].start
        for i, turn in enumerate(self.turns):
            if turn.message < begin.message:
                self.turns[i] = replace(turn, length=-1, start=-1)
            else:
                length, chars = (-1, 0) if turn is begin else (turn.length, turn.chars - gap)
                self.turns[i] = replace(turn, length=length, chars=chars, start_chars=turn.start_chars - gap)

    def undo(self) -> Turn | None:
        """Take the last question and its answer out; its turn, or None where there is none.

        The caller rewinds the cache to `Turn.length`, or calls `forget`.
        """
        if not self.turns:
            return None
        turn = self.turns.pop()
        del self.messages[turn.message :]
        self.first = min(self.first, len(self.messages))
        if not self.messages:
            self.text, self.waiting = "", []
        elif turn.length < 0 or self.text is None:
            self.forget()
        else:
            self.text, self.waiting = self.text[: turn.chars], [*turn.waiting]
        return turn

    def forget(self) -> None:
        """What the cache holds is not known any more."""
        self.text, self.waiting = None if self.messages else "", []
        self.turns = [replace(turn, length=-1) for turn in self.turns]

    # ---- ids

    def _encode(self, parts: Parts, at_start: bool) -> list[int]:
        return self.tokenizer.encode_parts(parts, at_start=at_start)

    def _bos(self, ids: list[int]) -> list[int]:
        """The token that begins a text, where the file asks for it and a template has not written it."""
        bos = self.tokenizer.bos_id
        return [bos] if self.tokenizer.add_bos and bos is not None and ids[:1] != [bos] else []


def _joined(messages: list[dict[str, Any]], add_generation_prompt: bool) -> Parts:
    """Without a template texts follow each other."""
    return [(str(message["content"]), False) for message in messages]


def begins_turn(message: Mapping[str, Any]) -> bool:
    """Whether a question begins a turn; what a tool gave goes on with one."""
    return bool(message["role"] != "tool")


def plain_question(question: Any) -> list[dict[str, Any]]:
    """The messages of a question: a text, a message, or several that tools gave. Raises InvalidArgumentError."""
    if isinstance(question, str):
        question = {"role": "user", "content": question}
    if isinstance(question, Mapping):
        return [plain_message(question)]
    if not isinstance(question, Sequence) or not question:
        raise InvalidArgumentError("a question must be a text, a message, or a list of messages of the role 'tool'")
    messages = [plain_message(message) for message in question]
    if len(messages) > 1 and any(begins_turn(message) for message in messages):
        raise InvalidArgumentError("several messages at once must all be of the role 'tool'")
    return messages


def plain_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a message out of plain types, fit for JSON. Raises InvalidArgumentError."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or "content" not in message:
        raise InvalidArgumentError("a message must be a text, or a mapping with 'role' and 'content'")
    plain: dict[str, Any] = _plain_value(message, 0)
    return plain


def _plain_value(value: Any, depth: int) -> Any:
    if depth > 50:
        raise InvalidArgumentError("a message may be nested 50 levels deep, not more")
    if isinstance(value, str):
        return clean_text(value)
    if value is None or isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {clean_text(key): _plain_value(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_value(item, depth + 1) for item in value]
    raise InvalidArgumentError(f"a message must be made of texts, numbers, lists and mappings, not {one_line(value)}")
