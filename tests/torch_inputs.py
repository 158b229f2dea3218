"""PyTorch checkpoints that tests write by hand: pickled tables with Python's own pickler, archives byte by byte."""

from __future__ import annotations

import collections
import io
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np

STORAGES = {"F32": "FloatStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage", "F64": "DoubleStorage",
            "I64": "LongStorage", "BOOL": "BoolStorage"}  # fmt: skip


class Global:
    """Stands for MODULE.NAME in a pickle."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class Call:
    """Stands for the result of a call of a Global."""

    def __init__(self, function: Global, *args: Any, state: Any = None) -> None:
        self.function, self.args, self.state = function, args, state


class Storage:
    """A persistent id as torch.save writes it."""

    def __init__(self, key: str, numel: int, dtype: str = "F32") -> None:
        self.pid = ("storage", Global("torch", STORAGES.get(dtype, dtype)), key, "cpu", numel)


def view(storage: Any, shape: Any, strides: Any, first: Any = 0) -> Call:
    hooks = collections.OrderedDict()
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), storage, first, shape, strides, False, hooks)


class _Pickler(pickle._Pickler):  # the one in Python, whose methods can be replaced
    """Writes Global, Call and Storage as what they stand for; nothing needs to be importable."""

    def persistent_id(self, value: Any) -> Any:
        return value.pid if isinstance(value, Storage) else None

    def save(self, value: Any, save_persistent_id: bool = True) -> None:
        if isinstance(value, Global):
            known = self.memo.get(id(value))
            if known is not None:
                self.write(self.get(known[0]))
            else:
                self.write(b"c" + f"{value.module}\n{value.name}\n".encode())
                self.memoize(value)
        elif isinstance(value, Call):
            self.save(value.function)
            self.save(value.args)
            self.write(b"R")
            if value.state is not None:
                self.save(value.state)
                self.write(b"b")
        else:
            super().save(value, save_persistent_id)


def pickled(value: Any, protocol: int = 2) -> bytes:
    out = io.BytesIO()
    _Pickler(out, protocol).dump(value)
    return out.getvalue()


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))


# ---- archives --------------------------------------------------------------------------------------------------------



def member(name: str | bytes, data: bytes, *, at: int, method: int = 0, flags: int = 0, align: int = 64,
           local_name: bytes | None = None, packed: int | None = None, large: bytes | None = None,
           ) -> tuple[bytes, bytes]:  # fmt: skip
    """(local header with data, entry of the directory) of a member that begins at `at`.

    `large`: write the entry as of a file above 4 GB, sizes and offset in this extra field (b"" for a right one).
    """
    raw = name.encode() if isinstance(name, str) else name
    pad = -(at + 30 + len(raw) + 4) % align
    extra = b"FB" + struct.pack("<H", pad) + b"Z" * pad
    shown = raw if local_name is None else local_name
    size = len(data) if packed is None else packed
    both = (flags, method, 0, 0, 0, size, len(data), len(raw))  # without times and CRC
    head = struct.pack("<4s5H3I2H", b"PK\3\4", 0, *both, len(extra))
    entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", 0, 0, *both, 0, 0, 0, 0, 0, at)
    if large is not None:
        far = large or struct.pack("<2H3Q", 1, 24, len(data), size, at)
        entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", 0, 0, flags, method, 0, 0, 0, 0xFFFFFFFF, 0xFFFFFFFF, len(raw),
                            len(far), 0, 0, 0, 0, 0xFFFFFFFF)  # fmt: skip
        raw += far
    return head + shown + extra + data, entry + raw


def archive(members: dict[str | bytes, bytes], options: dict[str, dict[str, Any]] | None = None, tail: bytes = b"",
            zip64: bool = False, n: int | None = None) -> bytes:  # fmt: skip
    """A zip archive of stored members; `options`: what is odd about one of them."""
    body, directory = b"", b""
    for name, data in members.items():
        part, entry = member(name, data, at=len(body), **(options or {}).get(name, {}))
        body, directory = body + part, directory + entry
    count = len(members) if n is None else n
    at, end = len(body), b""
    if zip64:
        end += struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(directory), at)
        end += struct.pack("<4sIQI", b"PK\6\7", 0, at + len(directory), 1)
    end += struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, len(directory), at, 0)
    return body + directory + end + tail


def torch_members(table: Any, storages: dict[str, bytes], top: str = "archive", protocol: int = 2) -> dict[Any, bytes]:
    out: dict[Any, bytes] = {f"{top}/data.pkl": table if isinstance(table, bytes) else pickled(table, protocol)}
    out[f"{top}/byteorder"] = b"little"
    out |= {f"{top}/data/{key}": data for key, data in storages.items()}
    return out | {f"{top}/version": b"3\n"}


def to_bytes(x: np.ndarray, dtype: str) -> bytes:
    if dtype == "BF16":
        return (np.ascontiguousarray(x, np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
    return x.astype({"F16": "<f2", "F32": "<f4", "F64": "<f8", "I64": "<i8", "BOOL": "?"}[dtype]).tobytes()


def torch_bytes(tensors: dict[str, np.ndarray], dtype: str = "F32", top: str = "archive", **options: Any) -> bytes:
    """A checkpoint of contiguous tensors as torch.save writes a state_dict."""
    table, storages = collections.OrderedDict(), {}
    for i, (name, x) in enumerate(tensors.items()):
        table[name] = view(Storage(str(i), x.size, dtype), x.shape, contiguous(x.shape))
        storages[str(i)] = to_bytes(x, dtype)
    return archive(torch_members(table, storages, top), **options)


def write_torch(path: Path, tensors: dict[str, np.ndarray], dtype: str = "F32", **options: Any) -> int:
    """Returns the bytes of the tensors."""
    path.write_bytes(torch_bytes(tensors, dtype, **options))
    return sum(x.size for x in tensors.values()) * {"F64": 8, "F32": 4}.get(dtype, 2)
