"""Run language models inside your own program, on the CPU you have.

    import edgellm

    with edgellm.load("model.gguf") as model:
        print(model.generate("Once upon a time", max_tokens=50).text)

Importing this module is quick and does nothing else: names are looked up when they are used first.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # "as" tells type checkers that the names are meant for users
    from edgellm.async_stream import AsyncStream as AsyncStream
    from edgellm.cache import Overflow as Overflow
    from edgellm.errors import BackendError as BackendError
    from edgellm.errors import Cancelled as Cancelled
    from edgellm.errors import ContextOverflowError as ContextOverflowError
    from edgellm.errors import ConvertError as ConvertError
    from edgellm.errors import DownloadError as DownloadError
    from edgellm.errors import DraftModelError as DraftModelError
    from edgellm.errors import EdgeLLMError as EdgeLLMError
    from edgellm.errors import GrammarError as GrammarError
    from edgellm.errors import InvalidArgumentError as InvalidArgumentError
    from edgellm.errors import MissingKeyError as MissingKeyError
    from edgellm.errors import MissingPackageError as MissingPackageError
    from edgellm.errors import MissingTensorError as MissingTensorError
    from edgellm.errors import ModelClosedError as ModelClosedError
    from edgellm.errors import ModelFileChanged as ModelFileChanged
    from edgellm.errors import ModelFileNotFoundError as ModelFileNotFoundError
    from edgellm.errors import ModelFormatError as ModelFormatError
    from edgellm.errors import ModelReferenceError as ModelReferenceError
    from edgellm.errors import NonFiniteError as NonFiniteError
    from edgellm.errors import NotEnoughMemoryError as NotEnoughMemoryError
    from edgellm.errors import OutputError as OutputError
    from edgellm.errors import QueueFullError as QueueFullError
    from edgellm.errors import SessionFileError as SessionFileError
    from edgellm.errors import TemplateError as TemplateError
    from edgellm.errors import TokenizerError as TokenizerError
    from edgellm.errors import UnsupportedArchitectureError as UnsupportedArchitectureError
    from edgellm.errors import UnsupportedFeatureError as UnsupportedFeatureError
    from edgellm.errors import UnsupportedQuantError as UnsupportedQuantError
    from edgellm.errors import WrongKeyTypeError as WrongKeyTypeError
    from edgellm.hub import pull as pull
    from edgellm.memory_estimate import MemoryEstimate as MemoryEstimate
    from edgellm.memory_estimate import estimate as estimate
    from edgellm.model import Model as Model
    from edgellm.model import load as load
    from edgellm.openai_shim import openai as openai
    from edgellm.results import Context as Context
    from edgellm.results import Event as Event
    from edgellm.results import Progress as Progress
    from edgellm.results import Result as Result
    from edgellm.results import Stats as Stats
    from edgellm.results import ToolCall as ToolCall
    from edgellm.results import Usage as Usage
    from edgellm.sampling import Sampling as Sampling
    from edgellm.session import Session as Session
    from edgellm.stream import Stream as Stream
    from edgellm.tokenizers import Tokenizer as Tokenizer

__version__ = "0.1.0"

# public name -> the module that has it
_HOMES = {
    **dict.fromkeys(("load", "Model"), "edgellm.model"),
    "openai": "edgellm.openai_shim",
    "Overflow": "edgellm.cache",
    "pull": "edgellm.hub",
    "Stream": "edgellm.stream",
    "AsyncStream": "edgellm.async_stream",
    **dict.fromkeys(("MemoryEstimate", "estimate"), "edgellm.memory_estimate"),
    **dict.fromkeys(("Context", "Event", "Progress", "Result", "Stats", "ToolCall", "Usage"), "edgellm.results"),
    "Sampling": "edgellm.sampling",
    "Session": "edgellm.session",
    "Tokenizer": "edgellm.tokenizers",
    **dict.fromkeys(
        (
            "BackendError", "Cancelled", "ContextOverflowError", "ConvertError", "DownloadError",
            "DraftModelError", "EdgeLLMError", "GrammarError", "InvalidArgumentError", "MissingKeyError",
            "MissingPackageError", "MissingTensorError",
            "ModelClosedError", "ModelFileChanged", "ModelFileNotFoundError", "ModelFormatError",
            "ModelReferenceError", "NonFiniteError", "NotEnoughMemoryError", "OutputError", "QueueFullError",
            "SessionFileError", "TemplateError", "TokenizerError", "UnsupportedArchitectureError",
            "UnsupportedFeatureError", "UnsupportedQuantError", "WrongKeyTypeError",
        ),
        "edgellm.errors",
    ),
}  # fmt: skip

__all__ = ["__version__", *_HOMES]

# A library stays silent unless the program that uses it sets up logging.
logging.getLogger("edgellm").addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'edgellm' has no attribute '{name}'")
    from importlib import import_module

    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
