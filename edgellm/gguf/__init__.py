"""The GGUF container: a checked, mapped reader and a streaming writer. The rules are in formats/container.md."""

from __future__ import annotations

from .constants import ValueType
from .reader import GGUFFile, open_gguf
from .tensors import TensorInfo
from .writer import GGUFWriter

__all__ = ["GGUFFile", "GGUFWriter", "TensorInfo", "ValueType", "open_gguf"]
