"""How sparse each matrix's input may be: thresholds by quantiles, levels by a greedy path, its end by a budget.

Thresholds on the size of activations are TEAL's (Liu et al. 2024, *Training-free activation sparsity in large language
models*, arXiv:2408.14690), and so is going greedily from level to level. What a level costs: the squared error of the
matrix's output on calibration text, in a scale in which at half sparsity it is the divergence of the model's
predictions that was measured with this matrix alone sparse. A budget is of perplexity on held-out text.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sparse_act_model import Site, SparseModel, cut

from edgellm.prune.windows import Windows

LEVELS = tuple(i / 20 for i in range(20))  # shares of an input that are dead
HALF = LEVELS.index(0.5)
SAMPLE_WINDOWS, SAMPLE_ROWS, ERROR_ROWS, KL_WINDOWS = 16, 2048, 512, 4
STRIDE = 4  # of the path, where a budget's end is looked for
CURVE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # shares of these matrices' weights that are not read


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ---- the pure part ---------------------------------------------------------------------------------------------------


def thresholds_of(x: np.ndarray) -> np.ndarray:
    """float32 (len(LEVELS),): below them lie these shares of the sizes of x (any shape); the first is 0."""
    found = np.quantile(np.abs(x), LEVELS).astype(np.float32)
    found[0] = 0
    return found


def greedy_path(costs: np.ndarray, weights: Sequence[int]) -> list[tuple[int, ...]]:
    """Levels of each matrix, from all 0 to all highest: each step raises the one
    whose next level costs least per weight.

    `costs`: (n, levels), not falling along levels; `weights`: of each matrix (n,).
    """
    n, top = costs.shape
    at = [0] * n
    found = [tuple(at)]
    while min(at) < top - 1:
        _, i = min((float(costs[i, at[i] + 1] - costs[i, at[i]]) / weights[i], i) for i in range(n) if at[i] < top - 1)
        at[i] += 1
        found.append(tuple(at))
    return found


def furthest(n: int, fits: Callable[[int], bool]) -> int:
    """The largest i < n that fits, if all before it do and none after it; 0 where none does."""
    low, high = 0, n
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def mean_level(levels: Sequence[int], weights: Sequence[int]) -> float:
    """The share of all these matrices' weights that belong to dead channels."""
    return sum(LEVELS[level] * w for level, w in zip(levels, weights, strict=True)) / sum(weights)


# ---- what is measured ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """The dense model on held-out windows: losses float64 (n, counted), tokens found likeliest (n, counted)."""

    losses: np.ndarray
    top: np.ndarray

    @property
    def ppl(self) -> float:
        return math.exp(float(self.losses.mean()))


def losses_and_top(model: SparseModel, window: np.ndarray, thresholds: Mapping[str, float]) -> tuple[Any, Any]:
    """-ln p of the counted tokens of a window, and the tokens that were likeliest, each (counted,)."""
    log_p = model.window(window, thresholds)
    return -log_p[np.arange(len(log_p)), window[len(window) // 2 + 1 :]], log_p.argmax(axis=1)


def dense(model: SparseModel, windows: np.ndarray) -> Reference:
    found = [losses_and_top(model, window, {}) for window in windows]
    return Reference(np.stack([losses for losses, _ in found]), np.stack([top for _, top in found]))


def quality(
    model: SparseModel, windows: np.ndarray, base: Reference, thresholds: Mapping[str, float]
) -> dict[str, float]:
    """Perplexity with these thresholds, its ratio to the dense one with the standard error of that (the same tokens),
    and the share of places where both find the same token likeliest."""
    found = [losses_and_top(model, window, thresholds) for window in windows]
    losses, top = np.stack([a for a, _ in found]), np.stack([b for _, b in found])
    change = (losses - base.losses).ravel()
    ratio = math.exp(float(change.mean()))
    return {
        "ppl": math.exp(float(losses.mean())), "ratio": ratio,
        "ratio_error": ratio * float(change.std()) / math.sqrt(change.size - 1),
        "same_top": float((top == base.top).mean()),
    }  # fmt: skip


def sample(model: SparseModel, windows: np.ndarray) -> dict[str, np.ndarray]:
    """float32 (about SAMPLE_ROWS, k) of each site's inputs on some windows, evenly taken."""
    rows: dict[str, list[np.ndarray]] = {site.tensor: [] for site in model.sites}
    every = max(1, windows.size // SAMPLE_ROWS)

    def see(site: Site, x: np.ndarray) -> None:
        rows[site.tensor].append(x[::every].copy())

    for window in windows:
        model.window(window, see=see)
    return {name: np.concatenate(parts) for name, parts in rows.items()}


def output_errors(w: np.ndarray, x: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """float64 (len(thresholds),): mean squared change of x w^T, w (rows, k), x (n, k), when x is cut; never falling."""
    changes = [np.mean(np.square((x - cut(x, t)) @ w.T), dtype=np.float64) for t in thresholds]
    return np.maximum.accumulate(np.array(changes))


def divergence(
    model: SparseModel, windows: np.ndarray, base: Sequence[np.ndarray], thresholds: Mapping[str, float]
) -> float:
    """Mean KL divergence of predictions, nats; `base`: the dense log-probabilities of each window."""
    total = [
        float((np.exp(p) * (p - model.window(w, thresholds))).sum(axis=1).mean())
        for w, p in zip(windows, base, strict=True)
    ]
    return max(sum(total) / len(total), 0.0)


def cost_table(
    model: SparseModel, windows: np.ndarray, seen: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """(thresholds float32, costs float64), each (n_sites, len(LEVELS)); this is where calibration takes its time."""
    some = windows[:KL_WINDOWS]
    base = [model.window(window) for window in some]
    all_thresholds, costs = [], []
    for i, site in enumerate(model.sites):
        x = seen[site.tensor]
        thresholds = thresholds_of(x)
        errors = output_errors(model.matrix(site), x[:: max(1, len(x) // ERROR_ROWS)], thresholds)
        kl = divergence(model, some, base, {site.tensor: float(thresholds[HALF])})
        costs.append(errors * (kl / errors[HALF] if errors[HALF] > 0 else 0.0))
        all_thresholds.append(thresholds)
        say(f"{i + 1}/{len(model.sites)} {site.tensor}: divergence at half sparsity {kl:.2g}")
    return np.stack(all_thresholds), np.stack(costs)


# ---- all of it -------------------------------------------------------------------------------------------------------


class Dial:
    """The path of a model, and what was measured along it."""

    def __init__(self, model: SparseModel, windows: Windows) -> None:
        self.model, self.windows = model, windows
        self.weights = [site.weights for site in model.sites]
        calibration = windows.chosen_by[:SAMPLE_WINDOWS]
        seen = sample(model, calibration)
        self.thresholds, costs = cost_table(model, calibration, seen)
        self.path = greedy_path(costs, self.weights)
        self.base = dense(model, windows.held_out)
        self._known: dict[tuple[int, ...], dict[str, Any]] = {}

    def at(self, levels: tuple[int, ...]) -> dict[str, Any]:
        """The quality at these levels, with the thresholds by tensor."""
        if levels not in self._known:
            chosen = {
                s.tensor: float(self.thresholds[i, lv])
                for i, (s, lv) in enumerate(zip(self.model.sites, levels, strict=True))
            }
            found = quality(self.model, self.windows.held_out, self.base, chosen)
            sparsity = mean_level(levels, self.weights)
            say(f"sparsity {sparsity:.2f}: perplexity {found['ppl']:.3f}, {100 * (found['ratio'] - 1):+.2f} %")
            self._known[levels] = {**found, "sparsity": sparsity, "levels": list(levels), "thresholds": chosen}
        return self._known[levels]

    def within(self, budget: float) -> dict[str, Any]:
        """The sparsest place of the path whose perplexity rises by no more than `budget`."""
        places = self.path[::STRIDE]
        return {
            **self.at(places[furthest(len(places), lambda i: self.at(places[i])["ratio"] <= 1 + budget)]),
            "budget": budget,
        }

    def near(self, sparsity: float) -> dict[str, Any]:
        """The first place of the path that is so sparse."""
        return self.at(next(levels for levels in self.path if mean_level(levels, self.weights) >= sparsity - 1e-9))

    def uniform(self, level: int) -> dict[str, Any]:
        """All matrices at one level."""
        return self.at((level,) * len(self.weights))


def calibrate(model: SparseModel, windows: Windows, budgets: Sequence[float]) -> dict[str, Any]:
    """Everything that the file of tools/sparse_act.py holds."""
    dial = Dial(model, windows)
    sites = [
        {"tensor": s.tensor, "kind": s.kind, "rows": s.rows, "k": s.k, "thresholds": dial.thresholds[i].tolist()}
        for i, s in enumerate(model.sites)
    ]
    return {
        "model": model.loaded.path, "levels": list(LEVELS), "sites": sites, "ppl": dial.base.ppl,
        "n_ctx": windows.n_ctx, "held_out": len(windows.held_out),
        "budgets": [dial.within(budget) for budget in budgets],
        "curve": [dial.near(sparsity) for sparsity in CURVE],
        "uniform": dial.uniform(HALF),
    }  # fmt: skip
