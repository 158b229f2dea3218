"""`client.chat.completions.create`: answers to messages, OpenAI-shaped."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal, overload

from edgellm.openai_shim.answers import Answers, ChunkStream, Start, checked_top
from edgellm.openai_shim.options import ChatOptions, call_options, n_choices, plain_messages, wants_usage
from edgellm.openai_shim.records import FINISH, Record, head, known

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from edgellm.model import Model
    from edgellm.results import Event, Result
    from edgellm.sampling.logprobs import TokenLogprob

_NAMES = ChatOptions.__optional_keys__
_CALL = "chat.completions.create"


class ChatCompletions:
    """See `edgellm.openai`."""

    def __init__(self, model: Model) -> None:
        self._model = model

    @overload
    def create(self, *, stream: Literal[False] | None = ..., **options: Unpack[ChatOptions]) -> Record: ...
    @overload
    def create(self, *, stream: Literal[True], **options: Unpack[ChatOptions]) -> ChunkStream: ...
    @overload
    def create(self, *, stream: bool | None, **options: Unpack[ChatOptions]) -> Record | ChunkStream: ...

    def create(self, *, stream: bool | None = False, **options: Any) -> Record | ChunkStream:
        """A `chat.completion`, or with `stream=True` an iterable of `chat.completion.chunk`s.

        Raises InvalidArgumentError for an argument that it does not know, and the errors of `Model.chat`.
        """
        given = known(options, _NAMES, _CALL)
        n_top = checked_top(given.get("logprobs"), given.get("top_logprobs"))
        with_usage = wants_usage(given, bool(stream))
        start: Start = partial(_start, self._model, plain_messages(given.get("messages")))
        answers = Answers([start], n_choices(given), call_options(given), n_top)
        if stream:
            return self._stream(answers, with_usage)
        choices = [self._choice(i, *answers.end(running)) for i, running in enumerate(answers.begin())]
        return Record(**head("chatcmpl", "chat.completion", self._model.name), choices=choices, usage=answers.usage())

    def _choice(self, index: int, result: Result, logprobs: list[TokenLogprob] | None) -> dict[str, Any]:
        return {
            "index": index,
            "message": _message(result),
            "logprobs": self._logprobs(logprobs),
            "finish_reason": FINISH[result.finish_reason],
        }

    def _stream(self, answers: Answers, with_usage: bool) -> ChunkStream:
        common = head("chatcmpl", "chat.completion.chunk", self._model.name)
        begun: set[int] = set()

        def chunk(index: int, delta: dict[str, Any], finish: str | None = None, logprobs: Any = None) -> Record:
            if index not in begun:
                begun.add(index)
                delta = {"role": "assistant", **delta}
            choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
            return Record(**common, choices=[choice], **({"usage": None} if with_usage else {}))

        def piece(index: int, event: Event) -> Record | None:
            return chunk(index, {"content": event.text}) if event.text else None

        def closing(index: int, result: Result, logprobs: list[TokenLogprob] | None) -> list[Record]:
            calls = _message(result).get("tool_calls") or []
            deltas = [chunk(index, {"tool_calls": [{"index": i, **call}]}) for i, call in enumerate(calls)]
            return [*deltas, chunk(index, {}, FINISH[result.finish_reason], self._logprobs(logprobs))]

        def usage(use: dict[str, Any]) -> Record:
            return Record(**common, choices=[], usage=use)

        return ChunkStream(answers, piece, closing, usage if with_usage else None)

    def _logprobs(self, found: list[TokenLogprob] | None) -> dict[str, Any] | None:
        if found is None:
            return None
        entries = [
            {**self._entry(one.token, one.logprob), "top_logprobs": [self._entry(*best) for best in one.top]}
            for one in found
        ]
        return {"content": entries, "refusal": None}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        data = self._model.tokenizer.token_bytes(token)
        return {"token": data.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(data)}


def _start(model: Model, messages: list[dict[str, Any]], options: dict[str, Any]) -> Any:
    return model.chat(messages, stream=True, **options)


def _message(result: Result) -> dict[str, Any]:
    """The message of an answer; `content` is None where it only calls tools."""
    message = dict(result.message)
    if message.get("tool_calls"):
        message["content"] = message["content"] or None
    return {"tool_calls": None, "refusal": None, **message}
