"""Which model a file is: one digest of what it says of itself and of samples of its weights.

A session's pages mean nothing to another model, and hashing gigabytes whenever one is saved would take longer than what
the pages save. So a digest is taken of all metadata, of all names, shapes and types of tensors, and of some rows of
each tensor. It is the same for a file, for its packed form (`edgellm pack`) and for its parts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING

from .quants.panels import ROWS, panel_bytes, unpack_panels

if TYPE_CHECKING:
    from .gguf import GGUFFile
    from .gguf.tensors import TensorInfo

WHOLE = 1 << 16  # bytes; tensors up to this size count whole
_STEP = 0.6180339887498949  # fraction of the golden ratio: multiples of it are spread evenly over 0 .. 1
# keys that say how the file is stored, not what model it is
_STORAGE = ("general.alignment", "split.", "edgellm.pack.")


def model_identity(file: GGUFFile) -> str:
    """SHA-256 of an open GGUF file's identity, 64 hexadecimal digits (formats/session.md says of what).

    Raises ModelFileChanged when the file was written to since it was opened.
    """
    with file.reading():
        return _digest(file)


def _digest(file: GGUFFile) -> str:
    sha = hashlib.sha256()

    def add(data: bytes) -> None:
        sha.update(len(data).to_bytes(8, "little"))  # so that no two lists of items are the same bytes
        sha.update(data)

    for key in sorted(file.metadata):
        if not key.startswith(_STORAGE):
            add(key.encode())
            add(file.metadata.raw(key))
    for i, info in enumerate(sorted(file.tensors.values(), key=lambda info: info.name)):
        add(f"{info.name}\0{info.type.name}\0{','.join(map(str, info.shape))}".encode())
        for first, n in _samples(info, i):
            add(_rows(file, info, first, n))
    return sha.hexdigest()


def _samples(info: TensorInfo, i: int) -> Iterator[tuple[int, int]]:
    """(first row, rows) of what counts of the i-th tensor: everything, or one group of 16 rows, elsewhere in each."""
    rows = prod(info.shape[:-1])
    if info.n_bytes <= WHOLE or rows <= ROWS:
        yield 0, rows
    else:
        first = int(_STEP * (i + 1) % 1.0 * (rows // ROWS)) * ROWS
        yield first, ROWS


def _rows(file: GGUFFile, info: TensorInfo, first: int, n: int) -> bytes:
    """The bytes of `n` rows from row `first`, a multiple of 16, on, however the file holds them."""
    data, k = file.stored(info.name), info.shape[-1]
    if not info.panels:
        row = k // info.type.block_size * info.type.type_size
        return data[first * row : (first + n) * row].tobytes()
    group = panel_bytes(ROWS, k, info.type)
    start, end = first // ROWS * group, -(-(first + n) // ROWS) * group
    return unpack_panels(data[start:end], n, k, info.type).tobytes()
