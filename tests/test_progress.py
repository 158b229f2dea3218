"""Progress: the beginning and the end are always told, in between no more than ten times a second."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm import progress
from edgellm.errors import Cancelled
from edgellm.progress import Meter, tell
from edgellm.results import Progress


class Clock:
    """In place of the module `time`."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@given(st.lists(st.tuples(st.floats(0, 0.3), st.integers(0, 5)), max_size=60))
def test_ten_times_a_second_and_the_ends(steps: list[tuple[float, int]]) -> None:
    clock, seen, times = Clock(), [], []
    total = sum(n for _, n in steps) + 1

    def heard(p: Progress) -> None:
        seen.append(p)
        times.append(clock.now)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "time", clock)
        meter = Meter(heard, "working", total, "steps")
        for seconds, n in steps:
            clock.now += seconds
            meter.advance(n)
        meter.advance(1)
    assert seen[0] == Progress("working", 0, total, "steps") and seen[-1] == Progress("working", total, total, "steps")
    assert all(later - sooner > 0.1 - 1e-9 for sooner, later in zip(times[:-1], times[1:-1], strict=False))
    assert [p.done for p in seen] == sorted(p.done for p in seen)


def test_false_ends_the_work_and_says_what_is_left() -> None:
    with pytest.raises(Cancelled, match="working was stopped by its progress callback; half is there"):
        Meter(lambda p: False, "working", 3, left="half is there")
    tell(lambda p: None, Progress("working", 1, 3))
    tell(lambda p: 0, Progress("working", 1, 3))  # only False itself
    tell(None, Progress("working", 1, 3))


def test_nobody_listens() -> None:
    Meter(None, "working", 3).advance(3)


def test_what_it_raises_goes_on() -> None:
    def broken(p: Progress) -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        Meter(broken, "working", 3)
