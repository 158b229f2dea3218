"""Measuring an importance matrix: a text goes through the model step by step, and squared inputs are summed.

Any backend that can be read step by step will do; the numbers are sums of squares, so their differences do not matter.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .errors import InvalidArgumentError
from .imatrix import Imatrix
from .ops import Op
from .progress import Meter, ProgressCallback


def collect(
    path: str | os.PathLike[str],
    text: str,
    *,
    chunk_size: int = 512,
    n_chunks: int | None = None,
    first_chunk: int = 0,
    process_output: bool = False,
    dataset: str = "",
    into: Imatrix | None = None,
    backend: str = "auto",
    threads: int | str = "auto",
    progress: ProgressCallback | None = None,
    on_chunk: Callable[[Imatrix], Any] | None = None,
) -> Imatrix:
    """The importance matrix of the model at `path` on `text`.

    The text is cut into chunks of `chunk_size` tokens, each a sequence of its own that starts with the model's
    beginning-of-text token where the model has one; what is left over at the end is not used, as in llama.cpp. Chunks
    `first_chunk` .. `first_chunk + n_chunks - 1` are run (None: all). `into`: statistics to go on with, of this model;
    it gets the new ones. `process_output`: measure the output head too. `on_chunk` is called with the statistics after
    each chunk; `progress` gets a `Progress` and may return False to stop with Cancelled.

    Raises InvalidArgumentError (no whole chunk, arguments out of range), Cancelled, and the errors of loading a model.
    """
    from .loader import Loaded

    if chunk_size < 2 or first_chunk < 0 or (n_chunks is not None and n_chunks < 1):
        raise InvalidArgumentError("choose a chunk size of 2 or more, a first chunk of 0 or more and 1 or more chunks")
    out = into if into is not None else Imatrix()
    loaded = Loaded(
        path, n_ctx=chunk_size, threads=threads, backend=backend, kv_type="auto", chat_template=None, seed=None,
        progress=None,
    )  # fmt: skip
    try:
        chunks = list(chunks_of(loaded.tokenizer, text, chunk_size))[first_chunk:][:n_chunks]
        if not chunks:
            raise InvalidArgumentError(f"the text has no whole chunk of {chunk_size} tokens after {first_chunk} chunks")
        collector = _Collector(loaded, out, process_output)
        left = "chunks that were done are in the statistics"
        meter = Meter(progress, "measuring", len(chunks), "chunks", left)
        for tokens in chunks:
            with loaded.file.reading():
                collector.run(tokens)
            out.n_chunks += 1
            meter.advance(1)
            if on_chunk is not None:
                on_chunk(out)
    finally:
        loaded.close()
    out.chunk_size = chunk_size
    if dataset and dataset not in out.datasets:
        out.datasets.append(dataset)
    return out


def chunks_of(tokenizer: Any, text: str, size: int) -> Iterator[np.ndarray]:
    """int32 (size,) each; the first token of each is what the tokenizer puts before a text, if it does."""
    ids = np.array(tokenizer.encode(text, add_special=True), dtype=np.int32)
    plain = tokenizer.encode("", add_special=True)  # just the token before a text, and perhaps one after it
    for start in range(0, len(ids) - size + 1, size):
        chunk = ids[start : start + size].copy()
        if plain and ids[0] == plain[0]:
            chunk[0] = plain[0]
        yield chunk


class _Collector:
    """Runs chunks through the steps of a plan and sums up the inputs of its matrices."""

    def __init__(self, loaded: Any, out: Imatrix, process_output: bool) -> None:
        self._runner, self._plan, self._pool, self._out = loaded.runner, loaded.plan, loaded.pool, out
        self._weights, self._process_output = loaded.weights, process_output
        self._experts: dict[str, np.ndarray] = {}

    def run(self, tokens: np.ndarray) -> None:
        from .cache import Sequence
        from .engine import PREFILL_CHUNK

        new = Imatrix()  # a chunk counts as a whole or not at all
        with Sequence(self._pool, len(tokens)) as seq:
            for start in range(0, len(tokens), PREFILL_CHUNK):
                part = tokens[start : start + PREFILL_CHUNK]
                seq.ensure(start + len(part))
                outputs = np.arange(len(part) if self._process_output else 1, dtype=np.int32)
                self._runner.begin(part, start, outputs, seq)
                self._steps(new)
                seq.commit(start + len(part))
        self._out.merge(new)

    def _steps(self, new: Imatrix) -> None:
        inputs: dict[int, np.ndarray] = {}  # by buffer, until something else is written there
        for i, step in enumerate(self._plan.steps):
            if step.op is Op.LINEAR:
                name = self._counted(step.weights[0])
                if name:
                    buffer = step.inputs[0]
                    if buffer not in inputs:
                        inputs[buffer] = self._runner.read(buffer)
                    new.add(name, 0, 1, inputs[buffer])
            elif step.op is Op.EXPERTS:
                self._add_experts(step, new)
            self._runner.run_step(i)
            for buffer in step.outputs:
                inputs.pop(buffer, None)

    def _counted(self, weight: str) -> str | None:
        """The tensor's name; None where it is not measured. Of "name[a:b]", one for each part, the first one counts."""
        name, _, part = weight.partition("[")
        if (part and not part.startswith("0:")) or not (name.startswith("blk.") or self._process_output):
            return None
        return name

    def _add_experts(self, step: Any, new: Imatrix) -> None:
        """The chosen rows of each expert; the input of its down matrix is computed here, no buffer holds it."""
        from .backends.reference import ACTIVATIONS

        x, share = (self._runner.read(buffer) for buffer in step.inputs)
        gate_name, up_name, down_name = step.weights
        gate, up = (self._decoded(name) for name in (gate_name, up_name))
        n = share.shape[1]
        for e in range(n):
            rows = x[np.flatnonzero(share[:, e])]
            with np.errstate(all="ignore"):
                hidden = ACTIVATIONS[step.params["activation"]](rows @ gate[e].T) * (rows @ up[e].T)
            for name, seen in ((gate_name, rows), (up_name, rows), (down_name, hidden)):
                new.add(name, e, n, seen)

    def _decoded(self, name: str) -> np.ndarray:
        if name not in self._experts:
            self._experts = {k: v for k, v in self._experts.items() if k.split(".")[1] == name.split(".")[1]}
            self._experts[name] = self._weights.float32(name)  # one layer at a time stays decoded
        return self._experts[name]
