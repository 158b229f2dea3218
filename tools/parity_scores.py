"""Scores of `tools/parity.py`: how far two answers lie apart, what is demanded, and the rows of the table."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

BACKENDS = ("native", "reference", "numba")
AGREES = 1e-6  # NMSE to transformers up to which llama.cpp computes the same thing


def nmse(got: np.ndarray, want: np.ndarray) -> float:
    """sum((got - want)^2) / sum(want^2) in float64; infinite where shapes differ or `got` is not finite."""
    if got.shape != want.shape or not np.isfinite(got).all():
        return float("inf")
    a, b = got.astype(np.float64), want.astype(np.float64)
    return float(np.square(a - b).sum() / np.square(b).sum())


def agreement(got: np.ndarray, want: np.ndarray) -> float:
    """Share of positions with the same most likely token."""
    return float((got.argmax(1) == want.argmax(1)).mean()) if got.shape == want.shape else 0.0


@dataclass
class Score:
    """What came out for one case: per backend the NMSE and argmax agreement against transformers, and equal text.

    `peer_nmse` (edgellm's native backend against llama.cpp) and `peer_to_torch` (llama.cpp against transformers) are
    None where llama.cpp gave no answer; `peer_error` then says why. `error`: edgellm gave none.
    """

    name: str
    family: str
    tolerance: float
    difference: str = ""
    unread: str = ""
    shape: str = ""
    nmse: dict[str, float] = field(default_factory=dict)
    argmax: dict[str, float] = field(default_factory=dict)
    greedy: dict[str, bool] = field(default_factory=dict)
    peer_nmse: float | None = None
    peer_to_torch: float | None = None
    peer_error: str = ""
    error: str = ""

    @property
    def comparable(self) -> bool:
        """Whether llama.cpp computes what transformers computes."""
        return self.peer_to_torch is not None and self.peer_to_torch <= AGREES

    def faults(self) -> list[str]:
        """What is wrong with edgellm's answers; empty if nothing is."""
        if self.error:
            return [self.error]
        out = []
        for name in self.nmse:
            if not self.nmse[name] <= self.tolerance:
                out.append(f"{name}: NMSE {self.nmse[name]:.1e}, limit {self.tolerance:.0e}")
            if self.argmax[name] < 1.0:
                out.append(f"{name}: other best token at {1 - self.argmax[name]:.1%} of the positions")
            if not self.greedy[name]:
                out.append(f"{name}: other greedy text")
        if self.comparable and self.peer_nmse is not None and not self.peer_nmse <= AGREES:
            out.append(f"NMSE {self.peer_nmse:.1e} to llama.cpp, which agrees with transformers")
        return out

    def surprise(self) -> str:
        """A difference of llama.cpp that nobody has explained yet, or nothing."""
        if self.peer_error and not self.unread:
            return f"llama.cpp does not read it: {self.peer_error}"
        if self.peer_to_torch is not None and not self.comparable and not self.difference:
            return f"llama.cpp differs from transformers, NMSE {self.peer_to_torch:.1e}"
        return ""


def header(backends: list[str]) -> list[str]:
    cells = ["family", "models", *(f"NMSE {b}" for b in backends), "argmax", "greedy", "NMSE to llama.cpp", "llama.cpp"]
    return [_line(cells), _line(["---"] + ["--:"] * (len(cells) - 2) + ["---"])]


def row(scores: list[Score], backends: list[str]) -> str:
    """One family: the worst of its models."""
    good = [s for s in scores if not s.error]
    cells = [scores[0].family, len(scores)]
    cells += [f"{max(s.nmse[b] for s in good):.1e}" if good else "failed" for b in backends]
    worst = min((min(s.argmax.values()) for s in good), default=0.0)
    same = sum(all(s.greedy.values()) for s in good)
    cells += [f"{worst:.0%}" if worst in (0.0, 1.0) else f"{worst:.2%}", f"{same} of {len(scores)}", *_peer(scores)]
    return _line(cells)


def _peer(scores: list[Score]) -> list[str]:
    """The two cells about llama.cpp."""
    near = [s.peer_nmse for s in scores if s.comparable and s.peer_nmse is not None]
    answered = [s for s in scores if s.peer_to_torch is not None]
    if not answered and not any(s.peer_error for s in scores):
        return ["", "not run"]
    notes = []
    far = [s for s in answered if not s.comparable]
    if far:
        finite = [s.peer_to_torch or 0.0 for s in far if np.isfinite(s.peer_to_torch or 0.0)]
        by = f"differ from transformers by {max(finite):.0e}" if finite else "without a finite answer"
        notes.append(f"{len(far)} {by}: {_reasons([s.difference or 'not explained' for s in far])}")
    refused = [s.unread or s.peer_error for s in scores if s.peer_error]
    if refused:
        notes.append(f"{len(refused)} refused: {_reasons(refused)}")
    number = f"{max(near):.1e} ({len(near)} of {len(scores)})" if near else "none to compare"
    return [number, "; ".join(notes) or "agrees"]


def _reasons(texts: list[str]) -> str:
    return ", ".join(sorted({reason for text in texts for reason in text.split(", ")}))


def _line(cells: list[object]) -> str:
    return f"| {' | '.join(str(c).replace('|', '/') for c in cells)} |"
