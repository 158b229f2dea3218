"""The weights of a plan as native code takes them: in panels where there is a form, without zero tiles where many are.

What needs another order is packed into one arena, by all cores, and the mapped pages it came from are given back at
once; what a packed file holds is used where it is mapped; rows are read straight from the file.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import blocks, clib
from ..errors import NotEnoughMemoryError
from ..parallel import parallel
from ..plan import Plan
from ..weights import Weights
from . import LoadProgress, compressed, sparse
from .compressed import CompressedIndex
from .lowering import panel_weights
from .sparse import SparseIndex

_ROWS, _PANELS = 0, 1  # EL_ROWS, EL_PANELS of native/edgellm.h
_PACK_BYTES = 2 << 20  # of rows that one packing task turns into panels
_TOUCH_BYTES = 1 << 20  # of a packed file that are mapped at once: Python's lock is held meanwhile
_LINE = 64  # bytes; panels start on cache lines


class WeightTable:
    """The plan's weights as el_weight structs: panels in one arena or in the mapped (packed) file, rows in the mapped
    file, vectors as float32.

    Experts are packed as one matrix where each begins at a panel's border: 16 rows of a panel are of one expert.
    """

    def __init__(
        self, plan: Plan, weights: Weights, n_threads: int, pack: bool, copy: bool, progress: LoadProgress | None
    ) -> None:
        self._ffi, self._lib = clib.library()
        self.ids = {name: i for i, name in enumerate(plan.weights)}
        self._keep: list[np.ndarray] = []  # arrays that structs point into
        self.reads_file = False  # some of these are the mapped file
        self.structs = self._ffi.new("el_weight[]", len(self.ids))
        self._arena, self._arena_bytes = self._ffi.NULL, 0
        wanted = panel_weights(plan, weights)
        stored = {name: panels for name in wanted if (panels := weights.panels(name)) is not None}
        # sparse ones of a packed file
        self._stored = {name: panels.size for name, panels in stored.items() if weights.sparse(name)}
        mapped = {} if copy else stored
        rows = [name for name in wanted if name not in stored] if pack else []
        found = sparse.find_sparse(rows, weights, n_threads)  # those that lie in rows in the file
        self._thin: dict[str, SparseIndex | CompressedIndex] = {
            **found, **compressed.find_compressed(rows, weights, n_threads, found)
        }  # fmt: skip
        offsets = self._reserve([name for name in wanted if name not in mapped and (pack or name in stored)], weights)
        for name in self.ids:
            if name in mapped:
                self._map_panels(name, weights, stored[name])
            elif name not in offsets:
                self._map_rows(name, weights)
        tasks: list[_Task] = []
        for name, panels in stored.items():
            if name in mapped:
                tasks += self._touched(name, panels, weights)
            else:
                tasks += self._copied(name, panels, offsets[name], weights)
        tasks += [task for name in offsets if name not in stored for task in self._packed(name, offsets[name], weights)]
        try:
            self._work(tasks, weights, n_threads, progress)
        except BaseException:
            self.close()
            raise

    def _reserve(self, names: list[str], weights: Weights) -> dict[str, int]:
        """Where in the arena each tensor's panels go."""
        offsets: dict[str, int] = {}
        for name in names:
            offsets[name] = self._arena_bytes
            n_bytes = self._panel_bytes(name, weights)
            self._arena_bytes += -(-n_bytes // _LINE) * _LINE
        if self._arena_bytes:
            self._arena = self._lib.el_arena_alloc(self._arena_bytes)
            if self._arena == self._ffi.NULL:
                raise NotEnoughMemoryError(self._arena_bytes, 0, ["a smaller quantisation"], what="the weights")
        return offsets

    def _layout(self, name: str) -> int:
        thin = self._thin.get(name)
        if thin is not None:
            return compressed.LAYOUT if isinstance(thin, CompressedIndex) else sparse.LAYOUT
        return sparse.LAYOUT if name in self._stored else _PANELS

    def _panel_bytes(self, name: str, weights: Weights) -> int:
        if name in self._thin:
            return self._thin[name].n_bytes
        if name in self._stored:
            return self._stored[name]
        return int(self._lib.el_panel_bytes(weights.type(name).id, *_matrix(weights.shape(name))))

    def _map_rows(self, name: str, weights: Weights) -> None:
        shape = weights.shape(name)
        struct = self.structs[self.ids[name]]
        if len(shape) == 1:  # norms and biases: small, and the kernels want float32
            data, struct.type = np.ascontiguousarray(weights.float32(name)).view(np.uint8), blocks.F32.id
            struct.rows, struct.cols = 1, shape[0]
        else:
            self.reads_file = True
            data, struct.type = weights.data(name), weights.type(name).id
            struct.rows, struct.cols = _matrix(shape)
        struct.layout = _ROWS
        self._point(struct, data)

    def _map_panels(self, name: str, weights: Weights, panels: np.ndarray) -> None:
        """Panels of a packed file, used where they are mapped."""
        struct = self.structs[self.ids[name]]
        struct.type, struct.layout = weights.type(name).id, self._layout(name)
        struct.rows, struct.cols = _matrix(weights.shape(name))
        self.reads_file = True
        self._point(struct, panels)

    def _point(self, struct: Any, data: np.ndarray) -> None:
        self._keep.append(data)
        struct.bytes = data.size
        struct.data = self._ffi.from_buffer(data)

    def _work(self, tasks: list[_Task], weights: Weights, n_threads: int, progress: LoadProgress | None) -> None:
        """All tasks, on all cores; what is done of a source that was copied is given back to the system."""
        total, done = sum(task.n_bytes for task in tasks), 0
        with closing(parallel(tasks, lambda task: task.run(), n_threads)) as finished:
            for task, _ in finished:
                if task.used_up:
                    weights.file.advise_dont_need(task.offset, task.n_bytes)
                done += task.n_bytes
                if progress is not None:
                    progress(done, total)

    def _touched(self, name: str, panels: np.ndarray, weights: Weights) -> list[_Task]:
        """Mapped panels: their pages are mapped now, which takes half the time of page faults in the first pass."""
        offset, file = weights.stored_offset(name), weights.file
        return [
            _Task(functools.partial(file.populate, offset + at, size), offset + at, size, used_up=False)
            for at, size in _stretches(panels.size, _TOUCH_BYTES)
        ]

    def _copied(self, name: str, panels: np.ndarray, offset: int, weights: Weights) -> list[_Task]:
        """Panels of a packed file into the arena, as they are; also fills in the struct."""
        target = self._panel_struct(name, offset, weights)
        place, out = weights.stored_offset(name), np.frombuffer(self._ffi.buffer(target, panels.size), np.uint8)
        return [
            _Task(functools.partial(np.copyto, out[at : at + size], panels[at : at + size]), place + at, size)
            for at, size in _stretches(panels.size, _PACK_BYTES)
        ]

    def _packed(self, name: str, offset: int, weights: Weights) -> list[_Task]:
        """Rows into panels, in stretches of whole groups; also fills in the struct."""
        kind, (rows, k) = weights.type(name), _matrix(weights.shape(name))
        source, target = self._ffi.from_buffer(weights.data(name)), self._panel_struct(name, offset, weights)
        row, place, thin = kind.row_bytes(k), weights.span(name)[0], self._thin.get(name)
        if thin is not None:
            self._ffi.memmove(target, thin.index, thin.index.size)
        pack = {
            _PANELS: self._lib.el_pack_panels,
            sparse.LAYOUT: self._lib.el_pack_sparse,
            compressed.LAYOUT: self._lib.el_pack_compressed,
        }[self._layout(name)]

        def run(first: int, last: int) -> None:
            clib.check(pack(kind.id, source, target, rows, k, first, last), f"packing {name}")

        return [
            _Task(functools.partial(run, at, at + n), place + at * row, n * row)
            for at, n in _stretches(rows, max(1, _PACK_BYTES // (16 * row)) * 16)
        ]

    def _panel_struct(self, name: str, offset: int, weights: Weights) -> Any:
        """Fills in the struct of a weight whose panels are in the arena; returns where they are."""
        struct = self.structs[self.ids[name]]
        struct.type, struct.layout = weights.type(name).id, self._layout(name)
        struct.rows, struct.cols = _matrix(weights.shape(name))
        struct.data = self._ffi.cast("char *", self._arena) + offset
        struct.bytes = self._panel_bytes(name, weights)
        return self._ffi.cast("char *", struct.data)

    @property
    def arena(self) -> tuple[int, int]:
        """Its address and bytes; bytes 0: there is none."""
        return int(self._ffi.cast("uintptr_t", self._arena)), self._arena_bytes

    def close(self) -> None:
        self._lib.el_arena_free(self._arena, self._arena_bytes)
        self._arena, self._arena_bytes = self._ffi.NULL, 0
        self._keep.clear()


@dataclass(frozen=True)
class _Task:
    """Some work on `n_bytes` from `offset` of the file; `used_up`: these are not needed any more when it is done."""

    run: Callable[[], Any]
    offset: int
    n_bytes: int
    used_up: bool = True


def _stretches(n: int, step: int) -> Iterator[tuple[int, int]]:
    """(start, length) of 0 .. n in steps."""
    return ((at, min(step, n - at)) for at in range(0, n, step))


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """(rows, columns); the matrices of experts follow each other, and are one tall matrix here."""
    return math.prod(shape[:-1]), shape[-1]
