"""Drafts out of passes: something smaller than the model (some of its layers, another model, a trained head) goes
ahead, and each token is drawn from what it says as the model's own will be.

That means: by the request's own sampler, with the very draw number that the model's token in that place will be drawn
with. The same random number and nearly the same distribution give the same token nearly always ("Coupling without
communication and drafter-invariant speculative decoding", Daliri, Musco, Suresh 2024), and the answer stays the one
that it would be without guesses, token for token, because a guess only counts where the model draws it, too.
"""

from __future__ import annotations

import time
from collections.abc import Container, Sequence
from typing import Protocol

import numpy as np

from edgellm.cache import Sequence as CacheSequence
from edgellm.errors import NonFiniteError
from edgellm.sampling import Sampler
from edgellm.speculate.control import Control
from edgellm.speculate.drafts import Draft, NoDrafts

# Classes of guesses: by how probable the drafter finds the token that it drew, at the sampler's temperature.
_BORDERS = np.array([0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97])
_MIDDLES = (0.12, 0.28, 0.42, 0.58, 0.72, 0.85, 0.93, 0.98)  # how often they come true, if the drafter is the model
_USUAL = 0.78  # how often guesses come true in all where that is so: most of them are found probable


class DraftPasses(Protocol):
    """Something smaller than the model that says what may come next, one pass per token. Used by one answer.

    `source` names it in statistics. `cost` is what a pass of it takes before that was measured, in passes of the model;
    `prior` how often its most probable token is the model's.
    """

    source: str
    cost: float
    prior: float

    def begin(self, ids: Sequence[int]) -> None:
        """An answer begins behind `ids`, prompt and history; nothing is run yet."""
        ...

    def accept(self, tokens: Sequence[int]) -> None:
        """`tokens` stand at the end of the text now. Whatever was drafted and is not among them is forgotten."""
        ...

    def catch_up(self) -> None:
        """Runs what of the text has waited, where that is much (a prompt, say): a pass whose time says nothing of those
        that draft. Raises what `run` does."""
        ...

    def run(self, drafted: Sequence[int]) -> np.ndarray:
        """Logits float32 (n_vocab or more,), valid until the next call, behind the text and `drafted`.

        The first call behind a text drafts nothing, each further one a token more than the one before. Raises
        NonFiniteError, NoDrafts: the draft ends there. Any other error ends the answer, as Cancelled does.
        """
        ...

    def end(self) -> None:
        """The answer is done, or has failed."""
        ...


class DraftMaker(Protocol):
    """Makes the passes for answers; it belongs to an engine, which closes it before its backend."""

    def __call__(self, seq: CacheSequence, cancel: np.ndarray | None) -> DraftPasses:
        """For the answer whose tokens go to `seq`; `cancel` is its flag, int32 (1,)."""
        ...

    def close(self) -> None: ...


class DrawnProposer:
    """A `Proposer` that runs `DraftPasses` and draws from them with `sampler`, the answer's own."""

    def __init__(self, passes: DraftPasses, sampler: Sampler, control: Control, stop_ids: Container[int] = ()) -> None:
        self._passes, self._sampler, self._control, self._stop_ids = passes, sampler, control, stop_ids
        self.source, self.cost = passes.source, passes.cost
        self.priors = tuple(min(0.98, p * passes.prior / _USUAL) for p in _MIDDLES)

    def begin(self, ids: Sequence[int]) -> None:
        self._control.suppose(self.source, self._passes.prior)
        self._passes.begin(ids)

    def accept(self, tokens: Sequence[int]) -> None:
        self._passes.accept(tokens)

    def propose(self, k: int) -> Draft:
        """As many tokens as it pays to draft, `k` at most; one where it does not pay and it is time to look again."""
        control, tokens, classes = self._control, list[int](), list[int]()
        start = time.perf_counter()
        while len(tokens) < k and control.goes_on(self.source, classes):
            try:
                if not tokens:
                    self._passes.catch_up()
                    now = time.perf_counter()
                    control.caught_up(self.source, now - start)
                    start = now
                logits = self._passes.run(tokens)[: self._sampler.n_vocab]
                token = self._sampler.peek(logits, tokens)
            except (NonFiniteError, NoDrafts):  # behind a token that the model would not have said, perhaps
                break
            tokens.append(token)
            classes.append(self._class(logits, token))
            now = time.perf_counter()
            control.drew(self.source, classes[-1], now - start)
            start = now
            if token in self._stop_ids:
                break
        return Draft(tuple(tokens), tuple(classes), self.source, n_passes=len(tokens))

    def end(self) -> None:
        self._passes.end()

    def _class(self, logits: np.ndarray, token: int) -> int:
        """By the probability of `token` for logits (n_vocab,), at the sampler's temperature (1 where it is greedy)."""
        scaled = logits - logits[token]
        if 0.0 < self._sampler.sampling.temperature != 1.0:
            scaled /= np.float32(self._sampler.sampling.temperature)
        with np.errstate(over="ignore"):
            probability = 1.0 / float(np.exp(scaled, out=scaled).sum())
        return int(np.searchsorted(_BORDERS, probability, side="right"))
