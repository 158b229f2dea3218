"""What a call gives back: frozen records that hold everything one may want to know about it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

FinishReason = Literal["stop", "length", "tool_calls", "cancelled", "timeout"]


@dataclass(frozen=True)
class Usage:
    """Token counts of one call."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Stats:
    """Timings of one call (seconds; tokens per second) and what ran it.

    `ttft` is the time from the start of the work to the first token. `prompt_tps` counts the prompt tokens that were
    worked on, without those that were still in the cache; `generation_tps` counts the tokens after the first. Both are
    0.0 where there was nothing to measure. `peak_rss` is the most memory that this process has ever had resident, in
    bytes, mapped files included; 0 where the system does not say. `draft_tokens` were guessed and checked beside
    another token in one pass, `draft_accepted` of them came true; `draft_gain` says how many times faster that made the
    passes of the answer (1.0: no guesses, or nothing to compare with). `drafts` has (source, tokens checked, tokens
    that came true) for each source of guesses: "suffix", "self", ...
    """

    ttft: float
    prompt_seconds: float
    prompt_tps: float
    generation_seconds: float
    generation_tps: float
    passes: int
    threads: int
    backend: str
    isa: str
    peak_rss: int = 0
    draft_tokens: int = 0
    draft_accepted: int = 0
    draft_gain: float = 1.0
    drafts: tuple[tuple[str, int, int], ...] = ()


@dataclass(frozen=True)
class Context:
    """The context window after a call, in tokens.

    `used` of `n_ctx` hold the text that the model still sees, `reused` of the prompt's were in the cache already.
    `dropped` were left out of the prompt or have left the window since the text began; `policy` says by which rule
    ("error", "sink", "shift", "drop-turns": see `load`).
    """

    used: int
    n_ctx: int
    reused: int
    dropped: int = 0
    policy: str = "error"


@dataclass(frozen=True)
class Event:
    """A piece of a streamed answer: whole characters of `text`, and the id of the token that completed it.

    `token` is None for the text that was held back (as a possible stop string) and comes out at the end.
    """

    text: str
    token: int | None


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool that the model asks for: `arguments` as the model gave them, out of JSON; nothing ran it yet."""

    id: str
    name: str
    arguments: dict[str, Any]

    def to_message(self) -> dict[str, Any]:
        """An item of `tool_calls` of a chat message, in OpenAI's shape: the arguments are JSON text."""
        arguments = json.dumps(self.arguments, ensure_ascii=False)
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": arguments}}


@dataclass(frozen=True)
class Result:
    """A finished answer.

    `token_ids` are all ids the model chose, an end token included. `finish_reason` is "stop" (end token or stop
    string), "length" (`max_tokens` or the context window is full), "tool_calls" (the model asks for tools to be
    called: `tool_calls`), "cancelled" (stopped from outside, text kept) or "timeout" (text kept).
    `seed` reproduces the answer when it is given to the same call.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    stats: Stats
    context: Context
    seed: int
    tool_calls: tuple[ToolCall, ...] = ()

    @property
    def message(self) -> dict[str, Any]:
        """The answer as a chat message in OpenAI's shape, ready to be appended to the list of messages."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.tool_calls:
            message["tool_calls"] = [call.to_message() for call in self.tool_calls]
        return message

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain types, for JSON."""
        from dataclasses import asdict

        out = asdict(self)
        out["token_ids"] = list(self.token_ids)
        out["tool_calls"] = list(out["tool_calls"])
        return out


@dataclass(frozen=True)
class Progress:
    """How far a long piece of work is: `done` of `total` `unit`s (total 0: not known)."""

    stage: str
    done: int
    total: int
    unit: str = "bytes"
