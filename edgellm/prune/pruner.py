"""`prune`: a GGUF file through its layers, one at a time, into a GGUF file with zeros."""

from __future__ import annotations

import os
import time
from collections import Counter
from math import prod

from ..convert.pipeline import check_output
from ..errors import NotEnoughMemoryError
from ..gguf import GGUFWriter, open_gguf
from ..progress import ProgressCallback
from .dropping import Dropping
from .jobs import Jobs, plan_jobs
from .report import NOT_MEASURED, PruneReport
from .speed import CERTAIN, Speed, measure_speed
from .statistics import GRAM_BYTES
from .walk import LayerWalk
from .windows import CHUNK_SIZE, Windows, check, split
from .wish import PruneWish, parse
from .work import Work
from .zeroing import Zeroing


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
    type: str | None = None, group: str | None = None,
    chunk_size: int | None = None, n_chunks: int | None = None, held_out: int | None = None,
    backend: str = "auto",
    threads: int | str = "auto",
    overwrite: bool = True,
) -> PruneReport:  # fmt: skip
    """Write the GGUF file `src` as `out` with a share `sparsity` (None: 0.5) of its layers' weights set to 0.

    `pattern`: "unstructured" (any weights), "2:4" (two of every four neighbours in a row), "block16" (blocks of 16
    rows x 64 columns; x 256 in types with blocks of 256), "heads" (of each layer's attention, by what they add to its
    output) or "layers" (whole ones leave the file, by block influence, Men et al. 2024). `method`, not for heads and
    layers: "magnitude" (the smallest go), "wanda" (None; the smallest times the norm of their inputs, Sun et al. 2023)
    or "sparsegpt" (what is left is changed to make up for what went, Frantar and Alistarh 2023). `group`, for
    unstructured wanda: the share goes of the whole "matrix" (None) or, as in the paper, of each "row".
    All but magnitude need `text`: its first `n_chunks` (None: 64) windows of `chunk_size` tokens (None: 512, or fewer
    if the model was trained for fewer) go through the model layer by layer, each layer after those before it were
    pruned. Perplexity before and after is measured on the last `held_out` windows (None: a fifth, at most 32).
    `dataset`: the text's name, for the metadata.
    `type`: a mix as for `edgellm.quantize`; None: each tensor keeps its type. Embedding, head, norms and routers of
    experts lose nothing. `progress` gets a `Progress` and may return False to stop.

    Raises InvalidArgumentError, ConvertError (a type that cannot write a 0), the errors of loading a model,
    NotEnoughMemoryError, OutputError, Cancelled. The output is then not there (an old one stays as it was).
    """
    from ..loader import Loaded

    start = time.perf_counter()
    wish = parse(sparsity, pattern, method, type, group)
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
            work = Dropping if wish.pattern == "layers" else Zeroing
            done: Work = work(loaded, walk, jobs, windows, wish, writer, progress)
            done.run(dataset)
        source = loaded.file.path
    finally:
        loaded.close()
    speed = None if backend in ("numba", "reference") else measure_speed(source, path, threads)
    return _report(done, path, speed, start)


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
    largest = max((prod(job.info.shape) for job in jobs.all if job.pruned), default=0)
    k = max((job.info.shape[-1] for job in jobs.all if job.pruned), default=0)
    grams = GRAM_BYTES + 32 * k * k if wish.method == "sparsegpt" else 0
    need, have = kept + 2 * layer + 16 * largest + grams, memory().available
    if need > have:
        raise NotEnoughMemoryError(need, have, ["fewer windows (--chunks, --held-out)"], what="pruning this model")


def _report(done: Work, path: str, speed: Speed | None, start: float) -> PruneReport:
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
        faster=speed is not None and speed.ratio >= CERTAIN,
        speed=NOT_MEASURED if speed is None else speed.text,
        rate_before=None if speed is None else speed.before,
        rate_after=None if speed is None else speed.after,
        types=dict(Counter(job.type.name for job in done.jobs.all)),
        notes=done.jobs.notes,
        seconds=time.perf_counter() - start,
        tensors=tuple(done.tensors),
        removed=done.removed,
        influence=done.influence,
    )

