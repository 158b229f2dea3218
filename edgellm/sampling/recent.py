"""`RecentTokens`: the last ids of a generation, in one array that grows at its end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class RecentTokens:
    """The last `limit` ids; None: all of them."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self._ids = np.empty(64, dtype=np.int32)  # (capacity,)
        self._start = self._end = 0

    def extend(self, ids: Sequence[int]) -> None:
        """Adds ids at the end; the oldest ones leave."""
        new = ids if self.limit is None else ids[max(0, len(ids) - self.limit) :]  # the tail before any copy
        if self._end + len(new) > len(self._ids):
            kept = self.ids
            self._ids = np.empty(2 * (len(kept) + len(new)) + 64, dtype=np.int32)
            self._ids[: len(kept)] = kept
            self._start, self._end = 0, len(kept)
        self._ids[self._end : self._end + len(new)] = new
        self._end += len(new)
        if self.limit is not None:
            self._start = max(self._start, self._end - self.limit)

    def append(self, token: int) -> None:
        """Adds one id."""
        if self.limit != 0:
            self.extend((token,))

    def clear(self) -> None:
        """Forgets all ids."""
        self._start = self._end = 0

    @property
    def ids(self) -> np.ndarray:
        """int32 (n,), a view: it holds until the next change."""
        return self._ids[self._start : self._end]

    def followed_by(self, ids: Sequence[int]) -> np.ndarray:
        """int32 (n,): what `ids` would be with these added; nothing changes."""
        if not ids or self.limit == 0:
            return self.ids
        joined = np.concatenate((self.ids, np.asarray(ids, np.int32)))
        return joined if self.limit is None else joined[max(0, len(joined) - self.limit) :]
