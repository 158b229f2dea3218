"""Mixes: which tensor gets which type. `mix_types.json` holds what llama.cpp chose for small models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import tiny_llama_gguf

from edgellm.blocks import Q4_K, Q5_K, Q6_K, Q8_0, TQ1_0
from edgellm.cli import cli
from edgellm.convert import mixes
from edgellm.convert.mixes import MIXES, Facts, find_mix, fitting_type, layers_with, mixed_type, parse_overrides
from edgellm.errors import InvalidArgumentError, ModelFormatError
from edgellm.gguf import open_gguf
from edgellm.imatrix import Imatrix
from edgellm.quantize import kind_of, quantize
from edgellm.quants import dequantize

MODELS = json.loads((Path(__file__).parent / "mix_types.json").read_text())["models"]
CASES = [(model, mix) for model, entry in MODELS.items() for mix in entry["types"]]


def names_and_shapes(entry: dict) -> dict[str, list[int]]:
    found = {}
    for kind, shape in entry["shapes"].items():
        once = kind in ("token_embd.weight", "output.weight")
        layers = [""] if once else [f"blk.{i}." for i in range(entry["n_layers"])]
        found |= {layer + kind: shape for layer in layers}
    return found


def facts_of(entry: dict, has_imatrix: bool = False) -> Facts:
    numbers = {key: entry[key] for key in ("arch", "n_layers", "n_heads", "n_kv_heads", "n_experts", "tied")}
    return Facts(**numbers, has_imatrix=has_imatrix, layers=layers_with(list(names_and_shapes(entry))))


@pytest.mark.parametrize(("model", "mix"), CASES)
def test_the_types_that_llama_cpp_gives(model: str, mix: str) -> None:
    entry = MODELS[model]
    facts, got = facts_of(entry), {}
    for name, shape in names_and_shapes(entry).items():
        kind = fitting_type(mixed_type(find_mix(mix), name, shape, facts), shape[-1])
        got.setdefault(kind_of(name), []).append(kind.name)
    for kind, text in entry["types"][mix].items():
        want = [part.split("x")[0] for part in text.split() for _ in range(int(part.split("x")[1]))]
        assert got[kind] == want, kind


@pytest.mark.parametrize("mix", ["f16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0"])
@pytest.mark.parametrize("model", ["llama", "gemma3", "mixtral"])
def test_the_types_of_foreign_files(shared_data: Path, tmp_path: Path, model: str, mix: str) -> None:
    folder = shared_data / "gguf-foreign"
    quantize(folder / f"{model}-f16.gguf", tmp_path / "o.gguf", mix)
    with open_gguf(folder / f"{model}-{mix}.gguf") as want, open_gguf(tmp_path / "o.gguf") as got:
        types = {name: t.type.name for name, t in got.tensors.items()}
        assert types == {name: t.type.name for name, t in want.tensors.items()}
        assert got.metadata["general.file_type"] == want.metadata["general.file_type"]


def test_an_importance_matrix_changes_some_rules() -> None:
    entry = MODELS["gqa4"]
    shape, names = [256, 256], ["blk.0.ffn_down.weight", "blk.10.ffn_down.weight"]
    for mix, without, given in (("Q4_0", "Q4_0", "Q4_1"), ("Q5_0", "Q5_0", "Q5_1"), ("IQ4_NL", "Q5_K", "IQ4_NL")):
        for has_imatrix, first in ((False, without), (True, given)):
            got = [mixed_type(find_mix(mix), n, shape, facts_of(entry, has_imatrix)).name for n in names]
            assert got == [first, mix]


def test_a_model_of_80_layers_with_shared_heads() -> None:
    names = {f"blk.{i}.attn_v.weight": [256, 256] for i in range(80)}
    facts = Facts("llama", 80, 64, 8, 0, False, False, layers_with(list(names)))
    got = {mixed_type(find_mix("Q4_K_M"), name, shape, facts) for name, shape in names.items()}
    assert got == {Q5_K, Q6_K}


def test_names_in_any_case_and_aliases() -> None:
    assert find_mix("q4_k_m") is find_mix("Q4_K") is MIXES["Q4_K_M"]
    assert find_mix("mxfp4").name == "MXFP4_MOE"
    for bad in ("Q4_K_X", "", "IQ2_XS", None):
        with pytest.raises(InvalidArgumentError, match="choose one of F32, F16"):
            find_mix(bad)


def test_rows_that_fit_no_block_stay_f16() -> None:
    assert [fitting_type(Q6_K, k).name for k in (512, 96, 40)] == ["Q6_K", "Q8_0", "F16"]
    assert [fitting_type(TQ1_0, k).name for k in (512, 96, 40)] == ["TQ1_0", "Q4_0", "F16"]
    assert all(kind.block_size == 256 and new.block_size == 32 for kind, new in mixes.SMALLER_BLOCKS.items())


def test_layers_count_from_those_that_have_the_tensor() -> None:
    found = layers_with(["blk.3.attn_v.weight", "blk.1.attn_v.weight", "blk.2.ffn_down.weight", "output.weight"])
    assert found == {"attn_v": [1, 3], "ffn_down": [2]}


# ---- overrides -------------------------------------------------------------------------------------------------------


def types_of(path: Path) -> dict[str, str]:
    with open_gguf(path) as file:
        return {name: t.type.name for name, t in file.tensors.items() if len(t.shape) > 1}


def test_overrides(tmp_path: Path) -> None:
    src, out = tiny_llama_gguf(tmp_path / "s.gguf", dim=256, head_dim=64, ffn=256), tmp_path / "o.gguf"
    quantize(src, out, "Q4_K_M", tensor_types=["attn_.*=q8_0", ("ffn_up", "F16"), r"blk\.0\.ffn_up=Q2_K"])
    types = types_of(out)
    assert {types[f"blk.{i}.attn_{x}.weight"] for i in (0, 1) for x in ("q", "k", "v", "output")} == {"Q8_0"}
    assert (types["blk.0.ffn_up.weight"], types["blk.0.ffn_gate.weight"]) == ("F16", "Q4_K")
    quantize(src, out, "Q4_K_M", output_tensor_type="Q5_K", token_embedding_type="Q3_K", pure=True)
    types = types_of(out)
    assert (types.pop("output.weight"), types.pop("token_embd.weight")) == ("Q5_K", "Q3_K")
    assert set(types.values()) == {"Q4_K"}
    quantize(src, out, "Q4_0", pure=True)
    assert set(types_of(out).values()) == {"Q4_0"}


def test_a_tied_head_takes_the_output_type() -> None:
    given = parse_overrides((), "Q8_0", None)
    assert given.type_of("token_embd.weight", tied=True) is Q8_0
    assert given.type_of("token_embd.weight", tied=False) is None
    assert parse_overrides((), "Q8_0", "Q4_K").type_of("token_embd.weight", tied=True) is Q4_K


@pytest.mark.parametrize(
    ("bad", "message"), [("Q8_0", "REGEX=TYPE"), ("=Q8_0", "REGEX=TYPE"), ("a=Q9", "Q9"), ("a(=Q8_0", "regular")]
)
def test_bad_overrides(tmp_path: Path, bad: str, message: str) -> None:
    src = tiny_llama_gguf(tmp_path / "s.gguf")
    with pytest.raises(InvalidArgumentError, match=message):
        quantize(src, tmp_path / "o.gguf", "Q8_0", tensor_types=[bad])
    assert not (tmp_path / "o.gguf").exists()


# ---- importance and errors -------------------------------------------------------------------------------------------


def weighted_error(src: Path, out: Path, name: str, w: np.ndarray) -> float:
    with open_gguf(src) as a, open_gguf(out) as b:
        x, y = (dequantize(f.data(name), f.tensors[name].type, f.tensors[name].shape) for f in (a, b))
    return float((np.square(x - y, dtype=np.float64) * w).sum())


@pytest.mark.parametrize("mix", ["Q4_K_M", "Q3_K_S", "Q2_K", "Q4_0", "IQ4_XS"])
def test_importance_lowers_the_error_where_it_counts(tmp_path: Path, mix: str) -> None:
    src = tiny_llama_gguf(tmp_path / "s.gguf", dim=256, head_dim=64, ffn=256)
    name, w = "blk.1.ffn_gate.weight", np.random.default_rng(5).chisquare(1, 256)
    imatrix = Imatrix(datasets=["some text"], n_chunks=3)
    imatrix.add(name, 0, 1, np.sqrt(w)[None])
    imatrix.write(tmp_path / "i.gguf")
    plain = quantize(src, tmp_path / "a.gguf", mix)
    report = quantize(src, tmp_path / "b.gguf", mix, imatrix=tmp_path / "i.gguf")
    assert weighted_error(src, tmp_path / "b.gguf", name, w) < 0.98 * weighted_error(src, tmp_path / "a.gguf", name, w)
    assert not plain.notes and "has no entry in the importance matrix" in report.notes[0]
    with open_gguf(tmp_path / "b.gguf") as file:
        keys = {k: file.metadata[k] for k in file.metadata if k.startswith("quantize.imatrix.")}
        assert keys == {"quantize.imatrix.dataset": "some text", "quantize.imatrix.entries_count": 1,
                        "quantize.imatrix.chunks_count": 3}  # fmt: skip


def test_an_importance_matrix_of_another_model_is_refused(tmp_path: Path) -> None:
    src = tiny_llama_gguf(tmp_path / "s.gguf")
    for name, k in (("blk.0.attn_q.weight", 96), ("blk.77.attn_q.weight", 64)):
        imatrix = Imatrix()
        imatrix.add(name, 0, 1, np.ones((1, k)))
        with pytest.raises(InvalidArgumentError, match="another model"):
            quantize(src, tmp_path / "o.gguf", "Q4_0", imatrix=imatrix)
    (tmp_path / "bad.dat").write_bytes(b"\1\0\0\0\xff\xff\xff\xff")
    with pytest.raises(ModelFormatError):
        quantize(src, tmp_path / "o.gguf", "Q4_0", imatrix=tmp_path / "bad.dat")
    assert not (tmp_path / "o.gguf").exists()


def test_errors_are_reported_by_kind(tmp_path: Path) -> None:
    src, out = tiny_llama_gguf(tmp_path / "s.gguf", dim=256, head_dim=64, ffn=256), tmp_path / "o.gguf"
    report = quantize(src, out, "Q4_K_M", measure=True)
    rows = {row.kind: row for row in report.kinds}
    assert set(rows) == {kind_of(name) for name in types_of(out)}
    for kind, row in rows.items():
        names = [name for name in types_of(out) if kind_of(name) == kind]
        error = sum(weighted_error(src, out, name, np.ones(1)) for name in names)
        assert row.rmse == pytest.approx(np.sqrt(error / row.n_weights), rel=1e-6)
        assert sum(row.types.values()) == len(names)
        assert row.bits_per_weight == pytest.approx(8 * row.n_bytes / row.n_weights)
        assert 0 < row.relative < 0.1
    assert rows["output.weight"].relative < rows["attn_q.weight"].relative
    assert quantize(src, out, "Q4_K_M").kinds == ()


def test_the_command(tmp_path: Path) -> None:
    src, out = tiny_llama_gguf(tmp_path / "s.gguf", dim=256, head_dim=64, ffn=256), tmp_path / "o.gguf"
    arguments = ["quantize", str(src), str(out), "Q4_K_M", "--report", "--tensor-type", "attn_q=Q8_0",
                 "--output-tensor-type", "Q5_K"]  # fmt: skip
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0 and "attn_q.weight" in done.output and "RMSE" in done.output
    types = types_of(out)
    assert (types["blk.0.attn_q.weight"], types["output.weight"]) == ("Q8_0", "Q5_K")
    done = CliRunner().invoke(cli, [*arguments, "--json"], catch_exceptions=False)
    row = json.loads(done.stdout)["kinds"][0]
    assert set(row) == {"kind", "types", "n_weights", "n_bytes", "bits_per_weight", "rmse", "relative"}
