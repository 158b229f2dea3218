"""Short names for models: a small JSON file in the folder of settings, name -> reference or path."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from ..errors import ModelReferenceError, OutputError
from ..folders import config_folder
from ..gguf.output import AtomicFile
from .reference import is_reference, parse

BUILTIN = "builtin"
_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.:+-]{0,62}[A-Za-z0-9_+])?")
_MAX_BYTES = 1 << 20


def aliases_file() -> Path:
    """Where the names are kept."""
    return config_folder() / "aliases.json"


def read_aliases() -> dict[str, str]:
    """All names, sorted. Raises ModelReferenceError where the file is not what `set_alias` writes."""
    try:
        path = aliases_file()
        with open(path, "rb") as file:
            text = file.read(_MAX_BYTES + 1)
    except (OSError, RuntimeError):  # no home folder raises RuntimeError
        return {}
    try:
        if len(text) > _MAX_BYTES:
            raise ValueError
        found = json.loads(text)["aliases"].items()
        if all(_is_entry(name, target) for name, target in found):
            return dict(sorted(found))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise ModelReferenceError(path, "this file of aliases is damaged; mend or remove it")


def _is_entry(name: str, target: object) -> bool:
    return is_alias_name(name) and isinstance(target, str) and 0 < len(target) < 5000 and target.isprintable()


def is_alias_name(text: str) -> bool:
    """Whether this may be a short name: one word, no path, no file's name."""
    return _NAME.fullmatch(text) is not None and not is_reference(text) and not text.lower().endswith(".gguf")


def check_alias_name(name: str) -> None:
    """Raises ModelReferenceError for what cannot be a short name."""
    if not is_alias_name(name) or name == BUILTIN:
        raise ModelReferenceError(name, "this cannot be an alias; take one word of letters, digits, and . _ - : +")


def set_alias(name: str, target: str) -> str:
    """Let `name` stand for `target`: a reference, or the path of a file, which is made absolute.

    Returns what was written. Raises ModelReferenceError (no such name, no such target), OutputError.
    """
    check_alias_name(name)
    if is_reference(target):
        target = str(parse(target))
    elif os.path.isfile(target):
        target = os.path.abspath(target)
    else:
        raise ModelReferenceError(target, "an alias stands for hf:owner/repo:QUANT or for a file that is there")
    _write(read_aliases() | {name: target})
    return target


def remove_alias(name: str) -> str:
    """Forget a name; returns what it stood for. Raises ModelReferenceError where there is none, OutputError."""
    names = read_aliases()
    if name not in names:
        raise ModelReferenceError(name, "there is no alias of that name; aliases are", names)
    target = names.pop(name)
    _write(names)
    return target


def _write(names: dict[str, str]) -> None:
    try:
        path = aliases_file()
        path.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        raise OutputError(f"the folder of settings cannot be made: {error}") from None
    text = json.dumps({"aliases": dict(sorted(names.items()))}, indent=2, ensure_ascii=False).encode() + b"\n"
    out = AtomicFile(path)
    try:
        out.open(len(text))
        out.write(text)
        out.commit()
    except BaseException:
        out.abort()
        raise
