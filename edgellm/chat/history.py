"""Where what was typed is kept for the next time."""

from __future__ import annotations

import os
from pathlib import Path

from edgellm.folders import data_folder


def history_file() -> Path | None:
    """The file of typed messages, made readable by its owner only; None where it cannot be written."""
    try:
        path = data_folder() / "history"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        return path if os.access(path, os.W_OK) else None
    except (OSError, RuntimeError):  # no home folder raises RuntimeError
        return None
