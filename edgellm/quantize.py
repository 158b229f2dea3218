"""GGUF -> GGUF with another type for the matrices: `edgellm quantize`."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from . import quants
from .blocks import BF16, F16, F32, BlockType
from .convert.mix import FILE_TYPES, HEAD, QUANTIZATION_VERSION, QUANTIZE_TYPES, choose_type, find_type, stays_f32
from .convert.pipeline import (
    CHUNK,
    Meter,
    ProgressCallback,
    Weight,
    check_output,
    join_notes,
    packed_rows,
)
from .errors import ConvertError
from .gguf import GGUFFile, GGUFWriter, TensorInfo, open_gguf

__all__ = ["QuantizeReport", "quantize"]

_PLAIN = (F32, F16, BF16)
_REPLACED = ("general.architecture", "general.file_type", "general.quantization_version", "general.alignment")


@dataclass(frozen=True)
class QuantizeReport:
    """What was written. Sizes are bytes of the whole files; `types`: number of tensors per type; `notes`: remarks."""

    path: str
    type: str
    bytes_before: int
    bytes_after: int
    bits_per_weight: float
    n_tensors: int
    types: dict[str, int]
    notes: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class _Job:
    """One tensor: from `info.type` to `type`."""

    info: TensorInfo
    type: BlockType


def quantize(
    src: str | os.PathLike[str],
    out: str | os.PathLike[str],
    type: str,
    progress: ProgressCallback | None = None,
    *,
    allow_requantize: bool = False,
    overwrite: bool = True,
) -> QuantizeReport:
    """Write the GGUF file `src` as `out` with matrices of `type`: Q8_0, Q5_1, Q5_0, Q4_1, Q4_0, BF16, F16, F32.

    Metadata is copied, norms and biases stay as they are, the output head follows `convert.mix`. A file that is
    quantised already is refused unless `allow_requantize`, because the errors of both roundings add up.
    `progress(stage, done, total, unit)` may return False to stop.

    Raises ModelFormatError and its kin (a bad source), ConvertError, InvalidArgumentError, OutputError, Cancelled. The
    output is then not there (an old one stays as it was).
    """
    start = time.perf_counter()
    kind = find_type(type, QUANTIZE_TYPES, "type")
    with open_gguf(src) as file:
        path = check_output(out, [file.path], overwrite)
        if not file.tensors:
            raise ConvertError("the file holds no tensors (a vocabulary only), there is nothing to do", path=file.path)
        jobs, notes = _plan(file, kind, allow_requantize)
        with GGUFWriter(path, file.get("general.architecture", str)) as writer:
            _copy_metadata(file, writer, kind)
            total = sum(writer.add_tensor_info(job.info.name, job.info.shape, job.type) for job in jobs)
            meter = Meter(progress, "quantising", total)
            for job in jobs:
                writer.write_tensor(job.info.name, _convert(file, job, meter))
        before = os.path.getsize(file.path)
    return QuantizeReport(
        path=path,
        type=kind.name,
        bytes_before=before,
        bytes_after=os.path.getsize(path),
        bits_per_weight=8 * total / sum(prod(job.info.shape) for job in jobs),
        n_tensors=len(jobs),
        types=dict(Counter(job.type.name for job in jobs)),
        notes=tuple(join_notes(notes)),
        seconds=time.perf_counter() - start,
    )


def _plan(file: GGUFFile, wanted: BlockType, allow_requantize: bool) -> tuple[list[_Job], list[tuple[str, str]]]:
    """The new type of every tensor, and remarks."""
    tied = HEAD not in file.tensors
    jobs, notes = [], []
    for info in file.tensors.values():
        if stays_f32(info.name, info.shape):
            jobs.append(_Job(info, info.type))
            continue
        kind, note = choose_type(info.name, info.shape, wanted, tied)
        if info.type not in (*_PLAIN, kind) and not allow_requantize:
            raise ConvertError(
                "this file is quantised already; quantise the original one, its weights are better",
                path=file.path, field=f"type of {info.name}", value=info.type.name, limit="F32, F16 or BF16",
            )  # fmt: skip
        notes += [(info.name, note)] if note else []
        jobs.append(_Job(info, kind))
    return jobs, notes


def _copy_metadata(file: GGUFFile, writer: GGUFWriter, kind: BlockType) -> None:
    for key, (value_type, item_type) in file.metadata.types.items():
        if key not in _REPLACED:
            writer.add(key, file.metadata[key], value_type if item_type is None else item_type)
    writer.add("general.quantization_version", QUANTIZATION_VERSION, "u32")
    writer.add("general.file_type", FILE_TYPES[kind.name], "u32")


def _convert(file: GGUFFile, job: _Job, meter: Meter) -> Iterator[Any]:
    """The bytes of the new tensor, stretch by stretch."""
    if job.type is job.info.type:
        return _copied(file, job.info, meter)
    return packed_rows(
        Weight(job.info.name, job.info.shape, _rows_of(file, job.info), source=file.path), job.type, meter
    )


def _copied(file: GGUFFile, info: TensorInfo, meter: Meter) -> Iterator[np.ndarray]:
    data, step = file.data(info.name), 4 * CHUNK
    for start in range(0, info.n_bytes, step):
        file.check_unchanged()
        part = data[start : start + step]
        yield part
        file.advise_dont_need(info.offset + start, part.size)
        meter.advance(part.size)


def _rows_of(file: GGUFFile, info: TensorInfo) -> Any:
    """A function of (start, stop) that gives these rows as float32 (stop - start, k)."""
    data, k = file.data(info.name), info.shape[-1]
    row_bytes = info.type.row_bytes(k)

    def rows(start: int, stop: int) -> np.ndarray:
        file.check_unchanged()
        first, last = start * row_bytes, stop * row_bytes
        x = quants.dequantize(data[first:last], info.type, (stop - start, k))
        file.advise_dont_need(info.offset + first, last - first)
        return x

    return rows
