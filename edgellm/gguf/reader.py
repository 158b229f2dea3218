"""`open_gguf`: a GGUF file (version 2 or 3, little-endian), checked whole before the first view of its data exists."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from math import prod
from types import TracebackType
from typing import Any

import numpy as np

from ..blocks import BlockType
from ..errors import (
    InvalidArgumentError,
    MissingTensorError,
    ModelFormatError,
    UnsupportedQuantError,
    one_line,
)
from ..quants.panels import unpack_panels
from ..quants.panels_sparse import check_sparse, unpack_sparse
from .constants import (
    DEFAULT_ALIGNMENT,
    HEADER_BYTES,
    MAGIC,
    MAX_ALIGNMENT,
    MIN_ALIGNMENT,
    VERSIONS,
    ValueType,
)
from .metadata import REQUIRED, Cursor, Metadata, read_counts
from .packed import PackInfo, check_version, read_info, sparse_bytes
from .source import MappedFile, Reading
from .tensors import TensorInfo, align_up, place, read_entries

# what people open by mistake, by its first bytes
_LOOKALIKES = (
    (b"PK\x03\x04", "this is a zip archive (a PyTorch checkpoint?); convert it with `edgellm convert`"),
    (b"version https://git-lfs", "this is a Git LFS pointer, not the model; run `git lfs pull`"),
    (b"<", "this is a web page, not a model; the download went wrong"),
    (b"{", "this is a JSON file, not a model; give the .gguf file, or a folder to `edgellm convert`"),
    (b"lmgg", "this is a ggml file from before GGUF; get or convert the model again"),
    (b"tjgg", "this is a ggjt file from before GGUF; get or convert the model again"),
    (b"fmgg", "this is a ggmf file from before GGUF; get or convert the model again"),
)


def open_gguf(path: str | os.PathLike[str], strict: bool = False) -> GGUFFile:
    """Open and check a GGUF file; nothing of the data is read, it is mapped.

    A part of a model in several files opens all of them (rule K13). `strict` also refuses bytes after the last tensor
    (otherwise a warning). Raises ModelFileNotFoundError, or ModelFormatError with the rule that is broken
    (formats/container.md), or one of its subclasses.
    """
    from .split import is_part, open_parts

    file = GGUFFile(path, strict=strict)
    try:
        return open_parts(file, strict) if is_part(file) else file
    except BaseException:
        file.close()
        raise


class GGUFFile:
    """An open GGUF file; a context manager.

    `path`, `version`; `metadata`: mapping of key -> value (see `Metadata`); `tensors`: dict of name -> TensorInfo in
    file order; `alignment` in bytes; `n_bytes`: size of the file; `warnings`: list of str. One part of a split model is
    a file like any other here; `open_gguf` puts the parts together.
    """

    def __init__(self, path: str | os.PathLike[str], strict: bool = False) -> None:
        self._file = MappedFile(path)
        try:
            with self._file.reading():
                self._parse(strict)
        except BaseException:
            self._file.close()
            raise

    def _parse(self, strict: bool) -> None:
        self.path = self._file.path
        self.n_bytes = self._file.size
        cursor = Cursor(self._file)
        self.version = _read_version(cursor)
        n_tensors, n_keys = read_counts(cursor)
        self.metadata = Metadata(self._file)
        self.metadata.read(cursor, n_keys)
        self.warnings = self.metadata.warnings
        self.alignment = _read_alignment(cursor, self.metadata)
        is_packed = check_version(self.metadata, self.path)
        sizes = sparse_bytes(self.metadata, self.path) if is_packed else []
        entries = read_entries(cursor, n_tensors, self.alignment, sizes)
        header_end = cursor.pos
        self.tensors, data_end = place(cursor, entries, self.alignment)
        self.packed = self._packed(is_packed, align_up(header_end, self.alignment))
        self._check_tail(header_end if not entries else data_end, strict)
        self._bound: set[str] = set()

    def _packed(self, is_packed: bool, data_start: int) -> PackInfo | None:
        """What a packed file says of itself (rules L1 to L7, L9); None for any other file."""
        strange = next((t for t in self.tensors.values() if t.panels), None)
        if strange is not None and not is_packed:
            raise ModelFormatError(
                "a tensor is in panels, but the file does not say that it is packed", path=self.path,
                offset=strange.offset, field=f"type of {strange.name}", rule="L1",
            )  # fmt: skip
        return read_info(self.metadata, self._file, self.tensors, self.alignment, data_start) if is_packed else None

    def _check_tail(self, end: int, strict: bool) -> None:
        """Rule T15. A file may end right after the last tensor or after its padding."""
        end = -(-end // self.alignment) * self.alignment
        extra = self.n_bytes - end
        if extra <= 0:
            return
        if strict:
            raise ModelFormatError(
                "there are bytes after the last tensor", path=self.path, offset=end, field="size", value=self.n_bytes,
                limit=end, rule="T15",
            )  # fmt: skip
        self.warnings.append(f"{extra} bytes after the last tensor are ignored")

    # ---- metadata ------------------------------------------------------------------------------------------------

    def get(self, key: str, kind: Any, default: Any = REQUIRED) -> Any:
        """The value of `key`, checked to be of `kind`.

        `kind` is int, float, bool, str, list (any array), list[int], list[float], list[bool] or list[str], or a tuple
        of these. Arrays of numbers come as NumPy arrays. An integer is no float and the other way round. Raises
        MissingKeyError (rule K11) when there is no such key and no `default`, WrongKeyTypeError (rule K12).
        """
        return self.metadata.get_typed(key, kind, default)

    # ---- tensors -------------------------------------------------------------------------------------------------

    def bind(
        self, name: str, shape: Sequence[int], types: Iterable[BlockType | str] | None = None
    ) -> TensorInfo:
        """The tensor `name`, checked to have this shape (rows first) and, where given, one of these types.

        Raises MissingTensorError (rule T12), ModelFormatError (rule T13) for another shape, UnsupportedQuantError for
        another type; each names what is expected and what is there.
        """
        info = self._info(name)
        path, offset = self.place_of(name)
        if info.shape != tuple(shape):
            raise ModelFormatError(
                f"tensor {name} does not fit the model's metadata", path=path, offset=offset,
                field=f"shape of {name}", value=info.shape, limit=tuple(shape), rule="T13",
            )  # fmt: skip
        names = None if types is None else [t if isinstance(t, str) else t.name for t in types]
        if names is not None and info.type.name not in names:
            raise UnsupportedQuantError(
                f"tensor {name} has a type that cannot be used here", path=path, offset=offset,
                field=f"type of {name}", value=info.type.name, limit=" or ".join(names), rule="T8",
            )  # fmt: skip
        self._bound.add(name)
        return info

    def unbound(self) -> list[str]:
        """Names of the tensors that no `bind` asked for; a warning is noted when there are some (rule T12)."""
        extra = [name for name in self.tensors if name not in self._bound]
        if extra:
            shown = ", ".join(one_line(n, 64) for n in extra[:3]) + (", ..." if len(extra) > 3 else "")
            self.warnings.append(f"{len(extra)} tensors are not used by this model family: {shown}")
        return extra

    def data(self, name: str) -> np.ndarray:
        """The bytes of a tensor, row by row: read-only uint8 view of the map, no copy. Raises MissingTensorError.

        A tensor that lies in panels is turned into rows again, a new array.
        """
        info = self._info(name)
        if not info.panels:
            return self.stored(name)
        if info.sparse:
            self.check_sparse(name)
        unpack = unpack_sparse if info.sparse else unpack_panels
        rows = unpack(self.stored(name), prod(info.shape[:-1]), info.shape[-1], info.type).reshape(-1)
        self.advise_dont_need(info.offset, info.stored_bytes)
        return rows

    def check_sparse(self, name: str) -> None:
        """Hold the index of a sparse tensor to itself and to the bytes there are. Raises ModelFormatError (L10)."""
        info = self._info(name)
        try:
            check_sparse(self.stored(name), prod(info.shape[:-1]), info.shape[-1], info.type)
        except InvalidArgumentError as error:
            raise ModelFormatError(
                f"{error}; the file is damaged, copy or pack it again", path=self.path, offset=info.offset,
                field=f"index of {name}", rule="L10",
            ) from None  # fmt: skip

    def stored(self, name: str) -> np.ndarray:
        """The bytes of a tensor as they are stored, rows or panels: read-only uint8 view of the map, no copy."""
        info = self._info(name)
        return np.frombuffer(self._file.buffer, dtype=np.uint8, count=info.stored_bytes, offset=info.offset)

    def _info(self, name: str) -> TensorInfo:
        info = self.tensors.get(name)
        if info is None:
            raise MissingTensorError(
                "a tensor that the model needs is missing", path=self.path, field=name, rule="T12"
            )
        return info

    def place_of(self, name: str) -> tuple[str, int]:
        """(path, byte offset) of a tensor: in the file that holds it, where a model has several."""
        return self.path, self._info(name).offset

    # ---- the file ------------------------------------------------------------------------------------------------

    @property
    def paths(self) -> list[str]:
        """All files of the model."""
        return [self.path]

    def advise_dont_need(self, offset: int, n: int) -> None:
        """Give the mapped pages of `n` bytes from `offset` (of the file) back, where the system can.

        The data stays readable: the system fetches it again from the file.
        """
        self._file.advise_dont_need(offset, n)

    def populate(self, offset: int, n: int) -> None:
        """Map the pages of `n` bytes from `offset` now, where the system can; not for models in several files."""
        self._file.populate(offset, n)

    def read_in(self, told: Callable[[int], Any]) -> None:
        """Read the file into memory, in place of the map; `told` hears of the bytes (`MappedFile.read_in`)."""
        self._file.read_in(told)

    def maps(self) -> list[np.ndarray]:
        """The whole file as uint8 (n_bytes,), where it lies in memory; several where the model is in several files."""
        return [np.frombuffer(self._file.buffer, np.uint8)]

    def check_unchanged(self) -> None:
        """Raises ModelFileChanged when the file was cut, grown or written to since it was opened."""
        self._file.check_unchanged()

    def check_faults(self) -> None:
        """Raises ModelFileChanged when a page could not be read, and zeros came in its place; costs no system call."""
        self._file.check_faults()

    def reading(self) -> Reading:
        """`with file.reading():` around code that reads data: what it read is what the file holds, or ModelFileChanged
        is raised at its end, also in place of other errors."""
        return Reading(self.check_unchanged)

    @property
    def closed(self) -> bool:
        return self._file.closed

    def close(self) -> None:
        """Close the file; views from `data` that are still held stay valid. Safe to call twice."""
        self._file.close()

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the file. Raises ModelFileChanged where pages could not be read, also in place of other errors."""
        try:
            if not self.closed:
                check = self.check_faults if value is None else self.check_unchanged
                Reading(check).__exit__(kind, value, trace)
        finally:
            self.close()


def _read_version(cursor: Cursor) -> int:
    """Magic and version (rules H1 to H4); leaves the cursor at the counts."""
    start = bytes(cursor.buf[:HEADER_BYTES])
    if start[:4] != MAGIC[: len(start)]:
        hint = next((text for magic, text in _LOOKALIKES if start.startswith(magic)), "this is no GGUF file")
        if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < cursor.end:
            hint = "this is a safetensors file; convert its folder with `edgellm convert`"
        cursor.fail("H2", hint, "magic", start[:4], MAGIC)
    if len(start) < HEADER_BYTES:
        cursor.fail("H1", "the file is too short to be a model", "size", len(start), f"{HEADER_BYTES} bytes")
    cursor.pos = 4
    version = cursor.u32("version")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        if swapped in (1, *VERSIONS):
            cursor.fail("H4", "this is a big-endian GGUF file; only little-endian files are read", "version",
                        version, "2 or 3", back=4)  # fmt: skip
        cursor.fail("H3", "this GGUF version is not supported; convert the model again", "version", version,
                    "2 or 3", back=4)  # fmt: skip
    return version


def _read_alignment(cursor: Cursor, metadata: Metadata) -> int:
    """Rule K9: a power of two from 8 (the format asks for multiples of 8) to 1 MiB."""
    key = "general.alignment"
    if key not in metadata:
        return DEFAULT_ALIGNMENT
    kind, _ = metadata.types[key]
    value = metadata[key] if kind == ValueType.UINT32 else f"a value of type {kind.name.lower()}"
    if not (isinstance(value, int) and MIN_ALIGNMENT <= value <= MAX_ALIGNMENT and value & (value - 1) == 0):
        raise ModelFormatError(
            "bad alignment", path=cursor.path, offset=metadata.offsets[key], field=key, value=value,
            limit=f"uint32, a power of two from {MIN_ALIGNMENT} to {MAX_ALIGNMENT}", rule="K9",
        )  # fmt: skip
    return value
