"""Packed files: `edgellm pack` and back. A packed file holds the panels that kernels read, so it is used where it is
mapped and a model starts at once. The container is described in formats/packed.md.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from . import quants
from .backends.lowering import panel_tensors
from .blocks import ALL
from .convert.pipeline import check_output
from .errors import ConvertError, ModelFormatError
from .gguf import GGUFFile, GGUFWriter, TensorInfo, open_gguf
from .gguf.constants import DEFAULT_ALIGNMENT
from .gguf.packed import ALIGNMENT, DIGEST, PANEL_VERSION, PREFIX, SPARSE_BYTES, VERSION, header_digest
from .machine import choose_threads
from .models import build_plan, read_config
from .parallel import parallel
from .progress import Meter, ProgressCallback
from .quants.panels import ROWS
from .weights import Weights

if TYPE_CHECKING:
    from .backends.sparse import SparseIndex

__all__ = ["PackReport", "pack", "unpack", "verify"]

_STRETCH = 4 << 20  # bytes that are worked on at once
_NO_DIGEST = "0" * 64


@dataclass(frozen=True)
class PackReport:
    """What was written. Sizes are bytes of the whole files; `types`: number of tensors per type.

    `n_panels`: tensors in panels (of the packed file). `identical`, after unpacking: whether the file is the source,
    byte for byte (else only its tensors and metadata are: it was in several files, or of GGUF version 2).
    """

    path: str
    bytes_before: int
    bytes_after: int
    bits_per_weight: float
    n_tensors: int
    n_panels: int
    types: dict[str, int]
    notes: tuple[str, ...]
    seconds: float
    identical: bool | None = None


def pack(
    src: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    progress: ProgressCallback | None = None,
    *,
    overwrite: bool = True,
) -> PackReport:
    """Write the GGUF file `src` as a packed one; without `out` as NAME.packed.gguf, which must not be there.

    Nothing is lost: `unpack` gives every tensor back bit for bit. `progress` gets a `Progress` and may return False
    to stop. Raises the errors of the reader and of the model families, ConvertError (packed already, or nothing in it
    has panels), OutputError, Cancelled; the output is then not there, an old one stays as it was.
    """
    start = time.perf_counter()
    with open_gguf(src) as file:
        if file.packed is not None:
            raise ConvertError("this file is packed already", path=file.path)
        path = check_output(_named(file.path, ".packed", out), file.paths, overwrite and out is not None)
        plan = build_plan(read_config(file), file)
        in_panels = set(panel_tensors(plan, Weights(file, plan)))
        if not in_panels:
            known = ", ".join(t.name for t in ALL if t.has_panel)
            raise ConvertError(f"nothing in this file has panels; of these types are: {known}", path=file.path)
        source = _SourceHash(file.paths)
        try:
            sparse = _find_sparse(file, in_panels)
            with GGUFWriter(path, None, ALIGNMENT) as writer:
                _add_keys(file, writer)
                if sparse:
                    writer.add(SPARSE_BYTES, [sparse[t].n_bytes for t in file.tensors if t in sparse], "u64")
                _write_tensors(file, writer, in_panels, sparse, source, progress)
        finally:
            source.stop()
        return _report(path, file, in_panels, start)


def unpack(
    src: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    progress: ProgressCallback | None = None,
    *,
    overwrite: bool = True,
) -> PackReport:
    """Write a packed file as the one it was made from; without `out` as NAME.gguf or NAME.unpacked.gguf.

    Every tensor is held to its checksum. Raises as `pack`, and ModelFormatError (rule L8) for damaged data.
    """
    start = time.perf_counter()
    with open_gguf(src) as file:
        info = file.packed
        if info is None:
            raise ConvertError("this file is not packed, there is nothing to unpack", path=file.path)
        path = check_output(_named(file.path, "", out), file.paths, overwrite and out is not None)
        with GGUFWriter(path, None, info.source_alignment or DEFAULT_ALIGNMENT) as writer:
            for key in file.metadata:
                if key == "general.alignment":
                    writer.add(key, info.source_alignment, "u32")
                else:
                    writer.add_raw(key, file.metadata.raw(key))
            for t in file.tensors.values():
                writer.add_tensor_info(t.name, t.shape, t.type)
            meter = Meter(
                progress, "unpacking", sum(t.stored_bytes for t in file.tensors.values()), left="nothing was written"
            )
            for t in file.tensors.values():
                writer.write_tensor(t.name, _checked_rows(file, t, meter))
        same = _SourceHash([path]).result() == info.source_sha256
        return _report(path, file, set(), start, identical=same)


def verify(src: str | os.PathLike[str], progress: ProgressCallback | None = None) -> int:
    """Read a packed file whole and hold every tensor to its checksum; returns the bytes read.

    Raises ModelFormatError (rule L8) that names the first damaged tensor, ConvertError for a file that is not packed.
    """
    with open_gguf(src) as file:
        if file.packed is None:
            raise ConvertError("this file is not packed, it has no checksums", path=file.path)
        meter = Meter(progress, "checking", sum(t.stored_bytes for t in file.tensors.values()))
        tensors = list(file.tensors.values())
        with closing(parallel(tensors, lambda t: _digest_of(file, t), choose_threads().n)) as digests:
            for t, found in digests:
                _check_digest(file, t, found)
                meter.advance(t.stored_bytes)
        return sum(t.stored_bytes for t in tensors)


def _named(path: str, ending: str, out: str | os.PathLike[str] | None) -> str:
    """The output's path: the one asked for, or one beside the source."""
    if out is not None:
        return os.fsdecode(out)
    stem = path.removesuffix(".gguf")
    if ending:
        return f"{stem}{ending}.gguf"
    return f"{stem.removesuffix('.packed')}.gguf" if stem.endswith(".packed") else f"{stem}.unpacked.gguf"


def _report(path: str, file: GGUFFile, panels: set[str], start: float, identical: bool | None = None) -> PackReport:
    tensors = file.tensors.values()
    after = os.path.getsize(path)
    return PackReport(
        path=path,
        bytes_before=file.n_bytes,
        bytes_after=after,
        bits_per_weight=8 * after / sum(prod(t.shape) for t in tensors),
        n_tensors=len(tensors),
        n_panels=len(panels),
        types=dict(Counter(t.type.name for t in tensors)),
        notes=("its tensors are the source's; the file is not, byte for byte",) if identical is False else (),
        seconds=time.perf_counter() - start,
        identical=identical,
    )


# ---- packing ---------------------------------------------------------------------------------------------------------


class _SourceHash:
    """SHA-256 of files put together, on a thread of its own."""

    def __init__(self, paths: list[str]) -> None:
        self._sha, self._stop = hashlib.sha256(), False
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, args=(paths,), name="edgellm-hash", daemon=True)
        self._thread.start()

    def _run(self, paths: list[str]) -> None:
        try:
            buffer = bytearray(1 << 20)
            for path in paths:
                with open(path, "rb", buffering=0) as file:
                    while not self._stop and (n := file.readinto(buffer)):
                        self._sha.update(memoryview(buffer)[:n])
        except OSError as error:
            self._error = error

    def result(self) -> str:
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._sha.hexdigest()

    def stop(self) -> None:
        self._stop = True
        self._thread.join()


def _add_keys(file: GGUFFile, writer: GGUFWriter) -> None:
    """The source's metadata as they are, and the keys of a packed file; checksums are filled in at the end."""
    own = None
    for key in file.metadata:
        if key == "general.alignment":
            own = file.metadata[key]
            writer.add(key, ALIGNMENT, "u32")
        else:
            writer.add_raw(key, file.metadata.raw(key))
    if own is None:
        writer.add("general.alignment", ALIGNMENT, "u32")
    else:
        writer.add(PREFIX + "source.alignment", own, "u32")
    writer.add(PREFIX + "version", VERSION, "u32")
    writer.add(PREFIX + "panel_version", PANEL_VERSION, "u32")
    writer.add(PREFIX + "source.name", os.path.basename(file.path), "str")
    writer.add(PREFIX + "source.bytes", file.n_bytes, "u64")
    writer.add(PREFIX + "source.sha256", _NO_DIGEST, "str")
    writer.add(PREFIX + "tensor_sha256", [_NO_DIGEST] * len(file.tensors), "str")
    writer.add(DIGEST, _NO_DIGEST, "str")


def _find_sparse(file: GGUFFile, in_panels: set[str]) -> dict[str, SparseIndex]:
    """Tensors with many zero tiles; none without the compiled library."""
    from . import clib
    from .backends.sparse import sparse_index

    found: dict[str, SparseIndex] = {}
    for t in file.tensors.values():
        if t.name in in_panels and clib.available():
            made = sparse_index(file.data(t.name), t.type, prod(t.shape[:-1]), t.shape[-1], choose_threads().n)
            found |= {t.name: made} if made is not None else {}
    return found


def _write_tensors(
    file: GGUFFile, writer: GGUFWriter, in_panels: set[str], sparse: dict[str, SparseIndex], source: _SourceHash,
    progress: ProgressCallback | None,
) -> None:  # fmt: skip
    """The data of all tensors, then the checksums over the header that is there already."""
    for t in file.tensors.values():
        size = sparse[t.name].n_bytes if t.name in sparse else 0
        writer.add_tensor_info(t.name, t.shape, t.type, panels=t.name in in_panels, sparse_bytes=size)
    meter = Meter(progress, "packing", sum(t.n_bytes for t in file.tensors.values()), left="nothing was written")
    digests = []
    for t in file.tensors.values():
        sha, made = hashlib.sha256(), sparse.get(t.name)
        parts = _stretches(file, t, t.name in in_panels, made, meter)
        writer.write_tensor(t.name, _hashed(parts if made is None else chain([made.index], parts), sha))
        digests.append(sha.hexdigest())
    writer.replace(PREFIX + "source.sha256", source.result(), "str")
    writer.replace(PREFIX + "tensor_sha256", digests, "str")
    file.check_unchanged()
    writer.replace(DIGEST, header_digest(writer.header(), writer.value_offset(DIGEST) + 8), "str")


def _hashed(parts: Iterator[np.ndarray], sha: hashlib._Hash) -> Iterator[np.ndarray]:
    for part in parts:
        sha.update(part.data)
        yield part


def _stretches(
    file: GGUFFile, t: TensorInfo, panels: bool, sparse: SparseIndex | None, meter: Meter
) -> Iterator[np.ndarray]:
    """The new data of a tensor, uint8, packed by all cores a stretch of whole groups at a time; of sparse panels what
    follows the index."""
    data, k = file.data(t.name), t.shape[-1]
    row = t.type.row_bytes(k)
    step = max(1, _STRETCH // (ROWS * row)) * ROWS * row if panels else _STRETCH

    def run(at: int) -> np.ndarray:
        part = data[at : at + step]
        if sparse is not None:
            return sparse.tiles(part, at // row)
        return _pack_rows(part, t, part.size // row) if panels else part.copy()

    with closing(parallel(range(0, t.n_bytes, step), run, choose_threads().n)) as done:
        for at, part in done:
            file.check_unchanged()
            yield part
            size = min(step, t.n_bytes - at)
            file.advise_dont_need(t.offset + at, size)
            meter.advance(size)


def _pack_rows(data: np.ndarray, t: TensorInfo, rows: int) -> np.ndarray:
    """Panels of some rows: compiled, or by the twin in NumPy."""
    from . import clib

    if clib.available():
        return clib.pack_panels(data, t.type, rows, t.shape[-1])
    return quants.pack_panels(data, rows, t.shape[-1], t.type)


# ---- unpacking and checking ------------------------------------------------------------------------------------------


def _digest_of(file: GGUFFile, t: TensorInfo) -> str:
    sha, data = hashlib.sha256(), file.stored(t.name)
    for at in range(0, data.size, _STRETCH):
        part = data[at : at + _STRETCH]
        sha.update(part.data)
        file.advise_dont_need(t.offset + at, part.size)
    return sha.hexdigest()


def _check_digest(file: GGUFFile, t: TensorInfo, found: str) -> None:
    assert file.packed is not None  # who asks has looked
    want = file.packed.sha256[t.name]
    if found != want:
        raise ModelFormatError(
            "a tensor does not have its checksum; the file is damaged, copy or pack it again", path=file.path,
            offset=t.offset, field=f"data of {t.name}", value=found, limit=want, rule="L8",
        )  # fmt: skip


def _checked_rows(file: GGUFFile, t: TensorInfo, meter: Meter) -> Iterator[np.ndarray]:
    """The rows of a tensor, uint8; raises at the end where the stored bytes do not have their checksum."""
    data, k, sha = file.stored(t.name), t.shape[-1], hashlib.sha256()
    rows = prod(t.shape[:-1])
    if t.sparse:
        _check_digest(file, t, _digest_of(file, t))
        yield file.data(t.name)
        meter.advance(data.size)
        return
    group = quants.panel_bytes(ROWS, k, t.type) if t.panels else 1
    step = max(1, _STRETCH // group) * group

    def run(at: int) -> np.ndarray:
        part = data[at : at + step]
        if not t.panels:
            rows_as_they_are: np.ndarray = part.copy()
            return rows_as_they_are
        first = at // group * ROWS
        return quants.unpack_panels(part, min(rows - first, part.size // group * ROWS), k, t.type)

    with closing(parallel(range(0, data.size, step), run, choose_threads().n)) as done:
        for at, part in done:
            file.check_unchanged()
            stored = data[at : at + step]
            sha.update(stored.data)
            yield part
            file.advise_dont_need(t.offset + at, stored.size)
            meter.advance(stored.size)
    _check_digest(file, t, sha.hexdigest())
