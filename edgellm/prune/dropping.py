"""Whole layers go: those that change the hidden states least (block influence, ShortGPT, Men et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from ..convert.mixes import layer_of
from ..errors import InvalidArgumentError
from ..ops import Op
from .jobs import Job, describe
from .masks import lowest
from .report import PREFIX, measured, metadata
from .work import Work


class Dropping(Work):
    """Pattern layers. The text goes through the whole model once before the first tensor is written."""

    def run(self, dataset: str) -> None:
        """All of it, in the order of the file that is written."""
        w, n = self.windows, self.walk.n_layers
        scores = self._scores()
        gone = lowest(scores, n_gone(n, self.wish.sparsity))
        self.influence, self.removed = tuple(scores.tolist()), tuple(np.flatnonzero(gone).tolist())
        keys = metadata(self.wish, dataset, w.n_ctx, len(w.chosen_by), len(w.held_out))
        keys += [(PREFIX + "layers", list(self.removed), "i32"), (PREFIX + "influence", list(self.influence), "f32")]
        kept = np.flatnonzero(~gone).tolist()
        names = renamed(self.jobs.layers, kept)
        describe(self.file, self._writer, self.jobs, self.wish, keys, self._changed(kept), names)
        for job in self.jobs.outer:
            self._write(job)
        dense, pruned = self._stream(w.held_out, {}), self._stream(w.held_out, self._types)
        for layer, jobs in enumerate(self.jobs.layers):
            dense.through(layer, self._matrices)
            if layer in kept:
                for job in jobs:
                    self._write(job, names[job.info.name], in_layer=True)
                pruned.through(layer, self._matrices)
            self._matrices.forget()
            self._meter.advance(1)
        self.before, self.after = dense.quality(self._matrices), pruned.quality(self._matrices)
        sizes = [sum(prod(job.info.shape) for job in jobs) for jobs in self.jobs.layers]
        self.zeros = sum(sizes[i] for i in self.removed) / sum(sizes)
        measured(self._writer, self.before, self.after, self.zeros)

    def _n_steps(self) -> int:
        n, n_held = self.walk.n_layers, len(self.windows.held_out)
        n_kept = n - n_gone(n, self.wish.sparsity)
        return n * (len(self.windows.chosen_by) + 1) + n_held * (n + n_kept + 2)

    def _scores(self) -> np.ndarray:
        """Block influence, float64 (n_layers,), in the source."""
        stream, found = self._stream(self.windows.chosen_by, {}), np.empty(self.walk.n_layers)
        for layer in range(self.walk.n_layers):
            before = list(stream.states)
            stream.through(layer, self._matrices)
            self._matrices.forget()
            found[layer] = block_influence(before, stream.states)
        return found

    def _changed(self, kept: Sequence[int]) -> dict[str, tuple[Any, str]]:
        """{key: (value, kind)} of the metadata that are other for these layers: their number, arrays with an item for
        each, and what families take from a layer's place in the stack."""
        arch, n, meta = self.file.get("general.architecture", str), self.walk.n_layers, self.file.metadata
        found: dict[str, tuple[Any, str]] = {f"{arch}.block_count": (len(kept), "u32")}
        for key, (_, item_type) in meta.types.items():
            if key.startswith(f"{arch}.") and item_type is not None and len(meta[key]) == n:
                found[key] = ([meta[key][i] for i in kept], item_type)
        attention = [step for i in range(n) for step in self.walk.steps(i) if step.op is Op.ATTENTION]
        for key, flags in (
            ("attention.sliding_window_pattern", [step.params["window"] > 0 for step in attention]),
            ("rope.layers", [step.params["rotary_dims"] > 0 for step in attention]),
        ):
            if len(set(flags)) > 1:  # else every layer is like the others, wherever it stands
                found[f"{arch}.{key}"] = ([flags[i] for i in kept], "bool")
        scale, own = f"{arch}.attention.scale", attention[0].params
        if not self.file.get(scale, float, 0.0) and own["scale"] != 1 / math.sqrt(own["head_dim"]):
            found[scale] = (own["scale"], "f32")  # one that a family takes from the number of layers
        return found


def n_gone(n_layers: int, sparsity: float) -> int:
    """Raises InvalidArgumentError where the share is less than one layer."""
    n = int(n_layers * sparsity)
    if n < 1:
        raise InvalidArgumentError(f"sparsity {sparsity} of {n_layers} layers is none; give {1 / n_layers:.3g} or more")
    return n


def block_influence(before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> float:
    """1 - the mean cosine of hidden states float32 (n, dim) before and after a layer, over all tokens; states that are
    0 count as unchanged."""
    total, n = 0.0, 0
    for x, y in zip(before, after, strict=True):
        wide_x, wide_y = x.astype(np.float64), y.astype(np.float64)
        size = np.sqrt(np.square(wide_x).sum(axis=1) * np.square(wide_y).sum(axis=1))
        cosine = (wide_x * wide_y).sum(axis=1) / np.where(size > 0, size, 1)
        total, n = total + np.where(size > 0, cosine, 1.0).sum(), n + len(x)
    return float(1 - total / max(n, 1))


def renamed(layers: Sequence[Sequence[Job]], kept: Sequence[int]) -> dict[str, str]:
    """{name: name in the output} of the tensors of the kept layers, which are numbered anew."""
    found = {}
    for new, old in enumerate(kept):
        for job in layers[old]:
            assert layer_of(job.info.name) == old
            found[job.info.name] = f"blk.{new}." + job.info.name.split(".", 2)[2]
    return found
