"""How probable the model found each token of an answer: log-softmax of its own logits, before anything changed them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgellm.errors import InvalidArgumentError

MAX_TOP = 1000


@dataclass(frozen=True)
class TokenLogprob:
    """One chosen token with its natural logarithm of probability, and the most probable ones, best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class LogprobRecorder:
    """A `Processor` that changes nothing: after the answer, `tokens(result.token_ids)` says how probable each was.

    Give it first, so that it sees what the model said. `n_top`: how many of the most probable tokens to note, 0 to
    1000. One object serves one answer. Raises InvalidArgumentError.
    """

    def __init__(self, n_top: int = 0) -> None:
        if isinstance(n_top, bool) or not isinstance(n_top, int) or not 0 <= n_top <= MAX_TOP:
            raise InvalidArgumentError(f"the number of top logprobs must be 0 to {MAX_TOP}, not {n_top!r}")
        self._n_top = n_top
        self._row: np.ndarray | None = None  # float64 (n_vocab,): log-softmax where the next token is chosen
        self._noted: list[TokenLogprob] = []

    def __call__(self, ids: Sequence[int], logits: np.ndarray) -> None:
        if self._row is not None:
            self._noted.append(self._entry(ids[-1], self._row))
        self._row = log_softmax(logits)

    def tokens(self, token_ids: Sequence[int]) -> list[TokenLogprob]:
        """Entries of the first tokens of an answer, whose ids are given."""
        if self._row is not None and len(self._noted) < len(token_ids):
            self._noted.append(self._entry(token_ids[len(self._noted)], self._row))
        return self._noted[: len(token_ids)]

    def _entry(self, token: int, row: np.ndarray) -> TokenLogprob:
        n = min(self._n_top, len(row))
        likely = np.argpartition(-row, n - 1)[:n] if 0 < n < len(row) else np.arange(n)
        best: list[int] = sorted(likely.tolist(), key=lambda i: (-row[i], i))
        return TokenLogprob(token, float(row[token]), tuple((i, float(row[i])) for i in best))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural logarithms of the probabilities, float64, of logits (..., n_vocab): x - log(sum(exp(x)))."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted
