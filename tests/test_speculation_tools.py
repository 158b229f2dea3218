"""The tools that measure speculation: frozen prompts, gains with their intervals, tables, pages that stay whole."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import speculation
import speculation_prompts as prompts
from speculation_figures import gain, replace_file, write_region, write_section

import edgellm

GRIMM = prompts.ROOT.parent / "shared" / "data" / "text" / "grimm.txt"
PAGE = "# A page\n<!-- speculation: begin -->\nNot measured yet.\n<!-- speculation: end -->\nThe end.\n"


def run(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    monkeypatch.setattr(sys, "argv", ["speculation.py", *args])
    return speculation.main()


# ---- prompts -----------------------------------------------------------------------------------------------


def test_there_are_a_hundred_prompts_of_each_class_and_no_two_alike():
    for name in speculation.CLASSES:
        found = prompts.load_prompts(name)
        assert len(found) == prompts.COUNT == len({json.dumps(p) for p in found}) == 100
        assert prompts.load_prompts(name, 7) == found[:7]
    for name in ("chat", "copy"):
        for prompt in prompts.load_prompts(name):
            roles = [message["role"] for message in prompt if message["role"] != "system"]  # type: ignore[index]
            assert roles[-1] == "user" and set(roles) <= {"user", "assistant"}


def test_prompts_and_their_answers_fit_into_the_context():
    with edgellm.load(n_ctx=speculation.N_CTX) as model:
        longest = max(
            len(speculation.ids_of(model, p)) for name in speculation.CLASSES for p in prompts.load_prompts(name)
        )
    assert longest + 128 <= speculation.N_CTX


@pytest.mark.skipif(not GRIMM.exists(), reason=f"{GRIMM} is not there")
def test_the_frozen_prompts_are_those_of_the_generator():
    pytest.importorskip("sentencepiece")
    assert prompts.made(GRIMM.read_text(encoding="utf-8")) == json.loads(prompts.PROMPTS.read_text(encoding="utf-8"))


def test_random_texts_are_those_of_the_seed():
    assert prompts.random_texts(prompts.COUNT) == prompts.load_prompts("random")
    assert prompts.random_texts(2, seed=1) != prompts.random_texts(2)


def test_repeated_counts_the_four_grams_that_stood_there_before():
    assert prompts.repeated([1, 2, 3]) == 0.0
    assert prompts.repeated(range(50)) == 0.0
    assert prompts.repeated([1] * 13) == pytest.approx(0.9)
    assert prompts.repeated([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)


# ---- gains -------------------------------------------------------------------------------------------------


def test_gain_of_a_constant_ratio_has_no_width():
    found = gain([3.0, 1.5, 6.0], [2.0, 1.0, 4.0])
    assert found.total == found.median == pytest.approx(1.5)
    assert found.total_range == found.median_range == pytest.approx((1.5, 1.5))


def test_the_interval_holds_the_truth_as_often_as_it_says():
    rng, hits = np.random.default_rng(5), 0
    for seed in range(200):
        fast = rng.lognormal(0.0, 0.5, 60)
        plain = fast * rng.lognormal(np.log(1.5), 0.3, 60)
        low, high = gain(plain.tolist(), fast.tolist(), seed).median_range
        hits += low <= 1.5 <= high
    assert 178 <= hits <= 200, "95 % of 200, the bootstrap's own inaccuracy allowed for"


@given(st.lists(st.tuples(st.floats(1e-4, 10), st.floats(1e-4, 10)), min_size=1, max_size=20))
def test_gains_lie_between_those_of_the_prompts(pairs: list[tuple[float, float]]):
    plain, fast = map(list, zip(*pairs, strict=True))
    ratios = [p / f for p, f in pairs]
    found = gain(plain, fast)
    for value in (found.total, *found.total_range, found.median, *found.median_range):
        assert min(ratios) * (1 - 1e-9) <= value <= max(ratios) * (1 + 1e-9)


# ---- pages -------------------------------------------------------------------------------------------------


def test_sections_are_replaced_by_title_and_the_rest_stays(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(PAGE, encoding="utf-8")
    write_section(page, "speculation", "one", ["| a |", "", "| b |"])
    write_section(page, "speculation", "two", ["second"])
    write_section(page, "speculation", "one", ["first"])
    assert page.read_text(encoding="utf-8") == PAGE.replace(
        "Not measured yet.", "#### one\n\nfirst\n\n#### two\n\nsecond"
    )
    write_region(page, "speculation", ["all new"])
    assert page.read_text(encoding="utf-8") == PAGE.replace("Not measured yet.", "all new")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page = tmp_path / "page.md"
    page.write_text("old", encoding="utf-8")
    page.chmod(0o640)
    replace_file(page, "new")
    assert page.read_text() == "new" and page.stat().st_mode & 0o777 == 0o640
    with pytest.raises(UnicodeEncodeError):
        replace_file(page, "half \udc80")
    assert page.read_text() == "new" and list(tmp_path.iterdir()) == [page]


# ---- the whole tool ----------------------------------------------------------------------------------------


def test_a_short_run_writes_a_table_and_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    page = tmp_path / "page.md"
    page.write_text(PAGE, encoding="utf-8")
    short = ("--count", "3", "--rounds", "1", "--tokens", "40", "--write", str(page))
    assert run(monkeypatch, "--speculate", "suffix", "--speculate", "auto", *short, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert set(facts["pass_costs"]) == {str(k) for k in range(2, 9)} and facts["classes"]["copy 0"]["gains"]["suffix"]
    one = facts["classes"]["copy 0"]["prompts"][0]
    assert set(one["seconds"]) == {"off", "suffix", "auto"} and one["passes"]["off"] == one["tokens"]
    assert one["passes"]["suffix"] <= one["tokens"]
    text = page.read_text(encoding="utf-8")
    assert "#### the built-in model" in text and "| chat | 0.7 | suffix | 3 |" in text and text.endswith("The end.\n")


def test_a_run_that_is_broken_off_leaves_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page = tmp_path / "page.md"
    page.write_text(PAGE, encoding="utf-8")
    real, calls = speculation.measure, []

    def broken_off(*args: object) -> list[speculation.Timed]:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(speculation, "measure", broken_off)
    assert run(monkeypatch, "--count", "1", "--rounds", "1", "--tokens", "4", "--write", str(page)) == 130
    assert page.read_text(encoding="utf-8") == PAGE


def test_another_answer_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    real = speculation.Column.answer

    def answer(self: speculation.Column, ids: list[int], **options: object) -> edgellm.Result:
        return real(self, ids, **{**options, "seed": 9} if self.name == "suffix" else options)

    monkeypatch.setattr(speculation.Column, "answer", answer)
    assert run(monkeypatch, "--speculate", "suffix", "--count", "2", "--rounds", "1", "--classes", "random") == 1
    assert "another answer than without" in capsys.readouterr().err


def test_what_is_no_draft_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert run(monkeypatch, "--speculate", "/nowhere/draft.gguf", "--count", "1") == 1
    assert capsys.readouterr().out == ""
