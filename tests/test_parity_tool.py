"""`tools/parity.py` finds what it is made to find: its scores, its table, its cases, and files that end llama.cpp."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import parity
import parity_all
import parity_cases
import parity_quants
from parity_scores import BACKENDS, Score, agreement, header, nmse, row

from edgellm.blocks import ALL as BLOCKS
from edgellm.convert.hf_config import read_config
from edgellm.gguf import open_gguf


def score(**changes: object) -> Score:
    """A model with nothing wrong."""
    good = Score(
        "a-0", "a", 1e-9, nmse=dict.fromkeys(BACKENDS, 1e-12), argmax=dict.fromkeys(BACKENDS, 1.0),
        greedy=dict.fromkeys(BACKENDS, True), peer_nmse=1e-11, peer_to_torch=1e-11,
    )  # fmt: skip
    return replace(good, **changes)


def test_nmse_is_the_squared_error_over_the_squared_answer() -> None:
    want = np.array([[3.0, 4.0]], dtype=np.float32)
    assert nmse(want, want) == 0.0
    assert nmse(want + np.array([[0.0, 1.0]], dtype=np.float32), want) == pytest.approx(1 / 25)
    assert nmse(want[:, :1], want) == float("inf")
    assert nmse(np.array([[np.nan, 4.0]]), want) == float("inf")


def test_agreement_counts_positions() -> None:
    want = np.eye(4, dtype=np.float32)
    got = want.copy()
    got[0, 1] = 2.0
    assert agreement(got, want) == 0.75
    assert agreement(got[:3], want) == 0.0


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"nmse": {"native": 1e-12, "numba": 2e-9}}, "numba: NMSE 2.0e-09"),
        ({"nmse": {"native": float("nan")}}, "native: NMSE"),
        ({"argmax": {**dict.fromkeys(BACKENDS, 1.0), "reference": 0.99}}, "reference: other best token at 1.0%"),
        ({"greedy": {**dict.fromkeys(BACKENDS, True), "native": False}}, "native: other greedy text"),
        ({"peer_nmse": 1e-3}, "to llama.cpp"),
        ({"error": "ConvertError: no"}, "ConvertError"),
    ],
)
def test_each_fault_is_told(changes: dict, word: str) -> None:
    assert score().faults() == []
    faults = score(**changes).faults()
    assert len(faults) == 1 and word in faults[0]


def test_a_difference_of_llama_cpp_is_no_fault_but_must_be_explained() -> None:
    known = score(peer_nmse=0.5, peer_to_torch=0.5, difference="no sliding window")
    unknown, refused = replace(known, difference=""), score(peer_nmse=None, peer_to_torch=None, peer_error="bad shape")
    assert not known.comparable and known.faults() == [] and known.surprise() == ""
    assert "5.0e-01" in unknown.surprise() and "bad shape" in refused.surprise()
    assert replace(refused, unread="heads").surprise() == ""


def test_the_table_shows_the_worst_of_a_family() -> None:
    scores = [
        score(),
        score(nmse={"native": 3e-10, "reference": 1e-12, "numba": 2e-12}, greedy=dict.fromkeys(BACKENDS, False)),
        score(peer_nmse=0.5, peer_to_torch=0.5, difference="window"),
    ]
    head, line, text = *header(list(BACKENDS)), row(scores, list(BACKENDS))
    cells = [cell.strip() for cell in text.strip("| ").split("|")]
    assert len(cells) == head.count("|") - 1 == line.count("|") - 1
    assert cells[:7] == ["a", "3", "3.0e-10", "1.0e-12", "2.0e-12", "100%", "2 of 3"]
    assert cells[7:] == ["1.0e-11 (2 of 3)", "1 differ from transformers by 5e-01: window"]
    failed = row([replace(s, error="no") for s in scores], list(BACKENDS))
    assert failed.count("failed") == 3 and "0 of 3" in failed


@pytest.mark.parametrize("family", parity_cases.FAMILIES, ids=lambda f: f.name)
def test_cases_are_repeatable_and_cover_the_shapes(family: parity_cases.Family) -> None:
    cases = parity_cases.cases(family, 10, seed=1)
    assert cases == parity_cases.cases(family, 10, seed=1) != parity_cases.cases(family, 10, seed=2)
    assert {c.config["head_dim"] for c in cases} == set(parity_cases.HEAD_SIZES)
    assert any(c.config["num_attention_heads"] == 7 * c.config["num_key_value_heads"] for c in cases)
    assert {c.config["tie_word_embeddings"] for c in cases} == {True, False}
    for bias in family.biases:
        assert {c.config[bias] for c in cases} == {True, False}
    assert all(c.config["vocab_size"] % 2 for c in cases) and len({c.name for c in cases}) == 10
    assert any(not c.difference and not c.unread for c in cases)  # llama.cpp is of some use
    for c in cases:  # the converter takes every one of them
        read_config({**c.config, "architectures": [family.architecture]}, "config.json")


def test_families_that_edgellm_does_not_have_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    known = parity_cases.FAMILIES[0]
    other = replace(known, name="other", architecture="OtherForCausalLM")
    assert parity.supported([known, other]) == [known]
    assert "other left out" in capsys.readouterr().err


CRASHES = """
import os, sys
from pathlib import Path
folder, names = Path(sys.argv[1]), sys.argv[2:]
for name in names:
    print(name, flush=True)
    if name == "b":
        os._exit(3)
    (folder / (name + ".done")).write_text("")
"""


def test_a_file_that_ends_llama_cpp_is_noted_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "parity_llama.py").write_text(CRASHES)
    monkeypatch.setattr(parity, "TOOLS", tmp_path)
    parity.ask_llama_cpp(sys.executable, tmp_path, ["a", "b", "c"])
    assert [name for name in "abc" if (tmp_path / f"{name}.done").exists()] == ["a", "c"]
    assert "exit 3" in (tmp_path / "b.llama.txt").read_text()


def test_cases_go_to_the_other_programs_as_json() -> None:
    case = parity_cases.cases(parity_cases.FAMILIES[0], 1, seed=1)[0]
    assert parity_cases.Case(**json.loads(json.dumps(case.to_json()))) == case


# ---- quantised types -------------------------------------------------------------------------------------------------


def test_ratios_above_the_limit_are_told() -> None:
    one = np.ones(9)
    tipped = one.copy()
    tipped[0] = 100.0  # one token: the mean rises, the median does not

    def faults(model: str, ours: np.ndarray) -> list[str]:
        return parity_quants.Ratio(model, "Q4_K", ours, one, one).faults()

    assert faults("llama 512", one * 1.09) == faults("mixtral 512", tipped) == []
    assert len(faults("llama 512", one * 1.11)) == 2 and len(faults("mixtral 512", one * 1.2)) == 1
    assert "means" in faults("llama 512", tipped)[0]
    assert faults("llama 512", one * np.inf)
    assert "no answer" in parity_quants.Ratio("llama 512", "Q4_K", error="no answer").faults()[0]
    exact = np.ones((2, 3, 4), np.float32)
    assert parity_quants.distances(exact * 1.5, exact).tolist() == [1.0] * 6
    assert np.isinf(parity_quants.distances(exact * np.nan, exact)).all()


@pytest.mark.parametrize("model", parity_quants.MODELS)
def test_models_of_the_comparison_are_wide_enough(tmp_path: Path, model: str) -> None:
    path = parity_quants.source(model, tmp_path)
    asked = parity_quants.texts(model, path, 3)
    assert {len(ids) for ids in asked} == {parity_quants.N_TOKENS} and len({tuple(ids) for ids in asked}) == 3
    with open_gguf(path) as file:
        rows = {t.shape[-1] for t in file.tensors.values() if len(t.shape) > 1}
        n_vocab = file.tensors["token_embd.weight"].shape[0]
    assert max(max(ids) for ids in asked) < n_vocab
    assert all(k % 256 == 0 for k in rows) or model == "trained 256"
    assert set(parity_quants.TYPES) == {b.name for b in BLOCKS if b.block_size > 1}


# ---- all parts -------------------------------------------------------------------------------------------------------


def fake(name: str, text: str, code: int = 0) -> parity_all.Part:
    program = f"print({text!r}); raise SystemExit({code})"
    return parity_all.Part(name, f"Title {name}", lambda paths: [sys.executable, "-c", program])


def test_all_parts_make_one_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, needed = tmp_path / "p.md", ["--peer-python", "a", "--llama-python", "b"]
    page.write_text(f"before\n{parity_all.BEGIN}\n{parity_all.END}\nafter\n")
    monkeypatch.setattr(parity_all, "PARTS", (fake("one", "| t |\n\n1 is fine"), fake("two", "2 | is bad", 3)))
    assert parity_all.main([*needed, "--write", str(page)]) == 1
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n")
    assert "| Title one | 1 is fine | ok |\n| Title two | 2 / is bad | **FAILED** |" in text
    assert "### Title one\n| t |\n\n1 is fine\n" in text
    monkeypatch.setattr(parity_all, "PARTS", (fake("one", "no"), fake("two", "2 is good")))
    assert parity_all.main([*needed, "--write", str(page), "--part", "two"]) == 0
    wanted = text.replace("2 / is bad | **FAILED**", "2 is good | ok").replace("2 | is bad", "2 is good")
    assert page.read_text() == wanted
    page.write_text("no marks")
    with pytest.raises(ValueError, match="marks"):
        parity_all.main([*needed, "--write", str(page)])


def test_every_part_is_a_tool_and_the_page_has_their_place() -> None:
    paths = parity_all.Paths(peer_python="PEER", llama_python="LLAMA")
    for part in parity_all.PARTS:
        assert Path(part.command(paths)[1]).is_file()
    page = (parity_all.TOOLS.parent / "docs" / "parity.md").read_text(encoding="utf-8")
    inside = parity_all.between(page)[1]
    rows, sections = parity_all._old(inside)
    assert set(rows) == set(sections) == {part.title for part in parity_all.PARTS}
