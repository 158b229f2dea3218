"""The directory of a zip archive whose members are stored as they are: no compression, no encryption, nothing hidden.

Members are then spans of the mapped file. The format is PKWARE's APPNOTE.TXT (sections 4.3 and 4.5.3, zip64); PyTorch
writes such archives (https://pytorch.org/docs/stable/notes/serialization.html). CRC-32 is not checked: PyTorch may be
told to write another number there.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

from ..errors import ModelFormatError, one_line
from ..gguf.source import MappedFile

MAX_MEMBERS = 1 << 16
MAX_NAME = 1 << 10  # bytes

_END = struct.Struct("<4s4H2IH")  # mark, 2 disks, members here and in all, size, offset, comment
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_U16, _U32 = 0xFFFF, 0xFFFFFFFF  # stand for "see the zip64 field"
_ENCRYPTED = 1 | 1 << 6 | 1 << 13
_SIZES_LATER = 1 << 3  # the local header has no sizes, they follow the data


class Member(NamedTuple):
    """A stored file: `size` bytes from `offset` of the archive on."""

    name: str
    offset: int
    size: int


class _Directory:
    def __init__(self, file: MappedFile) -> None:
        self.file, self.buf = file, file.buffer

    def fail(self, rule: str, message: str, field: str, offset: int, value: Any = None, limit: Any = None) -> Any:
        raise ModelFormatError(
            message, path=self.file.path, offset=offset, field=field, value=value, limit=limit, rule=rule
        )

    def unpack(self, form: struct.Struct, at: int, end: int, field: str) -> tuple[Any, ...]:
        if not 0 <= at <= end - form.size:
            where = min(max(at, 0), self.file.size)
            self.fail("Z2", "the archive is cut off or its directory is damaged", field, where, at, end - form.size)
        return form.unpack_from(self.buf, at)

    def end(self) -> tuple[int, int, int]:
        """(number of members, offset of the directory, offset of its end)."""
        at = self.file.size - _END.size
        mark, disk, first, here, n, size, offset, comment = self.unpack(_END, at, self.file.size, "end of directory")
        if mark != b"PK\5\6" or comment:
            self.fail("Z2", "the archive does not end with its directory; it is cut off or was added to",
                      "end of directory", at, mark, b"PK\5\6")  # fmt: skip
        stop = at
        if at >= _LOCATOR.size and self.buf[at - _LOCATOR.size :][:4] == b"PK\6\7":
            at -= _LOCATOR.size
            _, disk64, stop, disks = self.unpack(_LOCATOR, at, self.file.size, "zip64 locator")
            mark, length, _, _, *rest = self.unpack(_END64, stop, at, "zip64 end of directory")
            if mark != b"PK\6\6" or disk64 or disks > 1 or stop + 12 + length != at:
                self.fail("Z2", "the zip64 directory is damaged", "zip64 end of directory", stop, mark)
            for small, large, sentinel in zip((disk, first, here, n, size, offset), rest,
                                              (_U16, _U16, _U16, _U16, _U32, _U32), strict=True):  # fmt: skip
                if small not in (sentinel, large):
                    self.fail("Z2", "two directories of the archive contradict each other", "end of directory", at)
            disk, first, here, n, size, offset = rest
        if disk or first or here != n or offset + size != stop:
            self.fail("Z2", "the directory of the archive does not fit the file", "size and offset of the directory",
                      stop, (size, offset), stop)  # fmt: skip
        if n > min(MAX_MEMBERS, size // _ENTRY.size):
            self.fail("Z2", "the archive has more members than can be", "number of members", stop, n, MAX_MEMBERS)
        return n, offset, stop

    def member(self, at: int, stop: int) -> tuple[Member, int, int]:
        """(the member, offset of its local header, offset of the next entry of the directory)."""
        row = self.unpack(_ENTRY, at, stop, "member")
        mark, _, _, flags, method, _, _, _, packed, size, n_name, n_extra, n_comment, disk, _, _, local = row
        start, next_at = at + _ENTRY.size, at + _ENTRY.size + n_name + n_extra + n_comment
        if mark != b"PK\1\2" or next_at > stop or not 0 < n_name <= MAX_NAME:
            self.fail("Z2", "an entry of the directory is damaged", "member", at, mark, b"PK\1\2")
        raw = self.buf[start : start + n_name]
        name = self._name(raw, at)
        field = f"member {one_line(name)}"
        if flags & _ENCRYPTED:
            self.fail("Z3", "a member is encrypted", field, at, flags)
        if method != 0:
            self.fail("Z3", "a member is compressed, which checkpoints never are", f"{field}, method", at, method, 0)
        extra = self.buf[start + n_name : start + n_name + n_extra]
        size, packed, local, disk = self._zip64(extra, (size, packed, local, disk), field, at)
        if size != packed or disk:
            self.fail("Z3", "a stored member has two sizes", f"{field}, size", at, (packed, size))
        return Member(name, self._data_offset(local, raw, size, field), size), local, next_at

    def _zip64(self, extra: bytes, values: tuple[int, ...], field: str, at: int) -> list[int]:
        """Size, packed size, local offset and disk, taken from extra field 1 where the entry has no room for them."""
        found = {}
        while len(extra) >= 4:
            kind, n = struct.unpack_from("<HH", extra)
            if n > len(extra) - 4 or kind in found:
                self.fail("Z2", "an extra field of a member is damaged", field, at, n)
            found[kind], extra = extra[4 : 4 + n], extra[4 + n :]
        rest, out = found.get(1, b""), []
        for value, sentinel, width in zip(values, (_U32, _U32, _U32, _U16), (8, 8, 8, 4), strict=True):
            if value == sentinel:
                if len(rest) < width:
                    self.fail("Z2", "a member lacks its zip64 sizes", field, at, len(rest), width)
                value, rest = int.from_bytes(rest[:width], "little"), rest[width:]
            out.append(value)
        return out

    def _name(self, raw: bytes, at: int) -> str:
        """Names are only looked up, never used as paths; those made to leave a folder are refused all the same."""
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError:
            return self.fail("Z4", "the name of a member is not UTF-8", "name", at, raw)
        if name.startswith("/") or ".." in name.split("/") or any(c in name for c in "\\:\0"):
            self.fail("Z4", "the name of a member leads out of the archive", "name", at, name)
        return name

    def _data_offset(self, local: int, raw: bytes, size: int, field: str) -> int:
        row = self.unpack(_LOCAL, local, self.file.size, field)
        mark, _, flags, method, _, _, _, packed, _, n_name, n_extra = row
        name = self.buf[local + _LOCAL.size : local + _LOCAL.size + n_name]
        later = flags & _SIZES_LATER or packed == _U32
        if mark != b"PK\3\4" or method or flags & _ENCRYPTED or name != raw or not (later or packed == size):
            self.fail("Z2", "a member differs from its entry in the directory", field, local)
        return local + _LOCAL.size + n_name + n_extra


def read_members(file: MappedFile) -> dict[str, Member]:
    """The members of an archive by name. No two share a byte and none reaches into the directory.

    Raises ModelFormatError: Z2 (damaged, cut off, overlapping), Z3 (compressed or encrypted), Z4 (names).
    """
    d = _Directory(file)
    n, at, stop = d.end()
    start, members, spans = at, {}, []
    for _ in range(n):
        member, local, next_at = d.member(at, stop)
        if member.name in members:
            d.fail("Z4", "two members have the same name", "name", at, member.name)
        members[member.name] = member
        spans.append((local, member.offset + member.size, member.name))
        at = next_at
    if at != stop:
        d.fail("Z2", "there are bytes after the last entry of the directory", "directory", at)
    end = 0
    for first, last, name in sorted(spans):
        if first < end or last > start or (end == 0 and first):
            d.fail("Z2", "a member overlaps another part of the archive, or bytes come before the first",
                   f"member {one_line(name)}", first, last, f"{end} to {start}")  # fmt: skip
        end = last
    return members
