"""Packed files: GGUF whose matrices already lie in panels (formats/packed.md has the keys and the rules L1 to L9)."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from ..blocks import BY_ID, BlockType
from ..errors import ModelFormatError
from ..quants.panels import ROWS, panel_bytes
from .constants import MAX_ALIGNMENT, MIN_ALIGNMENT, ValueType

if TYPE_CHECKING:
    from .metadata import Metadata
    from .source import MappedFile
    from .tensors import TensorInfo

PREFIX = "edgellm.pack."
VERSION = 1  # of the keys and of this page
PANEL_VERSION = 1  # of formats/panels.md
PANEL_TYPE = 0x454C0000  # "EL" above the GGUF id of a type: in panels; far above what other readers know
SPARSE_TYPE = 0x454D0000  # the same in sparse panels; how many bytes that are is in SPARSE_BYTES
SPARSE_BYTES = PREFIX + "sparse_bytes"
ALIGNMENT = 4096  # of the tensors: no page is shared, and lines of 64 bytes stay whole
MIN_LINE = 64  # kernels load whole lines
DIGEST = PREFIX + "header_sha256"
_HEX = re.compile(r"[0-9a-f]{64}")
# key -> (value type, item type of an array); `source.alignment` is there where the source had the key
_KEYS: dict[str, tuple[ValueType, ValueType | None]] = {
    "version": (ValueType.UINT32, None),
    "panel_version": (ValueType.UINT32, None),
    "source.name": (ValueType.STRING, None),
    "source.bytes": (ValueType.UINT64, None),
    "source.sha256": (ValueType.STRING, None),
    "tensor_sha256": (ValueType.ARRAY, ValueType.STRING),
    "header_sha256": (ValueType.STRING, None),
}
_OPTIONAL = {"source.alignment": (ValueType.UINT32, None), "sparse_bytes": (ValueType.ARRAY, ValueType.UINT64)}


@dataclass(frozen=True)
class PackInfo:
    """Where a packed file comes from. `sha256`: hexadecimal digest of each tensor's bytes as they are stored.

    `source_alignment`: what the source's general.alignment said; None where it said nothing.
    """

    panel_version: int
    source_name: str
    source_bytes: int
    source_sha256: str
    source_alignment: int | None
    sha256: dict[str, str]


def panel_type_of(code: int) -> tuple[BlockType, bool] | None:
    """(block type, whether it is sparse) behind the id of a tensor in panels; None for any other id."""
    for base in (PANEL_TYPE, SPARSE_TYPE):
        kind = BY_ID.get(code - base)
        if kind is not None and kind.has_panel:
            return kind, base == SPARSE_TYPE
    return None


def sparse_bytes(metadata: Metadata, path: str) -> list[int]:
    """Bytes of each sparse tensor, in the order of the file; none where there is no such key (rule L3)."""
    if SPARSE_BYTES not in metadata:
        return []
    return [int(n) for n in _value(metadata, path, "sparse_bytes", _OPTIONAL["sparse_bytes"])]


def stored_bytes(kind: BlockType, shape: tuple[int, ...], panels: bool) -> int:
    """Bytes of a tensor's data in the file: rows, or panels with their padding rows."""
    if panels:
        return panel_bytes(prod(shape[:-1]), shape[-1], kind)
    return prod(shape) // kind.block_size * kind.type_size


def fits_panels(shape: tuple[int, ...]) -> bool:
    """Whether a tensor may lie in panels: a matrix, or several where each begins a group of 16 rows."""
    return len(shape) == 2 or (len(shape) > 2 and shape[-2] % ROWS == 0)


def _fail(
    path: Any, rule: str, message: str, field: str, value: Any = None, limit: Any = None, at: int | None = None
) -> Any:
    raise ModelFormatError(message, path=path, offset=at, field=field, value=value, limit=limit, rule=rule)


def check_version(metadata: Metadata, path: str) -> bool:
    """Whether a file says that it is packed; rules L1 and L2, before anything in it is taken for what it says."""
    if not any(key.startswith(PREFIX) for key in metadata):
        return False
    for key, known, rule in (("version", VERSION, "L1"), ("panel_version", PANEL_VERSION, "L2")):
        value = _value(metadata, path, key, _KEYS[key])
        if value != known:
            _fail(
                path, rule, "this packed file was made by another version of edgellm; pack the original again",
                PREFIX + key, value, known, metadata.offsets[PREFIX + key],
            )  # fmt: skip
    return True


def read_info(
    metadata: Metadata, file: MappedFile, tensors: dict[str, TensorInfo], alignment: int, data_start: int
) -> PackInfo:
    """The keys of a packed file, checked (rules L3 to L7, L9); they are taken out of `metadata`."""
    path = file.path
    found = {key: _value(metadata, path, key, kind) for key, kind in _KEYS.items()}
    for key, kind in _OPTIONAL.items():
        found[key] = _value(metadata, path, key, kind) if PREFIX + key in metadata else None
    for key in metadata:
        if key.startswith(PREFIX) and key[len(PREFIX) :] not in found:
            _fail(path, "L3", "a packed file has no such key", key, at=metadata.offsets[key])
    if alignment % MIN_LINE:
        where = metadata.offsets.get("general.alignment")
        _fail(path, "L4", "panels must begin on lines", "general.alignment", alignment, f"times {MIN_LINE}", where)
    _check_values(metadata, path, found, len(tensors))
    if _header_digest(metadata, file, data_start) != found["header_sha256"]:
        _fail(
            path, "L7", "the header does not have its checksum; the file is damaged, copy or pack it again",
            DIGEST, found["header_sha256"], at=metadata.offsets[DIGEST],
        )  # fmt: skip
    sizes = found["sparse_bytes"] if found["sparse_bytes"] is not None else ()
    if len(sizes) != sum(t.sparse for t in tensors.values()):
        _fail(path, "L9", "there is not one size for each sparse tensor", SPARSE_BYTES)
    digests = dict(zip(tensors, found["tensor_sha256"], strict=True))
    own = found["source.alignment"]
    metadata.drop([PREFIX + key for key in found])
    if own is None:
        metadata.drop(["general.alignment"])
    return PackInfo(
        found["panel_version"], found["source.name"], found["source.bytes"], found["source.sha256"], own, digests
    )


def _value(metadata: Metadata, path: str, key: str, kind: tuple[ValueType, ValueType | None]) -> Any:
    name = PREFIX + key
    if name not in metadata:
        _fail(path, "L3", "this packed file lacks a key; pack the original again", name)
    if metadata.types[name] != kind:
        have, want = (f"array of {i.name.lower()}" if i else t.name.lower() for t, i in (metadata.types[name], kind))
        _fail(path, "L3", "a key of this packed file has the wrong type", name, have, want, metadata.offsets[name])
    return metadata[name]


def _check_values(metadata: Metadata, path: str, found: dict[str, Any], n_tensors: int) -> None:
    for key in ("source.sha256", "header_sha256"):
        if not _HEX.fullmatch(found[key]):
            name = PREFIX + key
            _fail(path, "L5", "this is no SHA-256 checksum", name, found[key], "64 digits", metadata.offsets[name])
    digests, name = found["tensor_sha256"], PREFIX + "tensor_sha256"
    if len(digests) != n_tensors:
        where = metadata.offsets[name]
        _fail(path, "L5", "there is not one checksum for each tensor", name, len(digests), n_tensors, where)
    for i, digest in enumerate(digests):
        if not _HEX.fullmatch(digest):
            where = metadata.offsets[name]
            _fail(path, "L5", "this is no SHA-256 checksum", f"{name}[{i}]", digest, "64 digits", where)
    own, name = found["source.alignment"], PREFIX + "source.alignment"
    if own is not None and not (MIN_ALIGNMENT <= own <= MAX_ALIGNMENT and own & (own - 1) == 0):
        _fail(path, "L6", "the source cannot have had this alignment", name, own, "as rule K9", metadata.offsets[name])


def _header_digest(metadata: Metadata, file: MappedFile, data_start: int) -> str:
    """SHA-256 of everything before the data, with zeros where the digest itself stands."""
    with memoryview(file.buffer) as view:
        return header_digest(view[: min(data_start, file.size)], metadata.offsets[DIGEST] + 8)


def header_digest(header: bytes | memoryview, at: int) -> str:
    """SHA-256 of a header whose own digest stands in the 64 bytes from `at`: they count as zeros."""
    sha = hashlib.sha256(header[:at])
    sha.update(bytes(64))
    sha.update(header[at + 64 :])
    return sha.hexdigest()
