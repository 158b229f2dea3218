"""GGUF -> GGUF with other types for the matrices: `edgellm quantize`."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from . import quants
from .blocks import BF16, F16, F32, BlockType
from .convert.choice import NUMBERS, Wish, choose, imatrix_keys, parse_wish
from .convert.mixes import QUANTIZATION_VERSION, stays_f32
from .convert.pack import check_range, pack
from .convert.pipeline import CHUNK, check_output, join_notes
from .errors import ConvertError
from .gguf import GGUFFile, GGUFWriter, TensorInfo, open_gguf
from .imatrix import Imatrix
from .progress import Meter, ProgressCallback

__all__ = ["KindReport", "QuantizeReport", "quantize"]

_PLAIN = (F32, F16, BF16)
_REPLACED = ("general.architecture", "general.file_type", "general.quantization_version", "general.alignment")


@dataclass(frozen=True)
class KindReport:
    """All tensors of one kind ("attn_q.weight"; layers and experts together). `types`: number of tensors per type.

    `rmse`: root of the mean squared error of its weights; `relative`: that, over the root of the mean squared weight.
    """

    kind: str
    types: dict[str, int]
    n_weights: int
    n_bytes: int
    bits_per_weight: float
    rmse: float
    relative: float


@dataclass(frozen=True)
class QuantizeReport:
    """What was written. Sizes are bytes of the whole files; `types`: number of tensors per type; `notes`: remarks.

    `kinds`: one row for each kind of matrix, only where errors were asked for (`measure`).
    """

    path: str
    type: str
    bytes_before: int
    bytes_after: int
    bits_per_weight: float
    n_tensors: int
    types: dict[str, int]
    notes: tuple[str, ...]
    seconds: float
    kinds: tuple[KindReport, ...] = ()


@dataclass(frozen=True)
class _Job:
    """One tensor: from `info.type` to `type`; `importance` float64 (matrices, k), matrices that follow each other."""

    info: TensorInfo
    type: BlockType
    importance: np.ndarray | None = None


class _Errors:
    """Sums of squared errors and squared weights for each kind of tensor."""

    def __init__(self) -> None:
        self.sums: dict[str, np.ndarray] = {}  # float64 (2,)

    def add(self, job: _Job, x: np.ndarray, data: np.ndarray) -> None:
        """x: float32 (rows, k) as read, data: uint8 (rows, bytes of a row) as written."""
        miss = quants.dequantize(data, job.type, x.shape) - x
        found = self.sums.setdefault(kind_of(job.info.name), np.zeros(2))
        found += [np.square(miss, dtype=np.float64).sum(), np.square(x, dtype=np.float64).sum()]

    def report(self, jobs: Sequence[_Job]) -> tuple[KindReport, ...]:
        groups: dict[str, list[_Job]] = {}
        for job in jobs:
            if not stays_f32(job.info.name, job.info.shape):
                groups.setdefault(kind_of(job.info.name), []).append(job)
        return tuple(self._row(kind, members) for kind, members in groups.items())

    def _row(self, kind: str, jobs: list[_Job]) -> KindReport:
        n = sum(prod(job.info.shape) for job in jobs)
        n_bytes = sum(prod(job.info.shape[:-1]) * job.type.row_bytes(job.info.shape[-1]) for job in jobs)
        miss, size = self.sums.get(kind, np.zeros(2))
        types = dict(Counter(job.type.name for job in jobs))
        relative = float(np.sqrt(miss / size)) if size else 0.0
        return KindReport(kind, types, n, n_bytes, 8 * n_bytes / n, float(np.sqrt(miss / n)), relative)


def kind_of(name: str) -> str:
    """ "blk.12.attn_q.weight" -> "attn_q.weight"."""
    return re.sub(r"^blk\.\d+\.", "", name)


def quantize(
    src: str | os.PathLike[str],
    out: str | os.PathLike[str],
    type: str,
    progress: ProgressCallback | None = None,
    *,
    imatrix: str | os.PathLike[str] | Imatrix | None = None,
    tensor_types: Sequence[str | tuple[str, str]] = (),
    output_tensor_type: str | None = None,
    token_embedding_type: str | None = None,
    pure: bool = False,
    measure: bool = False,
    allow_requantize: bool = False,
    overwrite: bool = True,
) -> QuantizeReport:
    """Write the GGUF file `src` as `out` with matrices of other types.

    `type` names a mix (`convert.mixes.MIXES`: Q4_K_M, Q8_0, F16, ...), which gives each matrix its type; rows that are
    no multiple of a block get a smaller one, which `notes` say. Metadata is copied, norms and biases stay as they are.
    `imatrix`: an importance matrix or its file, by which errors are weighed. `tensor_types`: "REGEX=TYPE" for the names
    in which REGEX is found, the first one wins; `output_tensor_type` and `token_embedding_type` for these two; `pure`:
    the mix's base type for all others. `measure`: also report the errors of each kind of tensor.
    A file that is quantised already is refused unless `allow_requantize`, because the errors of both roundings add up.
    `progress` gets a `Progress` and may return False to stop.

    Raises ModelFormatError and its kin (a bad source), ConvertError, InvalidArgumentError, OutputError, Cancelled. The
    output is then not there (an old one stays as it was).
    """
    start = time.perf_counter()
    wish = parse_wish(type, imatrix, tensor_types, output_tensor_type, token_embedding_type, pure)
    with open_gguf(src) as file:
        path = check_output(out, file.paths, overwrite)
        if not file.tensors:
            raise ConvertError("the file holds no tensors (a vocabulary only), there is nothing to do", path=file.path)
        jobs, notes = _plan(file, wish, allow_requantize)
        errors = _Errors() if measure else None
        with GGUFWriter(path, file.get("general.architecture", str)) as writer:
            _copy_metadata(file, writer, wish)
            total = sum(writer.add_tensor_info(job.info.name, job.info.shape, job.type) for job in jobs)
            meter = Meter(progress, "quantising", total, left="nothing was written")
            for job in jobs:
                writer.write_tensor(job.info.name, _convert(file, job, meter, errors))
        before = file.n_bytes
    return QuantizeReport(
        path=path,
        type=wish.mix.name,
        bytes_before=before,
        bytes_after=os.path.getsize(path),
        bits_per_weight=8 * total / sum(prod(job.info.shape) for job in jobs),
        n_tensors=len(jobs),
        types=dict(Counter(job.type.name for job in jobs)),
        notes=tuple(join_notes(notes)),
        seconds=time.perf_counter() - start,
        kinds=errors.report(jobs) if errors else (),
    )


# ---- which tensor gets what ------------------------------------------------------------------------------------------


def _plan(file: GGUFFile, wish: Wish, allow_requantize: bool) -> tuple[list[_Job], list[tuple[str, str]]]:
    """The new type of every tensor, and remarks (name, text)."""
    arch = file.get("general.architecture", str)
    numbers = {key: _number(file, f"{arch}.{key}") for key in NUMBERS}
    choices, notes = choose(wish, {info.name: info.shape for info in file.tensors.values()}, arch, numbers)
    jobs = []
    for info in file.tensors.values():
        chosen = choices[info.name]
        if stays_f32(info.name, info.shape):
            jobs.append(_Job(info, info.type))
            continue
        if info.type not in (*_PLAIN, chosen.type) and not allow_requantize:
            raise ConvertError(
                "this file is quantised already; quantise the original one, its weights are better",
                path=file.path, field=f"type of {info.name}", value=info.type.name, limit="F32, F16 or BF16",
            )  # fmt: skip
        jobs.append(_Job(info, chosen.type, chosen.importance))
    return jobs, notes


def _number(file: GGUFFile, key: str) -> int:
    """An integer, the largest one where each layer has its own, 0 where there is none."""
    value = file.get(key, (int, list[int]), 0)
    return int(np.max(value, initial=0))


# ---- data ------------------------------------------------------------------------------------------------------------


def _copy_metadata(file: GGUFFile, writer: GGUFWriter, wish: Wish) -> None:
    for key, (value_type, item_type) in file.metadata.types.items():
        if key not in _REPLACED and not key.startswith("quantize.imatrix."):
            writer.add(key, file.metadata[key], value_type if item_type is None else item_type)
    writer.add("general.quantization_version", QUANTIZATION_VERSION, "u32")
    writer.add("general.file_type", wish.mix.file_type, "u32")
    for key, value, kind in imatrix_keys(wish.imatrix):
        writer.add(key, value, kind)


def _convert(file: GGUFFile, job: _Job, meter: Meter, errors: _Errors | None) -> Iterator[Any]:
    """The bytes of the new tensor, stretch by stretch."""
    if job.type is job.info.type:
        return copied(file, job.info, meter)
    return _packed(file, job, meter, errors)


def _packed(file: GGUFFile, job: _Job, meter: Meter, errors: _Errors | None) -> Iterator[np.ndarray]:
    """uint8 (rows, bytes of a row); each stretch lies within one matrix, so that it has one importance."""
    shape, rows = job.info.shape, rows_of(file, job.info)
    k, n_rows = shape[-1], prod(shape[:-1])
    matrix = n_rows if job.importance is None else shape[-2]
    step = max(1, CHUNK // k)
    for first in range(0, n_rows, matrix):
        weights = None if job.importance is None else job.importance[first // matrix]
        for start in range(first, first + matrix, step):
            x = rows(start, min(start + step, first + matrix))
            check_range(x, job.type, job.info.name, file.path)
            data = pack(x, job.type, weights)
            if errors is not None:
                errors.add(job, x, data)
            yield data
            meter.advance(data.nbytes)


def copied(file: GGUFFile, info: TensorInfo, meter: Meter) -> Iterator[np.ndarray]:
    data, step = file.data(info.name), 4 * CHUNK
    for start in range(0, info.n_bytes, step):
        with file.reading():
            part = data[start : start + step].copy()
        yield part
        file.advise_dont_need(info.offset + start, part.size)
        meter.advance(part.size)


def rows_of(file: GGUFFile, info: TensorInfo) -> Any:
    """A function of (start, stop) that gives these rows as float32 (stop - start, k)."""
    data, k = file.data(info.name), info.shape[-1]
    row_bytes = info.type.row_bytes(k)

    def rows(start: int, stop: int) -> np.ndarray:
        first, last = start * row_bytes, stop * row_bytes
        with file.reading():
            x = quants.dequantize(data[first:last], info.type, (stop - start, k))
        file.advise_dont_need(info.offset + first, last - first)
        return x

    return rows
