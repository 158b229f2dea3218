"""A Hugging Face folder -> what goes into the GGUF file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

from ..errors import ConvertError, ModelFormatError, one_line
from ..gguf.source import MappedFile
from . import hf_names
from .checkpoint import Checkpoint
from .hf_bert import n_token_types
from .hf_config import HFConfig, Key, model_keys, read_config
from .hf_pooling import pooling_type
from .hf_tokenizer import tokenizer_keys
from .lora import MergedCheckpoint, open_checkpoint
from .pipeline import Conversion, size_label
from .strict_json import read_object

MAX_TEMPLATE = 1 << 20  # bytes


@dataclass(frozen=True)
class Folder:
    """An opened folder: its checked config.json and its checked, mapped tensors, with an adapter merged in or not."""

    path: str
    config: HFConfig
    checkpoint: Checkpoint | MergedCheckpoint


@contextmanager
def open_folder(path: str, lora: str | os.PathLike[str] | None = None) -> Iterator[Folder]:
    """Check config.json, all shards and the adapter. Raises as `read_config`, `Checkpoint` and `MergedCheckpoint`."""
    config_path = os.path.join(path, "config.json")
    if not os.path.lexists(config_path):
        raise ConvertError("no config.json in this folder; give a Hugging Face model folder", path=path)
    config = read_config(read_object(config_path), config_path)
    with open_checkpoint(path, lora) as checkpoint:
        if isinstance(checkpoint, MergedCheckpoint) and config.tied and checkpoint.changes("lm_head.weight"):
            raise ConvertError(
                "the adapter changes the output head, which config.json ties to the embedding table", path=lora,
                field="lm_head",
            )  # fmt: skip
        yield Folder(path, config, checkpoint)


def read(folder: Folder) -> Conversion:
    """Metadata and tensors of the output; tensors are read from the folder when they are written."""
    c = folder.config
    weights, notes = hf_names.weights(c, folder.checkpoint)
    keys, more, files = tokenizer_keys(folder.path, c)
    notes = [*c.notes, *notes, *more]
    if isinstance(folder.checkpoint, MergedCheckpoint):
        notes, files = [*folder.checkpoint.notes, *notes], [*files, *folder.checkpoint.sources]
    pooling, more_files = pooling_type(folder.path)
    pooling_keys: list[Key] = [] if pooling is None else [(f"{c.family.arch}.pooling_type", pooling, "u32")]
    if c.family.encoder:
        keys = [*keys, ("tokenizer.ggml.token_type_count", n_token_types(c), "u32")]
    general: list[Key] = [
        ("general.type", "model", "str"),
        ("general.name", _name(folder), "str"),
        ("general.size_label", size_label(sum(prod(w.shape) for w in weights)), "str"),
    ]
    sources = [c.path, *files, *more_files, *(w.source for w in weights if w.source)]
    return Conversion(
        arch=c.family.arch,
        model_keys=general + _sampling_keys(folder.path, notes) + model_keys(c) + pooling_keys,
        tokenizer_keys=keys + _template_keys(folder.path),
        weights=weights,
        notes=notes,
        sources=list(dict.fromkeys(sources)),
    )


def _name(folder: Folder) -> str:
    """`_name_or_path` of config.json if it says something, else the name of the folder."""
    given = folder.config.raw.get("_name_or_path")
    name = given if isinstance(given, str) and given.strip("./\\ ") else os.path.abspath(folder.path)
    name = name.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]
    return name.encode("utf-8", "replace").decode("utf-8") or folder.config.family.arch


# Sampling that the makers of a model advise: field of generation_config.json -> GGUF key, type, lowest, highest value.
_SAMPLING = {
    "temperature": ("temp", "f32", 0.0, 100.0),
    "top_k": ("top_k", "i32", 0, 1 << 20),
    "top_p": ("top_p", "f32", 0.0, 1.0),
    "min_p": ("min_p", "f32", 0.0, 1.0),
    "repetition_penalty": ("penalty_repeat", "f32", 0.01, 100.0),
}


def _sampling_keys(folder: str, notes: list[str]) -> list[Key]:
    """`general.sampling.*` for the fields that generation_config.json has; adds a remark for a value that is no use."""
    path = os.path.join(folder, "generation_config.json")
    table = read_object(path) if os.path.lexists(path) else {}
    keys: list[Key] = []
    for name, (key, kind, low, high) in _SAMPLING.items():
        value = table.get(name)
        if value is None:
            continue
        if type(value) not in ((int,) if kind == "i32" else (int, float)) or not low <= value <= high:
            notes.append(f"generation_config.json: {name} {one_line(value)} is out of range and was left out")
            continue
        keys.append((f"general.sampling.{key}", value, kind))
    return keys


# ---- chat templates --------------------------------------------------------------------------------------------------


def _template_keys(folder: str) -> list[Key]:
    """The chat template: a file of its own, or a field of tokenizer_config.json (one text, or named ones)."""
    named = templates(folder)
    keys: list[Key] = []
    if "default" in named:
        keys.append(("tokenizer.chat_template", named.pop("default"), "str"))
    if named:
        keys.append(("tokenizer.chat_templates", sorted(named), "str"))
        keys += [(f"tokenizer.chat_template.{name}", named[name], "str") for name in sorted(named)]
    return keys


def templates(folder: str) -> dict[str, str]:
    """Name -> text of the chat templates of a folder; the usual one is "default"."""
    found: dict[str, str] = {}
    for name, field in (("tokenizer_config.json", "chat_template"), ("chat_template.json", "chat_template")):
        path = os.path.join(folder, name)
        if os.path.lexists(path):
            found.update(_template_field(read_object(path).get(field), path))
    path = os.path.join(folder, "chat_template.jinja")
    if os.path.lexists(path):
        found["default"] = _text(path)
    more = os.path.join(folder, "additional_chat_templates")
    for name in sorted(os.listdir(more)) if os.path.isdir(more) else []:
        stem, end = os.path.splitext(name)
        if end == ".jinja" and _plain(stem):
            found[stem] = _text(os.path.join(more, name))
    return found


def _template_field(value: Any, path: str) -> dict[str, str]:
    if value is None:
        return {}
    rows = [{"name": "default", "template": value}] if isinstance(value, str) else value
    out: dict[str, str] = {}
    for row in rows if isinstance(rows, list) else [None]:
        name, text = (row.get("name"), row.get("template")) if isinstance(row, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(text, str) or not _plain(name):
            raise ConvertError(
                "a chat template must be a text, or a list of named texts", path=path, field="chat_template"
            )
        out[name] = text
    return out


def _plain(name: str) -> bool:
    return 0 < len(name) <= 64 and all(ch.isascii() and (ch.isalnum() or ch in "_-.") for ch in name)


def _text(path: str) -> str:
    file = MappedFile(path)
    try:
        if file.size > MAX_TEMPLATE:
            raise ModelFormatError("the chat template is too large", path=path, value=file.size, limit=MAX_TEMPLATE)
        raw = file.read_all()
    finally:
        file.close()
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelFormatError("the chat template is not UTF-8", path=path, offset=error.start) from None
