"""Drafts by the model itself, with parts of its layers left out: no second file, and no cache of its own.

A draft pass runs on the model's own sequence, at the positions behind its end. The parts that are kept read the model's
keys and values of the text, and write theirs for the drafted tokens. Nothing of that is committed: the pass that checks
a draft begins at the same position and writes over whatever it reads.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import numpy as np

from edgellm.backends import Backend
from edgellm.cache import Sequence
from edgellm.plan import Plan
from edgellm.speculate.skipping import SkipSet, bytes_read, plan_without
from edgellm.weights import Weights

_FIRST = np.zeros(1, np.int32)  # the outputs of a pass of one token


class LayerDrafts:
    """Makes the passes of answers: a `DraftMaker`. The backend is a sibling of the model's, over the same weights."""

    def __init__(self, backend: Backend, plan: Plan, weights: Weights, skip: SkipSet) -> None:
        partial = plan_without(plan, skip)
        self.cost, self.prior = bytes_read(partial, weights) / max(1, bytes_read(plan, weights)), skip.acceptance
        self.backend = backend.sibling(partial, 1)

    def __call__(self, seq: Sequence, cancel: np.ndarray | None) -> LayerPasses:
        return LayerPasses(self, seq, cancel)

    def close(self) -> None:
        self.backend.close()


class LayerPasses:
    """`DraftPasses` at the end of `seq`."""

    source = "self"

    def __init__(self, drafts: LayerDrafts, seq: Sequence, cancel: np.ndarray | None) -> None:
        self.cost, self.prior = drafts.cost, drafts.prior
        self._backend, self._seq, self._cancel = drafts.backend, seq, cancel
        self._last = 0  # the token that was drawn and is not in the sequence yet

    def begin(self, ids: SequenceOf[int]) -> None:
        pass  # the sequence has them

    def accept(self, tokens: SequenceOf[int]) -> None:
        self._last = tokens[-1]

    def catch_up(self) -> None:
        pass  # the model's own passes have run the text

    def run(self, drafted: SequenceOf[int]) -> np.ndarray:
        """The caller has made sure that there is room (`Sequence.spare`), so nothing is dropped for a draft alone."""
        seq, token = self._seq, drafted[-1] if drafted else self._last
        position = seq.length + len(drafted)
        seq.ensure(position + 1)
        try:
            logits = self._backend.forward(np.array([token], np.int32), position, _FIRST, seq, self._cancel)
        except BaseException:
            seq.rewind(seq.length)
            raise
        row: np.ndarray = logits[0]
        return row

    def end(self) -> None:
        pass
