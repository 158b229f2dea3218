"""What MODEL means everywhere: a path, a short name, the built-in model, or a model of the hub."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..builtin import builtin_model
from ..errors import ModelFileNotFoundError
from ..folders import models_folder
from ..results import Progress
from .aliases import BUILTIN, is_alias_name, read_aliases
from .reference import is_reference

_REPO_LIKE = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")


def resolve(
    ref: str | os.PathLike[str] | None,
    *,
    offline: bool | None = None,
    progress: Callable[[Progress], Any] | None = None,
    cancel: threading.Event | None = None,
) -> Path:
    """The path of the model that `ref` names; None: the built-in one.

    In this order: `hf:owner/repo[:QUANT]` (downloaded where it is not here, see `pull`; `offline` and HF_HUB_OFFLINE
    forbid that), a file of that name, an alias, `builtin`, a file in edgellm's folder of models, with or without .gguf.
    A path is given back as it is, there or not. Raises ModelFileNotFoundError for a word that is none of these, and the
    errors of `pull`.
    """
    if ref is None:
        return builtin_model()
    if not isinstance(ref, str):
        return Path(os.fsdecode(ref))
    if not is_reference(ref) and (os.path.isfile(ref) or not is_alias_name(ref)):
        return _path(ref)
    target = ref if is_reference(ref) else read_aliases().get(ref)
    if target is not None and is_reference(target):
        from .download import pull

        return pull(target, offline=offline, progress=progress, cancel=cancel)
    return Path(target) if target is not None else _named(ref)


def _path(text: str) -> Path:
    """A path; one that looks like a repository and is not there gets a better error than its opener would give."""
    if _REPO_LIKE.fullmatch(text) and not text.lower().endswith(".gguf") and not os.path.exists(text):
        raise ModelFileNotFoundError(text, f"no such file; for a model of the hub write hf:{text}")
    return Path(text)


def _named(name: str) -> Path:
    """A single word that is no alias."""
    if name == BUILTIN:
        return builtin_model()
    if os.path.exists(name):
        return Path(name)
    for file in (name, name + ".gguf"):
        path = models_folder() / file
        if path.is_file():
            return path
    raise ModelFileNotFoundError(name, "no such file, and no model of that name; `edgellm list` shows those there are")
