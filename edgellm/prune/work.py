"""What all ways of pruning share: the file, its windows of text, the writer, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from ..blocks import BlockType
from ..convert.pack import pack
from ..convert.pipeline import CHUNK
from ..gguf import GGUFWriter
from ..progress import Meter, ProgressCallback
from .jobs import Job, Jobs, converted
from .losses import Quality
from .matrices import Matrices
from .report import TensorReport
from .streams import Stream
from .walk import LayerWalk
from .windows import Windows
from .wish import PruneWish


class Work:
    """The work on one file: `run` does it. `tensors`, `zeros`, `removed`, `influence`, `before` and `after` are what
    came of it (`PruneReport` says what they are)."""

    def __init__(
        self, loaded: Any, walk: LayerWalk, jobs: Jobs, windows: Windows, wish: PruneWish, writer: GGUFWriter,
        progress: ProgressCallback | None,
    ) -> None:  # fmt: skip
        self.file, self.walk, self.jobs, self.windows, self.wish = loaded.file, walk, jobs, windows, wish
        self._writer, self._matrices = writer, Matrices(loaded.weights)
        self._types = {job.info.name: job.type for job in jobs.all}
        self.tensors: list[TensorReport] = []
        self.zeros = 0.0
        self.removed: tuple[int, ...] = ()
        self.influence: tuple[float, ...] = ()
        self.before: Quality | None = None
        self.after: Quality | None = None
        self._meter = Meter(progress, "pruning", self._n_steps(), "steps", "nothing was written")

    def run(self, dataset: str) -> None:
        """Describes and writes the whole file; `dataset` is the text's name."""
        raise NotImplementedError

    def _n_steps(self) -> int:
        """Windows through a layer or to the head, and matrices."""
        raise NotImplementedError

    def _stream(self, windows: np.ndarray, types: Mapping[str, BlockType]) -> Stream:
        return Stream(self.file, self.walk, windows, types, self._meter)

    def _write(self, job: Job, name: str | None = None, in_layer: bool = False) -> None:
        """A tensor that loses no weights, perhaps under another name. `in_layer`: the walk goes on with it as it is in
        the output."""
        data: Any = converted(self.file, job)
        if in_layer and job.type is not job.info.type:
            data = np.concatenate(list(data))
            self._matrices.change(job.info.name, data, job.type)
        self._writer.write_tensor(name or job.info.name, data)


def n_matrices(job: Job) -> int:
    """Matrices in a tensor: the experts of a stack, else 1."""
    return prod(job.info.shape[:-2])


def packed(w: np.ndarray, kind: BlockType) -> np.ndarray:
    """uint8 (rows, bytes of a row) of float32 (rows, k)."""
    step = max(1, CHUNK // w.shape[1])
    return np.concatenate([pack(w[i : i + step], kind) for i in range(0, len(w), step)])
