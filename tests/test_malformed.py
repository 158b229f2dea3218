"""One broken file per rule of formats/container.md; each gives its typed error, names the place, and takes no time."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import pytest
from gguf_bytes import ARRAY, BOOL, F32, I32, STRING, U32, Raw, array, entry, good_entries, good_tensors, tensor, text

from edgellm import errors
from edgellm.errors import ModelFormatError, UnsupportedQuantError
from edgellm.gguf import open_gguf
from edgellm.gguf.constants import OTHER_TYPES, REMOVED_TYPES

BIG = 1 << 62


def with_entry(*entries: bytes, **parts: object) -> bytes:
    return bytes(Raw(entries=good_entries() + list(entries), **parts))


def with_tensors(*tensors: bytes, **parts: object) -> bytes:
    return bytes(Raw(tensors=list(tensors), **parts))


def aligned(value: bytes, kind: int = U32) -> bytes:
    return with_entry(entry("general.alignment", kind, value))


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def split(number: int, count: int, total: int = 3) -> bytes:
    return with_entry(
        entry("split.no", U32, u32(number)), entry("split.count", U32, u32(count)),
        entry("split.tensors.count", I32, u32(total)),
    )  # fmt: skip


GOOD = bytes(Raw())

# id -> (file, rule); the id starts with the rule's row in the list of things to refuse
BAD: dict[str, tuple[bytes, str]] = {
    "H1 three bytes": (b"GGU", "H1"),
    "H1 magic only": (b"GGUF", "H1"),
    "H1 23 bytes": (GOOD[:23], "H1"),
    "H2 other magic": (bytes(Raw(magic=b"GGUX")), "H2"),
    "H2 zip": (b"PK\x03\x04" + bytes(40), "H2"),
    "H2 web page": (b"<!DOCTYPE html><html></html>", "H2"),
    "H2 short text": (b"hi\n", "H2"),
    "H2 safetensors": (struct.pack("<Q", 20) + b'{"a":{}}' + bytes(30), "H2"),
    "H2 lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "H2"),
    "H3 version 0": (bytes(Raw(version=0)), "H3"),
    "H3 version 1": (bytes(Raw(version=1)), "H3"),
    "H3 version 4": (bytes(Raw(version=4)), "H3"),
    "H3 version 2^32-1": (bytes(Raw(version=(1 << 32) - 1)), "H3"),
    "H4 big-endian 3": (bytes(Raw(version=3 << 24)), "H4"),
    "H4 big-endian 2": (bytes(Raw(version=2 << 24)), "H4"),
    "H5 n_tensors -1": (bytes(Raw(n_tensors=-1)), "H5"),
    "H5 n_tensors 2^63": (bytes(Raw(n_tensors=1 << 63)), "H5"),
    "H5 n_tensors too many": (bytes(Raw(n_tensors=100)), "H5"),
    "H5 n_kv -1": (bytes(Raw(n_kv=-1)), "H5"),
    "H5 n_kv 2^63": (bytes(Raw(n_kv=1 << 63)), "H5"),
    "H5 n_kv too many": (bytes(Raw(n_kv=1000)), "H5"),
    "K1 empty key": (with_entry(entry("", U32, u32(1))), "K1"),
    "K1 key of 64 KiB": (with_entry(entry("k" * (1 << 16), U32, u32(1))), "K1"),
    "K1 key length 2^64-1": (bytes(Raw(entries=[b"\xff" * 8 + b"key"], tensors=[])), "K1"),
    "K1 key after the file": (bytes(Raw(entries=[struct.pack("<Q", 9000) + b"key" * 9], tensors=[])), "K1"),
    "K2 key not UTF-8": (with_entry(entry(b"\xff\xfe", U32, u32(1))), "K2"),
    "K2 overlong UTF-8": (with_entry(entry(b"a\xc0\x80", U32, u32(1))), "K2"),
    "K3 duplicate key": (with_entry(entry("a.u8", U32, u32(1))), "K3"),
    "K4 type 13": (with_entry(entry("x", 13, u32(1))), "K4"),
    "K4 type -1": (with_entry(entry("x", (1 << 32) - 1, u32(1))), "K4"),
    "K4 item type 13": (with_entry(entry("x", ARRAY, array(13, 1, u32(1)))), "K4"),
    "K5 array of arrays": (with_entry(entry("x", ARRAY, array(ARRAY, 1, array(I32, 1, u32(1))))), "K5"),
    "K6 count past the end": (with_entry(entry("x", ARRAY, array(F32, 500, b""))), "K6"),
    "K6 count * size wraps": (with_entry(entry("x", ARRAY, array(F32, 1 << 62, b""))), "K6"),
    "K6 count 2^64-1": (with_entry(entry("x", ARRAY, array(BOOL, (1 << 64) - 1, b""))), "K6"),
    "K6 more strings than any model has": (
        bytes(Raw(entries=[entry("x", ARRAY, array(STRING, (1 << 21) + 1, bytes(16)))], data=bytes(17 << 20))), "K6"),
    "K6 strings 2^61": (with_entry(entry("x", ARRAY, array(STRING, 1 << 61, b""))), "K6"),
    "K7 string past the end": (with_entry(entry("x", STRING, struct.pack("<Q", 10000))), "K7"),
    "K7 string length 2^64-1": (with_entry(entry("x", STRING, b"\xff" * 8)), "K7"),
    "K7 string in array": (with_entry(entry("x", ARRAY, array(STRING, 2, text("a") + b"\xff" * 8))), "K7"),
    "K7 last string in array": (
        bytes(Raw(entries=[entry("x", ARRAY, array(STRING, 1, struct.pack("<Q", 9000)))])), "K7"),
    "K8 bool 2": (with_entry(entry("x", BOOL, b"\x02")), "K8"),
    "K8 bool in array": (with_entry(entry("x", ARRAY, array(BOOL, 3, b"\x01\x00\xff"))), "K8"),
    "K9 alignment 0": (aligned(u32(0)), "K9"),
    "K9 alignment 24": (aligned(u32(24)), "K9"),
    "K9 alignment 4": (aligned(u32(4)), "K9"),
    "K9 alignment 2 MiB": (aligned(u32(1 << 21)), "K9"),
    "K9 alignment 2^31": (aligned(u32(1 << 31)), "K9"),
    "K9 alignment is int32": (aligned(u32(32), I32), "K9"),
    "K9 alignment is a string": (aligned(text("32"), STRING), "K9"),
    "K9 alignment is an array": (aligned(array(U32, 1, u32(32)), ARRAY), "K9"),
    "K10 NUL in key": (with_entry(entry("a\0b", U32, u32(1))), "K10"),
    "K10 NUL in tensor name": (with_tensors(tensor("a\0b", [2], 0, 0)), "K10"),
    "K12 split.count is a string": (with_entry(entry("split.count", STRING, text("2"))), "K12"),
    "K13 no >= count": (split(2, 2, 9), "K13"),
    "K13 one part, other total": (split(0, 1, 9), "K13"),
    "K13 negative count": (with_entry(entry("split.count", I32, b"\xff" * 4)), "K13"),
    "K13 a part of two under another name": (split(0, 2, 9), "K13"),
    "T1 empty name": (with_tensors(tensor("", [2], 0, 0)), "T1"),
    "T1 name of 64 bytes": (with_tensors(tensor("n" * 64, [2], 0, 0)), "T1"),
    "T1 name of 2^63 bytes": (with_tensors(struct.pack("<Q", 1 << 63) + bytes(40)), "T1"),
    "T1 duplicate name": (with_tensors(tensor("a", [2], 0, 0), tensor("a", [2], 0, 32)), "T1"),
    "T1 name not UTF-8": (with_tensors(tensor(b"\xff", [2], 0, 0)), "T1"),
    "T2 no dimensions": (with_tensors(tensor("a", [], 0, 0)), "T2"),
    "T2 five dimensions": (with_tensors(tensor("a", [1] * 5, 0, 0)), "T2"),
    "T2 2^32-1 dimensions": (with_tensors(tensor("a", [1], 0, 0, n_dims=(1 << 32) - 1)), "T2"),
    "T3 dimension 0": (with_tensors(tensor("a", [0], 0, 0)), "T3"),
    "T3 dimension -1": (with_tensors(tensor("a", [2, -1], 0, 0)), "T3"),
    "T3 dimension 2^63": (with_tensors(tensor("a", [1 << 63], 0, 0)), "T3"),
    "T4 product overflows": (with_tensors(tensor("a", [(1 << 31) - 1] * 3, 0, 0)), "T4"),
    "T4 product wraps to 0": (with_tensors(tensor("a", [1 << 32, 1 << 32], 0, 0)), "T4"),
    "T4 product wraps to 4": (with_tensors(tensor("a", [1 << 31, 1 << 31, 4], 0, 0)), "T4"),
    "T5 bytes overflow": (with_tensors(tensor("a", [(1 << 31) - 1] * 2, 0, 0)), "T5"),
    "T5 bytes wrap to 0": (with_tensors(tensor("a", [1 << 30, 1 << 30, 4], 0, 0)), "T5"),
    "T6 padding overflows": (
        bytes(Raw(entries=[entry("general.alignment", U32, u32(1 << 20))],
                  tensors=[tensor("a", [1 << 17, (1 << 22) - 1, (1 << 22) + 1], 0, 0)])), "T6"),
    "T7 sum overflows": (
        with_tensors(tensor("a", [1 << 30, 1 << 30], 0, 0), tensor("b", [1 << 30, 1 << 30], 0, BIG)), "T7"),
    "T8 IQ2_XXS": (with_tensors(tensor("a", [256], 16, 0)), "T8"),
    "T8 removed Q4_2": (with_tensors(tensor("a", [32], 4, 0)), "T8"),
    "T8 unknown 999": (with_tensors(tensor("a", [32], 999, 0)), "T8"),
    "T8 negative": (with_tensors(tensor("a", [32], -1, 0)), "T8"),
    "T9 33 weights in Q4_0": (with_tensors(tensor("a", [33], 2, 0)), "T9"),
    "T9 row of 16, 64 in all": (with_tensors(tensor("a", [16, 4], 2, 0)), "T9"),
    "T10 misaligned": (with_tensors(tensor("a", [2], 0, 0), tensor("b", [2], 0, 40)), "T10"),
    "T10 first not at 0": (with_tensors(tensor("a", [2], 0, 32)), "T10"),
    "T10 hole": (with_tensors(tensor("a", [2], 0, 0), tensor("b", [2], 0, 64)), "T10"),
    "T10 overlap": (with_tensors(tensor("a", [20], 0, 0), tensor("b", [2], 0, 32)), "T10"),
    "T10 out of order": (with_tensors(tensor("a", [2], 0, 32), tensor("b", [2], 0, 0)), "T10"),
    "T10 offset 2^64-32": (with_tensors(tensor("a", [2], 0, (1 << 64) - 32)), "T10"),
    "T11 one byte short": (with_tensors(tensor("a", [64], 0, 0), data=bytes(255), pad_end=False), "T11"),
    "T11 far past the end": (with_tensors(tensor("a", [1 << 30], 0, 0)), "T11"),
    "T11 no data at all": (Raw(tensors=good_tensors()).header(), "T11"),
    "T14 dimension 2^31": (with_tensors(tensor("a", [1 << 31], 0, 0)), "T14"),
    "T14 second dimension": (with_tensors(tensor("a", [2, 1 << 40], 0, 0)), "T14"),
}  # fmt: skip

PLACELESS = {"K13", "K12"}  # rules that join several fields


def write(folder: Path, data: bytes) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(data)
    return path


def test_the_good_file_is_good(tmp_path: Path) -> None:
    with open_gguf(write(tmp_path, GOOD), strict=True) as f:
        assert list(f.tensors) == ["one", "two", "three"] and f.warnings == []


@pytest.mark.parametrize("case", BAD)
def test_bad_file(case: str, tmp_path: Path) -> None:
    data, rule = BAD[case]
    path = write(tmp_path, data)
    start = time.process_time()
    with pytest.raises(ModelFormatError) as caught:
        open_gguf(path)
    assert time.process_time() - start < 1
    error = caught.value
    assert error.rule == rule and error.exit_code == 3
    assert error.path == str(path) and str(path) in str(error)
    assert error.field and f"rule {rule}" in str(error) and "\n" not in str(error)
    assert error.value is not None or rule in ("K3", "K5", "K10", "T1")
    if rule not in PLACELESS:
        assert 0 <= error.offset <= len(data)


def test_every_rule_of_the_container_has_a_bad_file() -> None:
    rules = {rule for _, rule in BAD.values()}
    by_other_tests = {"H6", "K11", "T12", "T13", "T15"}
    wanted = {f"H{i}" for i in range(1, 7)} | {f"K{i}" for i in range(1, 14)} | {f"T{i}" for i in range(1, 16)}
    assert rules | by_other_tests == wanted


def test_kinds_of_error(tmp_path: Path) -> None:
    for code, name in {**OTHER_TYPES, **REMOVED_TYPES}.items():
        data = with_tensors(tensor("a", [256], code, 0))
        with pytest.raises(UnsupportedQuantError, match=rf"tensor a has type {name}.*Q4_K"):
            open_gguf(write(tmp_path, data))
    with pytest.raises(UnsupportedQuantError, match=r"value -1\b"):
        open_gguf(write(tmp_path, BAD["T8 negative"][0]))
    with pytest.raises(ModelFormatError, match="big-endian"):
        open_gguf(write(tmp_path, BAD["H4 big-endian 3"][0]))


def test_offsets_point_at_the_field(tmp_path: Path) -> None:
    marker = struct.pack("<Q", 0x1122334455667788)
    data = with_entry(entry("x", STRING, marker))
    with pytest.raises(ModelFormatError) as caught:
        open_gguf(write(tmp_path, data))
    assert caught.value.offset == data.index(marker) and caught.value.value == 0x1122334455667788
    data = with_tensors(tensor("a", [2], 0, 0), tensor("b", [2], 0, 0x40))
    with pytest.raises(ModelFormatError) as caught:
        open_gguf(write(tmp_path, data))
    assert caught.value.offset == data.rindex(struct.pack("<Q", 0x40)) and caught.value.limit == 32


def test_truncated_at_every_byte(tmp_path: Path) -> None:
    """H6 and its kin: a cut anywhere before the last weight is refused; after it the file is whole."""
    end = len(Raw().header()) + -len(Raw().header()) % 32 + 138
    seen = set()
    for n in range(1, end):
        with pytest.raises(ModelFormatError) as caught:
            open_gguf(write(tmp_path, GOOD[:n]))
        seen.add(caught.value.rule)
    assert {"H1", "H5", "T11"} <= seen
    open_gguf(write(tmp_path, GOOD[:end])).close()


def test_truncated_inside_every_kind_of_field(tmp_path: Path) -> None:
    """With counts that do not give the cut away: it is found where it is."""
    header = bytes(Raw(tensors=[], n_kv=1, data=b"").header())
    rules = set()
    for n in range(24, len(header)):
        with pytest.raises(ModelFormatError) as caught:
            n_kv = min(16, (n - 24) // 14 + (n < 38))
            open_gguf(write(tmp_path, header[:16] + struct.pack("<Q", n_kv) + header[24:n]))
        rules.add(caught.value.rule)
    assert {"H6", "K1", "K6", "K7"} <= rules


def test_required_keys_and_types(tmp_path: Path) -> None:
    with open_gguf(write(tmp_path, GOOD)) as f:
        with pytest.raises(errors.MissingKeyError, match="rule K11.*nothing.here") as caught:
            f.get("nothing.here", int)
        assert caught.value.rule == "K11" and caught.value.field == "nothing.here"
        assert f.get("nothing.here", int, 7) == 7 and f.get("nothing.here", int, None) is None
        wrong = [("general.architecture", int), ("a.f32", int), ("a.u8", float), ("a.bool", int), ("a.u8", bool),
                 ("a.floats", float), ("a.f32", list), ("a.floats", list[int]), ("a.strings", list[float]),
                 ("a.u8", (str, list[int]))]  # fmt: skip
        for key, kind in wrong:
            with pytest.raises(errors.WrongKeyTypeError) as caught:
                f.get(key, kind)
            assert caught.value.rule == "K12" and caught.value.field == key and caught.value.offset > 24
        assert f.get("a.u8", (str, int)) == 255 and f.get("a.bool", bool) is True
        assert f.get("a.strings", list[str]) == ["", "é", "three"]
        assert f.get("a.floats", (float, list[float])).tolist() == [1.0, -2.0]
        assert f.get("a.bools", list[bool]).tolist() == [True, False]


def test_binding_names_what_is_there(tmp_path: Path) -> None:
    with open_gguf(write(tmp_path, GOOD)) as f:
        assert f.bind("one", (3, 2), ["F32"]).n_bytes == 24
        with pytest.raises(errors.MissingTensorError) as caught:
            f.bind("four", (3, 2))
        assert caught.value.rule == "T12" and caught.value.field == "four"
        with pytest.raises(ModelFormatError) as caught:
            f.bind("one", (2, 3))
        assert (caught.value.rule, caught.value.value, caught.value.limit) == ("T13", (3, 2), (2, 3))
        with pytest.raises(UnsupportedQuantError, match="value Q4_0, limit F32 or F16"):
            f.bind("two", (2, 64), ["F32", "F16"])
        assert f.unbound() == ["two", "three"]
        assert f.warnings == ["2 tensors are not used by this model family: two, three"]


def test_bytes_after_the_last_tensor(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + b"PK\x03\x04")
    with open_gguf(path) as f:
        assert f.warnings == ["4 bytes after the last tensor are ignored"]
    with pytest.raises(ModelFormatError) as caught:
        open_gguf(path, strict=True)
    assert caught.value.rule == "T15" and caught.value.offset == len(GOOD)
    for n in range(1, 23):  # the last padding may be missing or short
        open_gguf(write(tmp_path, GOOD[:-n]), strict=True).close()
