"""Models in several GGUF files (rule K13): any part opens all, and parts that do not fit are refused."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf_bytes import I32, STRING, U16, Raw, entry, tensor, text
from helpers import tiny_llama_gguf

import edgellm
from edgellm import cli
from edgellm.errors import InvalidArgumentError, MissingTensorError, ModelFileChanged, ModelFormatError
from edgellm.gguf import open_gguf
from edgellm.quantize import quantize

COUNT = 3


def part_name(stem: str, number: int, count: int = COUNT) -> str:
    return f"{stem}-{number:05d}-of-{count:05d}.gguf"


def split_keys(number: int, count: int, total: int) -> list[bytes]:
    return [
        entry("split.no", U16, struct.pack("<H", number)),
        entry("split.count", U16, struct.pack("<H", count)),
        entry("split.tensors.count", I32, struct.pack("<i", total)),
    ]


def cut(source: Path, folder: Path, stem: str = "model", count: int = COUNT) -> list[Path]:
    """Write `source` as parts the way llama-gguf-split does: metadata in the first, only the split keys in the rest."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = source.read_bytes()
    with open_gguf(source) as file:
        infos = list(file.tensors.values())
        metadata = raw[24 : raw.index(text(infos[0].name) + struct.pack("<I", len(infos[0].shape)))]
        n_kv = len(file.metadata)
    paths = []
    for i in range(count):
        mine = infos[i * len(infos) // count : (i + 1) * len(infos) // count]
        rows, data = [], b""
        for t in mine:
            rows.append(tensor(t.name, list(reversed(t.shape)), t.type.id, len(data)))
            data += raw[t.offset : t.offset + t.n_bytes]
            data += bytes(-len(data) % 32)
        keys = split_keys(i, count, len(infos))
        part = Raw(entries=[metadata, *keys] if i == 0 else keys, tensors=rows, data=data)
        part.n_kv = len(keys) + (n_kv if i == 0 else 0)
        paths.append(folder / part_name(stem, i + 1, count))
        paths[-1].write_bytes(bytes(part))
    return paths


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama_gguf(tmp_path_factory.mktemp("whole") / "whole.gguf", type="Q8_0")


@pytest.fixture
def parts(whole: Path, tmp_path: Path) -> list[Path]:
    return cut(whole, tmp_path / "a folder")


def test_any_part_opens_all(whole: Path, parts: list[Path]) -> None:
    with open_gguf(whole) as one:
        for path in parts:
            with open_gguf(path, strict=True) as file:
                assert list(file.tensors) == list(one.tensors) and list(file.metadata) == list(one.metadata)
                assert file.path == str(parts[0]) and file.paths == [str(p) for p in parts]
                assert file.n_bytes == sum(p.stat().st_size for p in parts)
                for name, info in one.tensors.items():
                    assert (file.tensors[name].type, file.tensors[name].shape) == (info.type, info.shape)
                    assert file.data(name).tobytes() == one.data(name).tobytes()
                    home, offset = file.place_of(name)
                    assert Path(home).read_bytes()[offset : offset + info.n_bytes] == one.data(name).tobytes()
                with pytest.raises(MissingTensorError):
                    file.data("no such tensor")
            assert file.closed


def test_pages_are_given_back_in_the_right_part(parts: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with open_gguf(parts[0]) as file:
        asked = []
        for i, part in enumerate(file._parts):
            monkeypatch.setattr(part, "advise_dont_need", lambda offset, n, i=i: asked.append((i, offset, n)))
        for name, info in file.tensors.items():
            file.advise_dont_need(info.offset, info.n_bytes)
            home, offset = file.place_of(name)
            assert asked.pop() == (file.paths.index(home), offset, info.n_bytes)


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_the_logits_are_those_of_the_whole_file(whole: Path, parts: list[Path], backend: str) -> None:
    ids = list(range(3, 40))
    with edgellm.load(whole, backend=backend) as a, edgellm.load(parts[2], backend=backend) as b:
        assert np.array_equal(a.logits(ids), b.logits(ids))


def test_quantising_makes_one_file_again(tmp_path: Path) -> None:
    source = tiny_llama_gguf(tmp_path / "f32.gguf")
    paths = cut(source, tmp_path / "parts")
    report = quantize(paths[1], tmp_path / "from-parts.gguf", "q8_0")
    quantize(source, tmp_path / "from-one.gguf", "q8_0")
    assert (tmp_path / "from-parts.gguf").read_bytes() == (tmp_path / "from-one.gguf").read_bytes()
    assert report.bytes_before == sum(p.stat().st_size for p in paths)
    for path in paths:  # none of the sources may be the output
        with pytest.raises(InvalidArgumentError, match="source"):
            quantize(paths[0], path, "q8_0")


def test_show_and_bench_take_a_part(parts: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    def run(*args: object) -> str:
        assert cli.execute([str(a) for a in args]) == 0, args
        return capsys.readouterr().out

    facts = json.loads(run("show", parts[1], "--json"))["summary"]
    assert facts["parts"] == COUNT and facts["file_bytes"] == sum(p.stat().st_size for p in parts)
    rows = json.loads(run("show", parts[0], "--tensors", "--json"))["tensors"]
    assert {row["file"] for row in rows} == {p.name for p in parts}
    assert "in 3 files" in run("show", parts[0])
    assert json.loads(run("bench", parts[0], "-p", 4, "-n", 0, "-r", 1, "-t", 1, "-o", "jsonl"))


def test_files_of_the_gguf_package(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "llama", split_max_tensors=2)
    writer.add_block_count(1)
    want = {f"t{i}": np.arange(32 * (i + 1), dtype=np.float32).reshape(i + 1, 32) for i in range(5)}
    for name, x in want.items():
        writer.add_tensor(name, x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    files = sorted(tmp_path.glob("*.gguf"))
    assert len(files) == 3
    with open_gguf(files[-1]) as file:
        assert set(file.tensors) == set(want) and file.get("llama.block_count", int) == 1
        for name, x in want.items():
            assert file.data(name).view(np.float32).tobytes() == x.tobytes()


# ---- what is refused -------------------------------------------------------------------------------------------------


def missing(parts: list[Path]) -> None:
    parts[1].unlink()


def renamed(parts: list[Path]) -> None:
    for i, path in enumerate(parts):
        path.rename(path.with_name(f"part{i}.gguf"))
        parts[i] = path.with_name(f"part{i}.gguf")


def duplicated(parts: list[Path]) -> None:
    shutil.copy(parts[1], parts[2])


def swapped(parts: list[Path]) -> None:
    a, b = parts[1].read_bytes(), parts[2].read_bytes()
    parts[1].write_bytes(b)
    parts[2].write_bytes(a)


def wrong_number_in_the_name(parts: list[Path]) -> None:
    parts[0].rename(parts[0].with_name(part_name("model", 1, 4)))
    parts[0] = parts[0].with_name(part_name("model", 1, 4))


def no_part_at_all(parts: list[Path]) -> None:
    parts[2].write_bytes(bytes(Raw()))


def part_of_a_model_with_other_tensors(parts: list[Path]) -> None:
    other = tiny_llama_gguf(parts[0].parent / "other.gguf", n_layers=4)
    shutil.copy(cut(other, parts[0].parent / "more")[1], parts[1])


def part_of_a_model_with_other_metadata(parts: list[Path]) -> None:
    raw = parts[1].read_bytes()
    n_kv = struct.unpack_from("<Q", raw, 16)[0]
    with open_gguf(parts[0]) as file:
        rows = [tensor(t.name, list(reversed(t.shape)), t.type.id, t.offset) for t in file.tensors.values()
                if file.place_of(t.name)[0] == str(parts[1])]  # fmt: skip
        total = len(file.tensors)
        datas = [file.data(n).tobytes() for n in file.tensors if file.place_of(n)[0] == str(parts[1])]
    at, data, fixed = 0, b"", []
    for row, piece in zip(rows, datas, strict=True):
        fixed.append(row[:-8] + struct.pack("<Q", at))
        data += piece + bytes(-len(piece) % 32)
        at = len(data)
    keys = [*split_keys(1, COUNT, total), entry("general.architecture", STRING, text("qwen2"))]
    assert n_kv + 1 == len(keys)
    parts[1].write_bytes(bytes(Raw(entries=keys, tensors=fixed, data=data)))


def a_tensor_in_two_parts(parts: list[Path]) -> None:
    raw = parts[1].read_bytes().replace(split_keys(1, COUNT, 0)[0], split_keys(2, COUNT, 0)[0])
    parts[2].write_bytes(raw)


def too_few_tensors(parts: list[Path]) -> None:
    with open_gguf(parts[0]) as file:
        total = len(file.tensors)
    for i, path in enumerate(parts):
        old, new = split_keys(i, COUNT, total)[2], split_keys(i, COUNT, total + 1)[2]
        path.write_bytes(path.read_bytes().replace(old, new))


def totals_that_differ(parts: list[Path]) -> None:
    with open_gguf(parts[0]) as file:
        total = len(file.tensors)
    path = parts[2]
    path.write_bytes(path.read_bytes().replace(split_keys(2, COUNT, total)[2], split_keys(2, COUNT, total + 7)[2]))


BROKEN: dict[Callable[[list[Path]], None], str] = {
    missing: "missing", renamed: "name", duplicated: "no part of the same", swapped: "no part of the same",
    wrong_number_in_the_name: "name", no_part_at_all: "no part of the same",
    part_of_a_model_with_other_tensors: "no part of the same", part_of_a_model_with_other_metadata: "another model",
    a_tensor_in_two_parts: "two parts", too_few_tensors: "number of tensors", totals_that_differ: "no part of the same",
}  # fmt: skip


@pytest.mark.parametrize("damage", BROKEN, ids=lambda f: f.__name__)
def test_parts_that_do_not_fit_are_refused(parts: list[Path], damage: Callable[[list[Path]], None]) -> None:
    damage(parts)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    with pytest.raises(ModelFormatError, match=BROKEN[damage]) as caught:
        open_gguf(parts[0])
    assert caught.value.rule == "K13" and caught.value.field and "\n" not in str(caught.value)
    if before:
        assert len(os.listdir("/proc/self/fd")) == before  # nothing stays open


def test_a_damaged_part_is_refused_by_its_own_rule(parts: list[Path]) -> None:
    raw = parts[1].read_bytes()
    parts[1].write_bytes(raw[: len(raw) - 500])
    with pytest.raises(ModelFormatError) as caught:
        open_gguf(parts[0])
    assert caught.value.rule == "T11" and caught.value.path == str(parts[1])


def test_too_many_parts(tmp_path: Path) -> None:
    path = tmp_path / part_name("m", 1, 60000)
    path.write_bytes(bytes(Raw(entries=split_keys(0, 60000, 70000))))
    with pytest.raises(ModelFormatError, match="too many files"):
        open_gguf(path)


def test_a_part_that_is_cut_later_is_noticed(parts: list[Path]) -> None:
    with open_gguf(parts[0]) as file:
        os.truncate(parts[2], 100)
        with pytest.raises(ModelFileChanged, match="00003-of-00003"):
            file.check_unchanged()


def test_names_in_the_file_are_no_paths(whole: Path, tmp_path: Path) -> None:
    """The other parts are looked for under the name that was given, in the same folder."""
    stem = "..-odd name\n"
    paths = cut(whole, tmp_path / "odd", stem)
    with open_gguf(paths[1]) as file:
        assert {os.path.dirname(p) for p in file.paths} == {str(tmp_path / "odd")}
