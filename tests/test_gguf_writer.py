"""The writer of the GGUF container: round trips, the gguf package as a peer, interrupted writes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import compare_with_peer, tiny_llama_gguf
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm import errors
from edgellm.blocks import ALL
from edgellm.errors import InvalidArgumentError, OutputError
from edgellm.gguf import GGUFWriter, ValueType, open_gguf
from edgellm.quants import quantize

GOLDEN = Path(__file__).resolve().parent.parent / "formats" / "golden"


def plain(value: object) -> object:
    return value.tolist() if isinstance(value, np.ndarray) else value


def partials(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.endswith(".partial")]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
KEYS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
VALUES = st.one_of(
    st.booleans(),
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.floats(width=32, allow_nan=False),
    TEXT,
    st.lists(TEXT, max_size=5),
    st.lists(st.integers(-(1 << 31), (1 << 31) - 1), max_size=5),
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=5),
    st.lists(st.booleans(), min_size=1, max_size=5),
)
SHAPES = st.lists(st.integers(1, 5), min_size=0, max_size=3)


@settings(max_examples=60, deadline=None)
@given(metadata=st.dictionaries(KEYS, VALUES, max_size=8), tensors=st.data(), n=st.integers(0, 5))
def test_what_is_written_is_read(
    metadata: dict[str, object], tensors: st.DataObject, n: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("round") / "trip.gguf"
    metadata.pop("general.architecture", None)
    reserved = {"general.alignment", "split.count", "split.no", "split.tensors.count"}
    metadata = {k: v for k, v in metadata.items() if k not in reserved}
    rng, data = np.random.default_rng(n), {}
    for i in range(n):
        kind = tensors.draw(st.sampled_from(ALL))
        shape = (*tensors.draw(SHAPES), kind.block_size * tensors.draw(st.integers(1, 3)))
        size = int(np.prod(shape)) // kind.block_size * kind.type_size
        data[f"t{i}"] = (kind, shape, rng.integers(0, 256, size, dtype=np.uint8))
    with GGUFWriter(path, "llama") as w:
        for key, value in metadata.items():
            w.add(key, value)
        for name, (kind, shape, raw) in data.items():
            assert w.add_tensor_info(name, shape, kind) == raw.nbytes
        for name, (_, _, raw) in data.items():
            w.write_tensor(name, raw)
    with open_gguf(path, strict=True) as f:
        assert f.version == 3 and f.warnings == []
        assert {k: plain(v) for k, v in f.metadata.items()} == {"general.architecture": "llama", **metadata}
        assert {k: (i.type, i.shape, f.data(k).tobytes()) for k, i in f.tensors.items()} == {
            k: (kind, shape, raw.tobytes()) for k, (kind, shape, raw) in data.items()
        }


@pytest.mark.parametrize("name", [b.name for b in ALL])
def test_the_gguf_package_reads_what_is_written(name: str, tmp_path: Path) -> None:
    import gguf

    path = tiny_llama_gguf(tmp_path / "m.gguf", n_layers=1, dim=256, ffn=512, n_heads=4, type=name)
    with open_gguf(path, strict=True) as f:
        assert f.tensors["blk.0.ffn_down.weight"].type.name == name
        compare_with_peer(f, gguf.GGUFReader(path))


def test_kinds_of_values(tmp_path: Path) -> None:
    path = tmp_path / "kinds.gguf"
    given_kinds = {
        "u8": (7, "u8"), "i8": (-7, "i8"), "u16": (7, "u16"), "i16": (7, "i16"), "u32": (7, "u32"), "i32": (7, "i32"),
        "u64": (7, "u64"), "i64": (7, "i64"), "f32": (7, "f32"), "f64": (0.1, "f64"), "bool": (1, "bool"),
        "str": ("x", "str"), "i16s": ([1, 2], "i16"), "enum": (7, ValueType.UINT64),
    }  # fmt: skip
    with GGUFWriter(path, "llama") as w:
        for key, (value, kind) in given_kinds.items():
            w.add(key, value, kind)
        w.add("auto", 1 << 31)
        w.add("negative", -1)
        w.add("numpy", np.float64(0.25))
        w.add("array", np.arange(3, dtype=np.uint16))
        w.add("bools", np.array([True, False]))
        w.add("bytes", [b"a", "b"])
    with open_gguf(path) as f:
        codes = {key: int(f.metadata.types[key][0]) for key in given_kinds}
        assert codes == {"u8": 0, "i8": 1, "u16": 2, "i16": 3, "u32": 4, "i32": 5, "f32": 6, "bool": 7, "str": 8,
                         "i16s": 9, "u64": 10, "i64": 11, "f64": 12, "enum": 10}  # fmt: skip
        assert f.metadata.types["i16s"][1] == ValueType.INT16
        auto = {k: f.metadata.types[k] for k in ("auto", "negative", "numpy", "array", "bools", "bytes")}
        assert auto == {"auto": (ValueType.UINT32, None), "negative": (ValueType.INT32, None),
                        "numpy": (ValueType.FLOAT64, None), "array": (ValueType.ARRAY, ValueType.UINT16),
                        "bools": (ValueType.ARRAY, ValueType.BOOL),
                        "bytes": (ValueType.ARRAY, ValueType.STRING)}  # fmt: skip
        assert f.metadata["bytes"] == ["a", "b"] and f.metadata["f32"] == 7.0


def test_the_writer_refuses_misuse(tmp_path: Path) -> None:
    w = GGUFWriter(tmp_path / "out.gguf", "llama")
    bad_values = [(1 << 64, None), (-1, "u32"), (256, "u8"), (1.5, "i32"), ("x", "i32"), (1, "str"), (object(), None),
                  ([object()], None), (np.zeros((2, 2)), None), ([1, "a"], None), ([1 << 40], None), (1, "u7"),
                  (np.zeros(2, complex), None), (None, None)]  # fmt: skip
    for i, (value, kind) in enumerate(bad_values):
        with pytest.raises(InvalidArgumentError):
            w.add(f"key{i}", value, kind)
    for key in ("general.architecture", "", "a\0", "k" * 70000):
        with pytest.raises(InvalidArgumentError):
            w.add(key, 1)
    w.add_tensor_info("a", (2, 32), "Q4_0")
    bad_tensors = [("a", (1,), "F32"), ("", (1,), "F32"), ("n" * 64, (1,), "F32"), ("b", (), "F32"),
                   ("b", (0,), "F32"), ("b", (1,) * 5, "F32"), ("b", (1 << 31,), "F32"), ("b", (2, 33), "Q4_0"),
                   ("b\0", (1,), "F32")]  # fmt: skip
    for name, shape, kind in bad_tensors:
        with pytest.raises(InvalidArgumentError):
            w.add_tensor_info(name, shape, kind)
    with pytest.raises(errors.UnsupportedQuantError):
        w.add_tensor_info("b", (256,), "IQ2_XXS")
    w.add_tensor_info("b", (3,), "F32")
    with pytest.raises(InvalidArgumentError, match="out of order; due: a"):
        w.write_tensor("b", np.zeros(3, np.float32))
    w.write_tensor("a", bytes(36))
    with pytest.raises(InvalidArgumentError, match="before the first"):
        w.add("late", 1)
    w.write_tensor("b", np.zeros(3, np.float32))
    with pytest.raises(InvalidArgumentError, match="due: none"):
        w.write_tensor("c", b"")
    w.close()
    w.close()
    with pytest.raises(InvalidArgumentError):
        w.write_tensor("c", b"")
    open_gguf(tmp_path / "out.gguf", strict=True).close()


def test_tensors_in_parts_and_strided(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    path = tmp_path / "parts.gguf"
    with GGUFWriter(path, "llama") as w:
        w.add_tensor_info("q", (64, 32), "Q8_0")
        w.add_tensor_info("t", (32, 64), "F32")
        w.write_tensor("q", (quantize(x[i : i + 10], "Q8_0") for i in range(0, 64, 10)))
        w.write_tensor("t", x.T)
    with open_gguf(path, strict=True) as f:
        assert f.data("q").tobytes() == quantize(x, "Q8_0").tobytes()
        assert (f.data("t").view(np.float32).reshape(32, 64) == x.T).all()


def failing_parts() -> object:
    yield bytes(10)
    raise RuntimeError("stopped half-way")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    path.write_bytes(b"old")

    def fails(kind: type[Exception], write: object) -> None:
        with pytest.raises(kind), GGUFWriter(path, "llama") as w:
            w.add_tensor_info("a", (8,), "F32")
            w.add_tensor_info("b", (8,), "F32")
            write(w)
        assert path.read_bytes() == b"old" and partials(tmp_path) == []

    fails(InvalidArgumentError, lambda w: w.write_tensor("a", bytes(31)))
    fails(InvalidArgumentError, lambda w: w.write_tensor("a", bytes(33)))
    fails(InvalidArgumentError, lambda w: w.write_tensor("a", bytes(32)))  # b is missing at the end
    fails(RuntimeError, lambda w: w.write_tensor("a", failing_parts()))
    fails(ZeroDivisionError, lambda w: (w.write_tensor("a", bytes(32)), 1 / 0))
    writer = GGUFWriter(path, "llama")
    writer.add_tensor_info("a", (8,), "F32")
    writer.write_tensor("a", bytes(32))
    assert path.read_bytes() == b"old"
    writer.abort()
    writer.abort()
    assert partials(tmp_path) == [] and path.read_bytes() == b"old"
    writer = GGUFWriter(path, "llama")
    writer.add_tensor_info("a", (8,), "F32")
    writer.write_tensor("a", bytes(32))
    del writer  # forgotten
    assert partials(tmp_path) == []


@pytest.fixture(params=["without a name", "temporary name"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways in which an output grows; systems without O_TMPFILE have the second only."""
    if request.param == "temporary name":
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    return request.param


def test_both_ways_give_the_same_file(way: str, tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    path.write_bytes(b"old")
    w = GGUFWriter(path, "llama")
    w.add_tensor_info("a", (8,), "F32")
    w.write_tensor("a", np.arange(8, dtype=np.float32))
    assert len(partials(tmp_path)) == (way == "temporary name" or not hasattr(os, "O_TMPFILE"))
    assert path.read_bytes() == b"old"
    w.close()
    assert os.listdir(tmp_path) == ["out.gguf"]
    with open_gguf(path, strict=True) as f:
        assert f.data("a").view(np.float32).tolist() == list(range(8))
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask() or os.name == "nt"


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


KILLED = """
import os, signal, sys
from edgellm.gguf import GGUFWriter
w = GGUFWriter(sys.argv[1], "llama")
w.add_tensor_info("a", (1 << 20,), "F32")
w.add_tensor_info("b", (1 << 20,), "F32")
w.write_tensor("a", bytes(4 << 20))
print("written", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="the system has no files without a name")
def test_a_killed_writer_leaves_nothing(tmp_path: Path) -> None:
    try:
        os.close(os.open(tmp_path, os.O_TMPFILE | os.O_WRONLY))
    except OSError:
        pytest.skip(f"the file system of {tmp_path} has no files without a name")
    path = tmp_path / "out.gguf"
    path.write_bytes(b"old")
    root = Path(__file__).resolve().parent.parent
    run = subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=root, capture_output=True, text=True)
    assert run.stdout == "written\n" and run.returncode < 0
    assert os.listdir(tmp_path) == ["out.gguf"] and path.read_bytes() == b"old"


def test_nothing_is_written_after_a_failed_write(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that catches the error cannot make a file with a hole in it."""
    w = GGUFWriter(tmp_path / "out.gguf", "llama")
    w.add_tensor_info("a", (8,), "F32")
    with monkeypatch.context() as m, pytest.raises(OutputError):
        m.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=1, free=0))
        w.write_tensor("a", bytes(32))
    for again in (lambda: w.write_tensor("a", bytes(32)), lambda: w.add("k", 1), w.close):
        with pytest.raises((OutputError, InvalidArgumentError)):
            again()
    assert os.listdir(tmp_path) == []


def test_a_full_disk_says_how_much_is_missing(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, usage = tmp_path / "out.gguf", shutil.disk_usage(tmp_path)

    def write() -> OutputError:
        with pytest.raises(OutputError) as caught, GGUFWriter(path, "llama") as w:
            w.add_tensor_info("a", (1 << 20,), "F32")
            w.write_tensor("a", np.zeros(1 << 20, np.float32))
        assert os.listdir(tmp_path) == []
        return caught.value

    with monkeypatch.context() as m:
        m.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        error = write()
    assert error.needed == (1 << 22) + 128 and error.free == 1000 and error.exit_code == 1
    assert f"bytes needed {error.needed}, bytes free 1000" in str(error) and str(path) in str(error)

    class FullFile:
        """The disk fills up while the file grows."""

        def __init__(self, fd: int) -> None:
            self.fd = fd

        def write(self, _: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            os.close(self.fd)

    with monkeypatch.context() as m:
        m.setattr(os, "fdopen", lambda fd, *_, **__: FullFile(fd))
        error = write()
    assert error.needed == (1 << 22) + 128 and error.free > 0


def test_where_the_output_may_go(tmp_path: Path) -> None:
    for bad in (tmp_path / "no" / "out.gguf", tmp_path, Path("/dev/null"), "a\0b"):
        with pytest.raises(OutputError) as caught:
            GGUFWriter(bad, "llama")
        assert caught.value.exit_code == 2
    target, link = tmp_path / "target.gguf", tmp_path / "link.gguf"
    target.write_bytes(b"old")
    link.symlink_to(target)
    with GGUFWriter(link, "llama") as w:
        w.add("k", 1)
    assert link.is_symlink() and open_gguf(target).metadata["k"] == 1
    name = "n" * 250 + ".gguf"  # the temporary name must not be longer than the system allows
    GGUFWriter(tmp_path / name, "llama").close()
    open_gguf(tmp_path / name, strict=True).close()
    assert partials(tmp_path) == []


def test_the_writer_writes_the_golden_file(tmp_path: Path) -> None:
    golden = json.loads((GOLDEN / "container.json").read_text(encoding="utf-8"))
    want = bytes.fromhex("".join(golden["file"]))
    kinds = {"tokenizer.ggml.scores": "f32"}
    with GGUFWriter(tmp_path / "out.gguf", "llama") as w:
        for key, value in golden["metadata"].items():
            if key != "general.architecture":
                w.add(key, value, kinds.get(key))
        for name, t in golden["tensors"].items():
            w.add_tensor_info(name, t["shape"], t["type"])
        for name, t in golden["tensors"].items():
            w.write_tensor(name, want[t["offset"] : t["offset"] + t["n_bytes"]])
    assert (tmp_path / "out.gguf").read_bytes() == want
