"""The goals that tools/compare_peers.py holds its rows against: ratios to llama.cpp in one run, shares of own rates.

They are those of the project's goals page (docs/benchmarks.md repeats them), by kind of model: the type of the file for
models of a billion parameters, the size for small ones, whose limit is the cost of each step and not of memory.
"""

from __future__ import annotations

from dataclasses import dataclass

SMALL = {"15m": 60_000_000, "100m": 400_000_000}  # parameters below which a model is of this kind
# general.file_type of GGUF files
FILE_TYPES = {0: "F32", 1: "F16", 2: "Q4_0", 7: "Q8_0", 14: "Q4_K_S", 15: "Q4_K_M", 17: "Q5_K_M", 18: "Q6_K"}


@dataclass(frozen=True)
class Goal:
    """What a value must reach: at least `value`, or at most, where less is better."""

    value: float
    stretch: float | None = None
    at_most: bool = False

    def met(self, value: float) -> bool:
        return value <= self.value if self.at_most else value >= self.value

    def text(self) -> str:
        sign = "<=" if self.at_most else ">="
        return f"{sign} {self.value:g}" + (f" ({self.stretch:g})" if self.stretch else "")


BIG = ("Q4_0", "Q4_K_M", "Q8_0")
# (row, kind of model, AMX or None for both) -> goal
_GOALS: dict[tuple[str, str, bool | None], Goal] = {
    ("tg", "Q4_0", None): Goal(1.35, 1.5),
    ("tg", "Q4_K_M", None): Goal(1.6, 1.75),
    ("tg", "Q8_0", None): Goal(1.15, 1.25),
    ("tg", "15m", None): Goal(1.5, 2),
    ("tg", "100m", None): Goal(1.5),
    ("pp", "15m", None): Goal(2, 3),
    ("tg busy", "Q4_0", None): Goal(3.5),
    ("share tg", "Q4_0", None): Goal(0.85),
    ("share tg", "Q8_0", None): Goal(0.85),
    **{("pp", kind, True): Goal(4, 6) for kind in ("Q4_0", "Q4_K_M")},
    **{("pp", kind, False): Goal(2.5, 4) for kind in ("Q4_0", "Q4_K_M")},
    **{("pp no amx", kind, True): Goal(2.5, 4) for kind in ("Q4_0", "Q4_K_M")},
    **{("tg deep f16", kind, None): Goal(1.7, 1.9) for kind in ("Q4_0",)},
    **{("tg deep q8_0", kind, None): Goal(2.75, 3) for kind in ("Q4_0",)},
    **{("pp deep", kind, None): Goal(6, 10) for kind in ("Q4_0",)},
    **{("own deep f16", kind, None): Goal(0.8) for kind in BIG},
    **{("own deep q8_0", kind, None): Goal(0.85) for kind in BIG},
    **{("own busy", kind, None): Goal(1) for kind in BIG},
    **{("v2", kind, None): Goal(1.06, 1.03, at_most=True) for kind in BIG},
    **{("v4", kind, None): Goal(1.12, 1.08, at_most=True) for kind in BIG},
    **{("v8", kind, None): Goal(1.5, 1.2, at_most=True) for kind in BIG},
}


def kind_of(n_params: int, file_type: int | None) -> str:
    """"15m" or "100m" for small models, else the name of the file's type."""
    for name, limit in SMALL.items():
        if n_params < limit:
            return name
    return FILE_TYPES.get(file_type if file_type is not None else -1, "other")


def goal_of(row: str, kind: str, amx: bool) -> Goal | None:
    """The goal of a row for a kind of model on a machine with or without AMX; None: it has none."""
    return _GOALS.get((row, kind, None)) or _GOALS.get((row, kind, amx))
