"""`Sampler`: one generation's sampler, with its seed, its count of draws and its recent tokens."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from edgellm.errors import InvalidArgumentError
from edgellm.sampling import reference
from edgellm.sampling.params import MAX_SEED, Sampling


class Sampler:
    """Chooses tokens for one generation. `seed` is the seed in use (drawn at random where the parameters have none).

    Draw number i depends on the seed and i only. `native` False takes the NumPy twin, None the compiled sampler where
    it is there; both give the same tokens.
    """

    def __init__(self, sampling: Sampling, n_vocab: int, *, native: bool | None = None) -> None:
        if n_vocab < 1:
            raise InvalidArgumentError(f"n_vocab must be at least 1, not {n_vocab}")
        self.sampling, self.n_vocab = sampling, n_vocab
        self.seed = int.from_bytes(os.urandom(4), "little") if sampling.seed is None else sampling.seed
        self.n_drawn = 0
        limit = sampling.repeat_last_n
        self._recent: deque[int] = deque(maxlen=None if limit < 0 else limit)
        self._call = self._pick(native)

    def _pick(self, native: bool | None) -> Callable[[np.ndarray, Sequence[int], int, int], int]:
        from edgellm import clib

        if native or (native is None and clib.available()):
            return clib.SampleCall(self.sampling.chain(), self.n_vocab)
        return lambda logits, recent, seed, counter: reference.sample(self.sampling, logits, recent, seed, counter)

    def accept(self, ids: Iterable[int]) -> None:
        """Adds tokens that were not drawn here (the prompt) to what the penalties look at."""
        tokens = list(ids)
        kept = tokens if self._recent.maxlen is None else tokens[max(0, len(tokens) - self._recent.maxlen) :]
        for token in kept:
            if not 0 <= token < self.n_vocab:
                raise InvalidArgumentError(f"token id {token} is outside the vocabulary (0 to {self.n_vocab - 1})")
        self._recent.extend(kept)

    def sample(self, logits: np.ndarray, history: Sequence[int] | None = None) -> int:
        """The next token for float32 logits (n_vocab,); it is added to the recent tokens.

        `history` replaces the recent tokens that this object keeps: all tokens so far, of which the last
        `repeat_last_n` count. Raises NonFiniteError where a logit is NaN or +infinity.
        """
        logits = np.ascontiguousarray(logits, dtype=np.float32)
        if logits.shape != (self.n_vocab,):
            raise InvalidArgumentError(f"logits must have the shape ({self.n_vocab},), not {logits.shape}")
        if history is not None:
            self._recent.clear()
            n = self._recent.maxlen
            self.accept(history if n is None else history[max(0, len(history) - n) :])  # the tail before any copy
        recent = list(self._recent) if self.sampling.has_penalties else ()
        token = self._call(logits, recent, self.seed, self.n_drawn & MAX_SEED)
        self.n_drawn += 1
        self._recent.append(token)
        return token
