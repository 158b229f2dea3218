"""Model families: each turns the metadata of a file into a plan. A new family is one small file and one row here."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..config import ModelConfig
from ..errors import UnsupportedArchitectureError
from ..plan import Plan
from . import llama

if TYPE_CHECKING:
    from ..gguf import GGUFFile

# general.architecture -> the function that writes its plan
FAMILIES: dict[str, Callable[[ModelConfig, GGUFFile], Plan]] = {
    "llama": llama.build,
}


def check_architecture(file: GGUFFile) -> str:
    """The family of a file. Raises UnsupportedArchitectureError that names the supported ones, MissingKeyError."""
    arch = file.get("general.architecture", str)
    if arch not in FAMILIES:
        raise UnsupportedArchitectureError(arch, FAMILIES, path=file.path)
    return arch


def read_config(file: GGUFFile) -> ModelConfig:
    """The checked hyperparameters of a file of a supported family. Raises as `check_architecture` and `from_gguf`."""
    check_architecture(file)
    return ModelConfig.from_gguf(file)


def build_plan(config: ModelConfig, file: GGUFFile) -> Plan:
    """The plan of a model. `file` tells which optional tensors (biases, an output head) there are.

    Raises UnsupportedArchitectureError, UnsupportedFeatureError, ModelFormatError.
    """
    check_architecture(file)
    return FAMILIES[config.arch](config, file)
