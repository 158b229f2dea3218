"""Facts about the installation: packages, backends, folders that hold things."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# package -> the extra that brings it; "": edgellm itself needs it
PACKAGES = {
    "numpy": "",
    "cffi": "",
    "click": "",
    "jinja2": "",
    "prompt_toolkit": "cli",
    "rich": "cli",
    "numba": "numba",
    "huggingface_hub": "hub",
    "llguidance": "grammar",
}
MAX_FILES = 20_000  # of a folder whose size is counted


def packages() -> dict[str, str | None]:
    """Version of each package; None: not installed."""
    return {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def backends(native: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What can run models here, the fastest first: {"available", "reason"} each."""
    numba = find_spec("numba") is not None
    return {
        "native": {"available": native["available"], "reason": native.get("reason", "")},
        "numba": {"available": numba, "reason": "" if numba else "the package numba is not installed"},
        "reference": {"available": True, "reason": ""},
    }


def caches() -> dict[str, dict[str, Any]]:
    """Folders and files that edgellm reads or writes: place, bytes in it (None: not there), and whether it can be
    written (or made)."""
    from edgellm.folders import data_folder, hub_folder, models_folder

    out: dict[str, dict[str, Any]] = {}
    for name, find in (
        ("models", models_folder),
        ("hub", hub_folder),
        ("numba", numba_folder),
        ("history", lambda: data_folder() / "history"),
    ):
        try:
            path = find()
        except (RuntimeError, OSError):  # no home folder
            out[name] = {"path": None, "bytes": None, "writable": False}
            continue
        out[name] = {"path": str(path), "bytes": size_of(path), "writable": can_write(path)}
    return out


def numba_folder() -> Path:
    """Where compiled Numba kernels are kept (numba.core.caching looks in this order)."""
    import edgellm

    chosen = os.environ.get("NUMBA_CACHE_DIR")
    if chosen:
        return Path(chosen)
    beside = Path(edgellm.__file__).parent / "backends" / "numba_kernels" / "__pycache__"
    if can_write(beside):
        return beside
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "numba"


def size_of(path: Path) -> int | None:
    """Bytes of a file, or of the files in a folder (links are not followed; the first MAX_FILES count)."""
    if not path.exists():
        return None
    if path.is_file():
        return path.stat().st_size
    total = n = 0
    for folder, _, names in os.walk(path, onerror=lambda error: None):
        for name in names:
            n += 1
            if n > MAX_FILES:
                return total
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:  # gone meanwhile
                continue
    return total


def can_write(path: Path) -> bool:
    """Whether `path` can be written, or made where it is not there."""
    try:
        while not path.exists():
            path = path.parent
        return os.access(path, os.W_OK)
    except OSError:
        return False
