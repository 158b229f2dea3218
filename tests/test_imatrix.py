"""Importance matrices: llama.cpp's two file forms, what is refused, and what a model's inputs are measured as."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import tiny_llama_gguf
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm import clib
from edgellm.calibrate import collect
from edgellm.cli import cli
from edgellm.errors import Cancelled, EdgeLLMError, InvalidArgumentError, ModelFileNotFoundError, ModelFormatError
from edgellm.gguf import GGUFWriter, open_gguf
from edgellm.imatrix import Imatrix, read_imatrix
from edgellm.quants import dequantize
from edgellm.tokenizers import Tokenizer

TEXT = "hello there, this is a little text for measuring. " * 12
BACKENDS = ["reference", *(["native"] if clib.available() else [])]


def some() -> Imatrix:
    rng, out = np.random.default_rng(1), Imatrix(datasets=["größe.txt", "b.txt"], n_chunks=7, chunk_size=128)
    for _ in range(3):
        out.add("blk.0.attn_q.weight", 0, 1, rng.standard_normal((9, 64)))
        out.add("blk.0.ffn_up_exps.weight", 2, 4, rng.standard_normal((5, 32)))
    return out


def dat(*entries: tuple[bytes, int, list[float]], tail: bytes = b"") -> bytes:
    """The older form by hand."""
    parts = [struct.pack("<i", len(entries))]
    for name, calls, values in entries:
        parts.append(struct.pack("<i", len(name)) + name + struct.pack("<ii", calls, len(values)))
        parts.append(struct.pack(f"<{len(values)}f", *values))
    return b"".join(parts) + tail


def test_adding_sums_squares() -> None:
    x = np.random.default_rng(2).standard_normal((9, 64)).astype(np.float32)
    out = Imatrix()
    out.add("a", 1, 3, x[:4])
    out.add("a", 1, 3, x[4:])
    got = out.importance("a", 3, 64)
    assert np.allclose(got[1], np.mean(x.astype(np.float64) ** 2, axis=0), rtol=1e-12)
    assert (got[[0, 2]] == 1).all()  # nothing was seen there
    assert out.importance("b", 3, 64) is None
    for shape in ((3, 63), (2, 64)):
        with pytest.raises(InvalidArgumentError, match="another model"):
            out.importance("a", *shape)


@pytest.mark.parametrize("name", ["i.gguf", "i.dat", "plain"])
def test_what_is_written_is_read(tmp_path: Path, name: str) -> None:
    want = some()
    want.write(tmp_path / name)
    got = read_imatrix(tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(b"GGUF") == (name != "i.dat")
    assert got.n_chunks == 7 and set(got.entries) == set(want.entries)
    for key, entry in want.entries.items():
        if name == "i.dat":  # this form has one row of numbers for all matrices
            flat = want.importance(key, *entry.sums.shape).reshape(1, -1)
            assert np.allclose(got.importance(key, *flat.shape), flat, rtol=1e-6)
        else:
            assert np.allclose(got.entries[key].sums, entry.sums, rtol=1e-6)
            assert (got.entries[key].counts == entry.counts).all()
    assert got.datasets == (["größe.txt"] if name == "i.dat" else ["größe.txt", "b.txt"])


def test_the_gguf_package_reads_the_file(tmp_path: Path) -> None:
    import gguf

    some().write(tmp_path / "i.gguf")
    peer = gguf.GGUFReader(tmp_path / "i.gguf")
    fields = {name: field.contents() for name, field in peer.fields.items() if not name.startswith("GGUF.")}
    assert fields == {"general.type": "imatrix", "imatrix.datasets": ["größe.txt", "b.txt"],
                      "imatrix.chunk_count": 7, "imatrix.chunk_size": 128}  # fmt: skip
    shapes = {t.name: tuple(int(n) for n in t.shape) for t in peer.tensors}  # fastest size first, as in the file
    assert shapes == {
        "blk.0.attn_q.weight.in_sum2": (64, 1), "blk.0.attn_q.weight.counts": (1, 1),
        "blk.0.ffn_up_exps.weight.in_sum2": (32, 4), "blk.0.ffn_up_exps.weight.counts": (1, 4),
    }  # fmt: skip


def test_a_file_in_the_older_form(tmp_path: Path) -> None:
    path = tmp_path / "a.dat"
    tail = struct.pack("<ii", 4, 3) + b"abc"
    path.write_bytes(dat((b"blk.0.attn_q.weight", 4, [4.0, 8.0]), (b"b", 0, [1.0]), tail=tail))
    got = read_imatrix(path)
    assert got.importance("blk.0.attn_q.weight", 1, 2).tolist() == [[1.0, 2.0]]
    assert got.importance("b", 1, 1).tolist() == [[1.0]]
    assert (got.n_chunks, got.datasets) == (4, ["abc"])
    path.write_bytes(dat((b"b", 1, [1.0])))  # the oldest files end here
    assert read_imatrix(path).n_chunks == 0


def test_an_expert_stack_of_the_older_form_fits_its_model(tmp_path: Path) -> None:
    want = some()
    want.write(tmp_path / "i.dat")
    got, name = read_imatrix(tmp_path / "i.dat"), "blk.0.ffn_up_exps.weight"
    assert np.allclose(got.importance(name, 4, 32), want.importance(name, 4, 32), rtol=1e-6)
    for a, b in ((read_imatrix(tmp_path / "i.dat"), some()), (some(), read_imatrix(tmp_path / "i.dat"))):
        a.merge(b)
        assert a.entries[name].sums.shape == (4, 32)


def test_merging(tmp_path: Path) -> None:
    a, b = some(), some()
    b.datasets, b.n_chunks = ["b.txt", "c.txt"], 2
    b.add("other", 0, 1, np.ones((1, 8)))
    want = a.entries["blk.0.attn_q.weight"].sums * 2
    a.merge(b)
    assert (a.entries["blk.0.attn_q.weight"].sums == want).all() and a.entries["other"].counts == 1
    assert (a.n_chunks, a.datasets) == (9, ["größe.txt", "b.txt", "c.txt"])
    b.add("other", 0, 1, np.ones((1, 8)))
    assert a.entries["other"].counts == 1  # not shared
    c = Imatrix()
    c.add("other", 0, 1, np.ones((1, 9)))
    with pytest.raises(InvalidArgumentError, match="other"):
        a.merge(c)


# ---- bad files -------------------------------------------------------------------------------------------------------

BAD_DAT = {
    "empty": b"",
    "no entries": dat(),
    "negative number of entries": struct.pack("<i", -1),
    "a huge number of entries": struct.pack("<i", 1 << 30),
    "a name that is longer than the file": struct.pack("<ii", 1, 4000) + b"x",
    "a huge name": struct.pack("<ii", 1, 1 << 30),
    "a name that is not UTF-8": dat((b"\xff\xfe", 1, [1.0])),
    "no values": dat((b"a", 1, [])),
    "more values than bytes": struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", 1, 1 << 30),
    "negative calls": dat((b"a", -1, [1.0])),
    "a value that is not finite": dat((b"a", 1, [float("nan")])),
    "a negative value": dat((b"a", 1, [-1.0])),
    "a tail that is cut off": dat((b"a", 1, [1.0]), tail=b"\1\0"),
}


@pytest.mark.parametrize("what", BAD_DAT)
def test_bad_files_of_the_older_form(tmp_path: Path, what: str) -> None:
    path = tmp_path / "i.dat"
    path.write_bytes(BAD_DAT[what])
    with pytest.raises(ModelFormatError, match=r"i\.dat"):
        read_imatrix(path)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_files_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("damaged") / data.draw(st.sampled_from(["i.dat", "i.gguf"]))
    some().write(path)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    try:
        read = read_imatrix(path)
    except EdgeLLMError:
        return
    assert all((e.sums >= 0).all() and np.isfinite(e.sums).all() for e in read.entries.values())


def write_gguf(path: Path, kind: str | None, tensors: dict[str, np.ndarray]) -> None:
    with GGUFWriter(path, None) as writer:
        if kind:
            writer.add("general.type", kind)
        for name, x in tensors.items():
            writer.add_tensor_info(name, x.shape, "F32" if x.dtype == np.float32 else "F16")
        for name, x in tensors.items():
            writer.write_tensor(name, x)


def test_bad_gguf_files(tmp_path: Path) -> None:
    path, ones = tmp_path / "i.gguf", np.ones((2, 8), np.float32)
    cases = [
        (None, {}), ("model", {}), ("imatrix", {}), ("imatrix", {"a.in_sum2": ones}), ("imatrix", {"a.counts": ones}),
        ("imatrix", {"a.in_sum2": ones, "a.counts": ones[:1, :1]}),
        ("imatrix", {"a.in_sum2": ones.astype(np.float16), "a.counts": ones[:, :1]}),
        ("imatrix", {"a.in_sum2": -ones, "a.counts": ones[:, :1]}),
        ("imatrix", {"a.in_sum2": ones, "a.counts": ones[:, :1] * np.float32(np.inf)}),
    ]  # fmt: skip
    for kind, tensors in cases:
        write_gguf(path, kind, tensors)
        with pytest.raises(ModelFormatError, match=r"i\.gguf"):
            read_imatrix(path)
    with pytest.raises(ModelFormatError, match="no importance matrix"):
        read_imatrix(tiny_llama_gguf(tmp_path / "m.gguf"))


def test_paths(tmp_path: Path) -> None:
    for path in (tmp_path / "none.dat", tmp_path):
        with pytest.raises(ModelFileNotFoundError):
            read_imatrix(path)
    with pytest.raises(InvalidArgumentError, match="form"):
        some().write(tmp_path / "a", form="xml")
    for name in ("no-folder/a.dat", "no-folder/a.gguf"):
        with pytest.raises(EdgeLLMError):
            some().write(tmp_path / name)
    assert not list(tmp_path.iterdir())


# ---- measuring -------------------------------------------------------------------------------------------------------


def tiny(tmp_path: Path, **options: object) -> Path:
    return tiny_llama_gguf(tmp_path / "m.gguf", type="F32", **options)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_inputs_of_the_first_layer(tmp_path: Path, backend: str) -> None:
    """The input of q, k and v is the normed embedding: computed here from the file's tensors."""
    path = tiny(tmp_path)
    got = collect(path, TEXT, chunk_size=32, backend=backend, dataset="t")
    with open_gguf(path) as file:
        ids = np.array(Tokenizer.from_gguf(file).encode(TEXT))
        table, norm = (
            dequantize(file.data(n), file.tensors[n].type, file.tensors[n].shape).astype(np.float64)
            for n in ("token_embd.weight", "blk.0.attn_norm.weight")
        )
    n_chunks = len(ids) // 32
    ids = ids[: n_chunks * 32].reshape(-1, 32)
    ids[:, 0] = 1  # each chunk starts with the beginning-of-text token
    x = table[ids.reshape(-1)]
    x = x / np.sqrt(np.mean(x**2, axis=1, keepdims=True) + 1e-5) * norm
    for name in ("attn_q", "attn_k", "attn_v"):
        entry = got.entries[f"blk.0.{name}.weight"]
        assert entry.counts == [n_chunks * 32] and np.allclose(entry.sums[0], (x**2).sum(axis=0), rtol=1e-4)
    assert (got.n_chunks, got.chunk_size, got.datasets) == (n_chunks, 32, ["t"]) and n_chunks > 3
    assert set(got.entries) == {
        f"blk.{i}.{name}.weight" for i in (0, 1)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    }  # fmt: skip


def test_backends_measure_the_same(tmp_path: Path) -> None:
    path = tiny(tmp_path)
    a, *others = (collect(path, TEXT, chunk_size=64, backend=b, process_output=True) for b in BACKENDS)
    assert "output.weight" in a.entries
    assert a.entries["output.weight"].counts == a.entries["blk.0.attn_q.weight"].counts
    for b in others:
        for name, entry in a.entries.items():
            assert np.allclose(entry.sums, b.entries[name].sums, rtol=1e-3), name


def test_parts_add_up_to_the_whole(tmp_path: Path) -> None:
    path = tiny(tmp_path)
    seen: list[int] = []
    whole = collect(path, TEXT, chunk_size=32, backend="reference", on_chunk=lambda i: seen.append(i.n_chunks))
    assert seen == list(range(1, whole.n_chunks + 1))
    first = collect(path, TEXT, chunk_size=32, n_chunks=2, backend="reference")
    assert first.n_chunks == 2
    first.write(tmp_path / "first.gguf")
    again = read_imatrix(tmp_path / "first.gguf")
    collect(path, TEXT, chunk_size=32, first_chunk=2, into=again, backend="reference")
    assert again.n_chunks == whole.n_chunks
    for name, entry in whole.entries.items():
        assert np.allclose(again.entries[name].sums, entry.sums, rtol=1e-5)
        assert (again.entries[name].counts == entry.counts).all()


@pytest.mark.usefixtures("every_step")
def test_measuring_can_be_stopped(tmp_path: Path) -> None:
    total = Imatrix()
    with pytest.raises(Cancelled):
        collect(tiny(tmp_path), TEXT, chunk_size=32, into=total, progress=lambda p: p.done < 2)
    assert total.n_chunks == 2 and total.entries["blk.0.attn_q.weight"].counts == 64


def test_texts_and_numbers_that_do_not_do(tmp_path: Path) -> None:
    path = tiny(tmp_path)
    with pytest.raises(InvalidArgumentError, match="no whole chunk of 64"):
        collect(path, "short", chunk_size=64)
    for wrong in ({"chunk_size": 1}, {"n_chunks": 0}, {"first_chunk": -1}):
        with pytest.raises(InvalidArgumentError):
            collect(path, TEXT, **wrong)


@pytest.mark.parametrize("backend", BACKENDS)
def test_experts_see_the_rows_that_were_routed_to_them(shared_data: Path, backend: str) -> None:
    path = shared_data / "gguf-foreign" / "mixtral-f16.gguf"
    got = collect(path, TEXT * 3, chunk_size=64, n_chunks=2, backend=backend)
    for kind, k in (("ffn_gate_exps", 64), ("ffn_up_exps", 64), ("ffn_down_exps", 160)):
        entry = got.entries[f"blk.1.{kind}.weight"]
        assert entry.sums.shape == (4, k) and entry.counts.sum() == 2 * 128  # two experts for each token
    gate, router = got.entries["blk.1.ffn_gate_exps.weight"], got.entries["blk.1.ffn_gate_inp.weight"]
    assert np.allclose(gate.sums.sum(axis=0), 2 * router.sums[0], rtol=1e-3)


def test_the_command(tmp_path: Path) -> None:
    path, text, out = tiny(tmp_path), tmp_path / "t.txt", tmp_path / "i.dat"
    text.write_text(TEXT)
    arguments = ["imatrix", str(path), "-f", str(text), "-o", str(out), "-c", "32", "--chunks", "2"]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0 and read_imatrix(out).n_chunks == 2 and read_imatrix(out).datasets == ["t.txt"]
    more = [*arguments[:4], "-o", str(tmp_path / "j.gguf"), *arguments[6:], "--in-file", str(out), "--from-chunk", "2"]
    done = CliRunner().invoke(cli, more, catch_exceptions=False)
    assert done.exit_code == 0 and read_imatrix(tmp_path / "j.gguf").n_chunks == 4
    done = CliRunner().invoke(cli, ["quantize", str(path), str(tmp_path / "q.gguf"), "Q4_0", "--imatrix", str(out)],
                              catch_exceptions=False)  # fmt: skip
    assert done.exit_code == 0
