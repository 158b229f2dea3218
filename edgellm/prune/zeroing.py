"""Weights of layers become 0, one layer after the other."""

from __future__ import annotations

from math import prod

import numpy as np

from ..convert.pack import check_range
from ..errors import ConvertError
from ..imatrix import Imatrix
from ..quants import dequantize
from .choose import prune_matrix
from .heads import choose_heads, find_attention, head_masks
from .jobs import Job, describe
from .masks import check_fours
from .report import TensorReport, measured, metadata
from .statistics import Grams, Unit, rounds, units
from .streams import Stream
from .work import Work, n_matrices, packed


class Zeroing(Work):
    """Every pattern but layers."""

    def run(self, dataset: str) -> None:
        """All of it, in the order of the file that is written."""
        w = self.windows
        keys = metadata(self.wish, dataset, w.n_ctx, len(w.chosen_by), len(w.held_out))
        describe(self.file, self._writer, self.jobs, self.wish, keys)
        for job in self.jobs.outer:
            self._write(job)
        chosen_by = self._stream(w.chosen_by, self._types)
        dense, pruned = self._stream(w.held_out, {}), self._stream(w.held_out, self._types)
        for layer, jobs in enumerate(self.jobs.layers):
            dense.through(layer, self._matrices)
            data = self._heads(layer, chosen_by) if self.wish.pattern == "heads" else self._weights(layer, chosen_by)
            for job in jobs:
                if job.pruned:
                    self._put(job, data.pop(job.info.name))
                else:
                    self._write(job, in_layer=True)
            chosen_by.through(layer, self._matrices)
            pruned.through(layer, self._matrices)
            self._matrices.forget()
        self.before, self.after = dense.quality(self._matrices), pruned.quality(self._matrices)
        self.zeros = sum(t.n_zeros for t in self.tensors) / sum(t.n_weights for t in self.tensors)
        measured(self._writer, self.before, self.after, self.zeros)

    def _n_steps(self) -> int:
        n_chosen, n_held = len(self.windows.chosen_by), len(self.windows.held_out)
        n = sum(n_matrices(job) for job in self.jobs.all if job.pruned)
        passes = sum(len(self._rounds(layer)) + 1 for layer in range(self.walk.n_layers))
        return n_chosen * passes + 2 * n_held * (self.walk.n_layers + 1) + n

    def _rounds(self, layer: int) -> list[frozenset[Unit]]:
        """What is measured at once; all of it, but for methods that need much room."""
        if self.wish.pattern == "heads":
            return [frozenset({(find_attention(self.walk.steps(layer), self.file.path).output, 0)})]
        targets = {job.info.name: job.info.shape for job in self.jobs.layers[layer] if job.pruned}
        found = units(self.walk.leaders(layer), targets, targets)
        return rounds(found) if self.wish.method == "sparsegpt" else [frozenset(found)]

    def _weights(self, layer: int, chosen_by: Stream) -> dict[str, np.ndarray]:
        """{name: bytes} of the layer's pruned tensors; what was measured is of the layer as it is in the source."""
        leaders = self.walk.leaders(layer)
        jobs = [job for job in self.jobs.layers[layer] if job.pruned]
        data: dict[str, dict[int, np.ndarray]] = {job.info.name: {} for job in jobs}
        for wanted in self._rounds(layer):
            seen = Grams(wanted) if self.wish.method == "sparsegpt" else Imatrix()
            chosen_by.look(layer, self._matrices, seen.add)
            for job in jobs:
                name = job.info.name
                for e in range(n_matrices(job)):
                    if (leaders[name], e) in wanted:
                        data[name][e] = self._matrix(job, e, (leaders[name], e), seen)
        return {name: np.concatenate([parts[e] for e in sorted(parts)]) for name, parts in data.items()}

    def _matrix(self, job: Job, e: int, unit: Unit, seen: Imatrix | Grams) -> np.ndarray:
        """The bytes of matrix `e` of a tensor, pruned."""
        info, n = job.info, n_matrices(job)
        w = self._matrices.matrix(info.name).reshape(n, *info.shape[-2:])[e].copy()
        check_range(w, job.type, info.name, self.file.path)
        if self.wish.pattern == "2:4":
            check_fours(info.shape[-1], info.name, self.file.path)
        mask = prune_matrix(w, n, unit, seen, job.type, self.wish, lambda: self._meter.advance(0))
        check_range(w, job.type, info.name, self.file.path)  # updates may have made it larger
        return self._bytes(job, w, mask)

    def _heads(self, layer: int, chosen_by: Stream) -> dict[str, np.ndarray]:
        """{name: bytes} of the tensors of a layer's attention, without the heads that matter least."""
        a = find_attention(self.walk.steps(layer), self.file.path)
        seen = Grams(frozenset({(a.output, 0)}))
        chosen_by.look(layer, self._matrices, seen.add)
        jobs = {job.info.name: job for job in self.jobs.layers[layer] if job.pruned}
        output = self._matrices.matrix(a.output)
        gram = seen.mean((a.output, 0), output.shape[1])
        gone = choose_heads(output, gram, a.n_heads, self.wish.sparsity)
        found = {}
        for name, mask in head_masks(a, gone, {name: job.info.shape for name, job in jobs.items()}).items():
            job, w = jobs[name], self._matrices.matrix(name).copy()
            check_range(w, job.type, name, self.file.path)
            w[mask] = 0
            untouched = job.type is job.info.type and not mask.any()
            found[name] = self.file.data(name) if untouched else self._bytes(job, w, mask)
        return found

    def _bytes(self, job: Job, w: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """The bytes of w (rows, k), in which `mask` must be exactly 0."""
        data = packed(w, job.type)
        if dequantize(data, job.type, w.shape)[mask].any():
            raise ConvertError(
                "a weight that was set to 0 is not 0 in this type; choose another one (--type)", path=self.file.path,
                field=f"tensor {job.info.name}", value=job.type.name,
            )  # fmt: skip
        return data

    def _put(self, job: Job, data: np.ndarray) -> None:
        """Write a pruned tensor; the layer goes on with it as its bytes say."""
        now = self._matrices.change(job.info.name, data, job.type)
        n, n_zeros = prod(job.info.shape), now.size - int(np.count_nonzero(now))
        self.tensors.append(TensorReport(job.info.name, job.type.name, n, n_zeros))
        self._writer.write_tensor(job.info.name, data)
        self._meter.advance(n_matrices(job))
