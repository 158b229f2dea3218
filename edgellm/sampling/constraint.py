"""What may stand between the model and the choice of a token: constraints and processors of logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from edgellm.errors import InvalidArgumentError, one_line

# Called with the ids so far (prompt and answer) and the logits float32 (n_vocab,), a copy that it changes in place.
Processor = Callable[[Sequence[int], np.ndarray], None]


class Constraint(Protocol):
    """The form that an answer must have: told of each token, it says which ones may come next.

    One object serves one answer, on the worker thread.
    """

    def begin(self, at_start: bool) -> None:
        """Called once, before all else. `at_start`: nothing but control tokens comes before the answer, so its text is
        shown without the space that the tokenizer puts in front of a text."""

    def mask(self) -> np.ndarray:
        """bool (n_vocab,): the tokens that may come next, an end token among them where the text may end here."""

    def accept(self, token: int) -> None:
        """`token`, one of those that the mask allowed, was chosen."""

    @property
    def finished(self) -> bool:
        """Whether the text is whole and nothing can follow: the answer ends, with "stop"."""


def check_processed(process: Processor, logits: np.ndarray) -> None:
    """What is left of logits (n_vocab,) must be something to choose from. Raises InvalidArgumentError."""
    if not (logits < np.inf).all() or not (logits > -np.inf).any():
        name = getattr(process, "__qualname__", type(process).__qualname__)
        raise InvalidArgumentError(
            f"processor {one_line(name)} left a NaN or +infinity, or no finite logit; set those that may not come to "
            "-infinity and leave at least one"
        )
