"""Facts about a model file: whether it is sound, fits, and answers as it should."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgellm.errors import EdgeLLMError, ModelFileNotFoundError
from edgellm.progress import ProgressCallback

if TYPE_CHECKING:
    from edgellm.gguf import GGUFFile


def examine_model(
    path: str | os.PathLike[str],
    backends: dict[str, dict[str, Any]],
    run: bool,
    progress: ProgressCallback | None,
) -> dict[str, Any]:
    """What is found in the file. A part whose examination fails is {"error", "exit_code"}; what needs it is left out.

    Raises ModelFileNotFoundError.
    """
    from edgellm.gguf import open_gguf

    facts: dict[str, Any] = {"file": str(path)}
    try:
        file = open_gguf(path)
    except ModelFileNotFoundError:
        raise
    except EdgeLLMError as error:
        return facts | {"header": _error(error)}
    with file:
        facts |= _header(file)
        facts["config"] = _part(lambda: _config(file))
        facts["warnings"] = list(file.warnings)  # binding the tensors may have added some
        facts["tokenizer"] = _part(lambda: _tokenizer(file))
        facts["template"] = _part(lambda: _template(file))
        if run and file.packed is not None:
            facts["checksums"] = _part(lambda: _checksums(str(file.path), progress))
        if "error" in facts["config"]:
            return facts
        facts["memory"] = _part(lambda: _memory(str(file.path)))
        if run and facts["memory"].get("fits"):
            from edgellm.doctor.passes import run_backends

            facts["runs"] = run_backends(file, backends, progress)
    return facts


def _part(examine: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return examine()
    except EdgeLLMError as error:
        return _error(error)


def _error(error: EdgeLLMError) -> dict[str, Any]:
    return {"error": str(error), "exit_code": error.exit_code}


def _header(file: GGUFFile) -> dict[str, Any]:
    """Everything in a header is checked when a file is opened: what is left are the warnings."""
    return {
        "file": str(file.path),
        "header": {
            "bytes": file.n_bytes,
            "tensors": len(file.tensors),
            "keys": len(file.metadata),
            "packed": file.packed is not None,
        },
    }


def _config(file: GGUFFile) -> dict[str, Any]:
    from edgellm.models import build_plan, read_config
    from edgellm.weights import Weights

    config = read_config(file)
    plan = build_plan(config, file)
    weights = Weights(file, plan)
    return {
        "architecture": config.arch,
        "types": sorted({weights.type(name).name for name in weights.names}),
        "writes_text": plan.logits is not None,
        "unused_tensors": len(weights.extra),
        "n_ctx_train": config.n_ctx_train,
    }


def _memory(path: str) -> dict[str, Any]:
    from edgellm.memory_estimate import estimate

    return estimate(path).to_dict()


def _tokenizer(file: GGUFFile) -> dict[str, Any]:
    from edgellm.doctor.text import tokenizer_facts
    from edgellm.tokenizers import Tokenizer

    return tokenizer_facts(Tokenizer.from_gguf(file))


def _template(file: GGUFFile) -> dict[str, Any]:
    from edgellm.doctor.text import template_facts
    from edgellm.tokenizers import Tokenizer

    template = file.get("tokenizer.chat_template", str, None)
    if not template:
        return {"present": False}
    return template_facts(template, Tokenizer.from_gguf(file), file.path)


def _checksums(path: str, progress: ProgressCallback | None) -> dict[str, Any]:
    from edgellm.pack import verify

    return {"bytes": verify(path, progress)}
