"""`edgellm quantize`: types, metadata, sizes, refusals; llama.cpp's own files are the outside reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import tiny_llama_gguf

from edgellm.errors import Cancelled, ConvertError, InvalidArgumentError, ModelFileNotFoundError, ModelFormatError
from edgellm.gguf import GGUFWriter, open_gguf
from edgellm.quantize import quantize
from edgellm.quants import dequantize
from edgellm.quants import quantize as quantize_rows
from edgellm.results import Progress

TYPES = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32, "Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "Q8_0": 7}


@pytest.mark.parametrize("source", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("kind", TYPES)
def test_every_tensor_is_the_quantised_source(tmp_path: Path, source: str, kind: str) -> None:
    src = tiny_llama_gguf(tmp_path / "s.gguf", type=source, dim=256, head_dim=64)
    report = quantize(src, tmp_path / "o.gguf", kind.lower())
    with open_gguf(src) as a, open_gguf(tmp_path / "o.gguf") as b:
        assert list(a.tensors) == list(b.tensors)
        for name, t in a.tensors.items():
            new = b.tensors[name]
            if len(t.shape) == 1:
                assert new.type is t.type
            elif name == "output.weight" and kind.startswith(("Q4", "Q5")):
                assert new.type.name == "Q6_K"
            else:
                assert new.type.name == kind
            x = dequantize(a.data(name), t.type, t.shape)
            assert b.data(name).tobytes() == quantize_rows(x, new.type).tobytes(), name
        assert b.metadata["general.file_type"] == FILE_TYPES[kind]
    assert report.types.get(kind, 0) > 0


def test_metadata_is_copied(tmp_path: Path) -> None:
    extra: dict[str, Any] = {
        "general.name": "Ünïcode", "x.bool": True, "x.list": [1, 2, 3], "x.text": ["a", "▁b"], "x.float": 0.5,
        "x.flags": [True, False], "x.big": 2**40, "x.negative": -3,
    }  # fmt: skip
    src = tiny_llama_gguf(tmp_path / "s.gguf", **extra)
    quantize(src, tmp_path / "o.gguf", "Q8_0")
    with open_gguf(src) as a, open_gguf(tmp_path / "o.gguf") as b:
        new = {"general.file_type", "general.quantization_version"}
        kept = set(a.metadata) - {"general.alignment"}  # the writer's own is 32, and no key says so
        assert set(b.metadata) == kept | new
        for key in kept - new:
            assert a.metadata.types[key] == b.metadata.types[key]
            same = np.array_equal(a.metadata[key], b.metadata[key])
            assert same, key


def test_sizes_and_bits_are_reported(tmp_path: Path) -> None:
    src = tiny_llama_gguf(tmp_path / "s.gguf")
    report = quantize(src, tmp_path / "o.gguf", "Q8_0")
    assert report.bytes_before == src.stat().st_size
    assert report.bytes_after == (tmp_path / "o.gguf").stat().st_size < report.bytes_before
    assert 8.5 <= report.bits_per_weight < 9.5
    assert report.type == "Q8_0"
    assert sum(report.types.values()) == report.n_tensors


def test_the_tied_embedding_counts_as_the_head(tmp_path: Path) -> None:
    src = tiny_llama_gguf(tmp_path / "s.gguf", dim=256, head_dim=64, tied=True)
    quantize(src, tmp_path / "o.gguf", "Q4_0")
    with open_gguf(tmp_path / "o.gguf") as file:
        assert file.tensors["token_embd.weight"].type.name == "Q6_K"


def test_rows_that_do_not_fit_stay_f16_and_are_reported(tmp_path: Path) -> None:
    src = tiny_llama_gguf(tmp_path / "s.gguf", ffn=72)
    report = quantize(src, tmp_path / "o.gguf", "Q4_0")
    with open_gguf(tmp_path / "o.gguf") as file:
        assert file.tensors["blk.0.ffn_down.weight"].type.name == "F16"
    assert report.notes == (
        "blk.0.ffn_down.weight and 1 more: stays F16, a row of 72 weights is no multiple of the Q4_0 block of 32",
        "output.weight: becomes Q8_0, a row of 64 weights is no multiple of the Q6_K block of 256",
    )


def test_quantised_files_are_refused_unless_asked_for(tmp_path: Path) -> None:
    src = tiny_llama_gguf(tmp_path / "s.gguf", type="Q8_0")
    for kind in ("Q4_0", "F16"):
        with pytest.raises(ConvertError, match="quantised already"):
            quantize(src, tmp_path / "o.gguf", kind)
        assert not (tmp_path / "o.gguf").exists()
    quantize(src, tmp_path / "o.gguf", "Q4_0", allow_requantize=True)
    with open_gguf(src) as a, open_gguf(tmp_path / "o.gguf") as b:
        name = "blk.0.attn_q.weight"
        x = dequantize(a.data(name), "Q8_0", a.tensors[name].shape)
        assert b.data(name).tobytes() == quantize_rows(x, "Q4_0").tobytes()


def test_tensors_of_the_wanted_type_are_copied(tmp_path: Path) -> None:
    src = tiny_llama_gguf(tmp_path / "s.gguf", type="Q8_0")
    quantize(src, tmp_path / "o.gguf", "Q8_0")
    with open_gguf(src) as a, open_gguf(tmp_path / "o.gguf") as b:
        assert all(a.data(name).tobytes() == b.data(name).tobytes() for name in a.tensors)


def test_large_tensors_go_in_stretches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    src = tiny_llama_gguf(tmp_path / "s.gguf")
    quantize(src, tmp_path / "a.gguf", "Q4_0")
    monkeypatch.setattr("edgellm.convert.pipeline.CHUNK", 300)
    monkeypatch.setattr("edgellm.quantize.CHUNK", 300)
    quantize(src, tmp_path / "b.gguf", "Q4_0")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.usefixtures("every_step")
def test_progress_counts_up_to_the_end_and_can_stop(tmp_path: Path) -> None:
    src = tiny_llama_gguf(tmp_path / "s.gguf")
    calls: list[Progress] = []
    quantize(src, tmp_path / "o.gguf", "Q8_0", calls.append)
    done = [call.done for call in calls]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, calls[0].total)
    assert {(call.stage, call.unit) for call in calls} == {("quantising", "bytes")}
    old = (tmp_path / "o.gguf").read_bytes()
    with pytest.raises(Cancelled):
        quantize(src, tmp_path / "o.gguf", "Q4_0", lambda p: p.done < p.total / 2)
    assert (tmp_path / "o.gguf").read_bytes() == old
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o.gguf", "s.gguf"]


def test_wrong_arguments(tmp_path: Path) -> None:
    src = tiny_llama_gguf(tmp_path / "s.gguf")
    with pytest.raises(InvalidArgumentError, match=r"Q9_9.*Q4_0"):
        quantize(src, tmp_path / "o.gguf", "Q9_9")
    with pytest.raises(InvalidArgumentError, match="source"):
        quantize(src, src, "Q8_0")
    with pytest.raises(ModelFileNotFoundError):
        quantize(tmp_path / "none.gguf", tmp_path / "o.gguf", "Q8_0")
    (tmp_path / "bad.gguf").write_bytes(b"no model")
    with pytest.raises(ModelFormatError):
        quantize(tmp_path / "bad.gguf", tmp_path / "o.gguf", "Q8_0")
    with GGUFWriter(tmp_path / "vocab.gguf", "llama"):
        pass
    with pytest.raises(ConvertError, match="no tensors"):
        quantize(tmp_path / "vocab.gguf", tmp_path / "o.gguf", "Q8_0")
    assert not (tmp_path / "o.gguf").exists()


def test_a_weight_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    x = np.ones((2, 32), np.float32)
    x[1, 3] = np.nan
    with GGUFWriter(tmp_path / "s.gguf", "llama") as writer:
        writer.add_tensor_info("output.weight", x.shape, "F32")
        writer.write_tensor("output.weight", x)
    with pytest.raises(ConvertError, match=r"output\.weight"):
        quantize(tmp_path / "s.gguf", tmp_path / "o.gguf", "Q8_0")


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_the_same_bytes_as_llama_cpp_writes(tmp_path: Path, shared_data: Path, kind: str) -> None:
    folder = shared_data / "gguf-foreign"
    quantize(folder / "llama-f16.gguf", tmp_path / "o.gguf", kind)
    with open_gguf(folder / f"llama-{kind}.gguf") as a, open_gguf(tmp_path / "o.gguf") as b:
        assert set(a.tensors) == set(b.tensors)
        for name, t in a.tensors.items():
            assert (t.type, t.shape) == (b.tensors[name].type, b.tensors[name].shape)
            assert a.data(name).tobytes() == b.data(name).tobytes(), name
        for key in a.metadata:
            assert np.array_equal(a.metadata[key], b.metadata[key]), key
