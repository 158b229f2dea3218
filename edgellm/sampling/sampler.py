"""`Sampler`: one generation's sampler, with its seed, its count of draws and its recent tokens."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from edgellm.errors import InvalidArgumentError, NonFiniteError
from edgellm.sampling.params import MAX_SEED, Sampling
from edgellm.sampling.recent import RecentTokens
from edgellm.sampling.reference import ReferenceSampler
from edgellm.sampling.tables import TokenTables, token_tables


class _Call(Protocol):
    mu: float  # what Mirostat goes on with: the one thing that a call changes

    def __call__(self, logits: np.ndarray, recent: np.ndarray, seed: int, counter: int, /) -> int: ...


class Sampler:
    """Chooses tokens for one generation. `seed` is the seed in use (drawn at random where the parameters have none).

    Draw number i depends on the seed and i only. `tokenizer` is needed where parameters name tokens by their text.
    `native` False takes the NumPy twin, None the compiled sampler where it is there; both give the same tokens. Raises
    InvalidArgumentError for a bias whose token is not in the vocabulary.
    """

    def __init__(
        self, sampling: Sampling, n_vocab: int, tokenizer: Any = None, *, native: bool | None = None
    ) -> None:
        if n_vocab < 1:
            raise InvalidArgumentError(f"n_vocab must be at least 1, not {n_vocab}")
        self.sampling, self.n_vocab = sampling, n_vocab
        self.seed = int.from_bytes(os.urandom(4), "little") if sampling.seed is None else sampling.seed
        self.n_drawn = 0
        self._recent = RecentTokens(sampling.history)
        self._call = self._pick(token_tables(sampling, n_vocab, tokenizer), native)

    def _pick(self, tables: TokenTables, native: bool | None) -> _Call:
        from edgellm import clib

        if native or (native is None and clib.available()):
            return clib.SampleCall(self.sampling.chain(), self.n_vocab, tables)
        return ReferenceSampler(self.sampling, tables)

    def accept(self, ids: Iterable[int]) -> None:
        """Adds tokens that were not drawn here (the prompt) to what the samplers look back at."""
        tokens = ids if isinstance(ids, Sequence) else list(ids)
        limit = self._recent.limit
        kept = tokens if limit is None else tokens[max(0, len(tokens) - limit) :]
        for token in kept:
            if not 0 <= token < self.n_vocab:
                raise InvalidArgumentError(f"token id {token} is outside the vocabulary (0 to {self.n_vocab - 1})")
        self._recent.extend(kept)

    def sample(self, logits: np.ndarray, history: Sequence[int] | None = None) -> int:
        """The next token for float32 logits (n_vocab,); it is added to the recent tokens.

        `history` replaces the recent tokens that this object keeps: all tokens so far. Raises NonFiniteError where a
        logit is NaN or +infinity, InvalidArgumentError where biases leave nothing to choose from.
        """
        logits = np.ascontiguousarray(logits, dtype=np.float32)
        if logits.shape != (self.n_vocab,):
            raise InvalidArgumentError(f"logits must have the shape ({self.n_vocab},), not {logits.shape}")
        if history is not None:
            self._recent.clear()
            self.accept(history)
        try:
            token = self._call(logits, self._recent.ids, self.seed, self.n_drawn & MAX_SEED)
        except NonFiniteError:
            if self.sampling.logit_bias and (logits < np.inf).all() and (logits > -np.inf).any():
                raise InvalidArgumentError("logit_bias bans every token that could come here; ban fewer") from None
            raise
        self.n_drawn += 1
        self._recent.append(token)
        return token

    def peek(self, logits: np.ndarray, drafted: Sequence[int] = ()) -> int:
        """The token that `sample` would give for float32 logits (n_vocab,) once `drafted` were drawn; nothing changes.

        Exact but for Mirostat, whose surprise at `drafted` is not counted. Raises NonFiniteError.
        """
        recent = self._recent.followed_by(drafted)
        mu = self._call.mu
        try:
            return self._call(np.ascontiguousarray(logits), recent, self.seed, (self.n_drawn + len(drafted)) & MAX_SEED)
        finally:
            self._call.mu = mu
