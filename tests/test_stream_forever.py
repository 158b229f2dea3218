"""`tools/stream_forever.py` in small: far beyond the context window, on few pages, with the loss of the NumPy model."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from family_runs import FAST
from helpers import tiny_llama_gguf

import edgellm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import stream_forever
from stream_model import StreamModel
from stream_pictures import draw, load, save
from stream_run import Bins, feed, own_stories

SINKS, WINDOW, SIZE, PERIOD = 4, 60, 64, 640  # tokens


@pytest.mark.parametrize("name", FAST)
def test_three_thousand_tokens_in_a_window_of_sixty(tmp_path: Path, name: str) -> None:
    path = tiny_llama_gguf(tmp_path / "m.gguf")
    text = np.random.default_rng(1).integers(3, 200, PERIOD).astype(np.int32)
    with edgellm.load(path, backend=name, n_ctx=SINKS + WINDOW, overflow=f"sink:{SINKS}:{WINDOW}") as model:
        bins = feed(model, text, 47 * SIZE, size=SIZE)
    assert set(bins.pages[2:]) == {2 * model.plan.kv.n_layers}, "one page of sinks and one of the window"
    wanted = StreamModel(path, SINKS, WINDOW).losses(np.resize(text, 47 * SIZE + 1)).reshape(47, SIZE).mean(axis=1)
    assert np.abs(bins.loss / wanted - 1).max() < 1e-5
    assert np.abs(bins.loss[20:] - bins.loss[10:-10]).max() < 1e-5, "the same text, the same loss, at any position"
    other = StreamModel(path, 0, WINDOW).losses(np.resize(text, 10 * SIZE + 1)).reshape(10, SIZE).mean(axis=1)
    assert np.abs(other[2:] / wanted[2:10] - 1).min() > 1e-4, "the sinks are seen"


def test_a_model_tells_itself_a_text(tmp_path: Path) -> None:
    with edgellm.load(tiny_llama_gguf(tmp_path / "m.gguf")) as model:
        text = own_stories(model, 400)
        assert text.shape == (400,) and text[0] == 1 and np.count_nonzero(text == 1) > 1, "each begins with <s>"
        assert np.array_equal(text, own_stories(model, 400))


def bins_of(memory: np.ndarray, size: int = 100) -> Bins:
    return Bins(size, memory, *(np.ones(len(memory)) for _ in range(5)))


def test_the_report_sees_memory_that_grows() -> None:
    flat, growing = np.full(40, 1e8), np.linspace(1e8, 1.02e8, 40)
    assert stream_forever.report({"sink": bins_of(flat), "dense": bins_of(growing)}, 200)[1]
    lines, kept = stream_forever.report({"sink": bins_of(growing)}, 200)
    assert not kept and "1.72 %" in lines[-1]
    early = np.concatenate([growing[:4], np.full(36, growing[4])])
    assert stream_forever.report({"sink": bins_of(early)}, 200)[1], "until the window is full it may grow"


def test_figures_are_kept_and_drawn(tmp_path: Path) -> None:
    curves = {"sink": bins_of(np.full(40, 1e8)), "dense": bins_of(np.linspace(1e8, 2e8, 8))}
    save(curves, tmp_path / "new" / "stream.npz", 64)
    again, n_ctx_train = load(tmp_path / "new" / "stream.npz")
    assert n_ctx_train == 64 and list(again) == list(curves) and again["sink"].size == 100
    assert np.array_equal(again["dense"].resident, curves["dense"].resident)
    pytest.importorskip("matplotlib")
    for picture in draw(again, tmp_path / "pictures", n_ctx_train):
        assert picture.read_bytes()[:4] == b"\x89PNG" and picture.stat().st_size < 100_000


def test_only_the_measured_part_of_a_page_is_replaced(tmp_path: Path) -> None:
    page, (begin, end) = tmp_path / "page.md", stream_forever.MARKS
    page.write_text(f"# Before\n{begin}\nold\n{end}\nafter\n")
    stream_forever.write(page, ["new", "lines"])
    assert page.read_text() == f"# Before\n{begin}\nnew\nlines\n{end}\nafter\n"
