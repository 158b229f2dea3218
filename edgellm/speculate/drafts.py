"""What a draft is, and what makes drafts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Draft:
    """A guess at the next tokens of a text.

    `classes`: for each token the class of guesses that it belongs to, a small number: `Control` learns for every class
    how often such guesses come true. `source` names the proposer. `probabilities`: how probable the proposer found each
    token, where it drew the token at random (`edgellm.speculate.rejection`); None: it was certain, a point mass.
    """

    tokens: tuple[int, ...]
    classes: tuple[int, ...]
    source: str
    probabilities: tuple[float, ...] | None = None

    def __len__(self) -> int:
        return len(self.tokens)


class Proposer(Protocol):
    """Makes the drafts of one answer. What it proposes changes the speed of the answer and nothing else."""

    source: str
    priors: tuple[float, ...]  # for each class: the share of guesses that may come true, before anything is known

    def begin(self, ids: Sequence[int]) -> None:
        """An answer begins behind `ids`, prompt and history; what was accepted before is forgotten."""
        ...

    def accept(self, tokens: Sequence[int]) -> None:
        """`tokens` stand at the end of the text now."""
        ...

    def propose(self, k: int) -> Draft:
        """Up to `k` tokens (k <= 8) that may come next; none where there is nothing to go by."""
        ...
