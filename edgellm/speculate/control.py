"""How long a draft to check: what it may bring, by how often such guesses came true, against what a longer pass costs.

A pass over a token and k guesses takes as long as v(k + 1) plain ones and gives one token and as many more as guesses
in a row are right: 1 + a1 + a1 a2 + ..., where a_i is the acceptance of the i-th guess. The k with the most tokens per
time is taken (Leviathan et al. 2023, section 3.5, with an a of its own for each guess). Nothing here changes what is
said.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median

from edgellm.speculate.drafts import Draft

MAX_COLUMNS = 8  # tokens of a pass: the one that was chosen and up to seven guesses
MIN_GAIN = 1.05  # a draft that promises less is not checked
DECAY = 0.98  # what an older guess counts, against the next one of its class
WEIGHT = 4.0  # guesses that a prior counts for
SLOPE = 0.04  # what a column more costs before it was measured, in plain passes
N_TIMES = 9  # of each width, of which the median counts
REFRESH = 16  # plain passes after which their time is looked at again
FRESH = 512  # passes after which the times of a width are forgotten


class Acceptance:
    """For each class of guesses of one proposer: how often they come true, of late."""

    def __init__(self, priors: Sequence[float]) -> None:
        self._priors = tuple(priors)
        self._hits, self._tries = [0.0] * len(priors), [0.0] * len(priors)

    def rate(self, kind: int) -> float:
        """The share of guesses of class `kind` that will come true, 0 to 1."""
        return (self._hits[kind] + WEIGHT * self._priors[kind]) / (self._tries[kind] + WEIGHT)

    def note(self, kind: int, came_true: bool) -> None:
        """A guess was looked at."""
        self._hits[kind] = DECAY * self._hits[kind] + came_true
        self._tries[kind] = DECAY * self._tries[kind] + 1.0

    def fade(self) -> None:
        """Another text begins: what is known counts half."""
        self._hits = [0.5 * n for n in self._hits]
        self._tries = [0.5 * n for n in self._tries]


class PassCosts:
    """What passes of 1 to 8 tokens take, from their times of late."""

    def __init__(self) -> None:
        self._seconds: list[deque[float]] = [deque(maxlen=N_TIMES) for _ in range(MAX_COLUMNS + 1)]
        self._latest = [0] * (MAX_COLUMNS + 1)  # number of the last pass of each width
        self._passes = 0
        self._ratios: list[float] | None = None  # of widths 0 to 8, made when asked for

    def note(self, columns: int, seconds: float) -> None:
        """A pass of so many tokens took `seconds`."""
        self._passes += 1
        self._seconds[columns].append(seconds)
        self._latest[columns] = self._passes
        if columns > 1 or self._passes % REFRESH == 0:
            self._ratios = None

    def plain(self) -> float | None:
        """Seconds of a pass of one token; None before the first."""
        return median(self._seconds[1]) if self._seconds[1] else None

    def ratio(self, columns: int) -> float:
        """What a pass of so many tokens takes, in passes of one."""
        if self._ratios is None:
            self._ratios = self._measured()
        return self._ratios[columns]

    def _measured(self) -> list[float]:
        """Between widths that were measured the cost rises evenly; behind the last it goes on so, or by SLOPE."""
        for n in range(2, MAX_COLUMNS + 1):
            if self._passes - self._latest[n] > FRESH:
                self._seconds[n].clear()
        one = self.plain()
        known = {1: 1.0}
        if one:
            times = {n: median(s) for n, s in enumerate(self._seconds) if s and n > 1}
            known |= {n: max(1.0, seconds / one) for n, seconds in times.items()}
        ratios = [0.0, 1.0]
        for n in range(2, MAX_COLUMNS + 1):
            above = next((m for m in range(n, MAX_COLUMNS + 1) if m in known), None)
            below = max(m for m in known if m < n)
            if above is None:
                slope = max(SLOPE, (known[below] - 1.0) / (below - 1) if below > 1 else 0.0)
                ratios.append(known[below] + slope * (n - below))
            else:
                ratios.append(known[below] + (known[above] - known[below]) * (n - below) / (above - below))
        return ratios


class Control:
    """Decides for one engine; it lives as long as the engine and learns from all its answers."""

    def __init__(self) -> None:
        self.costs = PassCosts()
        self._sources: dict[str, Acceptance] = {}

    def begin(self, source: str, priors: Sequence[float]) -> None:
        """An answer begins, with drafts of a proposer."""
        if source in self._sources:
            self._sources[source].fade()
        else:
            self._sources[source] = Acceptance(priors)

    def length(self, draft: Draft) -> int:
        """How many tokens of a draft are worth checking, 0 to 7."""
        acceptance, costs = self._sources[draft.source], self.costs
        length, best = 0, MIN_GAIN
        chance = tokens = 1.0
        for k, kind in enumerate(draft.classes[: MAX_COLUMNS - 1], 1):
            chance *= acceptance.rate(kind)
            tokens += chance
            gain = tokens / costs.ratio(k + 1)
            if gain > best:
                length, best = k, gain
        return length

    def note(self, draft: Draft, n_true: int, n_seen: int) -> None:
        """Of the first `n_seen` tokens of a draft, `n_true` came true; what stands behind a wrong one says nothing."""
        acceptance = self._sources[draft.source]
        for i, kind in enumerate(draft.classes[: min(n_seen, n_true + 1)]):
            acceptance.note(kind, i < n_true)
