"""`ToolReader`: calls of tools taken out of an answer while it comes.

Text outside of calls goes on as it comes, but for what could still begin a call and white space before it. What turns
out to be no call (JSON that is broken or does not end, a name that is no tool) is text after all: nothing is lost. The
result does not depend on how the text is cut into tokens.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from typing import Any, Protocol

from edgellm.results import ToolCall
from edgellm.toolcalls.formats import ToolFormat
from edgellm.toolcalls.json_end import JsonEnd, parse

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ID = re.compile(r"[0-9A-Za-z]{9}")
_SURROGATES = re.compile("[\ud800-\udfff]")
MAX_CALLS = 128


class Vocabulary(Protocol):
    """What of `edgellm.Tokenizer` is needed."""

    def id_of(self, piece: str) -> int | None: ...
    def is_control(self, token: int) -> bool: ...


class ToolReader:
    """Reads one answer. `calls` are those that were found.

    Where the vocabulary has a mark as a control token, only that token counts, never its spelling. Control tokens have
    no text, so each stands in the buffer as one lone surrogate, which no decoded text contains.
    """

    def __init__(self, form: ToolFormat, names: Collection[str], vocabulary: Vocabulary) -> None:
        self._form, self._names = form, frozenset(names)
        self.calls: list[ToolCall] = []
        self._tokens: dict[int, str] = {}  # control token -> its surrogate
        self._open, self._close = self._mark(form.opening, vocabulary), self._mark(form.closing, vocabulary)
        self._marks = [self._mark(mark, vocabulary) for mark in form.marks]
        self._held = ""  # not shown and not understood yet
        self._space = ""  # white space that is shown when text follows
        self._begun = False  # text was there since the beginning, or the last call
        self._ids: set[str] = set()
        self._body: _Body | None = None  # of a call that may be coming

    def _mark(self, text: str, vocabulary: Vocabulary) -> str:
        token = vocabulary.id_of(text) if text else None
        if token is None or not vocabulary.is_control(token):
            return text
        return self._tokens.setdefault(token, chr(0xD800 + len(self._tokens)))

    def push(self, text: str, token: int | None = None) -> str:
        """Takes the text that a token has completed; returns what may be shown."""
        self._held += text + ("" if token is None else self._tokens.get(token, ""))
        return self._work(final=False)

    def flush(self) -> str:
        """Ends the answer; returns what was held back and is no call."""
        return self._work(final=True)

    def _work(self, final: bool) -> str:
        shown: list[str] = []
        while (step := self._outside(final) if self._body is None else self._inside(final)) is not None:
            shown.append(step)
        if final and (self._begun or not self.calls):
            shown.append(self._space)
        return _SURROGATES.sub("", "".join(shown)) if self._tokens else "".join(shown)

    # ---- text outside of calls

    def _outside(self, final: bool) -> str | None:
        """One step: what may be shown. None: more text is needed."""
        text = self._held.lstrip()
        self._space += self._held[: len(self._held) - len(text)]
        self._held = text
        if not text:
            return None
        if text.startswith(self._open):
            return self._begin(self._open)
        if not self._begun:
            if self._form.bare and text[0] == "{":
                return self._begin("")
            if self.calls and self._form.bare and text[0] in ";,":  # between calls
                self._space, self._held = self._space + text[0], text[1:]
                return ""
            if self.calls and self._close and text.startswith(self._close):
                self._space, self._held = "", text[len(self._close) :]
                return ""
            if self.calls and self._close.startswith(text) and not final:
                return None
        at = text.find(self._open)
        end = at if at >= 0 else len(text) - (0 if final else _overlap(text, self._open))
        plain, space = text[:end].rstrip(), self._space
        if not plain:
            return None
        self._held, self._space, self._begun = text[len(plain) :], "", True
        return space + plain

    def _begin(self, opening: str) -> str:
        """A call may be coming."""
        self._held = self._held[len(opening) :]
        self._body = _Body(self._form, self._marks, opening)
        return ""

    # ---- what may be a call

    def _inside(self, final: bool) -> str | None:
        body = self._body
        assert body is not None
        value = body.value(self._held, final)
        if value is _MORE:
            return None
        text, self._held, self._body = self._held[: body.length], self._held[body.length :], None
        found, space = self._calls_of(body, value), self._space
        self.calls += found
        self._space, self._begun = "", not found
        return "" if found else space + body.opening + text  # it is text after all

    def _calls_of(self, body: _Body, value: Any) -> list[ToolCall]:
        """The calls that a JSON value is; none where one of them is none."""
        if body.name:
            value = {"name": body.name, "arguments": value, "id": body.call_id}
        items = value if isinstance(value, list) and self._form.named else [value]
        found = [call for item in items if (call := self._call(item)) is not None]
        return found if len(found) == len(items) and len(self.calls) + len(found) <= MAX_CALLS else []

    def _call(self, value: Any) -> ToolCall | None:
        if not isinstance(value, dict):
            return None
        name, given = value.get("name"), value.get("arguments", value.get("parameters"))
        if isinstance(given, str):  # some models write the arguments as JSON in a text
            given = parse(given)
        given = {} if given is None else given
        if not isinstance(name, str) or name not in self._names or not isinstance(given, dict):
            return None
        call_id = value.get("id")
        if not isinstance(call_id, str) or not _ID.fullmatch(call_id) or call_id in self._ids:
            call_id = new_id()
        self._ids.add(call_id)
        return ToolCall(call_id, name, given)


_MORE = object()
_NO_CALL = object()
_MAX_HEAD = 512  # characters between an opening and its JSON


class _Body:
    """What follows an opening: JSON, or (`named`) a name and then JSON. `length`: how much of the text it is."""

    def __init__(self, form: ToolFormat, marks: list[str], opening: str) -> None:
        self.opening, self.length, self.name, self.call_id = opening, 0, "", ""
        self._form, self._marks = form, marks
        self._start = 0  # of the JSON
        self._json: JsonEnd | None = None

    def value(self, text: str, final: bool) -> Any:
        """The JSON value in `text`, all behind the opening; `_NO_CALL` where there can be none, `_MORE` if it has not
        all come. What it says depends on no more of the text than it takes."""
        if self._json is None:
            start = self._find_json(text)
            if start < 0:
                too_long = len(text) >= _MAX_HEAD
                self.length = 0 if too_long else len(text)
                return _NO_CALL if too_long or final else _MORE
            self._start, self._json = start, JsonEnd(start)
        whole = self._json.found(text)
        self.length = self._json.at
        if not whole:
            return _NO_CALL if self._json.broken or final else _MORE
        value = parse(text[self._start : self.length])
        return _NO_CALL if value is None else value

    def _find_json(self, text: str) -> int:
        """Where the JSON begins, or at least what should be some; -1: not here yet."""
        start = len(text) - len(text.lstrip())
        if start >= min(len(text), _MAX_HEAD):
            return -1
        if not self._form.named or text[start] in "[{":
            return start
        at = text.find("{", start, _MAX_HEAD)
        if at >= 0:
            self._read_name(text[start:at])
        return at

    def _read_name(self, head: str) -> None:
        """`name[ARGS]` or `name[CALL_ID]id[ARGS]`."""
        id_mark, args_mark = self._marks
        before, _, _ = head.partition(args_mark)
        name, _, call_id = before.partition(id_mark)
        self.name, self.call_id = name.strip() or "?", call_id.strip()


def new_id() -> str:
    """A fresh id of a call: nine letters and digits, which is what Mistral's templates insist on."""
    return "".join(_ALPHABET[byte % len(_ALPHABET)] for byte in os.urandom(9))


def _overlap(text: str, mark: str) -> int:
    """Length of the longest beginning of `mark` that `text` ends with."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:n])), 0)
