"""The small model that comes with the package, so that everything can be tried at once and without a network."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from edgellm.errors import ModelFileNotFoundError

FILE = "edgellm-toy.gguf"


def builtin_model() -> Path:
    """Path of the built-in model. Raises ModelFileNotFoundError where the installation does not have it."""
    resource = resources.files("edgellm") / "data" / FILE
    if not isinstance(resource, Path) or not resource.is_file():
        raise ModelFileNotFoundError(
            resource, "this installation has no built-in model; give the path of a GGUF file instead"
        )
    return resource


def is_builtin(path: object) -> bool:
    """Whether `path` (of a loaded model) is the built-in model."""
    return Path(str(path)).name == FILE
