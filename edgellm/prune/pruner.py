"""`prune`: a GGUF file through its layers, one at a time, into a GGUF file with zeros."""

from __future__ import annotations

import os
import time
from collections import Counter
from math import prod
from typing import Any

import numpy as np

from ..blocks import BlockType
from ..convert.pack import check_range, pack
from ..convert.pipeline import CHUNK, check_output
from ..errors import ConvertError, NotEnoughMemoryError
from ..gguf import GGUFWriter, open_gguf
from ..imatrix import Imatrix
from ..progress import Meter, ProgressCallback
from ..quantize import rows_of
from ..quants import dequantize
from .choose import prune_matrix
from .jobs import Job, Jobs, converted, describe, plan_jobs
from .losses import Quality, first_counted, head_stretches, quality, token_losses
from .masks import check_fours
from .matrices import Matrices
from .report import PREFIX, SPEED, PruneReport, TensorReport, metadata
from .statistics import GRAM_BYTES, Grams, Unit, rounds, units
from .walk import LayerWalk
from .windows import CHUNK_SIZE, Windows, check, split
from .wish import PruneWish, parse


def prune(
    src: str | os.PathLike[str],
    out: str | os.PathLike[str],
    sparsity: float | None = None,
    pattern: str = "unstructured",
    method: str | None = None,
    progress: ProgressCallback | None = None,
    *,
    text: str | None = None,
    dataset: str = "",
    type: str | None = None,
    chunk_size: int | None = None,
    n_chunks: int | None = None,
    held_out: int | None = None,
    backend: str = "auto",
    threads: int | str = "auto",
    overwrite: bool = True,
) -> PruneReport:
    """Write the GGUF file `src` as `out` with a share `sparsity` (None: 0.5) of the weights of its layers set to 0.

    `pattern`: "unstructured" (any weights), "2:4" (two of every four neighbours in a row) or "block16" (blocks of 16
    rows x 64 columns; x 256 in types with blocks of 256). `method`: "magnitude" (the smallest go), "wanda" (None; the
    smallest times the norm of their inputs, Sun et al. 2023) or "sparsegpt" (what is left is changed to make up for
    what went, Frantar and Alistarh 2023). The last two need `text`: its first `n_chunks` (None: 64) windows of
    `chunk_size` tokens (None: 512, or fewer if the model was trained for fewer) go through the model layer by layer,
    each layer after those before it were pruned. Perplexity before and after is measured on the last `held_out`
    windows (None: a fifth, at most 32). `dataset`: the text's name, for the metadata.
    `type`: a mix as for `edgellm.quantize`; None: each tensor keeps its type. Embedding, head, norms and routers of
    experts lose nothing. `progress` gets a `Progress` and may return False to stop.

    Raises InvalidArgumentError, ConvertError (a type that cannot write a 0), the errors of loading a model,
    NotEnoughMemoryError, OutputError, Cancelled. The output is then not there (an old one stays as it was).
    """
    from ..loader import Loaded

    start = time.perf_counter()
    wish = parse(sparsity, pattern, method, type)
    check(chunk_size or CHUNK_SIZE, n_chunks, held_out)
    chunk_size = _chunk_size(src) if chunk_size is None else chunk_size
    loaded = Loaded(
        src, n_ctx=chunk_size, threads=threads, backend=backend, kv_type="f32", chat_template=None, seed=None,
        progress=None, pack=False,
    )  # fmt: skip
    try:
        path = check_output(out, loaded.file.paths, overwrite)
        windows = split(loaded.tokenizer, text, chunk_size, n_chunks, held_out, wish.reads_text)
        walk = LayerWalk(loaded)
        jobs = plan_jobs(loaded.file, walk, wish)
        _check_memory(jobs, windows, walk, wish)
        with GGUFWriter(path, loaded.arch) as writer, loaded.file.reading():
            done = _Pruning(loaded, walk, jobs, windows, wish, writer, progress)
            done.run(dataset)
        return _report(done, path, start)
    finally:
        loaded.close()


def _chunk_size(src: str | os.PathLike[str]) -> int:
    from ..models import read_config

    with open_gguf(src) as file:
        return min(CHUNK_SIZE, read_config(file).n_ctx_train or CHUNK_SIZE)


def _check_memory(jobs: Jobs, windows: Windows, walk: LayerWalk, wish: PruneWish) -> None:
    """Raises NotEnoughMemoryError before hours of work end without memory."""
    from ..machine import memory

    dim = walk.plan.buffers[walk.stream].cols
    kept = 4 * dim * (windows.chosen_by.size + 2 * windows.held_out.size)  # hidden states
    layer = max(sum(4 * prod(job.info.shape) for job in jobs) for jobs in jobs.layers)
    largest = max(prod(job.info.shape) for job in jobs.all if job.pruned)
    k = max(job.info.shape[-1] for job in jobs.all if job.pruned)
    grams = GRAM_BYTES + 32 * k * k if wish.method == "sparsegpt" else 0
    need, have = kept + 2 * layer + 16 * largest + grams, memory().available
    if need > have:
        raise NotEnoughMemoryError(need, have, ["fewer windows (--chunks, --held-out)"], what="pruning this model")


class _Pruning:
    """The work on one file. `tensors`, `before` and `after` are what came of it."""

    def __init__(
        self, loaded: Any, walk: LayerWalk, jobs: Jobs, windows: Windows, wish: PruneWish, writer: GGUFWriter,
        progress: ProgressCallback | None,
    ) -> None:  # fmt: skip
        self.file, self.walk, self.jobs, self.windows, self.wish = loaded.file, walk, jobs, windows, wish
        self._writer, self._matrices = writer, Matrices(loaded.weights)
        self._types = {job.info.name: job.type for job in jobs.all}
        self.tensors: list[TensorReport] = []
        self.before: Quality | None = None
        self.after: Quality | None = None
        self._meter = Meter(progress, "pruning", self._n_steps(), "steps", "nothing was written")

    def run(self, dataset: str) -> None:
        """All of it, in order of the file that is written."""
        w = self.windows
        keys = metadata(self.wish, dataset, w.n_ctx, len(w.chosen_by), len(w.held_out))
        describe(self.file, self._writer, self.jobs, self.wish, keys)
        for job in self.jobs.outer:
            self._writer.write_tensor(job.info.name, converted(self.file, job))
        states = [self.walk.enter(tokens, self._embed) for tokens in w.chosen_by]
        dense = [self.walk.enter(tokens, self._embed_before) for tokens in w.held_out]
        pruned = [self.walk.enter(tokens, self._embed) for tokens in w.held_out]
        for layer, jobs in enumerate(self.jobs.layers):
            self._through(layer, w.held_out, dense)
            data = self._prune_layer(layer, states)
            for job in jobs:
                if job.pruned:
                    self._put(job, data.pop(job.info.name))
                else:
                    self._writer.write_tensor(job.info.name, converted(self.file, job))
            self._through(layer, w.chosen_by, states)
            self._through(layer, w.held_out, pruned)
            self._matrices.forget()
        if len(w.held_out):
            self.before, self.after = self._quality(dense, changed=False), self._quality(pruned, changed=True)
            self._writer.replace(PREFIX + "perplexity_before", self.before.ppl, "f32")
            self._writer.replace(PREFIX + "perplexity_after", self.after.ppl, "f32")
        self._writer.replace(PREFIX + "zeros", self.zeros, "f32")

    @property
    def zeros(self) -> float:
        """The share of the pruned matrices' weights that are 0."""
        return sum(t.n_zeros for t in self.tensors) / max(sum(t.n_weights for t in self.tensors), 1)

    def _n_steps(self) -> int:
        """Windows through a layer or to the head, and matrices."""
        n_chosen, n_held = len(self.windows.chosen_by), len(self.windows.held_out)
        n_matrices = sum(_n_matrices(job) for job in self.jobs.all if job.pruned)
        passes = sum(len(self._rounds(layer)) + 1 for layer in range(self.walk.n_layers))
        return n_chosen * passes + 2 * n_held * (self.walk.n_layers + 1) + n_matrices

    # ---- the text -----------------------------------------------------------------------------------------------

    def _through(self, layer: int, windows: np.ndarray, states: list[np.ndarray]) -> None:
        """Each window's states through a layer, in place."""
        for i, tokens in enumerate(windows):
            states[i] = self.walk.layer(layer, tokens, states[i], self._matrices)
            self._meter.advance(1)

    def _inputs(self, layer: int, states: list[np.ndarray], wanted: frozenset[Unit]) -> Imatrix | Grams:
        """What a layer's matrices are fed with, as far as the method wants to know."""
        found = Grams(wanted) if self.wish.method == "sparsegpt" else Imatrix()
        for tokens, x in zip(self.windows.chosen_by, states, strict=True):
            self.walk.layer(layer, tokens, x, self._matrices, found.add)
            self._meter.advance(1)
        return found

    def _embed_before(self, tokens: np.ndarray) -> np.ndarray:
        return self._rows_of_table(tokens, None)

    def _embed(self, tokens: np.ndarray) -> np.ndarray:
        return self._rows_of_table(tokens, self._types)

    def _rows_of_table(self, tokens: np.ndarray, types: dict[str, BlockType] | None) -> np.ndarray:
        """Rows of the embedding float32 (n, dim); `types`: as they will be in the output."""
        info = self.file.tensors[self.walk.plan.steps[0].weights[0]]
        raw = self.file.data(info.name).reshape(info.shape[0], -1)[tokens]
        rows = dequantize(raw, info.type, (len(tokens), info.shape[-1]))
        return rows if types is None else _as(rows, info.type, types[info.name])

    def _quality(self, states: list[np.ndarray], changed: bool) -> Quality:
        """Perplexity of the held-out windows; `changed`: with the head as it is in the output."""
        windows, first = self.windows.held_out, first_counted(self.windows.n_ctx)
        hidden = []
        for tokens, x in zip(windows, states, strict=True):
            hidden.append(self.walk.leave(tokens[:-1], x[:-1], first))
            self._meter.advance(1)
        step = self.walk.plan.steps[self.walk.head]
        info = self.file.tensors[step.weights[0]]
        kind = self._types[info.name] if changed else info.type
        rows = rows_of(self.file, info)
        head = head_stretches(info.shape[0], lambda a, b: _as(rows(a, b), info.type, kind), info.shape[1])
        bias = self._matrices.matrix(step.weights[1]) if len(step.weights) > 1 else None
        targets = windows[:, first + 1 :].reshape(-1)
        return quality(token_losses(np.concatenate(hidden), targets, head, bias, self.walk.after, self.walk.plan))

    # ---- the tensors --------------------------------------------------------------------------------------------

    def _rounds(self, layer: int) -> list[frozenset[Unit]]:
        """What is measured at once; all of it, but for methods that need much room."""
        targets = {job.info.name: job.info.shape for job in self.jobs.layers[layer] if job.pruned}
        found = units(self.walk.leaders(layer), targets, targets)
        return rounds(found) if self.wish.method == "sparsegpt" else [frozenset(found)]

    def _prune_layer(self, layer: int, states: list[np.ndarray]) -> dict[str, np.ndarray]:
        """{name: bytes} of the layer's pruned tensors; what was measured is of the layer as it is in the source."""
        leaders = self.walk.leaders(layer)
        jobs = [job for job in self.jobs.layers[layer] if job.pruned]
        data: dict[str, dict[int, np.ndarray]] = {job.info.name: {} for job in jobs}
        for wanted in self._rounds(layer):
            seen = self._inputs(layer, states, wanted)
            for job in jobs:
                name = job.info.name
                for e in range(_n_matrices(job)):
                    if (leaders[name], e) in wanted:
                        data[name][e] = self._prune(job, e, (leaders[name], e), seen)
        return {name: np.concatenate([parts[e] for e in sorted(parts)]) for name, parts in data.items()}

    def _prune(self, job: Job, e: int, unit: Unit, seen: Imatrix | Grams) -> np.ndarray:
        """The bytes of matrix `e` of a tensor, pruned."""
        info, path, n = job.info, self.file.path, _n_matrices(job)
        w = self._matrices.matrix(info.name).reshape(n, *info.shape[-2:])[e].copy()
        check_range(w, job.type, info.name, path)
        if self.wish.pattern == "2:4":
            check_fours(info.shape[-1], info.name, path)
        mask = prune_matrix(w, n, unit, seen, job.type, self.wish, lambda: self._meter.advance(0))
        check_range(w, job.type, info.name, path)  # updates may have made it larger
        data = _packed(w, job.type)
        if dequantize(data, job.type, w.shape)[mask].any():
            raise ConvertError(
                "a weight that was set to 0 is not 0 in this type; choose another one (--type)", path=path,
                field=f"tensor {info.name}", value=job.type.name,
            )  # fmt: skip
        self._meter.advance(1)
        return data

    def _put(self, job: Job, data: np.ndarray) -> None:
        """Write a pruned tensor; the layer goes on with it as its bytes say."""
        now = self._matrices.change(job.info.name, data, job.type)
        self.tensors.append(TensorReport(job.info.name, job.type.name, now.size, now.size - int(np.count_nonzero(now))))
        self._writer.write_tensor(job.info.name, data)


def _n_matrices(job: Job) -> int:
    return prod(job.info.shape[:-2])


def _packed(w: np.ndarray, kind: BlockType) -> np.ndarray:
    """uint8 (rows, bytes of a row) of float32 (rows, k)."""
    step = max(1, CHUNK // w.shape[1])
    return np.concatenate([pack(w[i : i + step], kind) for i in range(0, len(w), step)])


def _as(rows: np.ndarray, before: BlockType, after: BlockType) -> np.ndarray:
    """float32 rows as they come out of another type."""
    return rows if before is after else dequantize(pack(rows, after), after, rows.shape)


def _report(done: _Pruning, path: str, start: float) -> PruneReport:
    before, after, w = done.before, done.after, done.windows
    return PruneReport(
        path=path,
        pattern=done.wish.pattern,
        method=done.wish.method,
        sparsity=done.wish.sparsity,
        zeros=done.zeros,
        n_ctx=w.n_ctx,
        chunks=len(w.chosen_by),
        held_out=len(w.held_out),
        ppl_before=before.ppl if before else None,
        ppl_before_error=before.ppl_error if before else None,
        ppl_after=after.ppl if after else None,
        ppl_after_error=after.ppl_error if after else None,
        bytes_before=done.file.n_bytes,
        bytes_after=os.path.getsize(path),
        faster=False,
        speed=SPEED,
        types=dict(Counter(job.type.name for job in done.jobs.all)),
        notes=done.jobs.notes,
        seconds=time.perf_counter() - start,
        tensors=tuple(done.tensors),
    )
