"""What native/suffix.c computes, slowly and plainly: tests hold the two together, and it serves where nothing is
compiled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

KEY = 3  # a match is so many tokens at least
LONGEST = 16  # and counts as so many at most
OCCURRENCES = 32  # the latest places where the last three tokens stood that are looked at
MAX_DRAFT = 8  # EL_DRAFT_TOKENS


@dataclass(frozen=True)
class Found:
    """A proposal: of the `match` last tokens, `tokens` came behind; `votes[i]` of `totals[i]` places went on so."""

    tokens: tuple[int, ...] = ()
    votes: tuple[int, ...] = ()
    totals: tuple[int, ...] = ()
    match: int = 0


class ReferenceSuffixIndex:
    """A text, and what came behind its end before. Negative ids are borders that no match goes across.

    When `limit` tokens are there, the older half of what is not fixed is forgotten.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.n_fixed = limit, 0
        self.ids: list[int] = []

    def append(self, ids: Sequence[int]) -> None:
        """`ids` stand at the end now."""
        for token in ids:
            if len(self.ids) == self.limit:
                kept = (len(self.ids) - self.n_fixed) // 2
                del self.ids[self.n_fixed : len(self.ids) - kept]
            self.ids.append(token)

    def fix(self) -> None:
        """What is there now is never forgotten."""
        self.n_fixed = len(self.ids)

    def rewind(self) -> None:
        """Back to what is fixed."""
        del self.ids[self.n_fixed :]

    def propose(self, k: int) -> Found:
        """Up to `k` tokens: each is what most of the places with the longest match go on with, the latest of equals."""
        voters = self._occurrences()
        if not voters:
            return Found()
        match = max(self._match(p) for p in voters)
        voters = [p for p in voters if self._match(p) == match]
        tokens: list[int] = []
        votes, totals = [], []
        for j in range(k):
            text = self.ids + tokens  # behind the end of the text the draft goes on
            voters = [p for p in voters if text[p + j] >= 0]
            if not voters:
                break
            counts = Counter(text[p + j] for p in voters)  # in the order of voters: the latest first
            best = max(counts, key=lambda token: counts[token])
            votes.append(counts[best])
            totals.append(len(voters))
            tokens.append(best)
            voters = [p for p in voters if text[p + j] == best]
        return Found(tuple(tokens), tuple(votes), tuple(totals), match)

    def _occurrences(self) -> list[int]:
        """Positions behind earlier occurrences of the last three tokens, the latest first."""
        key = self.ids[-KEY:]
        if len(key) < KEY or min(key) < 0:
            return []
        places = (p for p in range(len(self.ids) - 1, KEY - 1, -1) if self.ids[p - KEY : p] == key)
        return [p for p, _ in zip(places, range(OCCURRENCES), strict=False)]

    def _match(self, p: int) -> int:
        """How many tokens before position `p` are also those at the end of the text."""
        n, end = KEY, len(self.ids)
        while n < LONGEST and p > n and self.ids[p - 1 - n] == self.ids[end - 1 - n] >= 0:
            n += 1
        return n
