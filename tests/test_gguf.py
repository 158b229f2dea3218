"""Reader and writer of the GGUF container: golden bytes, round trips, the gguf package as a peer, real vocabularies."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from gguf_bytes import ARRAY, BOOL, STRING, U32, Raw, array, entry, good_entries, text
from helpers import tiny_llama_gguf
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm import errors
from edgellm.blocks import ALL
from edgellm.errors import InvalidArgumentError, OutputError
from edgellm.gguf import GGUFFile, GGUFWriter, ValueType, open_gguf
from edgellm.quants import dequantize, quantize

GOLDEN = Path(__file__).resolve().parent.parent / "formats" / "golden"


def plain(value: object) -> object:
    return value.tolist() if isinstance(value, np.ndarray) else value


def partials(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.endswith(".partial")]


# ---- reading ---------------------------------------------------------------------------------------------------------


def test_golden_container(tmp_path: Path) -> None:
    golden = json.loads((GOLDEN / "container.json").read_text(encoding="utf-8"))
    path = tmp_path / "golden.gguf"
    path.write_bytes(bytes.fromhex("".join(golden["file"])))
    with open_gguf(path, strict=True) as f:
        assert f.version == golden["version"] and f.path == str(path) and f.alignment == 32
        assert {k: plain(v) for k, v in f.metadata.items()} == golden["metadata"]
        assert list(f.tensors) == list(golden["tensors"])
        for name, want in golden["tensors"].items():
            info = f.tensors[name]
            found = (info.type.name, list(info.shape), info.offset, info.n_bytes)
            assert found == (want["type"], want["shape"], want["offset"], want["n_bytes"])
            assert dequantize(f.data(name), info.type, info.shape).tolist() == want["weights"]


def test_every_kind_of_value(tmp_path: Path) -> None:
    path = tmp_path / "all.gguf"
    path.write_bytes(bytes(Raw()))
    with open_gguf(path, strict=True) as f:
        found = {k: plain(v) for k, v in f.metadata.items()}
        types = {k: type(v) for k, v in f.metadata.items()}
    assert found == {
        "general.architecture": "llama", "llama.block_count": 2, "a.u8": 255, "a.i8": -1, "a.u16": 65535, "a.i16": -2,
        "a.i32": -3, "a.f32": 0.5, "a.bool": True, "a.u64": 1 << 63, "a.i64": -(1 << 62), "a.f64": 0.1,
        "a.strings": ["", "é", "three"], "a.floats": [1.0, -2.0], "a.bools": [True, False], "a.empty": [],
    }  # fmt: skip
    assert types["a.u8"] is int and types["a.f32"] is float and types["a.bool"] is bool and types["a.strings"] is list


def test_version_2_and_other_alignments(tmp_path: Path) -> None:
    path = tmp_path / "v2.gguf"
    path.write_bytes(bytes(Raw(version=2)))
    with open_gguf(path, strict=True) as f:
        assert f.version == 2
    for alignment in (8, 64, 1 << 20):
        tensors = Raw().tensors[:1]
        entries = [*good_entries(), entry("general.alignment", U32, alignment.to_bytes(4, "little"))]
        path.write_bytes(bytes(Raw(entries=entries, tensors=tensors, alignment=alignment, data=bytes(range(24)))))
        with open_gguf(path, strict=True) as f:
            assert f.alignment == alignment and f.tensors["one"].offset % alignment == 0
            assert f.data("one").tolist() == list(range(24))


def test_tensor_views_are_read_only_and_not_copied(tmp_path: Path) -> None:
    path = tmp_path / "all.gguf"
    path.write_bytes(bytes(Raw()))
    with open_gguf(path) as f:
        info, view = f.tensors["one"], f.data("one")
        assert (info.shape, info.type.name, info.n_bytes) == ((3, 2), "F32", 24)
        assert view.dtype == np.uint8 and view.tobytes() == path.read_bytes()[info.offset : info.offset + 24]
        assert not view.flags.writeable and not view.flags.owndata
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 1
        assert view.ctypes.data == f.data("one").ctypes.data
        with pytest.raises(errors.MissingTensorError):
            f.data("none")


def test_after_close(tmp_path: Path) -> None:
    path = tmp_path / "all.gguf"
    path.write_bytes(bytes(Raw()))
    f = open_gguf(path)
    view, strings = f.data("one"), f.metadata["a.strings"]
    assert not f.closed
    f.close()
    f.close()
    assert f.closed and view.sum() == sum(range(24)) and strings == ["", "é", "three"]
    assert f.metadata["a.u8"] == 255 and f.metadata["a.strings"] is strings
    for use in (lambda: f.data("one"), f.check_unchanged, lambda: f.metadata["a.floats"]):
        with pytest.raises(errors.ModelClosedError):
            use()
    f.advise_dont_need(0, 100)  # advice on a closed file is no error


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "all.gguf"
    path.write_bytes(bytes(Raw()))
    with open_gguf(path) as f:
        f.check_unchanged()
        other = tmp_path / "other.gguf"
        other.write_bytes(b"something else")
        os.replace(other, path)  # the map still shows the old file
        f.check_unchanged()
        assert f.data("one")[1] == 1
    path.write_bytes(bytes(Raw()))
    with open_gguf(path) as f:
        with open(path, "ab") as out:
            out.write(b"more")
        with pytest.raises(errors.ModelFileChanged):
            f.check_unchanged()
    with open_gguf(path) as f:
        os.utime(path, ns=(1, 1))
        with pytest.raises(errors.ModelFileChanged):
            f.check_unchanged()


def test_pages_can_be_given_back(tmp_path: Path) -> None:
    path = tmp_path / "big.gguf"
    x = np.arange(1 << 20, dtype=np.float32)
    with GGUFWriter(path, "llama") as w:
        w.add_tensor_info("x", (1 << 20,), "F32")
        w.write_tensor("x", x)
    with open_gguf(path) as f:
        info = f.tensors["x"]
        assert (f.data("x").view(np.float32) == x).all()
        for offset, n in ((info.offset, info.n_bytes), (0, f.n_bytes), (5, 1), (f.n_bytes - 1, 10), (0, 0), (0, -1)):
            f.advise_dont_need(offset, n)
            assert (f.data("x").view(np.float32) == x).all()


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    """Single strings show U+FFFD and a warning; pieces stay different from each other and can be written again."""
    entries = [entry("general.name", STRING, text(b"a\xffb")), entry("long", STRING, text(b"x" * 5000 + b"\xfe")),
               entry("pieces", ARRAY, array(STRING, 2, text(b"\xe4") + text(b"\xe5")))]  # fmt: skip
    path = tmp_path / "text.gguf"
    path.write_bytes(bytes(Raw(entries=entries, tensors=[], data=b"")))
    with open_gguf(path) as f:
        assert f.metadata["general.name"] == "a\ufffdb" and len(f.warnings) == 1
        assert f.metadata["long"][-1] == "\ufffd" and len(f.warnings) == 2
        pieces = f.metadata["pieces"]
        assert [p.encode("utf-8", "surrogateescape") for p in pieces] == [b"\xe4", b"\xe5"]
    with GGUFWriter(path, "llama") as w:
        w.add("pieces", pieces)
    with open_gguf(path) as f:
        assert f.metadata["pieces"] == pieces


def test_odd_paths(tmp_path: Path) -> None:
    for name in ("größe 日本.gguf", "with space.gguf", "-dash.gguf", "🙂.gguf"):
        path = tiny_llama_gguf(tmp_path / name, n_layers=1, dim=32, n_heads=2, n_kv_heads=1, ffn=32)
        for spelling in (path, str(path), os.fsencode(path)):
            with open_gguf(spelling) as f:
                assert f.path == str(path) and f.get("general.architecture", str) == "llama"
    link = tmp_path / "link.gguf"
    link.symlink_to(path)
    open_gguf(link).close()


def test_real_vocabularies_open_fast(shared_data: Path) -> None:
    files = sorted((shared_data / "vocab").glob("*.gguf"))
    assert len(files) == 10
    for path in files:
        start = time.perf_counter()
        with open_gguf(path, strict=True) as f:
            tokens = f.get("tokenizer.ggml.tokens", list[str])
            merges = f.get("tokenizer.ggml.merges", list[str], [])
            assert not f.tensors and f.metadata.length("tokenizer.ggml.tokens") == len(tokens) > 30000
        assert time.perf_counter() - start < 1
        if "llama-bpe" in path.name:
            assert len(tokens) == 128256 and len(merges) == 280147 and tokens[128000] == "<|begin_of_text|>"


def test_foreign_files_read_as_the_gguf_package_reads_them(shared_data: Path) -> None:
    import gguf

    files = sorted((shared_data / "gguf-foreign").glob("llama-*.gguf"))
    assert files
    for path in files:
        peer = gguf.GGUFReader(path)
        with open_gguf(path, strict=True) as f:
            assert f.warnings == []
            compare_with_peer(f, peer)


def compare_with_peer(f: GGUFFile, peer: object) -> None:
    assert [t.name for t in peer.tensors] == list(f.tensors)
    for t in peer.tensors:
        info = f.tensors[t.name]
        found = (info.offset, info.n_bytes, info.type.id, info.shape)
        assert found == (t.data_offset, t.n_bytes, t.tensor_type, tuple(int(n) for n in reversed(t.shape)))
        assert (f.data(t.name) == np.ascontiguousarray(t.data).reshape(-1).view(np.uint8)).all()
    fields = {k: v for k, v in peer.fields.items() if not k.startswith("GGUF.")}
    assert set(fields) == set(f.metadata)
    for key, field in fields.items():
        have, want = plain(f.metadata[key]), field.contents()
        assert have == (list(want) if isinstance(have, list) else want), key


# ---- writing ---------------------------------------------------------------------------------------------------------

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
        w.add_tensor_info("b", (256,), "Q4_K")
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
    assert len(partials(tmp_path)) == 1 and path.read_bytes() == b"old"
    writer.abort()
    writer.abort()
    assert partials(tmp_path) == [] and path.read_bytes() == b"old"
    writer = GGUFWriter(path, "llama")
    writer.add_tensor_info("a", (8,), "F32")
    writer.write_tensor("a", bytes(32))
    del writer  # forgotten
    assert partials(tmp_path) == []


def test_a_full_disk_says_how_much_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    for bad in (tmp_path / "no" / "out.gguf", tmp_path, Path("/dev/null")):
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


def test_a_written_file_has_ordinary_permissions(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        GGUFWriter(tmp_path / "out.gguf", "llama").close()
    finally:
        os.umask(old)
    assert (tmp_path / "out.gguf").stat().st_mode & 0o777 == 0o644 or os.name == "nt"


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


def test_bool_arrays_are_bytes(tmp_path: Path) -> None:
    path = tmp_path / "b.gguf"
    path.write_bytes(bytes(Raw(entries=[entry("x", ARRAY, array(BOOL, 3, b"\1\0\1"))], tensors=[], data=b"")))
    with open_gguf(path) as f:
        assert f.metadata["x"].dtype == np.bool_ and f.get("x", list[bool]).tolist() == [True, False, True]
