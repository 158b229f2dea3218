"""`client.completions.create`: texts that go on, in the shape of OpenAI's older interface."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, overload

from edgellm.errors import InvalidArgumentError
from edgellm.openai_shim.answers import Answers, ChunkStream, Start, checked_top
from edgellm.openai_shim.options import TextOptions, call_options, n_choices, wants_usage
from edgellm.openai_shim.records import FINISH, Record, head, known

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from edgellm.model import Model
    from edgellm.results import Event, Result
    from edgellm.sampling.logprobs import TokenLogprob

_NAMES = TextOptions.__optional_keys__
_DEFAULT_TOKENS = 16  # OpenAI's, for this call only


class Completions:
    """See `edgellm.openai`."""

    def __init__(self, model: Model) -> None:
        self._model = model

    @overload
    def create(self, *, stream: Literal[False] | None = ..., **options: Unpack[TextOptions]) -> Record: ...
    @overload
    def create(self, *, stream: Literal[True], **options: Unpack[TextOptions]) -> ChunkStream: ...
    @overload
    def create(self, *, stream: bool | None, **options: Unpack[TextOptions]) -> Record | ChunkStream: ...

    def create(self, *, stream: bool | None = False, **options: Any) -> Record | ChunkStream:
        """A `text_completion`, or with `stream=True` an iterable of them, a piece of text in each.

        `max_tokens` is 16 where it is not given, as there. Raises InvalidArgumentError for an argument that it does not
        know, and the errors of `Model.generate`.
        """
        given = {"max_tokens": _DEFAULT_TOKENS, **known(options, _NAMES, "completions.create")}
        top = given.get("logprobs")
        n_top = None if top is None else checked_top(True, top)
        with_usage = wants_usage(given, bool(stream))
        prompts = _prompts(given.get("prompt"))
        echoes = [self._text(prompt) if given.get("echo") else "" for prompt in prompts]
        starts: list[Start] = [partial(_start, self._model, prompt) for prompt in prompts]
        n = n_choices(given)
        answers = Answers(starts, n, call_options(given), n_top)
        if stream:
            return self._stream(answers, [echo for echo in echoes for _ in range(n)], with_usage)
        choices = []
        for i, running in enumerate(answers.begin()):
            result, logprobs = answers.end(running)
            text = echoes[i // n] + result.text
            choices.append(_choice(i, text, FINISH[result.finish_reason], self._logprobs(logprobs)))
        return Record(**head("cmpl", "text_completion", self._model.name), choices=choices, usage=answers.usage())

    def _stream(self, answers: Answers, echoes: list[str], with_usage: bool) -> ChunkStream:
        common = head("cmpl", "text_completion", self._model.name)
        waiting = dict(enumerate(echoes))  # what goes in front of the first piece of each choice

        def chunk(index: int, text: str, finish: str | None = None, logprobs: Any = None) -> Record:
            choice = _choice(index, waiting.pop(index, "") + text, finish, logprobs)
            return Record(**common, choices=[choice], **({"usage": None} if with_usage else {}))

        def piece(index: int, event: Event) -> Record | None:
            return chunk(index, event.text) if event.text else None

        def closing(index: int, result: Result, logprobs: list[TokenLogprob] | None) -> list[Record]:
            return [chunk(index, "", FINISH[result.finish_reason], self._logprobs(logprobs))]

        def usage(use: dict[str, Any]) -> Record:
            return Record(**common, choices=[], usage=use)

        return ChunkStream(answers, piece, closing, usage if with_usage else None)

    def _text(self, prompt: str | list[int]) -> str:
        return prompt if isinstance(prompt, str) else self._model.detokenize(prompt)

    def _logprobs(self, found: list[TokenLogprob] | None) -> dict[str, Any] | None:
        """The older shape: lists beside each other."""
        if found is None:
            return None
        texts = [self._token(one.token) for one in found]
        offsets = [sum(map(len, texts[:i])) for i in range(len(texts))]
        return {
            "tokens": texts,
            "token_logprobs": [one.logprob for one in found],
            "top_logprobs": [{self._token(token): value for token, value in one.top} for one in found],
            "text_offset": offsets,
        }

    def _token(self, token: int) -> str:
        data: bytes = self._model.tokenizer.token_bytes(token)
        return data.decode("utf-8", "replace")


def _start(model: Model, prompt: str | list[int], options: dict[str, Any]) -> Any:
    return model.generate(prompt, stream=True, **options)


def _choice(index: int, text: str, finish: str | None, logprobs: Any) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}


def _prompts(prompt: Any) -> list[str | list[int]]:
    """One text, several, the ids of one, or of several."""
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, Sequence) and prompt:
        if all(isinstance(item, int) for item in prompt):
            return [list(prompt)]
        if all(isinstance(item, (str, Sequence)) for item in prompt):
            return [item if isinstance(item, str) else list(item) for item in prompt]
    raise InvalidArgumentError("prompt must be a text, a list of texts, token ids, or a list of lists of them")
