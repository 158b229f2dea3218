"""Every family against transformers and llama.cpp: the answers of both lie in ../shared/data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from family_runs import ALL, FAST, logits, opened

from edgellm.backends.compare import nmse
from edgellm.convert import convert

HF = ["gemma2", "gemma3", "granite", "llama", "llama3-rope", "mistral", "mixtral", "olmo2", "phi3", "qwen2", "qwen3",
      "qwen3moe", "smollm3"]  # fmt: skip


@pytest.mark.parametrize("name", HF)
def test_answers_of_transformers(shared_data: Path, tmp_path: Path, name: str) -> None:
    folder = shared_data / "hf-tiny" / name
    answer = np.load(folder / "reference.npz")
    convert(folder, tmp_path / "m.gguf", outtype="f32")
    both = np.concatenate([answer["greedy_prompt"], answer["greedy"]])[:-1]
    with opened(tmp_path / "m.gguf") as (plan, weights):
        assert weights.extra == ()
        for backend in ALL:
            got = logits(backend, plan, weights, answer["input_ids"], n_threads=2)
            assert nmse(answer["logits"], got) <= (1e-8 if name.startswith("gemma") else 1e-9)
            assert (answer["logits"].argmax(1) == got.argmax(1)).all()
            greedy = logits(backend, plan, weights, both, n_threads=2)[len(answer["greedy_prompt"]) - 1 :].argmax(1)
            assert (greedy == answer["greedy"]).all()


TYPES = ("f16", "Q8_0", "Q4_0", "Q6_K", "Q4_K_M", "Q5_K_M")
FOREIGN = [f"{family}-{type}" for family in ("llama", "gemma3", "mixtral") for type in TYPES]


@pytest.mark.parametrize("name", ["mistral-f16", *FOREIGN])
@pytest.mark.parametrize("backend", FAST)
def test_files_of_llama_cpp(shared_data: Path, name: str, backend: str) -> None:
    """Not further from the answer on dequantised weights than llama.cpp is, within a tenth."""
    ids = np.load(shared_data / "hf-tiny" / name.split("-")[0] / "reference.npz")["input_ids"]
    peer = np.load(shared_data / "gguf-foreign" / f"{name}.llamacpp.npz")["logits"]
    with opened(shared_data / "gguf-foreign" / f"{name}.gguf") as (plan, weights):
        exact = logits("reference", plan, weights, ids)
        got = logits(backend, plan, weights, ids, n_threads=2)
    assert nmse(exact, got) <= 1.1 * nmse(exact, peer)
    if name.startswith("mixtral"):  # two planes of activations: no expert tips over
        assert nmse(exact, got) <= 1e-6


@pytest.mark.parametrize("backend", FAST)
def test_experts_in_short_passes(shared_data: Path, backend: str) -> None:
    """A plan for 8 tokens has 16 int8 columns, two planes or two experts each: room for a wide block all the same."""
    ids = np.load(shared_data / "hf-tiny" / "mixtral" / "reference.npz")["input_ids"]
    with opened(shared_data / "gguf-foreign" / "mixtral-Q8_0.gguf") as (plan, weights):
        short = logits(backend, plan, weights, ids, chunk=8, max_tokens=8, n_threads=2)
        assert (short == logits(backend, plan, weights, ids, n_threads=2)).all()
