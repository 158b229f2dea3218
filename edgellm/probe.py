"""What this machine can do at most: bytes read per second, multiply-adds per second (`edgellm bench --machine`).

Every claim about speed is held against these, so they are measured by loops that do nothing else (native/probe.c):
reads of a buffer much larger than the last cache, with and without software prefetch and 2 MB pages; and multiply-adds
from registers, with every instruction set that the CPU and the system allow, whether edgellm has kernels for it or not.
"""

from __future__ import annotations

import json
import mmap
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import clib, machine
from .errors import NotEnoughMemoryError

STREAMS = (1, 2, 4)
AHEAD = (256, 512, 1024, 2048, 4096, 8192)  # bytes of software prefetch
SEARCH_SECONDS = 0.03  # for each combination of streams, distance and cache level
FINALISTS = 2  # combinations that are measured with care
HUGE_PAGE = 2 << 20
KINDS = ("int8", "bf16", "f32")  # of peaks


@dataclass(frozen=True)
class ReadRate:
    """Bytes per second (median) that `n_threads` threads read together, and the settings that were best.

    `streams`: places that a thread reads from at once; `ahead`: bytes of software prefetch, into cache `level` (0:
    none).
    """

    pages: str  # "4 KB" or "2 MB"
    prefetch: bool
    n_threads: int
    bytes_per_s: float
    streams: int
    ahead: int
    level: int


@dataclass(frozen=True)
class Peak:
    """Multiply-adds per second (median) of one kind of instruction; twice as many operations."""

    kind: str
    name: str
    n_threads: int
    madds_per_s: float


@dataclass(frozen=True)
class MachineSpeed:
    """Everything that was measured. `buffer_bytes` is what the reads went over."""

    cpu: str
    l3_bytes: int | None
    buffer_bytes: int
    reads: tuple[ReadRate, ...]
    peaks: tuple[Peak, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def buffer_size(n_threads: int) -> int:
    """Four times the last cache, 512 MB at least, but no more than a quarter of the free memory; whole 2 MB pages.

    Raises NotEnoughMemoryError when a quarter of what is free does not give every thread its part.
    """
    wanted = max(4 * (machine.l3_bytes() or 0), 512 << 20)
    size = min(wanted, machine.memory().available // 4) // HUGE_PAGE * HUGE_PAGE
    need = n_threads * clib.read_unit()
    if size < need:
        raise NotEnoughMemoryError(4 * need, 4 * size, ["fewer threads"], what="measuring how fast memory is read")
    return size


@contextmanager
def pages_of(kind: str, n_bytes: int) -> Any:
    """The address of `n_bytes` of memory that was written once, on pages of `kind` ("4 KB", "2 MB")."""
    if kind == "2 MB":
        address, free = clib.arena(n_bytes)
        try:
            _fill(address, n_bytes)
            yield address
        finally:
            free()
        return
    memory = mmap.mmap(-1, n_bytes)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with suppress(OSError):  # a kernel without huge pages: small ones are what we want
            memory.madvise(mmap.MADV_NOHUGEPAGE)
    view = np.frombuffer(memory, dtype=np.uint8)
    view[:] = 1
    try:
        yield view.ctypes.data
    finally:
        del view
        memory.close()


def _fill(address: int, n_bytes: int) -> None:
    import ctypes

    ctypes.memset(address, 1, n_bytes)


def page_kinds() -> tuple[str, ...]:
    """Page sizes that can be told apart here: 2 MB ones only where the kernel gives them."""
    return ("4 KB", "2 MB") if machine.huge_pages() in ("always", "madvise") else ("4 KB",)


def read_rate(
    address: int, n_bytes: int, pages: str, prefetch: bool, n_threads: int, seconds: float = 0.3, repeats: int = 3
) -> ReadRate:
    """The fastest way to read the buffer: a quick look at all settings, then the best two with care."""
    tries = [(s, 0, 0) for s in STREAMS]
    if prefetch:
        tries = [(s, ahead, level) for s in STREAMS for ahead in AHEAD for level in (1, 2)]

    def rate(setting: tuple[int, int, int], duration: float) -> float:
        return clib.measure_read(address, n_bytes, n_threads, *setting, duration)

    rate(tries[0], min(seconds, SEARCH_SECONDS))  # wakes the threads
    found = sorted(tries, key=lambda t: rate(t, min(seconds, SEARCH_SECONDS)), reverse=True)[:FINALISTS]
    medians = {t: statistics.median(rate(t, seconds) for _ in range(repeats)) for t in found}
    best = max(medians, key=medians.__getitem__)
    return ReadRate(pages, prefetch, n_threads, medians[best], *best)


def peaks(n_threads: int, seconds: float = 0.3, repeats: int = 3, kinds: Sequence[str] = KINDS) -> list[Peak]:
    """The peak of every instruction set that can run here."""
    found = []
    for number, kind, name in clib.peaks():
        if kind in kinds:
            rates = [clib.measure_peak(number, n_threads, seconds) for _ in range(repeats)]
            found.append(Peak(kind, name, n_threads, statistics.median(rates)))
    return found


def best_peak(found: Iterable[Peak], kind: str) -> Peak | None:
    """The fastest of one kind; None when there is none."""
    return max((p for p in found if p.kind == kind), key=lambda p: p.madds_per_s, default=None)


@dataclass(frozen=True)
class Limits:
    """The most that this machine does with some number of threads; None: not measured, or it cannot do it.

    `read` is bytes per second with software prefetch and 2 MB pages (where there are any); `int8` and `bf16` are
    multiply-adds per second of the fastest instructions of that kind.
    """

    read: float | None = None
    int8: float | None = None
    bf16: float | None = None


def limits(n_threads: int, seconds: float = 0.2, n_bytes: int | None = None) -> Limits:
    """Measured in this process, in two or three seconds."""
    found = peaks(n_threads, seconds / 2, kinds=("int8", "bf16"))
    size = n_bytes or buffer_size(n_threads)
    pages = page_kinds()[-1]
    with pages_of(pages, size) as address:
        read = read_rate(address, size, pages, True, n_threads, seconds).bytes_per_s
    best = {kind: best_peak(found, kind) for kind in ("int8", "bf16")}
    return Limits(read, **{kind: None if peak is None else peak.madds_per_s for kind, peak in best.items()})


def limits_apart(n_threads: int) -> Limits:
    """The same in a process of its own, so that the buffer does not count as memory of this one.

    Empty without the compiled library, where the memory for it is missing, and in a frozen program, which has no Python
    to start.
    """
    if not clib.available() or getattr(sys, "frozen", False):
        return Limits()
    code = f"import edgellm.probe as p; p.print_limits({n_threads})"
    path = os.pathsep.join([str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=os.environ | {"PYTHONPATH": path})
    return Limits(**json.loads(done.stdout)) if done.returncode == 0 else Limits()


def print_limits(n_threads: int) -> None:
    print(json.dumps(asdict(limits(n_threads))))


def measure_machine(
    threads: Sequence[int],
    seconds: float = 0.3,
    repeats: int = 3,
    report: Callable[[str], Any] | None = None,
    n_bytes: int | None = None,
) -> MachineSpeed:
    """All reads and peaks for each number of threads. `report` is told what is measured next.

    Raises BackendError without the compiled library, NotEnoughMemoryError.
    """
    tell = report or (lambda text: None)
    size = n_bytes or buffer_size(max(threads))
    reads, found = [], []
    for pages in page_kinds():
        with pages_of(pages, size) as address:
            for n in threads:
                for prefetch in (False, True):
                    tell(f"reading, {pages} pages{', prefetch' if prefetch else ''}, {_threads(n)}")
                    reads.append(read_rate(address, size, pages, prefetch, n, seconds, repeats))
    for n in threads:
        tell(f"multiply-adds, {_threads(n)}")
        found += peaks(n, seconds, repeats)
    return MachineSpeed(machine.cpu_name(), machine.l3_bytes(), size, tuple(reads), tuple(found))


def _threads(n: int) -> str:
    return f"{n} thread{'s' if n > 1 else ''}"
