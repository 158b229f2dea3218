"""Sets of characters: general categories and white space, the same under every Python version."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

N_CODE_POINTS = 0x110000
Ranges = tuple[tuple[int, int], ...]  # code points, first and one past the last, ascending

# The property White_Space (Unicode, PropList.txt): what `\s` means.
WHITE_SPACE: Ranges = (
    (0x09, 0x0E), (0x20, 0x21), (0x85, 0x86), (0xA0, 0xA1), (0x1680, 0x1681), (0x2000, 0x200B), (0x2028, 0x202A),
    (0x202F, 0x2030), (0x205F, 0x2060), (0x3000, 0x3001),
)  # fmt: skip


@lru_cache(maxsize=1)
def _runs() -> tuple[np.ndarray, list[str]]:
    """First code points of the runs of equal category, and their categories."""
    from edgellm.tokenizers.unicode_categories import RUNS

    runs = RUNS.split()
    lengths = np.array([int(run[2:]) for run in runs], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    assert starts[-1] == N_CODE_POINTS
    return starts[:-1], [run[:2] for run in runs]


@lru_cache(maxsize=64)
def category(name: str) -> Ranges:
    """The code points whose general category begins with `name` ("L", "Lu", "P", ...)."""
    starts, names = _runs()
    ends = [*starts[1:].tolist(), N_CODE_POINTS]
    return tuple((a, b) for a, b, n in zip(starts.tolist(), ends, names, strict=True) if n.startswith(name))
