"""`Chain`: several proposers: what is free first, and where that promises less, what costs passes."""

from __future__ import annotations

from collections.abc import Sequence

from edgellm.speculate.control import MIN_GAIN, Control
from edgellm.speculate.drafts import NOTHING, Draft, Proposer


class Chain:
    """A `Proposer` made of others, in the order of what their drafts cost. For each step the draft that promises the
    most tokens per time is taken; those that lose are `watched`, to learn from them, too."""

    source = "chain"
    priors: tuple[float, ...] = ()

    def __init__(self, proposers: Sequence[Proposer], control: Control) -> None:
        self.members = tuple(sorted(proposers, key=lambda p: p.cost))
        self.cost = self.members[-1].cost
        self._control = control

    def begin(self, ids: Sequence[int]) -> None:
        for proposer in self.members:
            self._control.begin(proposer)
            proposer.begin(ids)

    def accept(self, tokens: Sequence[int]) -> None:
        for proposer in self.members:
            proposer.accept(tokens)

    def propose(self, k: int) -> Draft:
        control, best, gain = self._control, NOTHING, 0.0
        for proposer in self.members:
            # a draft that does not pay is asked for where there is no other: its proposer knows when to look again
            if gain >= MIN_GAIN and proposer.cost and control.expected(proposer.source) <= gain:
                continue
            draft = proposer.propose(k)
            if draft.tokens and (promise := control.promise(draft)[1]) > gain:
                best, gain = draft.watching(best), promise
            elif draft.tokens:
                best = best.watching(draft)
        return best

    def end(self) -> None:
        for proposer in self.members:
            proposer.end()
