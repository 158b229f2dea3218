"""How a sentence-transformers folder makes one embedding of a text: `modules.json` and the pooling module's config."""

from __future__ import annotations

import os
from typing import Any

from ..errors import ConvertError, UnsupportedFeatureError
from .strict_json import read_object, read_objects

NONE, MEAN, CLS, LAST = 0, 1, 2, 3  # GGUF's ARCH.pooling_type
_MODES = {
    "pooling_mode_mean_tokens": MEAN, "pooling_mode_cls_token": CLS, "pooling_mode_lasttoken": LAST,
    "mean": MEAN, "cls": CLS, "lasttoken": LAST,
}  # fmt: skip
_HARMLESS = ("Transformer", "Pooling", "Normalize")  # embeddings are normalised where somebody asks for it


def pooling_type(folder: str) -> tuple[int | None, list[str]]:
    """(GGUF's number, the files that were read); None where the folder does not say.

    Raises UnsupportedFeatureError for modules or a pooling that GGUF cannot say, ConvertError, ModelFormatError.
    """
    path = os.path.join(folder, "modules.json")
    if not os.path.lexists(path):
        return None, []
    for module in read_objects(path):
        kind, where = module.get("type"), module.get("path")
        name = kind.rsplit(".", 1)[-1] if isinstance(kind, str) else ""
        if name not in _HARMLESS:
            raise UnsupportedFeatureError(
                "this module changes the embeddings and has no place in GGUF", path=path, field="type", value=kind,
                limit=", ".join(_HARMLESS),
            )  # fmt: skip
        if name == "Pooling":
            if not isinstance(where, str) or os.path.basename(where) != where or where in ("", ".", ".."):
                raise ConvertError("a module's path must be a folder beside modules.json", path=path, value=where)
            config = os.path.join(folder, where, "config.json")
            return _mode(read_object(config), config), [path, config]
    return None, [path]


def _mode(table: dict[str, Any], path: str) -> int:
    """The one mode that is switched on: flags of old versions, a name in new ones."""
    modes = [name for name, value in table.items() if name.startswith("pooling_mode_") and value is True]
    if isinstance(table.get("pooling_mode"), str):
        modes = [table["pooling_mode"]]
    if len(modes) != 1 or modes[0] not in _MODES:
        raise UnsupportedFeatureError(
            "GGUF cannot say this pooling", path=path, field="pooling_mode", value=", ".join(modes) or None,
            limit="one of mean, cls, last token",
        )  # fmt: skip
    return _MODES[modes[0]]
