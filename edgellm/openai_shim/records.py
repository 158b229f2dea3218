"""What the shim gives back: OpenAI's objects as dictionaries whose items are attributes too."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgellm.calls import unknown_option
from edgellm.errors import InvalidArgumentError

if TYPE_CHECKING:
    from edgellm.results import Result

# finish_reason of a Result -> OpenAI's
FINISH = {"stop": "stop", "length": "length", "tool_calls": "tool_calls", "cancelled": "stop", "timeout": "length"}


class Record(dict[str, Any]):
    """`record["choices"]` and `record.choices` are the same; lists and mappings inside are records too."""

    def __init__(self, **items: Any) -> None:
        super().__init__({name: _record(value) for name, value in items.items()})

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"there is no '{name}' here; there are {', '.join(self)}") from None

    def model_dump(self) -> dict[str, Any]:
        """Everything as plain dictionaries and lists."""
        plain: dict[str, Any] = _plain(self)
        return plain

    def model_dump_json(self, indent: int | None = None) -> str:
        """Everything as JSON text."""
        return json.dumps(self, ensure_ascii=False, indent=indent)


def _record(value: Any) -> Any:
    if isinstance(value, Mapping):
        return Record(**value)
    return [_record(item) for item in value] if isinstance(value, (list, tuple)) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def head(prefix: str, kind: str, model: str) -> dict[str, Any]:
    """The fields that every answer begins with: a new `id`, `object`, `created` (seconds since 1970), `model`."""
    return {"id": f"{prefix}-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()), "model": model}


def usage_of(results: list[Result]) -> dict[str, Any]:
    """Tokens of all choices together; a prompt that they share counts once."""
    prompt = results[0].usage.prompt_tokens if results else 0
    completion = sum(result.usage.completion_tokens for result in results)
    cached = results[0].context.reused if results else 0
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def known(options: Mapping[str, Any], names: frozenset[str], call: str) -> dict[str, Any]:
    """The options that were given; None is as good as left out. Raises InvalidArgumentError that names a stranger."""
    strange = sorted(set(options) - names)
    if strange:
        raise InvalidArgumentError(f"{call}: {unknown_option(strange, names)}")
    return {name: value for name, value in options.items() if value is not None}
