"""The safetensors reader: what it reads, and each rule S1 to S9 with a file that breaks it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convert_inputs import safetensors_bytes, write_json, write_safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.convert.checkpoint import Checkpoint
from edgellm.convert.safetensors import SafetensorsFile
from edgellm.errors import ConvertError, EdgeLLMError, ModelFileChanged, ModelFileNotFoundError, ModelFormatError


def row(begin: int, end: int, shape: list[Any] | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


def one(offsets: list[Any], shape: Any, dtype: Any, n_bytes: int) -> bytes:
    """A file with one tensor, described as one likes."""
    return safetensors_bytes({"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}, bytes(n_bytes))


A = json.dumps(row(0, 4)).encode()
GOOD = {"a": row(0, 4), "b": row(4, 12)}

# rule -> files that break it
BAD: list[tuple[str, str, bytes]] = [
    ("S1", "seven bytes", b"\2\0\0\0\0\0\0"),
    ("S2", "header longer than the file", safetensors_bytes(GOOD, bytes(12), length=10**6)),
    ("S2", "header length 2^64 - 1", safetensors_bytes(GOOD, bytes(12), length=2**64 - 1)),
    ("S2", "header length 0", safetensors_bytes(GOOD, bytes(12), length=0)),
    ("S3", "not UTF-8", safetensors_bytes(b'{"\xff":' + A + b"}", bytes(4))),
    ("S3", "not JSON", safetensors_bytes(b'{"a":', bytes(4))),
    ("S3", "a list", safetensors_bytes(b"[1, 2]", bytes(4))),
    ("S3", "leading space", safetensors_bytes(b' {"a":' + A + b"}", bytes(4))),
    ("S3", "nested 50,000 deep", safetensors_bytes(b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}")),
    ("S3", "NaN", safetensors_bytes(b'{"a":NaN}')),
    ("S3", "a number of 5,000 digits", safetensors_bytes(b'{"a":' + b"9" * 5000 + b"}")),
    ("S3", "half a surrogate pair", safetensors_bytes(b'{"\\ud800":' + A + b"}", bytes(4))),
    ("S3", "two values", safetensors_bytes(b'{"a":' + A + b"}{}", bytes(4))),
    ("S4", "a tensor twice", safetensors_bytes(b'{"a":' + A + b',"a":' + A + b"}", bytes(4))),
    ("S4", "a field twice", safetensors_bytes(b'{"a":{"dtype":"F32","dtype":"F32"}}', bytes(4))),
    ("S5", "overlap", safetensors_bytes({"a": row(0, 8), "b": row(4, 12)}, bytes(12))),
    ("S5", "the same bytes twice", safetensors_bytes({"a": row(0, 4), "b": row(0, 4)}, bytes(4))),
    ("S5", "hole", safetensors_bytes({"a": row(0, 4), "b": row(8, 12)}, bytes(12))),
    ("S5", "hole at the start", safetensors_bytes({"a": row(4, 8)}, bytes(8))),
    ("S5", "end before begin", one([4, 0], [1], "F32", 4)),
    ("S5", "negative begin", one([-4, 0], [1], "F32", 4)),
    ("S5", "offsets are floats", one([0.0, 4.0], [1], "F32", 4)),
    ("S5", "offsets are bools", one([False, True], [1], "U8", 1)),
    ("S5", "three offsets", one([0, 4, 8], [1], "F32", 4)),
    ("S5", "trailing bytes", safetensors_bytes(GOOD, bytes(13))),
    ("S5", "no tensors but data", safetensors_bytes({}, bytes(3))),
    ("S5", "short by one", safetensors_bytes(GOOD, bytes(11))),
    ("S6", "shape larger than the bytes", safetensors_bytes({"a": row(0, 4, [2])}, bytes(4))),
    ("S6", "sizes that overflow 64 bits", safetensors_bytes({"a": row(0, 4, [2**32, 2**32, 2**3])}, bytes(4))),
    ("S6", "a size over 2^63", safetensors_bytes({"a": row(0, 0, [0, 2**64])})),
    ("S6", "negative size", safetensors_bytes({"a": row(0, 4, [-1])}, bytes(4))),
    ("S6", "float size", safetensors_bytes({"a": row(0, 4, [1.0])}, bytes(4))),
    ("S6", "bool size", safetensors_bytes({"a": row(0, 4, [True])}, bytes(4))),
    ("S6", "100,000 dimensions", safetensors_bytes({"a": row(0, 4, [1] * 100_000)}, bytes(4))),
    ("S6", "shape is no list", one([0, 4], 1, "F32", 4)),
    ("S6", "no shape", safetensors_bytes({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, bytes(4))),
    ("S6", "an entry is a string", safetensors_bytes({"a": "F32"}, bytes(4))),
    ("S7", "unknown dtype", safetensors_bytes({"a": row(0, 4, [1], "F33")}, bytes(4))),
    ("S7", "dtype is a number", one([0, 4], [1], 3, 4)),
    ("S8", "metadata is a list", safetensors_bytes({"__metadata__": ["x"], **GOOD}, bytes(12))),
    ("S8", "metadata value is a number", safetensors_bytes({"__metadata__": {"x": 1}, **GOOD}, bytes(12))),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "what", "raw"), BAD, ids=[f"{rule} {what}" for rule, what, _ in BAD])
def test_every_broken_file_is_refused_by_its_rule(tmp_path: Path, rule: str, what: str, raw: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw)
    start = time.perf_counter()
    with pytest.raises(ModelFormatError) as caught:
        SafetensorsFile(path)
    assert time.perf_counter() - start < 1
    assert caught.value.rule == rule, what
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1500


def test_errors_name_offset_field_value_and_limit(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors_bytes({"a": row(0, 4), "b": row(8, 12)}, bytes(12)))
    with pytest.raises(ModelFormatError) as caught:
        SafetensorsFile(path)
    error = caught.value
    start = path.stat().st_size - 12
    assert (error.offset, error.field, error.value, error.limit) == (start + 8, "tensor b, begin", 8, 4)


def test_a_sound_file_is_read_and_key_order_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    data = np.arange(3, dtype="<f4").tobytes()
    padded = json.dumps({"b": row(4, 12), "a": row(0, 4), "__metadata__": {"k": "v"}}).encode() + b"   "
    path.write_bytes(safetensors_bytes(padded, data))
    with SafetensorsFile(path) as file:
        assert file.metadata == {"k": "v"}
        assert file.data_bytes == 12
        assert file.rows("a", 0, 1).tolist() == [[0.0]]
        assert file.rows("b", 0, 1).tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64"])
def test_float_types_become_float32_exactly(tmp_path: Path, dtype: str) -> None:
    x = np.array([[0.0, -0.0, 1.5, -2.25], [65280.0, 2.0**-14, np.inf, 0.0078125]], np.float32)
    write_safetensors(tmp_path / "x.safetensors", {"x": x, "v": x[0]}, dtype)
    with SafetensorsFile(tmp_path / "x.safetensors") as file:
        got = file.rows("x", 0, 2)
        assert got.dtype == np.float32
        assert got.tobytes() == x.tobytes()
        assert file.rows("x", 1, 2).tobytes() == x[1:].tobytes()
        assert file.rows("v", 0, 1).shape == (1, 4)


def test_every_bf16_pattern_is_the_upper_half_of_a_float32(tmp_path: Path) -> None:
    bits = np.arange(1 << 16, dtype="<u2")
    header = {"x": {"dtype": "BF16", "shape": [256, 256], "data_offsets": [0, 1 << 17]}}
    (tmp_path / "x.safetensors").write_bytes(safetensors_bytes(header, bits.tobytes()))
    with SafetensorsFile(tmp_path / "x.safetensors") as file:
        got = file.rows("x", 0, 256).view(np.uint32).reshape(-1)
    assert np.array_equal(got, bits.astype(np.uint32) << 16)


def test_weights_that_are_no_floats_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(safetensors_bytes({"q": row(0, 4, [1], "I32")}, bytes(4)))
    with SafetensorsFile(tmp_path / "x.safetensors") as file, pytest.raises(ConvertError, match="I32"):
        file.rows("q", 0, 1)


def test_a_file_that_is_cut_while_open_is_noticed(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x.safetensors", {"x": np.ones((8, 64), np.float32)})
    with SafetensorsFile(tmp_path / "x.safetensors") as file:
        os.truncate(tmp_path / "x.safetensors", 100)
        with pytest.raises(ModelFileChanged):
            file.rows("x", 0, 8)


def test_the_same_content_as_the_reference_package(tmp_path: Path) -> None:
    package = pytest.importorskip("safetensors.numpy")
    rng = np.random.default_rng(1)
    tensors = {f"t{i}": rng.standard_normal((i + 1, 5)).astype(np.float16) for i in range(4)}
    package.save_file(tensors, tmp_path / "x.safetensors", metadata={"a": "b"})
    with SafetensorsFile(tmp_path / "x.safetensors") as file:
        assert file.metadata == {"a": "b"}
        assert set(file.entries) == set(tensors)
        for name, x in tensors.items():
            assert np.array_equal(file.rows(name, 0, len(x)), x.astype(np.float32))


VALID = safetensors_bytes({"a": row(0, 4), "b": row(4, 12), "__metadata__": {"k": "v"}}, bytes(12))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=4), st.integers(0, 12)
)
def test_mutated_files_are_refused_or_stay_inside_the_file(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, int]], cut: int
) -> None:
    raw = bytearray(VALID)
    for at, value in edits:
        raw[at] = value
    raw = raw[: len(raw) - cut]
    path = tmp_path_factory.getbasetemp() / "mutant.safetensors"
    path.write_bytes(raw)
    try:
        file = SafetensorsFile(path)
    except EdgeLLMError:
        return
    with file:
        spans = sorted((e.offset, e.offset + e.n_bytes) for e in file.entries.values())
        assert all(end == begin for (_, end), (begin, _) in zip(spans, spans[1:], strict=False))
        assert all(end <= len(raw) for _, end in spans)


# ---- folders and their index (rule S9) -------------------------------------------------------------------------------


def two_shards(folder: Path) -> dict[str, Any]:
    """A sound sharded folder; returns its index."""
    one, two = {"a": np.zeros((2, 2), np.float32)}, {"b": np.ones(3, np.float32)}
    total = write_safetensors(folder / "m-1.safetensors", one) + write_safetensors(folder / "m-2.safetensors", two)
    return {"metadata": {"total_size": total}, "weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}


def write_index(folder: Path, index: Any) -> None:
    write_json(folder / "model.safetensors.index.json", index)


def test_shards_are_one_mapping(tmp_path: Path) -> None:
    write_index(tmp_path, two_shards(tmp_path))
    with Checkpoint(tmp_path) as checkpoint:
        assert sorted(checkpoint) == ["a", "b"]
        assert checkpoint["b"].shape == (3,)
        assert checkpoint.rows("b", 0, 1).tolist() == [[1.0, 1.0, 1.0]]
        assert checkpoint.path_of("b").endswith("m-2.safetensors")
        assert checkpoint.data_bytes == 28


@pytest.mark.parametrize("size", [None, 28.0])
def test_indexes_of_old_writers_are_read(tmp_path: Path, size: float | None) -> None:
    index = two_shards(tmp_path)
    index["metadata"] = {} if size is None else {"total_size": size}
    write_index(tmp_path, index)
    with Checkpoint(tmp_path) as checkpoint:
        assert len(checkpoint) == 2


def shard(name: str) -> Any:
    def change(folder: Path, index: dict[str, Any]) -> None:
        index["weight_map"]["b"] = name

    return change


def absolute(folder: Path, index: dict[str, Any]) -> None:
    index["weight_map"]["b"] = str(folder / "m-2.safetensors")


def parent(folder: Path, index: dict[str, Any]) -> None:
    index["weight_map"]["b"] = f"../{folder.name}/m-2.safetensors"


def link_out(folder: Path, index: dict[str, Any]) -> None:
    outside = folder.parent / f"{folder.name}-outside.safetensors"
    (folder / "m-2.safetensors").rename(outside)
    (folder / "m-2.safetensors").symlink_to(outside)


def twice(folder: Path, index: dict[str, Any]) -> None:
    write_safetensors(folder / "m-2.safetensors", {"b": np.ones(3, np.float32), "a": np.ones((2, 2), np.float32)})


def unlisted(folder: Path, index: dict[str, Any]) -> None:
    write_safetensors(folder / "m-2.safetensors", {"b": np.ones(3, np.float32), "c": np.ones(1, np.float32)})


def swapped(folder: Path, index: dict[str, Any]) -> None:
    index["weight_map"] = {"a": "m-2.safetensors", "b": "m-1.safetensors"}


def listed_only(folder: Path, index: dict[str, Any]) -> None:
    index["weight_map"]["ghost"] = "m-1.safetensors"


def lie(folder: Path, index: dict[str, Any]) -> None:
    index["metadata"]["total_size"] += 1


def odd_size(folder: Path, index: dict[str, Any]) -> None:
    index["metadata"]["total_size"] = "28"


def empty_map(folder: Path, index: dict[str, Any]) -> None:
    index["weight_map"] = {}


def number_shard(folder: Path, index: dict[str, Any]) -> None:
    index["weight_map"]["b"] = 7


BAD_INDEX = [parent, absolute, shard(".."), shard("sub/m-2.safetensors"), shard("gone.safetensors"), shard(""),
             shard("C:m-2.safetensors"), link_out, twice, unlisted, swapped, listed_only, lie, odd_size, empty_map,
             number_shard]  # fmt: skip


@pytest.mark.parametrize("change", BAD_INDEX, ids=lambda f: f.__name__)
def test_every_broken_index_is_refused(tmp_path: Path, change: Any) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    index = two_shards(folder)
    change(folder, index)
    write_index(folder, index)
    with pytest.raises(ModelFormatError) as caught:
        Checkpoint(folder)
    assert caught.value.rule == "S9"
    assert "index.json" in str(caught.value)


def test_an_index_that_is_no_object_is_refused(tmp_path: Path) -> None:
    two_shards(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('["a"]')
    with pytest.raises(ModelFormatError, match="not an object"):
        Checkpoint(tmp_path)


def test_links_inside_the_folder_and_into_the_hub_cache_are_followed(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    write_safetensors(blobs / "0123", {"a": np.ones(3, np.float32)})
    (snapshot / "model.safetensors").symlink_to(Path("..") / ".." / "blobs" / "0123")
    with Checkpoint(snapshot) as checkpoint:
        assert list(checkpoint) == ["a"]
    inside = tmp_path / "inside"
    inside.mkdir()
    write_safetensors(inside / "real.safetensors", {"a": np.ones(3, np.float32)})
    (inside / "model.safetensors").symlink_to("real.safetensors")
    with Checkpoint(inside) as checkpoint:
        assert list(checkpoint) == ["a"]


def test_a_single_file_linked_from_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    write_safetensors(tmp_path / "secret.safetensors", {"a": np.ones(3, np.float32)})
    (tmp_path / "model" / "model.safetensors").symlink_to(tmp_path / "secret.safetensors")
    with pytest.raises(ModelFormatError, match="symbolic link"):
        Checkpoint(tmp_path / "model")


def test_folders_without_safetensors_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match=r"no model\.safetensors"):
        Checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelFormatError, match="PyTorch"):
        Checkpoint(tmp_path)


def test_wrong_kinds_of_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileNotFoundError):
        SafetensorsFile(tmp_path / "none.safetensors")
    with pytest.raises(ModelFormatError, match="folder"):
        SafetensorsFile(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelFormatError, match="pipe"):
        SafetensorsFile(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    with pytest.raises(ModelFormatError, match="empty"):
        SafetensorsFile(tmp_path / "empty")
