"""What of a sequence is still there, and as which position a token sees it.

A sequence that never lost anything is one stretch: token t sees positions 0 .. t. One that has dropped tokens is two:
the *head* [0, keep), and the *tail* from `start(t)` to t. To the model the tail follows the head directly, so a token
is `shift(t)` positions nearer to the head than their numbers say. Keys keep the rotation they were stored with; a query
meets the tail as it is, and the head once more rotated, for position t - shift(t) (StreamingLLM, Xiao et al. 2023:
positions within the cache). Nothing in the cache is ever rewritten.

A layer with a window of its own (Mistral, Gemma) of w tokens sees what is less than w positions away in these numbers:
of the head s > t - shift(t) - w, of the tail j > t - w.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """`keep` tokens of head; the tail begins at `first` or later; with `window` > 0 a token sees the last `window`
    tokens of the tail only, itself among them.

    0 <= keep <= first, or first == 0 (nothing was dropped by hand).
    """

    keep: int = 0
    first: int = 0
    window: int = 0

    def start(self, t: int) -> int:
        """First position of the tail that token t sees; 0 while tail and head touch: then all is one stretch."""
        start = max(self.first, t - self.window + 1 if self.window else 0)
        return start if start > self.keep else 0

    def shift(self, t: int) -> int:
        """Positions between head and tail that token t does not see; 0: token t meets one stretch."""
        start = self.start(t)
        return start - self.keep if start else 0

    def head_seen(self, t: int, window: int) -> range:
        """What token t sees of the head in a layer with a window of its own (0: none), with its query turned back by
        `shift(t)`. Empty while all is one stretch, which is the tail then."""
        shift = self.shift(t)
        return range(max(0, t - shift - window + 1) if window else 0, self.keep if shift else 0)

    def tail_seen(self, t: int, window: int) -> range:
        """What token t sees of the tail in a layer with a window of its own (0: none)."""
        return range(max(self.start(t), t - window + 1 if window else 0), t + 1)

    def seen(self, first: int, last: int, window: int) -> tuple[range, range]:
        """What any of the tokens first .. last sees of head and tail: from the first of each to the end."""
        turned = first if self.first > self.keep else max(first, self.keep + self.window)  # the first one with a shift
        head = self.head_seen(turned, window) if turned <= last and self.shift(last) else range(0)
        return head, range(self.tail_seen(first, window).start, last + 1)
