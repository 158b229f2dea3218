"""The transfer of one file, against sources that fail in every way: right bytes, or an error, and never more."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import threading
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.errors import Cancelled, DownloadError
from edgellm.hub import transfer
from edgellm.hub.client import Body, Transient
from edgellm.hub.transfer import Meter, Transfer

DATA = bytes(range(256)) * 4
DIGEST = hashlib.sha256(DATA).hexdigest()


class Source:
    """Answers one after the other: each gives at most `n` bytes in pieces, from the place asked for or from 0."""

    def __init__(self, answers: list[tuple[int, bool, bool]], data: bytes = DATA) -> None:
        self.answers, self.data, self.asked = list(answers), data, []

    @contextlib.contextmanager
    def __call__(self, start: int):
        self.asked.append(start)
        n, knows_ranges, ends_loudly = self.answers.pop(0) if self.answers else (1 << 20, True, False)
        place = start if knows_ranges else 0
        yield Body(place, self.pieces(self.data[place : place + n], ends_loudly))

    def pieces(self, data: bytes, ends_loudly: bool):
        yield from (data[i : i + 100] for i in range(0, len(data), 100))
        if ends_loudly:
            raise Transient(DownloadError("cut"))


def run(source: Source, part: Path, meter: Meter | None = None, stop: threading.Event | None = None) -> None:
    with mock.patch.object(transfer, "WAITS", (0.0, 0.0, 0.0)):
        Transfer(source, part, len(DATA), DIGEST, meter or Meter(), stop or threading.Event(), "hf:o/r").run()


ANSWERS = st.lists(st.tuples(st.integers(0, 1200), st.booleans(), st.booleans()), max_size=12)


@given(ANSWERS, st.none() | st.integers(0, 1100), st.booleans())
@settings(max_examples=300, deadline=None)
def test_right_bytes_or_an_error(answers, kept, kept_is_right):
    """Whatever is in the part before and however answers end."""
    with tempfile.TemporaryDirectory() as folder:
        part, source, meter = Path(folder) / "part", Source(answers), Meter()
        if kept is not None:
            part.write_bytes((DATA + DATA)[:kept] if kept_is_right else b"x" * kept)
        try:
            run(source, part, meter)
        except DownloadError as error:
            assert error.kept == part.stat().st_size <= len(DATA)
            return
        assert part.read_bytes() == DATA and meter.done == len(DATA)
        if kept_is_right and all(a[1] for a in answers) and kept is not None and kept <= len(DATA):
            assert source.asked == sorted(source.asked) and source.asked[:1] in ([], [kept])


@given(st.integers(0, 1023))
@settings(max_examples=50, deadline=None)
def test_one_wrong_byte_is_never_kept(place):
    wrong = DATA[:place] + bytes([DATA[place] ^ 255]) + DATA[place + 1 :]
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "part"
        with pytest.raises(DownloadError, match="thrown away"):
            run(Source([], wrong), part)
        assert not part.exists()


@pytest.mark.parametrize("data", [DATA + b"more", DATA[:-1] + b"xyz"])
def test_more_bytes_than_stated(data, tmp_path):
    """What is too much is not written; the checksum decides about the rest."""
    part = tmp_path / "part"
    right = data.startswith(DATA)
    with contextlib.nullcontext() if right else pytest.raises(DownloadError):
        run(Source([], data), part)
    assert (part.read_bytes() == DATA) if right else not part.exists()


def test_a_source_that_gives_nothing_ends(tmp_path):
    source = Source([(0, True, False)] * 50)
    with pytest.raises(DownloadError, match="was cut"):
        run(source, tmp_path / "part")
    assert len(source.asked) == 4  # the first attempt, and one for each wait


def test_a_stop_keeps_what_came(tmp_path):
    stop, source, part = threading.Event(), Source([(500, True, True)]), tmp_path / "part"
    stop.set()
    with pytest.raises(Cancelled):
        run(source, part, stop=stop)
    kept = part.stat().st_size
    assert 0 < kept <= 500
    run(source, part)
    assert part.read_bytes() == DATA and source.asked[-1] == kept


def test_a_hub_may_ask_for_a_wait(tmp_path):
    """But not for one without end."""
    waits = []

    class Stop(threading.Event):
        def wait(self, timeout=None):
            waits.append(timeout)
            return False

    answers = iter([Transient(DownloadError("busy"), 3.0), Transient(DownloadError("busy"), 1e9)])

    def get():
        problem = next(answers, None)
        if problem is not None:
            raise problem
        return "done"

    assert transfer.attempts(get, Stop()) == "done" and waits == [3.0, transfer.MAX_WAIT]
