"""The whole path against answers of other programs: transformers' logits, llama.cpp's files, llama2.c's text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edgellm
from edgellm import clib
from edgellm.convert import convert

BACKENDS = ["reference", "native", "numba"]
needs_native = pytest.mark.skipif(not clib.available(), reason="the compiled library was not built")


def nmse(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sum((a - b).astype(np.float64) ** 2) / np.sum(b.astype(np.float64) ** 2))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("folder", ["llama", "llama3-rope"])
def test_converted_checkpoint_equals_transformers(shared_data: Path, tmp_path: Path, folder: str, backend: str) -> None:
    if backend == "native" and not clib.available():
        pytest.skip("the compiled library was not built")
    want = np.load(shared_data / "hf-tiny" / folder / "reference.npz")
    convert(shared_data / "hf-tiny" / folder, tmp_path / "m.gguf", outtype="f32")
    with edgellm.load(tmp_path / "m.gguf", backend=backend, kv_type="f32") as model:
        logits = model.logits(want["input_ids"].tolist())
        assert nmse(logits, want["logits"]) <= 1e-9
        assert np.array_equal(logits.argmax(1), want["logits"].argmax(1))
        answer = model.generate(want["greedy_prompt"].tolist(), max_tokens=32, temperature=0, ignore_eos=True)
        assert list(answer.token_ids) == want["greedy"].tolist()


@needs_native
@pytest.mark.parametrize("kind", ["f16", "Q8_0", "Q4_0", "Q6_K", "Q5_K_M", "Q4_K_M"])
def test_quantised_error_is_no_more_than_llama_cpps(shared_data: Path, kind: str) -> None:
    """Both run the same file with int8 activations; the truth is the reference on dequantised weights."""
    ids = np.load(shared_data / "hf-tiny" / "llama" / "reference.npz")["input_ids"].tolist()
    path = shared_data / "gguf-foreign" / f"llama-{kind}.gguf"
    logits = {}
    for backend in ("reference", "native"):
        with edgellm.load(path, backend=backend, kv_type="f32") as model:
            logits[backend] = model.logits(ids)
    peer = np.load(shared_data / "gguf-foreign" / f"llama-{kind}.llamacpp.npz")["logits"]
    assert nmse(logits["native"], logits["reference"]) <= 1.1 * nmse(peer, logits["reference"])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("backend", BACKENDS)
def test_stories_text_is_llama2c_s(shared_data: Path, tmp_path: Path, backend: str, threads: int) -> None:
    if backend == "native" and not clib.available():
        pytest.skip("the compiled library was not built")
    source = shared_data / "stories260K"
    convert(source / "stories260K.bin", tmp_path / "s.gguf", outtype="f32", tokenizer=source / "tok512.bin")
    with edgellm.load(tmp_path / "s.gguf", backend=backend, threads=threads) as model:
        text = model.generate("", max_tokens=200, temperature=0).text
    assert text + "\n" == (source / "greedy-200.txt").read_text()
