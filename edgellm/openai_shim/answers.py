"""`Answers`: the choices of one request, made one after the other, whole or as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from edgellm.errors import InvalidArgumentError
from edgellm.openai_shim.records import Record, usage_of
from edgellm.sampling.logprobs import LogprobRecorder, TokenLogprob

if TYPE_CHECKING:
    from types import TracebackType

    from edgellm.results import Event, Result
    from edgellm.stream import Stream

# (options) -> the running answer
Start = Callable[[dict[str, Any]], "Stream"]


class Answers:
    """`n` answers to each of `starts`. Choice `i` of `n` has the seed `seed + i`, where a seed was given."""

    def __init__(self, starts: list[Start], n: int, options: dict[str, Any], n_top: int | None) -> None:
        self._starts, self._n, self._options, self._n_top = starts, n, options, n_top
        self.results: list[Result] = []
        self.recorder: LogprobRecorder | None = None  # of the running answer

    def begin(self) -> Iterator[Stream]:
        """The answers, each begun when it is asked for. Read one to its end, then call `end`, before the next."""
        for start in self._starts:
            for i in range(self._n):
                options = dict(self._options)
                if options.get("seed") is not None:
                    options["seed"] += i
                if self._n_top is not None:
                    self.recorder = LogprobRecorder(self._n_top)
                    options["processors"] = (self.recorder, *options.get("processors", ()))
                yield start(options)

    def end(self, stream: Stream) -> tuple[Result, list[TokenLogprob] | None]:
        """The result of an answer and, where they are wanted, its logprobs."""
        result = stream.result
        self.results.append(result)
        return result, None if self.recorder is None else self.recorder.tokens(result.token_ids)

    def usage(self) -> dict[str, Any]:
        """Of all answers so far; the `n` answers to one prompt read it once."""
        each = [usage_of(self.results[i : i + self._n]) for i in range(0, len(self.results), self._n)]
        details = {"cached_tokens": sum(use["prompt_tokens_details"]["cached_tokens"] for use in each)}
        names = ("prompt_tokens", "completion_tokens", "total_tokens")
        return {**{name: sum(use[name] for use in each) for name in names}, "prompt_tokens_details": details}


class ChunkStream:
    """Chunks as they come: iterate over it. `close()`, or leaving a `with` block, cancels what is still running."""

    def __init__(
        self,
        answers: Answers,
        piece: Callable[[int, Event], Record | None],
        closing: Callable[[int, Result, list[TokenLogprob] | None], list[Record]],
        usage: Callable[[dict[str, Any]], Record] | None,
    ) -> None:
        self._answers, self._piece, self._closing, self._usage = answers, piece, closing, usage
        self._running: Stream | None = None
        self._begin = answers.begin()
        self._closed = False
        self._next()  # so that what is wrong is said at once
        self._chunks = self._all()

    def _next(self) -> None:
        self._running = next(self._begin, None)

    def _all(self) -> Iterator[Record]:
        index = 0
        while (stream := self._running) is not None:
            for event in stream:
                chunk = self._piece(index, event)
                if chunk is not None:
                    yield chunk
            yield from self._closing(index, *self._answers.end(stream))
            index += 1
            self._next()
        if self._usage is not None:
            yield self._usage(self._answers.usage())

    def __iter__(self) -> Iterator[Record]:
        return self

    def __next__(self) -> Record:
        if self._closed:
            raise StopIteration
        return next(self._chunks)

    def close(self) -> None:
        """Cancel the answer that is being made."""
        self._closed = True
        if self._running is not None:
            self._running.cancel()

    def __enter__(self) -> ChunkStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def checked_top(wanted: Any, n_top: Any) -> int | None:
    """How many of the most probable tokens are wanted beside each one; None: no logprobs.

    Raises InvalidArgumentError.
    """
    if not wanted:
        if n_top:
            raise InvalidArgumentError("top_logprobs goes with logprobs=True")
        return None
    LogprobRecorder(n_top or 0)  # it knows the limits
    return int(n_top or 0)
