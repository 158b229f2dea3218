"""Packed files: nothing lost, the same logits, and every bad header refused."""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_llama_gguf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_gguf_split import cut
from tiny_families import tiny_family_gguf

import edgellm
from edgellm import clib, loader
from edgellm.cli import execute
from edgellm.errors import (
    Cancelled,
    ConvertError,
    EdgeLLMError,
    InvalidArgumentError,
    ModelFormatError,
    OutputError,
    TokenizerError,
)
from edgellm.gguf import GGUFFile, GGUFWriter, open_gguf
from edgellm.gguf.packed import DIGEST, PANEL_TYPE, PREFIX, header_digest
from edgellm.pack import pack, unpack, verify
from edgellm.quantize import quantize
from edgellm.quants import pack_panels

PANEL_KINDS = ["Q4_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]
IDS = [1, 300, 17, 5, 260, 99, 98, 41, 7, 7, 300, 12]


def sizes(kind: str) -> dict[str, int]:
    """Rows that are no multiple of 16, and half tiles where the type has them."""
    return {"dim": 256, "ffn": 256, "n_heads": 8} if kind.endswith("_K") else {"dim": 96, "ffn": 160, "n_heads": 6}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama_gguf(tmp_path_factory.mktemp("pack") / "model.gguf", type="Q4_0", tied=True)


@pytest.fixture(scope="module")
def packed(source: Path) -> Path:
    return Path(pack(source).path)


def logits(path: Path, **options: object) -> np.ndarray:
    with edgellm.load(path, n_ctx=64, threads=2, **options) as model:
        return model.logits(IDS)


# ---- nothing is lost -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PANEL_KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_the_source_comes_back_and_the_logits_are_the_same(tmp_path: Path, kind: str, tied: bool) -> None:
    path = tiny_llama_gguf(tmp_path / "m.gguf", type=kind, tied=tied, biases=True, **sizes(kind))
    done = pack(path)
    assert done.path == str(tmp_path / "m.packed.gguf")
    assert done.types[kind] == (15 if tied else 16)
    with open_gguf(done.path, strict=True) as file, open_gguf(path) as original:
        table = file.tensors["token_embd.weight"]
        assert table.panels == tied  # without a head of its own it is multiplied
        assert done.n_panels == sum(t.panels for t in file.tensors.values()) == 15
        assert list(file.tensors) == list(original.tensors)
        assert dict(file.metadata.types) == dict(original.metadata.types)
        for name, info in file.tensors.items():
            assert (info.type, info.shape, info.n_bytes) == (
                original.tensors[name].type, original.tensors[name].shape, original.tensors[name].n_bytes,
            )  # fmt: skip
            assert info.offset % 4096 == 0
            assert np.array_equal(file.data(name), original.data(name))
            if info.panels:
                assert np.array_equal(file.stored(name), pack_panels(original.data(name), *info.shape, info.type))
    assert verify(done.path) > 0
    back = unpack(done.path, tmp_path / "back.gguf")
    assert back.identical and Path(back.path).read_bytes() == path.read_bytes()
    want = logits(path)
    assert np.array_equal(want, logits(Path(done.path)))
    assert np.array_equal(want, logits(path, pack=False))
    assert np.array_equal(want, logits(Path(done.path), pack=False))
    assert np.array_equal(want, logits(Path(done.path), huge_pages=True))


@pytest.mark.parametrize("family", ["mixtral", "qwen3moe", "phi3", "gemma3"])
def test_experts_and_parts(tmp_path: Path, family: str) -> None:
    path = tiny_family_gguf(tmp_path / "m.gguf", family, type="Q8_0")
    report = pack(path, tmp_path / "p.gguf")
    with open_gguf(report.path) as file:
        inside = {t.name for t in file.tensors.values() if t.panels}
    wanted = {"mixtral": "ffn_up_exps", "qwen3moe": "ffn_down_exps", "phi3": "attn_qkv", "gemma3": "attn_q"}[family]
    assert f"blk.0.{wanted}.weight" in inside
    assert np.array_equal(logits(path), logits(tmp_path / "p.gguf"))
    assert unpack(report.path, tmp_path / "back.gguf").identical


def test_parts_inside_a_group_stay_rows(tmp_path: Path) -> None:
    """gate|up of 2 x 104 rows: the second begins inside a group, so each is packed on its own at load."""
    change = {"ffn_up.weight": (208, 64), "ffn_down.weight": (64, 104)}
    path = tiny_family_gguf(tmp_path / "m.gguf", "phi3", type="F16", layer=change, feed_forward_length=104)
    small = quantize(path, tmp_path / "q.gguf", "Q8_0").path
    report = pack(small, tmp_path / "p.gguf")
    with open_gguf(report.path) as file:
        assert not file.tensors["blk.0.ffn_up.weight"].panels
        assert file.tensors["blk.0.attn_qkv.weight"].panels
    assert np.array_equal(logits(Path(small)), logits(tmp_path / "p.gguf"))


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_other_backends_get_rows(source: Path, packed: Path, backend: str) -> None:
    if backend == "numba":
        pytest.importorskip("numba")
    assert np.array_equal(logits(source, backend=backend), logits(packed, backend=backend))


def test_without_the_compiled_library(source: Path, packed: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(clib, "available", lambda: False)
    pack(source, tmp_path / "p.gguf")
    assert (tmp_path / "p.gguf").read_bytes() == packed.read_bytes()


def test_alignment_of_the_source_is_kept(tmp_path: Path) -> None:
    path = tiny_llama_gguf(tmp_path / "m.gguf", type="Q8_0", **{"general.alignment": None})
    with open_gguf(path) as file, GGUFWriter(tmp_path / "wide.gguf", None, 128) as writer:
        writer.add("general.alignment", 128)
        for key in file.metadata:
            writer.add_raw(key, file.metadata.raw(key))
        for t in file.tensors.values():
            writer.add_tensor_info(t.name, t.shape, t.type)
        for name in file.tensors:
            writer.write_tensor(name, file.data(name))
    for name in ("m", "wide"):
        report = pack(tmp_path / f"{name}.gguf", tmp_path / "p.gguf")
        with open_gguf(report.path) as file:
            assert file.packed.source_alignment == {"m": None, "wide": 128}[name]
            assert ("general.alignment" in file.metadata) == (name == "wide")
        assert unpack(report.path, tmp_path / "back.gguf").identical


def test_text_that_is_not_utf8_is_kept(tmp_path: Path) -> None:
    path = tiny_llama_gguf(tmp_path / "m.gguf", type="Q8_0", **{"general.author": "a" * 5})
    raw = path.read_bytes().replace(b"aaaaa", b"a\xff\xfea\xff")
    path.write_bytes(raw)
    assert unpack(pack(path).path, tmp_path / "back.gguf").identical
    assert (tmp_path / "back.gguf").read_bytes() == raw


def test_a_model_in_parts(source: Path, packed: Path, tmp_path: Path) -> None:
    first = cut(source, tmp_path)[0]
    report = pack(first, tmp_path / "p.gguf")
    with open_gguf(report.path) as file, open_gguf(packed) as other:
        assert list(file.packed.sha256.values()) == list(other.packed.sha256.values())
        assert "split.count" not in file.metadata
    back = unpack(report.path, tmp_path / "back.gguf")
    assert back.identical is False and "byte for byte" in back.notes[0]
    with open_gguf(back.path) as file, open_gguf(source) as original:
        assert all(np.array_equal(file.data(n), original.data(n)) for n in original.tensors)


def test_quantising_a_packed_file_is_quantising_its_source(source: Path, packed: Path, tmp_path: Path) -> None:
    for path, out in ((source, "a.gguf"), (packed, "b.gguf")):
        quantize(path, tmp_path / out, "Q8_0", allow_requantize=True)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


# ---- what is refused, and what stays ---------------------------------------------------------------------------------


def test_what_cannot_be_packed(source: Path, packed: Path, tmp_path: Path) -> None:
    plain = tiny_llama_gguf(tmp_path / "f32.gguf")
    for work, path, text in (
        (pack, packed, "packed already"),
        (pack, plain, "nothing in this file has panels"),
        (unpack, source, "not packed"),
        (verify, source, "not packed"),
    ):
        with pytest.raises(ConvertError, match=text):
            work(path)
    with pytest.raises(InvalidArgumentError, match="file of the source"):
        pack(source, source)
    with pytest.raises(OutputError, match="exists already"):
        pack(source)  # without a name nothing is replaced
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f32.gguf"]


@pytest.mark.usefixtures("every_step")
def test_progress_and_cancel(source: Path, packed: Path, tmp_path: Path) -> None:
    for work, path, stage in ((pack, source, "packing"), (unpack, packed, "unpacking")):
        seen: list[edgellm.Progress] = []
        work(path, tmp_path / "done.gguf", seen.append)
        assert {(p.stage, p.unit) for p in seen} == {(stage, "bytes")}
        counts = [p.done for p in seen]
        assert counts == sorted(counts) and counts[0] == 0 and counts[-1] == seen[0].total
        with pytest.raises(Cancelled):
            work(path, tmp_path / "stopped.gguf", lambda p: p.done < p.total / 2)
    assert [p.name for p in tmp_path.iterdir()] == ["done.gguf"]


@pytest.mark.usefixtures("every_step")
def test_loading_tells_how_far_it_is(source: Path, tmp_path: Path) -> None:
    seen: list[edgellm.Progress] = []
    edgellm.load(source, n_ctx=64, progress=seen.append).close()
    shares = [p.done / p.total for p in seen]
    assert shares[0] == 0 and shares[-1] == 1 and shares == sorted(shares) and len(set(shares)) > 10
    calls = 0

    def stop(progress: edgellm.Progress) -> bool:
        nonlocal calls
        calls += 1
        return progress.done < progress.total / 2

    with pytest.raises(Cancelled):
        edgellm.load(source, n_ctx=64, progress=stop)
    assert 2 < calls < len(seen)


@pytest.mark.usefixtures("every_step")
@pytest.mark.parametrize("huge_pages", [False, True])
def test_loading_a_packed_file_tells_how_far_it_is(packed: Path, huge_pages: bool) -> None:
    seen: list[edgellm.Progress] = []
    edgellm.load(packed, n_ctx=64, progress=seen.append, huge_pages=huge_pages).close()
    shares = [p.done / p.total for p in seen]
    assert shares[0] == 0 and shares[-1] == 1 and shares == sorted(shares) and len(set(shares)) > 10


def test_loading_stops_while_the_tokenizer_is_made(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made beside the weights; nobody has to wait for it to give up, and its errors come out."""
    free = threading.Event()
    monkeypatch.setattr(loader, "_tokenizer", lambda file, n_vocab: free.wait(60))
    waits = 0

    def stop(progress: edgellm.Progress) -> bool:
        nonlocal waits
        waits += progress.done == progress.total - 1
        return waits < 4

    with pytest.raises(Cancelled):
        edgellm.load(source, n_ctx=64, progress=stop)
    assert not free.is_set()
    free.set()

    def broken(file: GGUFFile, n_vocab: int) -> None:
        raise TokenizerError("broken")

    monkeypatch.setattr(loader, "_tokenizer", broken)
    with pytest.raises(TokenizerError, match="broken"):
        edgellm.load(source, n_ctx=64)


# ---- hostile headers -------------------------------------------------------------------------------------------------


def rebuilt(
    packed: Path, out: Path, keys: dict[str, object], drop: tuple[str, ...] = (), alignment: int = 4096,
    more: dict[str, int] | None = None,
) -> Path:  # fmt: skip
    """The packed file again with other keys below edgellm.pack. (a value, or (value, type)) and `more` keys of any
    name, its checksum made anew."""
    with GGUFFile(packed) as file:
        infos, data = list(file.tensors.values()), {n: bytes(file.stored(n)) for n in file.tensors}
        info = file.packed
        raw = {k: file.metadata.raw(k) for k in file.metadata if k != "general.alignment"}
    values: dict[str, object] = {
        "version": 1, "panel_version": 1, "source.name": info.source_name, "source.bytes": (info.source_bytes, "u64"),
        "source.sha256": info.source_sha256, "tensor_sha256": list(info.sha256.values()),
        "source.alignment": info.source_alignment, "header_sha256": "0" * 64,
    } | keys  # fmt: skip
    with GGUFWriter(out, None, alignment) as writer:
        for key, value in raw.items():
            writer.add_raw(key, value)
        writer.add("general.alignment", alignment)
        for key, value in (more or {}).items():
            writer.add(key, value)
        for key, value in values.items():
            if key not in drop:
                writer.add(PREFIX + key, *(value if isinstance(value, tuple) else (value,)))
        for t in infos:
            writer.add_tensor_info(t.name, t.shape, t.type, panels=t.panels)
        if "header_sha256" not in drop and "header_sha256" not in keys:
            writer.replace(DIGEST, header_digest(writer.header(), writer.value_offset(DIGEST) + 8), "str")
        for t in infos:
            writer.write_tensor(t.name, data[t.name])
    return out


def resealed(path: Path, change: Callable[[bytearray], None]) -> None:
    """Change the bytes of a packed file and give its header the right checksum again."""
    raw = bytearray(path.read_bytes())
    at = raw.index(DIGEST.encode()) + len(DIGEST) + 12
    with GGUFFile(path) as file:
        start = min(t.offset for t in file.tensors.values())
    change(raw)
    raw[at : at + 64] = header_digest(bytes(raw[:start]), at).encode()
    path.write_bytes(raw)


BAD_KEYS = {
    "another version": ("L1", {"version": 2}, "version"),
    "no version": ("L3", {}, "version"),
    "a version of another type": ("L3", {"version": (1, "u64")}, "version"),
    "another layout": ("L2", {"panel_version": 2}, "panel_version"),
    "no layout": ("L3", {}, "panel_version"),
    "no name": ("L3", {}, "source.name"),
    "a name that is a number": ("L3", {"source.name": 3}, "source.name"),
    "no size": ("L3", {}, "source.bytes"),
    "a negative size": ("L3", {"source.bytes": (-1, "i64")}, "source.bytes"),
    "no checksum of the source": ("L3", {}, "source.sha256"),
    "a short checksum of the source": ("L5", {"source.sha256": "ab" * 31}, "source.sha256"),
    "no checksums": ("L3", {}, "tensor_sha256"),
    "checksums that are numbers": ("L3", {"tensor_sha256": [1, 2]}, "tensor_sha256"),
    "one checksum": ("L5", {"tensor_sha256": ["0" * 64]}, "tensor_sha256"),
    "no header checksum": ("L3", {}, "header_sha256"),
    "a header checksum in capitals": ("L5", {"header_sha256": "A" * 64}, "header_sha256"),
    "a wrong header checksum": ("L7", {"header_sha256": "0" * 64}, "header_sha256"),
    "an alignment of 48": ("L6", {"source.alignment": 48}, "source.alignment"),
    "an alignment of 0": ("L6", {"source.alignment": 0}, "source.alignment"),
    "an unknown key": ("L3", {"more": 1}, "more"),
}


@pytest.mark.parametrize("case", BAD_KEYS)
def test_bad_keys(packed: Path, tmp_path: Path, case: str) -> None:
    rule, keys, field = BAD_KEYS[case]
    path = rebuilt(packed, tmp_path / "bad.gguf", keys, drop=() if keys else (field,))
    with pytest.raises(ModelFormatError) as caught:
        open_gguf(path)
    assert caught.value.rule == rule and caught.value.field.startswith(PREFIX + field)
    assert caught.value.path == str(path)


def test_the_rebuilt_file_is_good(packed: Path, tmp_path: Path) -> None:
    """What the tests above break was whole before."""
    path = rebuilt(packed, tmp_path / "good.gguf", {})
    assert verify(path) and np.array_equal(logits(path), logits(packed))


def test_bad_checksums_of_tensors(packed: Path, tmp_path: Path) -> None:
    with open_gguf(packed) as file:
        digests = list(file.packed.sha256.values())
    path = rebuilt(packed, tmp_path / "bad.gguf", {"tensor_sha256": [*digests[:-1], "x" * 64]})
    with pytest.raises(ModelFormatError) as caught:
        open_gguf(path)
    assert (caught.value.rule, caught.value.field) == ("L5", f"{PREFIX}tensor_sha256[{len(digests) - 1}]")


def test_panels_in_a_file_that_does_not_say_so(packed: Path, tmp_path: Path) -> None:
    names = ("version", "panel_version", "source.name", "source.bytes", "source.sha256", "source.alignment")
    path = rebuilt(packed, tmp_path / "bad.gguf", {}, drop=(*names, "tensor_sha256", "header_sha256"))
    with pytest.raises(ModelFormatError) as caught:
        open_gguf(path)
    assert caught.value.rule == "L1" and caught.value.field == "type of token_embd.weight"


def test_lines_that_are_not_aligned(packed: Path, tmp_path: Path) -> None:
    path = rebuilt(packed, tmp_path / "bad.gguf", {}, alignment=32)
    with pytest.raises(ModelFormatError) as caught:
        open_gguf(path)
    assert (caught.value.rule, caught.value.field) == ("L4", "general.alignment")


@pytest.mark.parametrize(
    ("code", "rule"),
    [(PANEL_TYPE + 1, "T8"), (PANEL_TYPE + 99, "T8"), (PANEL_TYPE + 0x90002, "T8"), (PANEL_TYPE + 12, "T9"),
     (PANEL_TYPE + 8, "T10"), (PANEL_TYPE + 0x10002, "L9")],
)  # fmt: skip
def test_bad_types(packed: Path, tmp_path: Path, code: int, rule: str) -> None:
    """F16 has no panels; 64 weights are no block of Q4_K; Q8_0 takes more bytes; sparse panels need a size."""
    path = tmp_path / "bad.gguf"
    path.write_bytes(packed.read_bytes())
    old = struct.pack("<I", PANEL_TYPE + 2)
    resealed(path, lambda raw: raw.__setitem__(slice(raw.index(old), raw.index(old) + 4), struct.pack("<I", code)))
    with pytest.raises(ModelFormatError) as caught:
        open_gguf(path)
    assert caught.value.rule == rule


def test_shapes_that_cannot_be_in_panels(packed: Path, tmp_path: Path) -> None:
    """A vector, and matrices of 24 rows that would share a group."""
    for shape in ([64], [64, 24, 2]):
        path = tmp_path / "bad.gguf"
        path.write_bytes(packed.read_bytes())

        def change(raw: bytearray, shape: list[int] = shape) -> None:
            name = b"token_embd.weight"
            at = raw.index(name) + len(name)
            end = at + 4 + 16 + 4 + 8
            new = struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, PANEL_TYPE + 2, 0)
            raw[at:end] = new  # what follows moves, but this is refused first

        resealed(path, change)
        with pytest.raises(ModelFormatError) as caught:
            open_gguf(path)
        assert (caught.value.rule, caught.value.field) == ("L3", "shape of token_embd.weight")


def test_a_cut_file(packed: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(packed.read_bytes()[:-5000])
    with pytest.raises(ModelFormatError) as caught:
        open_gguf(path)
    assert caught.value.rule == "T11"


def test_a_packed_part_is_refused(packed: Path, tmp_path: Path) -> None:
    keys = {"split.no": 0, "split.count": 2, "split.tensors.count": 99}
    path = rebuilt(packed, tmp_path / "bad-00001-of-00002.gguf", {}, more=keys)
    with pytest.raises(ModelFormatError) as caught:
        open_gguf(path)
    assert (caught.value.rule, caught.value.field) == ("K13", "split.count")


def test_damaged_data_is_named(packed: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    raw = bytearray(packed.read_bytes())
    with open_gguf(packed) as file:
        info = file.tensors["blk.1.ffn_up.weight"]
    raw[info.offset + 100] ^= 1
    path.write_bytes(raw)
    for work in (verify, lambda p: unpack(p, tmp_path / "back.gguf")):
        with pytest.raises(ModelFormatError) as caught:
            work(path)
        assert (caught.value.rule, caught.value.field) == ("L8", "data of blk.1.ffn_up.weight")
    assert [p.name for p in tmp_path.iterdir()] == ["bad.gguf"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_header_is_refused(packed: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Without a new checksum always; with one, either refused with a typed error or as sound as any file."""
    raw = bytearray(packed.read_bytes())
    with open_gguf(packed) as file:
        start = min(t.offset for t in file.tensors.values())
    at = data.draw(st.integers(0, start - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "bad.gguf"
    path.write_bytes(raw)
    with pytest.raises(ModelFormatError):
        open_gguf(path)
    digest = packed.read_bytes().index(DIGEST.encode()) + len(DIGEST) + 12
    raw[digest : digest + 64] = header_digest(bytes(raw[:start]), digest).encode()
    path.write_bytes(raw)
    try:
        with edgellm.load(path, n_ctx=64, threads=1) as model:
            model.logits([0, 1])
    except EdgeLLMError:
        pass


def test_other_readers_refuse_it(packed: Path) -> None:
    gguf = pytest.importorskip("gguf")
    with pytest.raises(ValueError, match="GGMLQuantizationType"):
        gguf.GGUFReader(packed)
    with open_gguf(packed) as file:
        assert all(100 < PANEL_TYPE + t.type.id < 2**31 for t in file.tensors.values())


# ---- commands --------------------------------------------------------------------------------------------------------


def test_commands(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, back = tmp_path / "p.gguf", tmp_path / "b.gguf"
    assert execute(["pack", str(source), str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_panels"] == 15
    assert execute(["pack", str(out), "--check"]) == 0
    assert "checksums" in capsys.readouterr().err
    assert execute(["pack", str(out), str(back), "--unpack"]) == 0
    assert back.read_bytes() == source.read_bytes()
    assert execute(["pack", str(source), str(out), "--no-overwrite"]) == 1
    assert execute(["pack", str(out), str(back), "--check"]) == 2
    capsys.readouterr()
    assert execute(["show", str(out), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)["summary"]
    assert summary["packed"]["source"]["name"] == "model.gguf" and summary["types"] == {"Q4_0": 15, "F32": 5}
    assert execute(["show", str(out), "--tensors"]) == 0
    assert capsys.readouterr().out.count("in panels") == 15
    text = []
    for path in (source, out):
        assert execute(["run", str(path), "hello", "-n", "8", "--temp", "0"]) == 0
        text.append(capsys.readouterr().out)
    assert text[0] == text[1]
    assert execute(["bench", str(out), "-p", "4", "-n", "2", "-r", "1", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)
    assert execute(["quantize", str(out), str(back), "Q8_0"]) == 3
    assert "quantised already" in capsys.readouterr().err
