"""`edgellm convert` writes every type and mix of `edgellm quantize` in one go, with the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from convert_inputs import hf_folder

from edgellm.cli import cli
from edgellm.convert import convert
from edgellm.convert.mixes import ALIASES, MIXES
from edgellm.errors import ConvertError, InvalidArgumentError
from edgellm.gguf import open_gguf
from edgellm.imatrix import Imatrix
from edgellm.quantize import quantize


def contents(path: Path) -> tuple[dict[str, Any], dict[str, tuple[str, bytes]]]:
    """Metadata and, for each tensor, its type and bytes."""
    with open_gguf(path) as file:
        keys = {key: np.asarray(file.metadata[key]).tolist() for key in file.metadata}
        return keys, {name: (t.type.name, file.data(name).tobytes()) for name, t in file.tensors.items()}


def both_ways(source: Path, folder: Path, outtype: str, **options: Any) -> tuple[Path, Path]:
    convert(source, folder / "f32.gguf", "f32")
    quantize(folder / "f32.gguf", folder / "two.gguf", outtype, **options)
    convert(source, folder / "one.gguf", outtype, **options)
    return folder / "one.gguf", folder / "two.gguf"


def hf_256(folder: Path) -> Path:
    """Rows of 256, and some of 96 that no block of 256 fits."""
    hf_folder(folder, hidden_size=256, head_dim=64)
    return folder


@pytest.mark.parametrize("outtype", [*MIXES, *(name.lower() for name in ALIASES)])
def test_one_go_gives_what_two_give(tmp_path: Path, outtype: str) -> None:
    one, two = both_ways(hf_256(tmp_path / "hf"), tmp_path, outtype)
    assert contents(one) == contents(two)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f32.gguf", "hf", "one.gguf", "two.gguf"]


def test_overrides_and_importance(tmp_path: Path) -> None:
    source = hf_256(tmp_path / "hf")
    imatrix = Imatrix(datasets=["some text"], n_chunks=3)
    rng = np.random.default_rng(5)
    for name in ("blk.1.ffn_gate.weight", "blk.0.attn_q.weight"):
        imatrix.add(name, 0, 1, rng.standard_normal((4, 256)))
    imatrix.write(tmp_path / "hf" / "i.gguf")
    options: dict[str, Any] = {
        "imatrix": tmp_path / "hf" / "i.gguf", "tensor_types": ["ffn_up=q2_k", r"attn_k=IQ4_XS"],
        "output_tensor_type": "q5_k", "token_embedding_type": "Q3_K",
    }  # fmt: skip
    one, two = both_ways(source, tmp_path, "Q4_K_M", **options)
    assert contents(one) == contents(two)
    keys, tensors = contents(one)
    assert keys["quantize.imatrix.dataset"] == "some text" and keys["quantize.imatrix.entries_count"] == 2
    kinds = {name: kind for name, (kind, _) in tensors.items()}
    assert (kinds["blk.0.ffn_up.weight"], kinds["blk.1.attn_k.weight"]) == ("Q2_K", "IQ4_XS")
    assert (kinds["output.weight"], kinds["token_embd.weight"]) == ("Q5_K", "Q3_K")
    one, two = both_ways(source, tmp_path, "Q4_K_S", pure=True)
    assert contents(one) == contents(two)
    assert {kind for kind, _ in contents(one)[1].values()} == {"F32", "Q4_K", "Q5_0"}


@pytest.mark.parametrize("family", ["mixtral", "phi3", "gemma3"])
def test_stacks_of_experts_and_fused_matrices(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    source = shared_data / "hf-tiny" / family
    convert(source, tmp_path / "f32.gguf", "f32")
    imatrix, rng = Imatrix(), np.random.default_rng(6)
    with open_gguf(tmp_path / "f32.gguf") as file:
        for name, info in file.tensors.items():
            n = int(np.prod(info.shape[:-2]))  # 1, or the number of experts
            for i in range(n if "blk.1." in name and len(info.shape) > 1 else 0):
                imatrix.add(name, i, n, rng.standard_normal((4, info.shape[-1])))
    monkeypatch.setattr("edgellm.convert.pipeline.CHUNK", 1000)
    for options in ({}, {"imatrix": imatrix}):
        one, two = both_ways(source, tmp_path, "IQ4_NL", **options)
        assert contents(one) == contents(two)


def test_the_command_and_wrong_names(tmp_path: Path) -> None:
    source = hf_256(tmp_path / "hf")
    arguments = ["convert", str(source), "--outtype", "Q5_K_M", "--tensor-type", "attn_q=TQ2_0"]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    kinds = {name: kind for name, (kind, _) in contents(tmp_path / "hf-q5_k_m.gguf")[1].items()}
    assert (kinds["blk.0.attn_q.weight"], kinds["blk.0.attn_k.weight"]) == ("TQ2_0", "Q5_K")
    for bad in ("IQ2_XXS", "Q4_K_X", ""):
        with pytest.raises(InvalidArgumentError, match="Q4_K_M"):
            convert(source, tmp_path / "o.gguf", bad)
    with pytest.raises(ConvertError, match="quantize"):
        convert(tmp_path / "hf-q5_k_m.gguf", tmp_path / "o.gguf", "Q4_0")
    assert not (tmp_path / "o.gguf").exists()
