"""tools/kv_quality.py: what it turns, and that it measures what it says."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import kv_quality

from edgellm.cache import PageLayout
from edgellm.plan import KVShape

TEXT = "There was once a miller who had three sons, and when he died he left them his mill, his ass and his cat. " * 12


@pytest.mark.parametrize("dim", [2, 8, 48, 64, 80])
def test_the_rotation_is_one(dim: int) -> None:
    turn = kv_quality.hadamard(dim)
    assert np.abs(turn @ turn.T - np.eye(dim)).max() < 1e-6
    assert np.count_nonzero(turn[0]) == dim & -dim


def test_turned_pages_hold_what_was_stored() -> None:
    """And 4 bits hold rows with a few large channels better, once these are spread over all."""
    rng, errors = np.random.default_rng(0), []
    for halves in ("", "kv"):
        layout = PageLayout(KVShape(1, 1, 64), "q4_0:f16")
        kv_quality.turn(layout, halves)
        page = np.zeros(layout.page_bytes, np.uint8)
        k, v = rng.standard_normal((2, 64, 64)).astype(np.float32)
        k[:, :3] *= 6
        for lane in range(64):
            layout.store(page, 0, lane, k[lane], v[lane])
        keys, values = layout.load(page, 0)
        assert np.abs(values - v).max() < 0.01
        errors.append(np.square(keys - k).sum() / np.square(k).sum())
    assert errors[1] < 0.015 < 0.025 < errors[0]


def test_the_table_of_the_builtin_model() -> None:
    lines, worst = kv_quality.table(None, TEXT, 2, 48)
    means = {line.split("|")[1].strip(): float(line.split("|")[3].split("±")[0]) for line in lines[4:]}
    assert len(means) == len(kv_quality.ROWS)
    assert means["f16"] == 0 < means["f32"] < means["q8_0"] < means["q8_0:q4_0"] < means["q4_0"] < 0.1
    assert worst < 1e-3
