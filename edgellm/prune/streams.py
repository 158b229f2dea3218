"""The windows of a text on their way through a model: hidden states from layer to layer, perplexity at the end."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..blocks import BlockType
from ..convert.pack import pack
from ..gguf import GGUFFile
from ..progress import Meter
from ..quantize import rows_of
from ..quants import dequantize
from .losses import Quality, first_counted, head_stretches, quality, token_losses
from .matrices import Matrices
from .walk import LayerWalk, See


class Stream:
    """`windows` int32 (n, n_ctx); `states` n times float32 (n_ctx, dim), what the next layer reads.

    `types` are those of the tensors as the stream is to see them: of the output, or {} for those of the source.
    """

    def __init__(
        self, file: GGUFFile, walk: LayerWalk, windows: np.ndarray, types: Mapping[str, BlockType], meter: Meter
    ) -> None:
        self._file, self._walk, self._types, self._meter = file, walk, types, meter
        self.windows = windows
        self.states = [walk.enter(tokens, self._embed) for tokens in windows]

    def through(self, layer: int, matrices: Matrices) -> None:
        """All states through a layer."""
        for i, tokens in enumerate(self.windows):
            self.states[i] = self._walk.layer(layer, tokens, self.states[i], matrices)
            self._meter.advance(1)

    def look(self, layer: int, matrices: Matrices, see: See) -> None:
        """As `through`, for what `see` gets; the states stay."""
        for tokens, x in zip(self.windows, self.states, strict=True):
            self._walk.layer(layer, tokens, x, matrices, see)
            self._meter.advance(1)

    def quality(self, matrices: Matrices) -> Quality | None:
        """Perplexity, once the states are behind the last layer; None without windows."""
        if not len(self.windows):
            return None
        first = first_counted(self.windows.shape[1])
        hidden = []
        for tokens, x in zip(self.windows, self.states, strict=True):
            hidden.append(self._walk.leave(tokens[:-1], x[:-1], first))
            self._meter.advance(1)
        step = self._walk.plan.steps[self._walk.head]
        info = self._file.tensors[step.weights[0]]
        rows = rows_of(self._file, info)
        kind = self._types.get(info.name, info.type)
        head = head_stretches(info.shape[0], lambda a, b: in_type(rows(a, b), info.type, kind), info.shape[1])
        bias = matrices.matrix(step.weights[1]) if len(step.weights) > 1 else None
        targets = self.windows[:, first + 1 :].reshape(-1)
        return quality(token_losses(np.concatenate(hidden), targets, head, bias, self._walk.after, self._walk.plan))

    def _embed(self, tokens: np.ndarray) -> np.ndarray:
        """Rows of the embedding table, float32 (n, dim)."""
        info = self._file.tensors[self._walk.plan.steps[0].weights[0]]
        raw = self._file.data(info.name).reshape(info.shape[0], -1)[tokens]
        rows = dequantize(raw, info.type, (len(tokens), info.shape[-1]))
        return in_type(rows, info.type, self._types.get(info.name, info.type))


def in_type(rows: np.ndarray, before: BlockType, after: BlockType) -> np.ndarray:
    """float32 (rows, k) as they come out of another type."""
    return rows if before is after else dequantize(pack(rows, after), after, rows.shape)
