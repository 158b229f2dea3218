"""High-water memory of the converter: 3 x the largest tensor + 200 MB, on a checkpoint larger than that."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))


def test_memory_stays_far_below_the_size_of_the_checkpoint(tmp_path: Path) -> None:
    """`tools/convert_memory.py --megabytes 2048` shows the same on a full-sized one."""
    pytest.importorskip("resource")
    from convert_memory import measure

    rows, total, limit = measure(400, ["q8_0", "quantize:Q8_0"], tmp_path)
    assert total > 1.3 * limit  # else nothing is shown
    for outtype, high in rows:
        assert high <= limit, f"{outtype}: {high} bytes of {limit}"
