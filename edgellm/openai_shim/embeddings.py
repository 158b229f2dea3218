"""`client.embeddings.create`: vectors of texts, OpenAI-shaped."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from edgellm.errors import InvalidArgumentError, one_line
from edgellm.openai_shim.completions import _prompts
from edgellm.openai_shim.records import Record, known

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from edgellm.model import Model


class EmbeddingOptions(TypedDict, total=False):
    """Arguments of `embeddings.create`."""

    input: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
    model: str | None
    encoding_format: str | None
    user: str | None


_NAMES = EmbeddingOptions.__optional_keys__


class Embeddings:
    """See `edgellm.openai`."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def create(self, **options: Unpack[EmbeddingOptions]) -> Record:
        """A `list` of embeddings of length 1, in the order of `input`.

        `encoding_format`: "float" (a list of numbers) or "base64" (little-endian float32). Raises InvalidArgumentError
        for an argument that it does not know, and the errors of `Model.embed`.
        """
        given = known(options, _NAMES, "embeddings.create")
        form = given.get("encoding_format", "float")
        if form not in ("float", "base64"):
            raise InvalidArgumentError(f"encoding_format is '{one_line(form)}'; choose float or base64")
        texts = _prompts(given.get("input"))
        tokenize = self._model.tokenizer.encode
        ids = [tokenize(text, add_special=True) if isinstance(text, str) else text for text in texts]
        rows = np.asarray(self._model.embed(ids), dtype="<f4")
        data = [{"object": "embedding", "index": i, "embedding": _encoded(row, form)} for i, row in enumerate(rows)]
        n = sum(map(len, ids))
        usage = {"prompt_tokens": n, "total_tokens": n}
        return Record(object="list", data=data, model=self._model.name, usage=usage)


def _encoded(row: np.ndarray, form: str) -> Any:
    return row.tolist() if form == "float" else base64.b64encode(row.tobytes()).decode("ascii")
