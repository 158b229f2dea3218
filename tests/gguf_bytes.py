"""GGUF files as raw bytes, written without any of edgellm's code, so that tests can break them byte by byte."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)


def text(value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str | bytes, kind: int, payload: bytes) -> bytes:
    """One metadata entry."""
    return text(key) + struct.pack("<I", kind) + payload


def array(item: int, count: int, payload: bytes) -> bytes:
    return struct.pack("<IQ", item, count) + payload


def tensor(name: str | bytes, dims: list[int], kind: int, offset: int, n_dims: int | None = None) -> bytes:
    """One tensor description; `dims` as in the file, the fastest first."""
    head = text(name) + struct.pack("<I", len(dims) if n_dims is None else n_dims)
    sizes = b"".join(struct.pack("<Q", d % (1 << 64)) for d in dims)
    return head + sizes + struct.pack("<IQ", kind % (1 << 32), offset)


def good_entries() -> list[bytes]:
    """One entry of every kind."""
    return [
        entry("general.architecture", STRING, text("llama")),
        entry("llama.block_count", U32, struct.pack("<I", 2)),
        entry("a.u8", U8, b"\xff"),
        entry("a.i8", I8, b"\xff"),
        entry("a.u16", U16, b"\xff\xff"),
        entry("a.i16", I16, b"\xfe\xff"),
        entry("a.i32", I32, struct.pack("<i", -3)),
        entry("a.f32", F32, struct.pack("<f", 0.5)),
        entry("a.bool", BOOL, b"\x01"),
        entry("a.u64", U64, struct.pack("<Q", 1 << 63)),
        entry("a.i64", I64, struct.pack("<q", -(1 << 62))),
        entry("a.f64", F64, struct.pack("<d", 0.1)),
        entry("a.strings", ARRAY, array(STRING, 3, text("") + text("é") + text("three"))),
        entry("a.floats", ARRAY, array(F32, 2, struct.pack("<2f", 1.0, -2.0))),
        entry("a.bools", ARRAY, array(BOOL, 2, b"\x01\x00")),
        entry("a.empty", ARRAY, array(I32, 0, b"")),
    ]


def good_tensors() -> list[bytes]:
    """F32 (3, 2), Q4_0 (2, 64), F16 (5,): 24, 72 and 10 bytes of data."""
    return [tensor("one", [2, 3], 0, 0), tensor("two", [64, 2], 2, 32), tensor("three", [5], 1, 128)]


@dataclass
class Raw:
    """The parts of a file; `bytes(Raw())` is a good one."""

    magic: bytes = b"GGUF"
    version: int = 3
    entries: list[bytes] = field(default_factory=good_entries)
    tensors: list[bytes] = field(default_factory=good_tensors)
    n_tensors: int | None = None
    n_kv: int | None = None
    alignment: int = 32
    data: bytes = bytes(range(106)) + bytes(32)  # 32 + 96 + 10 bytes, to the end of the padding: 160
    pad_end: bool = True

    def header(self) -> bytes:
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_kv = len(self.entries) if self.n_kv is None else self.n_kv
        counts = struct.pack("<QQ", n_tensors % (1 << 64), n_kv % (1 << 64))
        return self.magic + struct.pack("<I", self.version) + counts + b"".join(self.entries) + b"".join(self.tensors)

    def __bytes__(self) -> bytes:
        out = self.header()
        out += bytes(-len(out) % self.alignment) + self.data
        return out + bytes(-len(out) % self.alignment) if self.pad_end else out
