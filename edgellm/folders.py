"""Where this system keeps what belongs to a user's programs: data, settings, and what the hub's client downloaded."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def data_folder() -> Path:
    """Folder of edgellm's own data (history, models). It need not be there. RuntimeError: the user has no home."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Application Support")
    else:
        base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "edgellm"


def config_folder() -> Path:
    """Folder of edgellm's settings (aliases). It need not be there. RuntimeError: the user has no home."""
    if sys.platform == "win32":
        base = os.environ.get("APPDATA") or str(Path.home() / "AppData" / "Roaming")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Application Support")
    else:
        base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "edgellm"


def models_folder() -> Path:
    """Folder whose GGUF files can be named without a path."""
    return data_folder() / "models"


def hub_folder() -> Path:
    """The cache of Hugging Face's hub, found as its own client finds it; read at each call, not once at import."""
    home = os.environ.get("HF_HOME")
    if home is None:
        home = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache"), "huggingface")
    folder = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    return Path(os.path.expandvars(os.path.expanduser(folder)))
