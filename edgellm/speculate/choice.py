"""What `speculate=` means: the name of a way to speculate, or a draft model."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgellm.errors import InvalidArgumentError, ModelFileNotFoundError, one_line
from edgellm.results import Progress

KINDS = ("auto", "off", "suffix", "self", "draft")
LOAD_KINDS = tuple(kind for kind in KINDS if kind != "draft")  # which says nothing of the draft model that it needs


def checked_kind(kind: Any) -> str:
    """The name of a way to speculate. Raises InvalidArgumentError."""
    if not isinstance(kind, str) or kind not in KINDS:
        raise InvalidArgumentError(f"speculate is '{one_line(kind)}'; choose {', '.join(KINDS)}")
    return kind


def resolve_speculation(
    speculate: Any, *, offline: bool | None = None, progress: Callable[[Progress], Any] | None = None
) -> tuple[str, Path | None]:
    """(the kind that calls use where they bring none, the draft model's file) for what `load(speculate=)` was given.

    A model may be named as everywhere (`edgellm.hub.resolve`); then the kind is "auto". Raises InvalidArgumentError for
    a word that is neither a kind nor a model, ModelFileNotFoundError, and the errors of `edgellm.pull`.
    """
    from edgellm.hub import resolve

    if isinstance(speculate, str) and speculate in LOAD_KINDS:
        return speculate, None
    if not isinstance(speculate, (str, os.PathLike)) or speculate in ("", "draft"):
        raise InvalidArgumentError(_neither(speculate))
    try:
        return "auto", resolve(speculate, offline=offline, progress=progress)
    except ModelFileNotFoundError:
        if not isinstance(speculate, str) or os.path.basename(speculate) != speculate or "." in speculate:
            raise
        raise InvalidArgumentError(_neither(speculate)) from None


def _neither(value: object) -> str:
    kinds = ", ".join(LOAD_KINDS)
    return f"speculate is '{one_line(value)}'; choose {kinds}, or a draft model (a file, an alias, hf:...)"
