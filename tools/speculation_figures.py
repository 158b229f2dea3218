"""How much faster: times of prompts without and with guesses, their ratio, and pages that hold tables."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SAMPLES = 2000  # of the bootstrap
INTERVAL = 0.95


@dataclass(frozen=True)
class Gain:
    """How many times faster: all time over all time, and the median over prompts; each with its interval of 95 %."""

    total: float
    total_range: tuple[float, float]
    median: float
    median_range: tuple[float, float]

    def texts(self) -> tuple[str, str]:
        """Both with their intervals, for a table."""
        pairs = ((self.total, self.total_range), (self.median, self.median_range))
        total, median = (f"{value:.2f} ({low:.2f} to {high:.2f})" for value, (low, high) in pairs)
        return total, median


def gain(plain: Sequence[float], fast: Sequence[float], seed: int = 1) -> Gain:
    """The gain of prompts that took `plain` and `fast` seconds (both (n_prompts,), n_prompts >= 1).

    The intervals are of the bootstrap over prompts (Efron 1979): percentiles over samples drawn with replacement.
    """
    before, after = np.asarray(plain, np.float64), np.asarray(fast, np.float64)
    draws = np.random.default_rng(seed).integers(0, len(before), (SAMPLES, len(before)))  # (samples, n_prompts)
    ratios = before / after
    totals = before[draws].sum(1) / after[draws].sum(1)
    medians = np.median(ratios[draws], axis=1)
    ends = (50 * (1 - INTERVAL), 50 * (1 + INTERVAL))

    def between(values: np.ndarray[Any, Any]) -> tuple[float, float]:
        low, high = np.percentile(values, ends)
        return float(low), float(high)

    return Gain(float(before.sum() / after.sum()), between(totals), float(np.median(ratios)), between(medians))


def replace_file(path: Path, text: str) -> None:
    """Writes a file whole or not at all: whoever breaks it off leaves the old one."""
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "w", encoding="utf-8") as out:
            out.write(text)
        os.chmod(draft, path.stat().st_mode & 0o777 if path.exists() else 0o644)
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise


def write_section(page: Path, name: str, title: str, lines: Sequence[str]) -> None:
    """Puts the section `#### title` between the marks `<!-- NAME: begin -->` and `<!-- NAME: end -->` of a page, in
    place of the one of that title; sections of other titles stay, other text between the marks goes."""
    text = page.read_text(encoding="utf-8")
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, rest = text.split(begin, 1)
    inside, after = rest.split(end, 1)
    sections: dict[str, list[str]] = {}
    for line in inside.strip().splitlines():
        if line.startswith("#### "):
            sections[line.removeprefix("#### ")] = current = []
        elif sections:
            current.append(line)
    sections[title] = ["", *lines]
    written = ["\n".join([f"#### {key}", *body]).strip() for key, body in sections.items()]
    replace_file(page, f"{before}{begin}\n" + "\n\n".join(written) + f"\n{end}{after}")


def write_region(page: Path, name: str, lines: Sequence[str]) -> None:
    """Replaces all that stands between the marks `<!-- NAME: begin -->` and `<!-- NAME: end -->` of a page."""
    text = page.read_text(encoding="utf-8")
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, rest = text.split(begin, 1)
    after = rest.split(end, 1)[1]
    replace_file(page, "\n".join([before + begin, *lines, end + after]))
