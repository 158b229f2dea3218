"""The reader of the GGUF container: golden bytes, the gguf package as a peer, real vocabularies."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from gguf_bytes import ARRAY, BOOL, STRING, U32, Raw, array, entry, good_entries, text
from helpers import compare_with_peer, tiny_llama_gguf

from edgellm import errors
from edgellm.gguf import GGUFWriter, open_gguf
from edgellm.quants import dequantize

GOLDEN = Path(__file__).resolve().parent.parent / "formats" / "golden"


def plain(value: object) -> object:
    return value.tolist() if isinstance(value, np.ndarray) else value


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
    entries = [entry("general.name", STRING, text(b"a\xffb")), entry("long", STRING, text(b"x" * 70000 + b"\xfe")),
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
        start = time.process_time()
        with open_gguf(path, strict=True) as f:
            tokens = f.get("tokenizer.ggml.tokens", list[str])
            merges = f.get("tokenizer.ggml.merges", list[str], [])
            assert not f.tensors and f.metadata.length("tokenizer.ggml.tokens") == len(tokens) > 30000
        assert time.process_time() - start < 1
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


def test_bool_arrays_are_bytes(tmp_path: Path) -> None:
    path = tmp_path / "b.gguf"
    path.write_bytes(bytes(Raw(entries=[entry("x", ARRAY, array(BOOL, 3, b"\1\0\1"))], tensors=[], data=b"")))
    with open_gguf(path) as f:
        assert f.metadata["x"].dtype == np.bool_ and f.get("x", list[bool]).tolist() == [True, False, True]
