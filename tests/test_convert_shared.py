"""Conversions of the shared checkpoints, held to transformers' logits and to files of llama.cpp's own converter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edgellm
from edgellm.convert import convert
from edgellm.gguf import open_gguf

FAMILIES = ["llama", "llama3-rope", "mistral"]


@pytest.fixture(scope="module")
def files(shared_data_module: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("converted")
    out = {}
    for name in FAMILIES:
        out[name] = folder / f"{name}.gguf"
        convert(shared_data_module / "hf-tiny" / name, out[name], "f32")
    return out


@pytest.fixture(scope="module")
def shared_data_module() -> Path:
    path = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"needs {path}")
    return path


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_those_of_transformers(
    files: dict[str, Path], shared_data: Path, family: str, backend: str
) -> None:
    reference = np.load(shared_data / "hf-tiny" / family / "reference.npz")
    want = reference["logits"].astype(np.float64)
    with edgellm.load(files[family], backend=backend, kv_type="f32") as model:
        got = model.logits(reference["input_ids"].tolist())
    nmse = np.square(got - want).sum() / np.square(want).sum()
    assert nmse <= 1e-9
    assert np.array_equal(got.argmax(axis=1), want.argmax(axis=1))


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_continuations_equal_those_of_transformers(
    files: dict[str, Path], shared_data: Path, family: str
) -> None:
    reference = np.load(shared_data / "hf-tiny" / family / "reference.npz")
    ids = reference["greedy_prompt"].tolist()
    want = reference["greedy"].tolist()
    with edgellm.load(files[family], kv_type="f32") as model:
        for step in range(len(want)):
            ids.append(int(model.logits(ids)[-1].argmax()))
            assert ids[-1] == want[step], f"token {step}"


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_the_file_is_the_one_that_llama_cpp_writes(shared_data: Path, tmp_path: Path, family: str) -> None:
    convert(shared_data / "hf-tiny" / family, tmp_path / "o.gguf", "f16")
    with open_gguf(shared_data / "gguf-foreign" / f"{family}-f16.gguf") as a, open_gguf(tmp_path / "o.gguf") as b:
        assert set(a.tensors) == set(b.tensors)
        for name, t in a.tensors.items():
            assert (t.type, t.shape) == (b.tensors[name].type, b.tensors[name].shape)
            assert a.data(name).tobytes() == b.data(name).tobytes(), name
        for key in set(a.metadata) - {"general.name"}:
            assert a.metadata.types[key] == b.metadata.types[key], key
            assert np.array_equal(a.metadata[key], b.metadata[key]), key
