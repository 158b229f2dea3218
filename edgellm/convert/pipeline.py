"""The way from a checkpoint to a GGUF file, one stretch of rows at a time, so that memory stays small."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from ..errors import InvalidArgumentError, OutputError
from ..gguf import GGUFWriter
from ..progress import Meter, ProgressCallback
from .choice import NUMBERS, Choice, Wish, choose, imatrix_keys
from .mixes import QUANTIZATION_VERSION
from .pack import check_range, pack

CHUNK = 1 << 22  # weights that are worked on at once: 16 MB as float32


@dataclass(frozen=True)
class Weight:
    """One tensor of the output. `rows(start, stop)` gives float32 (stop - start, k) with the leading sizes joined.

    Stretches are asked for in order and in multiples of `step` rows. `source` names the file, for errors.
    """

    name: str
    shape: tuple[int, ...]  # rows first
    rows: Callable[[int, int], np.ndarray]
    step: int = 1
    source: str = ""


@dataclass
class Conversion:
    """What a checkpoint turns into: family name, metadata as (key, value, kind) in order, tensors, remarks.

    `model_keys` come before general.file_type and `tokenizer_keys` after, as llama.cpp's converter orders them.
    """

    arch: str
    model_keys: list[tuple[str, Any, str | None]] = field(default_factory=list)
    tokenizer_keys: list[tuple[str, Any, str | None]] = field(default_factory=list)
    weights: list[Weight] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ConvertReport:
    """What was written. `types`: number of tensors per type; `notes`: remarks that a person should read."""

    path: str
    arch: str
    outtype: str
    n_tensors: int
    n_params: int
    file_bytes: int
    bits_per_weight: float
    types: dict[str, int]
    notes: tuple[str, ...]
    seconds: float


def check_output(out: str | os.PathLike[str], sources: Sequence[str], overwrite: bool = True) -> str:
    """The output path as str. Refuses a source as output, and an existing file unless `overwrite`."""
    path = os.fspath(out)
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    if "\0" in path or not path:
        raise InvalidArgumentError(f"{path!r} cannot be a file name")
    if not os.path.lexists(path):
        return path
    for source in sources:
        if os.path.exists(path) and os.path.exists(source) and os.path.samefile(path, source):
            raise InvalidArgumentError(f"{path} is a file of the source; give the output another name")
    if not overwrite:
        raise OutputError("the output exists already; remove it or give another name", path=path)
    return path


def write_model(
    conversion: Conversion,
    out: str | os.PathLike[str],
    wish: Wish,
    progress: ProgressCallback | None = None,
    overwrite: bool = True,
) -> ConvertReport:
    """Write the GGUF file. Nothing half-written stays, whatever goes wrong.

    Raises ConvertError (weights that the type cannot hold), InvalidArgumentError (an importance matrix of another
    model), OutputError, Cancelled.
    """
    start = time.perf_counter()
    path = check_output(out, conversion.sources, overwrite)
    shapes = {w.name: w.shape for w in conversion.weights}
    choices, kept = choose(wish, shapes, conversion.arch, _numbers(conversion))
    types = [choices[w.name].type for w in conversion.weights]
    with GGUFWriter(path, conversion.arch) as writer:
        _add_metadata(writer, conversion, wish)
        total = sum(writer.add_tensor_info(name, shape, choices[name].type) for name, shape in shapes.items())
        meter = Meter(progress, "converting", total, left="nothing was written")
        for weight in conversion.weights:
            writer.write_tensor(weight.name, packed_rows(weight, choices[weight.name], meter))
    n_params = sum(prod(w.shape) for w in conversion.weights)
    return ConvertReport(
        path=path,
        arch=conversion.arch,
        outtype=wish.mix.name,
        n_tensors=len(types),
        n_params=n_params,
        file_bytes=os.path.getsize(path),
        bits_per_weight=8 * total / max(n_params, 1),
        types=dict(Counter(kind.name for kind in types)),
        notes=(*conversion.notes, *join_notes(kept)),
        seconds=time.perf_counter() - start,
    )


def _numbers(conversion: Conversion) -> dict[str, int]:
    """What `choose` asks of the metadata."""
    wanted = {f"{conversion.arch}.{key}": key for key in NUMBERS}
    found = [(wanted[key], value) for key, value, _ in conversion.model_keys if key in wanted]
    return {key: int(np.max(value, initial=0)) for key, value in found}


def _add_metadata(writer: GGUFWriter, conversion: Conversion, wish: Wish) -> None:
    for key, value, kind in conversion.model_keys:
        writer.add(key, value, kind)
    writer.add("general.file_type", wish.mix.file_type, "u32")
    writer.add("general.quantization_version", QUANTIZATION_VERSION, "u32")
    for key, value, kind in [*conversion.tokenizer_keys, *imatrix_keys(wish.imatrix)]:
        writer.add(key, value, kind)


def packed_rows(weight: Weight, choice: Choice, meter: Meter) -> Iterator[np.ndarray]:
    """The bytes of a tensor, stretch by stretch: uint8 (rows, bytes of a row); a stretch lies within one matrix where
    each matrix has an importance of its own."""
    n_rows, k, kind = prod(weight.shape[:-1]), weight.shape[-1], choice.type
    matrix = n_rows if choice.importance is None else weight.shape[-2]
    step = max(1, CHUNK // (k * weight.step)) * weight.step
    for first in range(0, n_rows, matrix):
        importance = None if choice.importance is None else choice.importance[first // matrix]
        for start in range(first, first + matrix, step):
            x = weight.rows(start, min(start + step, first + matrix))
            check_range(x, kind, weight.name, weight.source)
            data = pack(x, kind, importance)
            del x
            yield data
            meter.advance(data.nbytes)


def join_notes(notes: Sequence[tuple[str, str]]) -> list[str]:
    """Remarks about tensors, (name, text): one line for all that read the same."""
    names: dict[str, list[str]] = {}
    for name, text in notes:
        names.setdefault(text, []).append(name)
    return [f"{n[0]}{f' and {len(n) - 1} more' if len(n) > 1 else ''}: {text}" for text, n in names.items()]


def constant(name: str, values: np.ndarray) -> Weight:
    """A small tensor that is computed and not read: a float32 vector (k,)."""
    row = np.ascontiguousarray(values, dtype=np.float32).reshape(1, -1)
    return Weight(name, (row.shape[1],), lambda start, stop: row[start:stop])


def size_label(n_params: int) -> str:
    """A short size such as 260K, 1.1B (general.size_label)."""
    for limit, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if n_params >= limit:
            value = n_params / limit
            return f"{value:.0f}{unit}" if value >= 10 else f"{value:.1f}".rstrip("0").rstrip(".") + unit
    return str(n_params)
