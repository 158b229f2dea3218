"""What a draft is, and what makes drafts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol


class NoDrafts(Exception):
    """Whatever makes drafts has failed, and makes none for the rest of this answer: the answer goes on without."""


@dataclass(frozen=True)
class Draft:
    """A guess at the next tokens of a text.

    `classes`: for each token the class of guesses that it belongs to, a small number: `Control` learns for every class
    how often such guesses come true. `source` names the proposer, `n_passes` says how many passes of its own it took.
    `probabilities`: how probable the proposer found each token, where it drew the token at random
    (`edgellm.speculate.rejection`); None: it was certain, a point mass.
    """

    tokens: tuple[int, ...]
    classes: tuple[int, ...]
    source: str
    probabilities: tuple[float, ...] | None = None
    n_passes: int = 0
    watched: tuple[Draft, ...] = ()  # other guesses at the same tokens, which are not checked, only compared

    def __len__(self) -> int:
        return len(self.tokens)

    def watching(self, other: Draft) -> Draft:
        """This draft, with another one to compare."""
        return replace(self, watched=(*self.watched, replace(other, watched=()), *other.watched)) if other else self


NOTHING = Draft((), (), "")


class Proposer(Protocol):
    """Makes the drafts of one answer. What it proposes changes the speed of the answer and nothing else.

    `priors`: for each class of its guesses the share that may come true, before anything is known. `cost`: what a token
    of a draft takes to make before that was measured, in passes of the model; 0: next to nothing.
    """

    source: str
    priors: tuple[float, ...]
    cost: float

    def begin(self, ids: Sequence[int]) -> None:
        """An answer begins behind `ids`, prompt and history; what was accepted before is forgotten."""
        ...

    def accept(self, tokens: Sequence[int]) -> None:
        """`tokens` stand at the end of the text now."""
        ...

    def propose(self, k: int) -> Draft:
        """Up to `k` tokens (k <= 8) that may come next; none where there is nothing to go by."""
        ...

    def end(self) -> None:
        """The answer is done, or has failed."""
        ...
