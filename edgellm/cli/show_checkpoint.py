"""`edgellm show` for what the converter reads: folders, LoRA adapters, safetensors and PyTorch files."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

_CONFIG, _ADAPTER = "config.json", "adapter_config.json"
# summary -> field of config.json
_FACTS = {
    "context_length": "max_position_embeddings", "layers": "num_hidden_layers", "width": "hidden_size",
    "vocabulary": "vocab_size",
}  # fmt: skip


def is_checkpoint(path: str) -> bool:
    """Whether this is a folder, or by its first bytes a safetensors or PyTorch file. Raises as MappedFile does."""
    if os.path.isdir(path):
        return True
    return _reader(path) is not None


def _reader(path: str) -> Any:
    from edgellm.convert.safetensors import SafetensorsFile
    from edgellm.convert.torch_bin import TorchFile
    from edgellm.gguf.source import MappedFile

    file = MappedFile(path)
    start = bytes(file.buffer[:9])
    file.close()
    if start[:4] == b"PK\3\4" or (start[:1] == b"\x80" and path.endswith((".bin", ".pt", ".pth"))):
        return TorchFile  # also for the old format, so that the error is the right one
    return SafetensorsFile if start[8:9] == b"{" and start[:4] != b"GGUF" else None


def checkpoint_parts(path: str, wanted: list[str]) -> dict[str, Any]:
    """Name -> value of the parts that are wanted. Raises InvalidArgumentError for those that only a GGUF file has."""
    from edgellm.errors import InvalidArgumentError

    for name in ("tokenizer", "plan", "fit"):
        if name in wanted:
            raise InvalidArgumentError(f"--{name} needs a GGUF file; convert this one first")
    parts = {"summary": _summary, "metadata": _metadata, "tensors": _tensors, "chat_template": _template}
    with _opened(path) as checkpoint:
        return {name: parts[name](checkpoint) for name in wanted}


class _Shown:
    """What the parts are read from: entries by name, the file of each, and the JSON file of a folder."""

    def __init__(self, path: str, kind: str, files: dict[str, Any], config: dict[str, Any]) -> None:
        self.path, self.kind, self.config = path, kind, config
        self.files = files  # name of a tensor -> its SafetensorsFile or TorchFile
        self.paths = sorted({file.path for file in files.values()})

    @property
    def is_model_folder(self) -> bool:
        return os.path.isdir(self.path) and "peft_type" not in self.config


@contextmanager
def _opened(path: str) -> Iterator[_Shown]:
    from edgellm.convert.checkpoint import Checkpoint
    from edgellm.convert.strict_json import read_object
    from edgellm.errors import ConvertError

    if not os.path.isdir(path):
        with _reader(path)(path) as file:
            yield _Shown(path, _kind(file), dict.fromkeys(file.entries, file), file.metadata)
        return
    adapter = os.path.lexists(os.path.join(path, _ADAPTER))
    config = os.path.join(path, _ADAPTER if adapter else _CONFIG)
    if not os.path.lexists(config):
        raise ConvertError("no config.json in this folder; give a GGUF file or a Hugging Face model folder", path=path)
    table = read_object(config)
    with Checkpoint(path, adapter) as checkpoint:
        files = {name: checkpoint.file_of(name) for name in checkpoint}
        kind = f"{table.get('peft_type')} adapter" if adapter else "Hugging Face folder"
        what = _kind(next(iter(files.values()))) if files else "no tensors"
        yield _Shown(path, f"{kind}, {what}", files, table)


def _kind(file: Any) -> str:
    return {"SafetensorsFile": "safetensors", "TorchFile": "PyTorch .bin"}[type(file).__name__]


# ---- the parts ---------------------------------------------------------------------------------------


def _summary(c: _Shown) -> dict[str, Any]:
    from edgellm.convert.hf_families import FAMILIES

    entries = [file.entries[name] for name, file in c.files.items()]
    names = c.config.get("architectures") if c.is_model_folder else None
    arch = str(names[0]) if isinstance(names, list) and names else ""
    weights, n_bytes = sum(prod(e.shape) for e in entries), sum(e.n_bytes for e in entries)
    return {
        "file": c.path,
        "kind": c.kind,
        "name": os.path.basename(os.path.abspath(c.path)),
        "architecture": arch,
        "supported": not arch or arch in FAMILIES,
        "parameters": weights,
        "file_bytes": sum(os.path.getsize(path) for path in c.paths),
        "parts": len(c.paths),
        "tensor_bytes": n_bytes,
        "bits_per_weight": round(8 * n_bytes / weights, 2) if weights else 0.0,
        "types": dict(Counter(e.dtype for e in entries).most_common()),
        **{name: _short(c.config.get(field)) if c.is_model_folder else None for name, field in _FACTS.items()},
        "chat_template": _template(c) is not None,
    }


def _metadata(c: _Shown) -> dict[str, Any]:
    """The fields of the JSON file of a folder, or the metadata of a safetensors file; of lists only their length."""
    return {key: _short(value) for key, value in c.config.items()}


def _short(value: Any) -> Any:
    if isinstance(value, (list, dict)):
        return {"array_of": "values", "length": len(value)}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value  # JSON has no infinity


def _tensors(c: _Shown) -> list[dict[str, Any]]:
    rows = []
    for name, file in c.files.items():
        e = file.entries[name]
        rows.append({
            "name": name, "shape": list(e.shape), "type": e.dtype, "bytes": e.n_bytes, "offset": e.offset,
            "file": os.path.basename(file.path),
        })  # fmt: skip
    return rows


def _template(c: _Shown) -> str | None:
    from edgellm.convert.hf import templates

    return templates(c.path).get("default") if c.is_model_folder else None
