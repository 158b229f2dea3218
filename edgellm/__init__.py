"""Run language models inside your own program, on the CPU you have.

    import edgellm

    with edgellm.load("model.gguf") as model:
        print(model.generate("Once upon a time", max_tokens=50).text)

Importing this module is quick and does nothing else: names are looked up when they are used first.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgellm.async_stream import AsyncStream  # noqa: F401
    from edgellm.cache import Overflow  # noqa: F401
    from edgellm.errors import (  # noqa: F401
        BackendError,
        Cancelled,
        ContextOverflowError,
        ConvertError,
        DownloadError,
        EdgeLLMError,
        GrammarError,
        InvalidArgumentError,
        MissingKeyError,
        MissingPackageError,
        MissingTensorError,
        ModelClosedError,
        ModelFileChanged,
        ModelFileNotFoundError,
        ModelFormatError,
        ModelReferenceError,
        NonFiniteError,
        NotEnoughMemoryError,
        OutputError,
        QueueFullError,
        SessionFileError,
        TemplateError,
        TokenizerError,
        UnsupportedArchitectureError,
        UnsupportedFeatureError,
        UnsupportedQuantError,
        WrongKeyTypeError,
    )
    from edgellm.hub import pull  # noqa: F401
    from edgellm.memory_estimate import MemoryEstimate, estimate  # noqa: F401
    from edgellm.model import Model, load  # noqa: F401
    from edgellm.openai_shim import openai  # noqa: F401
    from edgellm.results import Context, Event, Progress, Result, Stats, ToolCall, Usage  # noqa: F401
    from edgellm.sampling import Sampling  # noqa: F401
    from edgellm.session import Session  # noqa: F401
    from edgellm.stream import Stream  # noqa: F401
    from edgellm.tokenizers import Tokenizer  # noqa: F401

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
            "BackendError", "Cancelled", "ContextOverflowError", "ConvertError", "DownloadError", "EdgeLLMError",
            "GrammarError", "InvalidArgumentError", "MissingKeyError", "MissingPackageError", "MissingTensorError",
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
