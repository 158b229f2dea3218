"""How long a draft to make and to check: what it may bring, by how often such guesses came true, against what it costs.

A pass over a token and k guesses takes as long as v(k + 1) plain ones, the guesses took c each, and both together give
one token and as many more as guesses in a row are right: 1 + a1 + a1 a2 + ..., where a_i is the acceptance of the i-th
guess. The k with the most tokens per time is taken (Leviathan et al. 2023, section 3.5, with an a of its own for each
guess). Nothing here changes what is said.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median

from edgellm.speculate.drafts import Draft, Proposer

MAX_COLUMNS = 8  # tokens of a pass: the one that was chosen and up to seven guesses
MIN_GAIN = 1.05  # a draft that promises less is not checked
DECAY = 0.98  # what an older guess counts, against the next one of its class
WEIGHT = 4.0  # guesses that a prior counts for
SLOPE = 0.04  # what a column more costs before it was measured, in plain passes
N_TIMES = 9  # of each width, of which the median counts
REFRESH = 16  # plain passes after which their time is looked at again
FRESH = 512  # passes after which the times of a width are forgotten
MIX_DECAY = 0.9  # what an older guess counts in the mix of classes
MIX_WEIGHT = 2.0  # guesses that what was supposed of the mix counts for
PROBE_SHARE = 0.005  # of the time of passes that drafts may cost which do not pay, to see whether they do by now


class Acceptance:
    """For each class of guesses of one proposer: how often they come true, of late."""

    def __init__(self, priors: Sequence[float]) -> None:
        self._priors = tuple(priors)
        self._hits, self._tries = [0.0] * len(priors), [0.0] * len(priors)
        self._mix, self._n_mixed = [0.0] * len(priors), 0.0  # of each class, of late; their sum
        self._typical = sum(priors) / max(1, len(priors))

    def rate(self, kind: int) -> float:
        """The share of guesses of class `kind` that will come true, 0 to 1."""
        return (self._hits[kind] + WEIGHT * self._priors[kind]) / (self._tries[kind] + WEIGHT)

    def note(self, kind: int, came_true: bool) -> None:
        """A guess was looked at."""
        self._hits[kind] = DECAY * self._hits[kind] + came_true
        self._tries[kind] = DECAY * self._tries[kind] + 1.0

    def made(self, kind: int) -> None:
        """A guess was made."""
        self._mix = [MIX_DECAY * n for n in self._mix]
        self._mix[kind] += 1.0
        self._n_mixed = MIX_DECAY * self._n_mixed + 1.0

    def typical(self) -> float:
        """The share of guesses that will come true, for one whose class is not known yet."""
        rates = sum(n * self.rate(kind) for kind, n in enumerate(self._mix) if n)
        return (rates + MIX_WEIGHT * self._typical) / (self._n_mixed + MIX_WEIGHT)

    def suppose(self, typical: float) -> None:
        """What `typical` is before any guess was made."""
        self._typical = typical

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
        self.seconds = 0.0  # of all passes
        self._ratios: list[float] | None = None  # of widths 0 to 8, made when asked for

    def note(self, columns: int, seconds: float) -> None:
        """A pass of so many tokens took `seconds`."""
        self._passes += 1
        self.seconds += seconds
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


class DraftCosts:
    """What a proposer's passes take, and how often they may be tried where they do not pay."""

    def __init__(self, guess: float) -> None:
        self._guess = guess  # in plain passes, before any was timed
        self._seconds: deque[float] = deque(maxlen=N_TIMES)
        self._ratio: float | None = None
        self._noted_at = self._next_probe = 0.0  # in seconds of the model's passes

    def note(self, seconds: float, now: float) -> None:
        """A token was drafted in `seconds`, when the model's passes had taken `now` seconds in all."""
        self._seconds.append(seconds)
        self._ratio = None
        self.spend(seconds, now)

    def spend(self, seconds: float, now: float) -> None:
        """So much was spent on drafts: the next one that does not pay has to wait."""
        before = self._next_probe if now == self._noted_at else now  # several tokens of one draft add up
        self._noted_at, self._next_probe = now, before + seconds / PROBE_SHARE

    def ratio(self, plain: float | None) -> float:
        """What a token takes, in passes of the model, one of which takes `plain` seconds."""
        if self._ratio is None:
            if not self._seconds or not plain:
                return self._guess
            self._ratio = median(self._seconds) / plain
        return self._ratio

    def may_probe(self, now: float) -> bool:
        return now >= self._next_probe


class Control:
    """Decides for one engine; it lives as long as the engine and learns from all its answers."""

    def __init__(self) -> None:
        self.costs = PassCosts()
        self._sources: dict[str, Acceptance] = {}
        self._drafting: dict[str, DraftCosts] = {}  # of those whose drafts are not free

    def begin(self, proposer: Proposer) -> None:
        """An answer begins, with drafts of this proposer."""
        source = proposer.source
        if source not in self._sources:
            self._sources[source] = Acceptance(proposer.priors)
            if proposer.cost:
                self._drafting[source] = DraftCosts(proposer.cost)
        elif not proposer.cost:  # what a drafter's probabilities are worth does not hang on the text
            self._sources[source].fade()

    def suppose(self, source: str, share: float) -> None:
        """So often a proposer is right, as long as nothing is known of the classes of its guesses."""
        self._sources[source].suppose(share)

    def expected(self, source: str) -> float:
        """Tokens for the time of a plain pass, with drafts of a proposer, before the draft is made."""
        return self._best(source, [])[1]

    def goes_on(self, source: str, classes: Sequence[int]) -> bool:
        """Whether one more token is worth drafting behind those of a draft, which have these classes. Where drafts do
        not pay one is made now and then, to see whether they do by now."""
        length, gain = self._best(source, classes)
        if gain >= MIN_GAIN:
            return length > len(classes)
        return not classes and self._drafting[source].may_probe(self.costs.seconds)

    def _best(self, source: str, classes: Sequence[int]) -> tuple[int, float]:
        """(length of the best draft that begins with tokens of these classes, its tokens per time of a plain pass)"""
        acceptance, costs = self._sources[source], self.costs
        cost, typical = self._cost(source), acceptance.typical()
        length, best = 0, 0.0
        chance = tokens = 1.0
        for k in range(1, MAX_COLUMNS):
            chance *= acceptance.rate(classes[k - 1]) if k <= len(classes) else typical
            tokens += chance
            gain = tokens / (cost * k + costs.ratio(k + 1))
            if k >= len(classes) and gain > best:
                length, best = k, gain
        return length, best

    def drew(self, source: str, kind: int, seconds: float) -> None:
        """A proposer made a guess of class `kind` in so many seconds."""
        self._sources[source].made(kind)
        self._drafting[source].note(seconds, self.costs.seconds)

    def caught_up(self, source: str, seconds: float) -> None:
        """A proposer has read the text so far, which says nothing of what a guess takes."""
        self._drafting[source].spend(seconds, self.costs.seconds)

    def _cost(self, source: str) -> float:
        """What a token of a draft takes, in plain passes."""
        drafting = self._drafting.get(source)
        return 0.0 if drafting is None else drafting.ratio(self.costs.plain())

    def length(self, draft: Draft) -> int:
        """How many tokens of a draft are worth checking, 0 to 7."""
        return self.promise(draft)[0]

    def promise(self, draft: Draft) -> tuple[int, float]:
        """(how many tokens of a draft are worth checking, 0 to 7; tokens for the time of a plain pass with them).

        What it took to make the draft is spent either way: it counts for both."""
        acceptance, costs = self._sources[draft.source], self.costs
        spent = draft.n_passes * self._cost(draft.source)
        length, best = 0, MIN_GAIN / (1.0 + spent)
        chance = tokens = 1.0
        for k, kind in enumerate(draft.classes[: MAX_COLUMNS - 1], 1):
            chance *= acceptance.rate(kind)
            tokens += chance
            gain = tokens / (spent + costs.ratio(k + 1))
            if gain > best:
                length, best = k, gain
        return length, best if length else 1.0 / (1.0 + spent)

    def note(self, draft: Draft, n_true: int, n_seen: int) -> None:
        """Of the first `n_seen` tokens of a draft, `n_true` came true; what stands behind a wrong one says nothing."""
        acceptance = self._sources[draft.source]
        for i, kind in enumerate(draft.classes[: min(n_seen, n_true + 1)]):
            acceptance.note(kind, i < n_true)


def best_length(acceptance: float, cost: float, slope: float = SLOPE) -> tuple[int, float]:
    """(length of a draft, 1 to 7, tokens for the time of a plain pass) where every guess comes true with probability
    `acceptance` and takes `cost` plain passes, and a column more in a pass takes `slope`."""
    found = {}
    for k in range(1, MAX_COLUMNS):
        tokens = sum(acceptance**i for i in range(k + 1))
        found[k] = tokens / (cost * k + 1.0 + slope * k)
    length = max(found, key=lambda k: found[k])
    return length, found[length]
