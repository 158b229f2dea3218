"""JSON from files that nobody checked: size limit, UTF-8, no duplicate keys, no NaN, typed errors."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, TypeVar

from ..errors import ModelFormatError, one_line
from ..gguf.source import MappedFile

_T = TypeVar("_T")
MAX_JSON = 64 << 20  # bytes; the largest tokenizer.json in use has about 35 MB


class StrictJSONError(ValueError):
    """Why a text is refused. `duplicate` tells that the reason is a key that appears twice."""

    def __init__(self, message: str, duplicate: bool = False) -> None:
        self.duplicate = duplicate
        super().__init__(message)


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise StrictJSONError(f"key '{one_line(key)}' appears twice", duplicate=True)
            seen.add(key)
    return out


def _no_constant(name: str) -> Any:
    raise StrictJSONError(f"{name} is not a JSON value")


def parse(raw: bytes) -> dict[str, Any]:
    """The JSON object in `raw` (UTF-8). Raises StrictJSONError."""
    value = parse_any(raw)
    if not isinstance(value, dict):
        raise StrictJSONError("not an object")
    return value


def parse_objects(raw: bytes) -> list[dict[str, Any]]:
    """The list of JSON objects in `raw` (UTF-8). Raises StrictJSONError."""
    value = parse_any(raw)
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise StrictJSONError("not a list of objects")
    return value


def parse_any(raw: bytes) -> Any:
    """The JSON value in `raw` (UTF-8). Raises StrictJSONError."""
    try:
        text = raw.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_pairs, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise StrictJSONError(f"not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise StrictJSONError("nested too deeply") from None
    except json.JSONDecodeError as error:
        raise StrictJSONError(f"{error.msg} at character {error.pos}") from None
    except StrictJSONError:
        raise
    except ValueError as error:  # a number with thousands of digits
        raise StrictJSONError(str(error)) from None
    if "\\u" in text and _has_lone_surrogate(value):
        raise StrictJSONError("a string holds half of a surrogate pair")
    return value


def _has_lone_surrogate(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def read_object(path: str | os.PathLike[str], *, rule: str | None = None) -> dict[str, Any]:
    """The JSON object in a file. Raises ModelFormatError (also for a folder, a pipe, no permission, over 64 MB)."""
    return _read(path, parse, rule)


def read_objects(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The list of JSON objects in a file. Raises as `read_object`."""
    return _read(path, parse_objects, None)


def _read(path: str | os.PathLike[str], parser: Callable[[bytes], _T], rule: str | None) -> _T:
    file = MappedFile(path)
    try:
        if file.size > MAX_JSON:
            raise ModelFormatError(
                "the JSON file is too large", path=file.path, field="size", value=file.size, limit=MAX_JSON, rule=rule
            )
        raw = file.read_all()
    finally:
        file.close()
    try:
        return parser(raw)
    except StrictJSONError as error:
        raise ModelFormatError(f"not valid JSON: {error}", path=path, rule=rule) from None
