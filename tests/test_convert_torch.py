"""PyTorch checkpoints: what is read, and that nothing in a file is ever run, whatever it asks for."""

from __future__ import annotations

import ast
import base64
import collections
import gc
import json
import os
import pickle
import shutil
import struct
import time
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convert_inputs import hf_folder, write_json
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_inputs import (
    Call,
    Global,
    Storage,
    archive,
    member,
    pickled,
    torch_bytes,
    torch_members,
    view,
    write_torch,
)

from edgellm import cli
from edgellm.convert import convert
from edgellm.convert.checkpoint import Checkpoint
from edgellm.convert.torch_bin import TorchFile
from edgellm.convert.torch_pickle import MAX_STEPS, NAMES
from edgellm.errors import ConvertError, EdgeLLMError, ModelFileChanged, ModelFormatError
from edgellm.gguf import open_gguf

# torch.save of an OrderedDict (PyTorch 2.13): f32 = arange(12) / 4 as (3, 4), f16 its transpose, bf16 = f32[1:, ::2],
# tied (the same storage as f32), steps = int64 7, param (a Parameter, the first row)
REAL = """
eNqlVUtv41QUvnm5GfcxLdOhHQpDh2fCtGnsvEe0ca2RhWQk2iCkCIEiN7mtLdw4x7ktArGIhBrgT8As+QewYDEbNuxmM2IxCyQWw6xYsGHJ
faTBdictZa504iQ+3+Nen3O8YyaSCKXT6MyaRdeRjy13o2MRK9f7xDX0BfRhdA3i7bbnurhNHK/bl9/zO9jHnbtOm8iAsg2IZZoJSrZfUCHe
Jp7ftnOtI+K4fbnl470jx+20CO72Pb91rMqQyGSaUzS9TzOtAwxJAZEN17PI++JPGVLNGM3Jg8Sp270jmDJnCKR3TWQmzOQQrphJMzYE+Rub
WZgmMNOAWeFDKcOcTWXsU+p3LHd/zHyVMyswb3PGBcaYNBNDeM6MMeJrgnGRwPUGPN+kJ4f2GOVSiFLndpXymHaZ06pwQ9C+sEtJ42Z8CCvs
yxBeFLQvEbjZgJc5LXFwB1bt2WaKHwfu9eFWSORdr3swFniFCxTgVSoQI/Aa9Z3NCtLXCbzRgDc5T8/yrUPITHgO/C4m2JchK6TslC0Jy2/x
kziB22bsBNYE8zqBXAM2vuY/8l+B0gD1KLdjTqW/+OhHayGOEIudiQW2iNZFgeX2Pf/QIq1j7PdpFRl69mydTVoK0/vhz0dfsgNgMVlvCd0Z
6Y3Kq2W5zkH3EHeJoZf/u2RolYvMQP1TeEL3iuLnGphDujCw9xnBHusUQ9/6n7qny3UIcTHzcLL5+w2JqkjnephG2/929Ube0DefzYBgHWzR
jzpCGo0BjXs07tP4jQbSEJqnsUojrzGn3z/565c86+ALnC4FnCqGfg09Xb+IqvTJvo020Rb1oA00tD3YZjo/o+PdZZqwfIHORkBHNfTb6FL7
p3uva/VB/V79fp3uV5vXVjWxz+9+eqxcVr9wSf2pEQvT6z187DGB9Ll6M/SYuN643e48QwkUZKb84NuDDy6u/xVUGjUg32of+w7twM8t9upo
OR1DVy5vRMlXKtWyWlFrlVqtWioqZbWUL9QqxZKqlAvVEr1dqxbLBeZyLXarkqE+MtxljJkd+wyOrNkzzkPvwSg0OH0WQzArjp464aIMwfGx
FGJ4MGY4M7OiJMH+nwuRNBIoMnei2GBHToewDxMoOC+iwGCLhYGDZBCoRIHB3ggD/wgB1SgwWORhoJ0KAgtRYLBGZ0LAX0+BEx5PsG5Wwicr
ofMqeseUpLVR6s3E+hgmR644Lq5/S6fNLPG+/viK+C3eaylJYGSeL3L/AU6tGVE=
"""


def rows(file: Any, name: str) -> np.ndarray:
    """A whole tensor as float32 (rows, k)."""
    shape = file.entries[name].shape
    return file.rows(name, 0, int(np.prod(shape[:-1])))


def write(folder: Path, data: bytes) -> Path:
    path = folder / "pytorch_model.bin"
    path.write_bytes(data)
    return path


def checkpoint(table: Any, storages: dict[str, bytes] | None = None, **options: Any) -> bytes:
    return archive(torch_members(table, {"0": bytes(48)} if storages is None else storages), **options)


# ---- what is read ----------------------------------------------------------------------------------------------------


def test_a_file_that_pytorch_wrote(tmp_path: Path) -> None:
    w = np.arange(12, dtype=np.float32).reshape(3, 4) / 4
    with TorchFile(write(tmp_path, zlib.decompress(base64.b64decode(REAL)))) as file:
        assert list(file.entries) == ["f32", "f16", "bf16", "tied", "steps", "param"]
        for name, want in (("f32", w), ("f16", w.T), ("bf16", w[1:, ::2]), ("tied", w), ("param", w[:1])):
            assert np.array_equal(rows(file, name), want), name
        assert file.entries["steps"].dtype == "I64"
        with pytest.raises(ConvertError, match="steps.*I64"):
            file.rows("steps", 0, 1)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zip64", [False, True])
def test_protocols_and_both_directories(tmp_path: Path, protocol: int, zip64: bool) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    table = {"w": view(Storage("0", 6), (2, 3), (3, 1)), "p": Call(Global("torch._utils", "_rebuild_parameter"),
             view(Storage("0", 6), (3,), (1,), 3), True, collections.OrderedDict())}  # fmt: skip
    data = archive(torch_members(table, {"0": x.tobytes()}, protocol=protocol), zip64=zip64)
    with TorchFile(write(tmp_path, data)) as file:
        assert np.array_equal(rows(file, "w"), x) and np.array_equal(rows(file, "p"), x[1:])


def test_entries_of_files_above_4_gb(tmp_path: Path) -> None:
    """Sizes and offsets then stand in zip64's extra field."""
    with TorchFile(write(tmp_path, flagged(large=b""))) as file:
        assert rows(file, "w").shape == (3, 4)


def test_a_state_dict_with_its_metadata(tmp_path: Path) -> None:
    table = Call(Global("collections", "OrderedDict"))
    raw = pickled([table, "w", view(Storage("0", 12), (3, 4), (4, 1)), {"_metadata": {"": {"version": 1}}}])
    # the list becomes: OrderedDict, key, tensor, SETITEM, attributes, BUILD
    at = raw.index(b"]")
    raw = raw[:at] + raw[at + 3 :].replace(b"(c", b"c", 1).replace(b"}q", b"s}q", 1).replace(b"e.", b"b.")
    with TorchFile(write(tmp_path, checkpoint(raw))) as file:
        assert list(file.entries) == ["w"]


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F64"])
def test_float_types(tmp_path: Path, dtype: str) -> None:
    x = (np.arange(-30, 30, dtype=np.float32) / 8).reshape(5, 12)
    write_torch(tmp_path / "m.bin", {"w": x}, dtype)
    with TorchFile(tmp_path / "m.bin") as file:
        assert file.entries["w"].dtype == dtype and np.array_equal(rows(file, "w"), x)
        assert np.array_equal(file.rows("w", 2, 4), x[2:4])


def test_archives_of_pythons_zip_module_with_odd_places(tmp_path: Path) -> None:
    """Data that begins anywhere is read as well as aligned data."""
    x = np.arange(7, dtype=np.float32)
    with zipfile.ZipFile(tmp_path / "m.bin", "w", zipfile.ZIP_STORED) as z:
        for name, data in torch_members({"w": view(Storage("0", 7), (7,), (1,))}, {"0": x.tobytes()}, "abc").items():
            z.writestr(name, data)
    with TorchFile(tmp_path / "m.bin") as file:
        assert file.entries["w"].offset % 4 and np.array_equal(rows(file, "w"), x[None])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_strides_are_those_of_numpy(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Any transposed or cut view of a storage reads as NumPy reads it, in any stretch of rows."""
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    base = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    x = base.transpose(data.draw(st.permutations(range(base.ndim))))
    x = x[tuple(slice(data.draw(st.integers(0, n - 1)), n, data.draw(st.integers(1, 3))) for n in x.shape)]
    first = (x.__array_interface__["data"][0] - base.__array_interface__["data"][0]) // 4
    table = {"w": view(Storage("0", base.size), x.shape, tuple(s // 4 for s in x.strides), first)}
    path = write(tmp_path_factory.mktemp("strides"), checkpoint(table, {"0": base.tobytes()}))
    want = x.reshape(-1, x.shape[-1])
    start = data.draw(st.integers(0, len(want)))
    stop = data.draw(st.integers(start, len(want)))
    with TorchFile(path) as file:
        assert np.array_equal(file.rows("w", start, stop), want[start:stop])


def test_conversion_equals_that_of_safetensors(tmp_path: Path) -> None:
    tensors = hf_folder(tmp_path / "a", dtype="BF16")
    convert(tmp_path / "a", tmp_path / "want.gguf", "f32")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "model.safetensors").unlink()
    # old files hold buffers that nobody needs, of types that cannot be converted
    write_torch(tmp_path / "b" / "pytorch_model.bin", tensors, "BF16")
    convert(tmp_path / "b", tmp_path / "one.gguf", "f32")
    (tmp_path / "b" / "pytorch_model.bin").unlink()
    shards(tmp_path / "b", tensors, 3)
    convert(tmp_path / "b", tmp_path / "three.gguf", "f32")
    with open_gguf(tmp_path / "want.gguf") as a:
        for name in ("one.gguf", "three.gguf"):
            with open_gguf(tmp_path / name) as b:
                assert list(a.tensors) == list(b.tensors)
                assert all(a.data(n).tobytes() == b.data(n).tobytes() for n in a.tensors)


def shards(folder: Path, tensors: dict[str, np.ndarray], count: int) -> None:
    weight_map = {}
    for i in range(count):
        name = f"pytorch_model-{i + 1:05d}-of-{count:05d}.bin"
        part = dict(list(tensors.items())[i::count])
        write_torch(folder / name, part, "BF16")
        weight_map.update(dict.fromkeys(part, name))
    write_json(folder / "pytorch_model.bin.index.json", {"metadata": {"total_size": 1}, "weight_map": weight_map})


def test_the_shared_checkpoint_as_bin(tmp_path: Path, shared_data: Path) -> None:
    folder = shared_data / "hf-tiny" / "qwen2"
    with Checkpoint(folder) as c:
        tensors = {n: c.rows(n, 0, c[n].shape[0] if len(c[n].shape) > 1 else 1).reshape(c[n].shape) for n in c}
    shutil.copytree(folder, tmp_path / "b", ignore=shutil.ignore_patterns("*.safetensors", "*.npz"))
    write_torch(tmp_path / "b" / "pytorch_model.bin", tensors)
    convert(folder, tmp_path / "want.gguf", "f32")
    convert(tmp_path / "b", tmp_path / "got.gguf", "f32")
    with open_gguf(tmp_path / "want.gguf") as a, open_gguf(tmp_path / "got.gguf") as b:
        assert all(a.data(n).tobytes() == b.data(n).tobytes() for n in a.tensors)


def test_safetensors_come_first_and_there_is_no_second_try(tmp_path: Path) -> None:
    tensors = hf_folder(tmp_path / "m")
    write_torch(tmp_path / "m" / "pytorch_model.bin", tensors)
    with Checkpoint(tmp_path / "m") as c:
        assert all(path.endswith(".safetensors") for path in c.paths)
    (tmp_path / "m" / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ModelFormatError, match=r"model\.safetensors"):
        Checkpoint(tmp_path / "m")


@pytest.mark.parametrize("change", ["../x.bin", "/etc/passwd", "C:x.bin", "missing.bin"])
def test_shards_outside_of_the_folder_are_refused(tmp_path: Path, change: str) -> None:
    write_torch(tmp_path / "x.bin", {"w": np.ones((2, 2), np.float32)})
    (tmp_path / "m").mkdir()
    write_json(tmp_path / "m" / "pytorch_model.bin.index.json", {"weight_map": {"w": change}})
    with pytest.raises(ModelFormatError) as caught:
        Checkpoint(tmp_path / "m")
    assert caught.value.rule == "S9"


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    shards(tmp_path, {f"t{i}": np.ones((2, 2), np.float32) for i in range(4)}, 2)
    write_torch(tmp_path / "pytorch_model-00002-of-00002.bin", {"t0": np.ones((2, 2)), "t1": np.ones((2, 2))}, "F32")
    with pytest.raises(ModelFormatError, match="two shards|elsewhere"):
        Checkpoint(tmp_path)


def test_a_file_that_is_cut_while_open_is_noticed(tmp_path: Path) -> None:
    write_torch(tmp_path / "m.bin", {"w": np.ones((20, 20), np.float32)})
    with TorchFile(tmp_path / "m.bin") as file:
        os.truncate(tmp_path / "m.bin", 100)
        with pytest.raises(ModelFileChanged):
            file.rows("w", 0, 20)


# ---- what is refused -------------------------------------------------------------------------------------------------

GOOD = {"w": view(Storage("0", 12), (3, 4), (4, 1))}
TENSOR, PARAMETER = Global("torch._utils", "_rebuild_tensor_v2"), Global("torch._utils", "_rebuild_parameter")
ORDERED, FLOAT = Global("collections", "OrderedDict"), Global("torch", "FloatStorage")
PWNED = "edgellm-test-ran-code"


def attack(module: str, name: str, *args: Any) -> bytes:
    return checkpoint({"w": Call(Global(module, name), *args)})


def renamed_member(new: str | bytes) -> bytes:
    members = torch_members(GOOD, {"0": bytes(48)})
    return archive(members | {new: b"x"})


def same_name_twice() -> bytes:
    raw = archive(torch_members(GOOD, {"0": bytes(48), "1": bytes(48)}))
    return raw.replace(b"archive/data/1", b"archive/data/0")


def overlapping() -> bytes:
    """Two entries of the directory for the same bytes: how small archives unpack to petabytes."""
    a, ea = member("archive/data.pkl", pickled(GOOD), at=0)
    b, eb = member("archive/data/0", bytes(48), at=len(a))
    _, ec = member("archive/data/1", bytes(48), at=len(a), local_name=b"archive/data/0")
    directory = ea + eb + eb.replace(b"data/0", b"data/1")
    assert len(ec) == len(eb)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 3, 3, len(directory), len(a + b), 0)
    return a + b + directory + end


def flagged(flag: int = 0, method: int = 0, **more: Any) -> bytes:
    options = {"archive/data/0": {"flags": flag, "method": method, **more}}
    return archive(torch_members(GOOD, {"0": bytes(48)}), options)


def changed(old: bytes, new: bytes, data: bytes | None = None) -> bytes:
    raw = checkpoint(GOOD) if data is None else data
    assert old in raw and len(old) == len(new)
    return raw.replace(old, new)


def raw_table(data: bytes) -> bytes:
    return checkpoint(b"\x80\x02" + data)


def sized(shape: Any, strides: Any, first: Any = 0, numel: Any = 12) -> bytes:
    return checkpoint({"w": view(Storage("0", numel), shape, strides, first)})


BAD: dict[str, tuple[bytes, str]] = {
    # not an archive
    "a bare pickle": (pickle.dumps({"w": 1}, 2), "Z1"),
    "a bare pickle of protocol 4": (pickle.dumps({"w": 1}, 4), "Z1"),
    "the old format": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", "Z1"),
    "the oldest format": (bytes(257) + b"ustar" + bytes(400), "Z1"),
    "text": (b"hello, this is no checkpoint", "Z1"),
    "a program": (archive(torch_members(GOOD, {"0": bytes(48)}) | {"archive/code/x.py": b"x"}), "Z1"),
    # damaged archives
    "cut by a byte": (checkpoint(GOOD)[:-1], "Z2"),
    "cut in half": (checkpoint(GOOD)[: len(checkpoint(GOOD)) // 2], "Z2"),
    "bytes after the end": (checkpoint(GOOD) + b"x", "Z2"),
    "a second archive after it": (checkpoint(GOOD) * 2, "Z2"),
    "more members than there are": (checkpoint(GOOD, n=5), "Z2"),
    "fewer members than there are": (checkpoint(GOOD, n=3), "Z2"),
    "a million members": (checkpoint(GOOD, n=65535), "Z2"),
    "overlapping members": (overlapping(), "Z2"),
    "names that differ": (flagged(local_name=b"archive/data/1"), "Z2"),
    "no table": (archive({"archive/data/0": bytes(48)}), "Z2"),
    "two folders": (renamed_member("other/data.pkl"), "Z2"),
    "big-endian": (changed(b"little", b"bigbig"), "Z2"),
    "zip64 sizes that are missing": (flagged(large=struct.pack("<2HQ", 1, 8, 48)), "Z2"),
    "zip64 sizes beyond the file": (flagged(large=struct.pack("<2H3Q", 1, 24, 1 << 40, 1 << 40, 0)), "Z2"),
    "a zip64 offset that wraps": (flagged(large=struct.pack("<2H3Q", 1, 24, 48, 48, (1 << 64) - 30)), "Z2"),
    "an extra field that is cut off": (flagged(large=struct.pack("<2H", 1, 24)), "Z2"),
    # compressed, encrypted
    "compressed": (flagged(method=8), "Z3"),
    "encrypted": (flagged(1), "Z3"),
    "strongly encrypted": (flagged(1 | 64), "Z3"),
    "an encrypted directory": (flagged(1 << 13), "Z3"),
    "a bomb: two sizes": (flagged(packed=10), "Z3"),
    # names
    "zip-slip": (renamed_member("archive/../../evil"), "Z4"),
    "an absolute name": (renamed_member("/etc/passwd"), "Z4"),
    "a drive": (renamed_member("C:/x"), "Z4"),
    "a backslash": (renamed_member("archive\\..\\x"), "Z4"),
    "a NUL": (renamed_member("archive/x\0y"), "Z4"),
    "not UTF-8": (renamed_member(b"archive/\xff"), "Z4"),
    "the same name twice": (same_name_twice(), "Z4"),
    # operations
    "an unknown opcode": (raw_table(b"\xff."), "Z5"),
    "INST": (raw_table(b"(ios\nsystem\n."), "Z5"),
    "OBJ": (raw_table(b"(cos\nsystem\no."), "Z6"),
    "NEWOBJ": (raw_table(b"ccollections\nOrderedDict\n)\x81."), "Z5"),
    "EXT1": (raw_table(b"\x82\x01."), "Z5"),
    "a text persistent id": (raw_table(b"Pstorage\n."), "Z5"),
    "protocol 0": (checkpoint(b"(dp0\n."), "Z5"),
    "protocol 9": (checkpoint(b"\x80\x09}."), "Z5"),
    "nothing": (checkpoint(b""), "Z5"),
    "no stop": (raw_table(b"}"), "Z5"),
    "a pickle after the table": (checkpoint(pickled(GOOD) * 2), "Z5"),
    "an empty stack": (raw_table(b"R."), "Z5"),
    "a mark without an end": (raw_table(b"(."), "Z5"),
    "an end without a mark": (raw_table(b"t."), "Z5"),
    "a text longer than the file": (raw_table(b"X\xff\xff\xff\x7fabc."), "Z5"),
    "a memo that is not there": (raw_table(b"h\x07."), "Z5"),
    "too many steps": (raw_table(b"]" * (MAX_STEPS + 9)), "Z5"),
    "a key without a value": (raw_table(b"}(X\1\0\0\0aNNu."), "Z5"),
    "a key twice": (raw_table(b"}(X\1\0\0\0aNX\1\0\0\0aNu."), "Z5"),
    "a tuple as a key": (raw_table(b"}(NN\x86Nu."), "Z5"),
    "a list, no table": (checkpoint([1, 2]), "Z5"),
    "an empty table": (checkpoint({}), "Z5"),
    "a number in the table": (checkpoint({"epoch": 3}), "Z5"),
    "a table in the table": (checkpoint({"state_dict": GOOD}), "Z5"),
    "a number as a name": (checkpoint({5: GOOD["w"]}), "Z5"),
    # names of code
    "os.system": (attack("os", "system", f"touch {PWNED}"), "Z6"),
    "posix.system": (attack("posix", "system", f"touch {PWNED}"), "Z6"),
    "eval": (attack("builtins", "eval", f"open('{PWNED}', 'w')"), "Z6"),
    "exec of Python 2": (attack("__builtin__", "eval", f"open('{PWNED}', 'w')"), "Z6"),
    "getattr": (attack("builtins", "getattr", 1, "x"), "Z6"),
    "torch.load": (attack("torch", "load", "x"), "Z6"),
    "_load_from_bytes": (attack("torch.storage", "_load_from_bytes", b"x"), "Z6"),
    "NumPy's loader": (attack("numpy.core.multiarray", "_reconstruct", 1), "Z6"),
    "a dotted name": (attack("torch", "_utils._rebuild_tensor_v2"), "Z6"),
    "a name of two lines": (attack("collections", "OrderedDict x"), "Z6"),
    "a new kind of tensor": (attack("torch._utils", "_rebuild_tensor_v3", 1), "Z6"),
    "float8": (checkpoint({"w": view(Storage("0", 12, "Float8_e4m3fnStorage"), (3, 4), (4, 1))}), "Z6"),
    "STACK_GLOBAL": (checkpoint(b"\x80\x04\x8c\x02os\x8c\x06system\x93."), "Z6"),
    "STACK_GLOBAL of a number": (checkpoint(b"\x80\x04K\1K\2\x93."), "Z6"),
    # calls
    "a call of a storage": (checkpoint({"w": Call(FLOAT, 10**9)}), "Z7"),
    "a call of a text": (raw_table(b"X\1\0\0\0a)R."), "Z7"),
    "arguments that are no tuple": (raw_table(b"ccollections\nOrderedDict\n]R."), "Z7"),
    "an OrderedDict of something": (checkpoint({"w": Call(ORDERED, [["a", 1]])}), "Z7"),
    "a tensor of nothing": (checkpoint({"w": Call(TENSOR)}), "Z7"),
    "a tensor of a text": (checkpoint({"w": view("storage", (1,), (1,))}), "Z7"),
    "a parameter of a text": (checkpoint({"w": Call(PARAMETER, "x", True, {})}), "Z7"),
    "attributes of a tensor": (checkpoint({"w": Call(TENSOR, *GOOD["w"].args, state={"a": 1})}), "Z7"),
    "attributes that are no table": (checkpoint({"w": Call(ORDERED, state=[1])}), "Z7"),
    "a persistent id of text": (raw_table(b"X\1\0\0\0aQ."), "Z7"),
    "a storage of another kind": (changed(b"storage", b"sTorage"), "Z7"),
    # storages
    "a missing storage": (checkpoint(GOOD, {"1": bytes(48)}), "Z8"),
    "a storage longer than its member": (checkpoint(GOOD, {"0": bytes(47)}), "Z8"),
    "a key that is a path": (checkpoint({"w": view(Storage("../data.pkl", 12), (3, 4), (4, 1))}), "Z8"),
    "a negative storage": (sized((3,), (1,), 0, -12), "Z8"),
    "a storage of 2^70": (sized((3,), (1,), 0, 1 << 70), "Z8"),
    "a storage of 2^62": (sized((3,), (1,), 0, 1 << 62), "Z8"),
    # views
    "a negative offset": (sized((3, 4), (4, 1), -1), "Z9"),
    "a negative stride": (sized((3, 4), (4, -1), 3), "Z9"),
    "a negative size": (sized((-3, 4), (4, 1)), "Z9"),
    "a size of 2^70": (sized((1 << 70,), (0,)), "Z9"),
    "a size that is a float": (sized((3.0, 4), (4, 1)), "Z9"),
    "a size that is a bool": (sized((True, 4), (4, 1)), "Z9"),
    "a size that is a list": (sized([3, 4], (4, 1)), "Z9"),
    "an offset that is a text": (sized((3, 4), (4, 1), "0"), "Z9"),
    "100 dimensions": (sized((1,) * 100, (1,) * 100), "Z9"),
    "more sizes than strides": (sized((3, 4), (4,)), "Z9"),
    "one element too far": (sized((3, 4), (4, 1), 1), "Z9"),
    "a stride too far": (sized((3, 4), (5, 1)), "Z9"),
    "an offset beyond the end": (sized((1,), (1,), 12), "Z9"),
    "a product that wraps to a small number": (sized((1 << 32, 1 << 32), (0, 0)), "Z9"),
    "a last element that wraps": (sized((2, 2), (1 << 62, 1 << 62)), "Z9"),
    "one element repeated a billion times": (sized((1 << 30,), (0,)), "Z9"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_and_nothing_runs(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, rule = BAD[case]
    path = write(tmp_path, data)
    monkeypatch.chdir(tmp_path)
    tracemalloc.start()
    try:
        with pytest.raises(ModelFormatError) as caught:
            TorchFile(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * len(data) + (64 << 20)
    error = caught.value
    assert error.rule == rule and error.exit_code == 3 and error.path == str(path), error
    assert error.field and 0 <= error.offset <= len(data) and "\n" not in str(error)
    assert os.listdir(tmp_path) == ["pytorch_model.bin"]


def test_every_rule_has_a_bad_file_and_none_takes_a_second(tmp_path: Path) -> None:
    assert {rule for _, rule in BAD.values()} == {f"Z{i}" for i in range(1, 10)}
    for data, _ in BAD.values():
        path = write(tmp_path, data)
        gc.disable()  # a collection of all that earlier tests hold takes a second of its own
        try:
            start = time.thread_time()
            with pytest.raises(ModelFormatError):
                TorchFile(path)
            assert time.thread_time() - start < 1
        finally:
            gc.enable()


def test_shared_tuples_make_no_message_long(tmp_path: Path) -> None:
    """A tuple of a tuple twice, forty times over, would be a terabyte of text."""
    nested = b"N" + b"q\0h\0\x86" * 40
    for tail in (b".", b"Q.", b"}q\1" + b"X\1\0\0\0a" + b"h\0s."):
        with pytest.raises(ModelFormatError) as caught:
            TorchFile(write(tmp_path, raw_table(nested + tail)))
        assert len(str(caught.value)) < 1000


def test_the_allow_list_is_short() -> None:
    assert len(NAMES) <= 13 and all(name.split()[0] in ("torch", "torch._utils", "collections") for name in NAMES)


def test_no_module_of_the_package_can_unpickle() -> None:
    """Nothing imports a module that runs what a file says, or calls eval, exec or __import__ on data."""
    banned = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "torch"}
    root = Path(__file__).resolve().parent.parent / "edgellm"
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            elif isinstance(node, ast.Call):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                assert called not in ("load_module", "allow_pickle"), path
                assert not (isinstance(node.func, ast.Name) and called in ("eval", "__import__")), path
                assert not any(k.arg == "allow_pickle" and getattr(k.value, "value", True) for k in node.keywords), path
            assert not {n.split(".")[0] for n in names} & banned, f"{path}:{node.lineno}"


SEED = torch_bytes({"a": np.ones((3, 4), np.float32), "b": np.ones((5,), np.float32)})


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(SEED) - 1), st.integers(0, 255)), min_size=1, max_size=4),
       st.integers(0, len(SEED)))  # fmt: skip
def test_mutants_raise_our_errors_or_stay_inside_the_file(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(SEED)
    for at, value in changes:
        data[at] = value
    path = write(tmp_path_factory.mktemp("mutant"), bytes(data if cut % 3 else data[:cut]))
    try:
        with TorchFile(path) as file:
            for name, e in file.entries.items():
                assert e.offset >= 0 and e.n_bytes <= path.stat().st_size
                if e.dtype in ("F32", "F16", "BF16", "F64"):
                    rows(file, name)
    except EdgeLLMError:
        pass


def test_cut_at_every_byte(tmp_path: Path) -> None:
    for n in range(1, len(SEED)):
        with pytest.raises(ModelFormatError):
            TorchFile(write(tmp_path, SEED[:n]))


# ---- edgellm show ----------------------------------------------------------------------------------------------------


def show(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    assert cli.execute(["show", *map(str, args)]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_show_names_what_a_folder_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    template = {"tokenizer_config.json": {"chat_template": "{{ messages }}"}}
    tensors = hf_folder(tmp_path / "m", files=template, _name_or_path="evil\x1b[2J")
    if kind == "bin":
        (tmp_path / "m" / "model.safetensors").unlink()
        shards(tmp_path / "m", tensors, 2)
    out = show(capsys, tmp_path / "m")
    assert "Hugging Face folder" in out and "LlamaForCausalLM" in out and kind in out and "\x1b" not in out
    facts = json.loads(show(capsys, tmp_path / "m", "--json"))["summary"]
    assert facts["parameters"] == sum(x.size for x in tensors.values()) and facts["supported"] is True
    assert facts["parts"] == (2 if kind == "bin" else 1) and facts["layers"] == 2 and facts["chat_template"] is True
    rows = json.loads(show(capsys, tmp_path / "m", "--tensors", "--json"))["tensors"]
    assert {row["name"]: tuple(row["shape"]) for row in rows} == {name: x.shape for name, x in tensors.items()}
    assert show(capsys, tmp_path / "m", "--template") == "{{ messages }}\n"
    one = tmp_path / "m" / rows[0]["file"]
    assert json.loads(show(capsys, one, "--json"))["summary"]["kind"] in ("safetensors", "PyTorch .bin")
    assert cli.execute(["show", str(one), "--plan"]) == 2 and "convert" in capsys.readouterr().err


def test_show_an_adapter_and_files_that_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(tmp_path / "adapter_config.json", {"peft_type": "LORA", "r": 8, "target_modules": ["q_proj"]})
    write_torch(tmp_path / "adapter_model.bin", {"x.lora_A.weight": np.ones((8, 4), np.float32)})
    out = show(capsys, tmp_path)
    assert "LORA adapter, PyTorch .bin" in out and "[1 x values]" in out
    for name, data in (("old.bin", pickle.dumps({"w": 1}, 2)), ("evil.bin", attack("os", "system", f"touch {PWNED}"))):
        (tmp_path / name).write_bytes(data)
        assert cli.execute(["show", str(tmp_path / name)]) == 3 and name in capsys.readouterr().err
    assert not (tmp_path / PWNED).exists() and not Path(PWNED).exists()
