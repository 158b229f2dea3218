"""Fixtures for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub_place import hub  # noqa: F401  (a fixture)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of shared inputs, `../shared/data` from the project's root; skips the test where it is missing."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"needs {path}")
    return path


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress callbacks hear of every step, not only ten times a second."""
    monkeypatch.setattr("edgellm.progress.INTERVAL", 0.0)
