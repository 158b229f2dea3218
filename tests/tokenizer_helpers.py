"""Small vocabularies for the tests of tokenizers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import CONTROL, UNKNOWN, tiny_vocab

from edgellm import clib
from edgellm.tokenizers import Tokenizer
from edgellm.tokenizers.vocab import read_vocab

needs_native = pytest.mark.skipif(not clib.available(), reason="needs the compiled library")
SPACE = "\u2581"


def metadata(pieces: list[str], scores: list[float], types: list[int], **keys: Any) -> dict[str, Any]:
    found = {
        "model": "llama",
        "tokens": pieces,
        "scores": np.array(scores, np.float32),
        "token_type": np.array(types, np.int32),
        "unknown_token_id": 0,
        **keys,
    }
    return {f"tokenizer.ggml.{name}": value for name, value in found.items() if value is not None}


def tiny(native: bool | None = None, **keys: Any) -> Tokenizer:
    return Tokenizer(read_vocab(metadata(*tiny_vocab(), **keys)), native=native)


def small(extra: list[tuple[str, float, int]], native: bool | None = None, **keys: Any) -> Tokenizer:
    """A vocabulary of `<unk>`, `<s>`, `</s>` and some pieces more, without bytes."""
    rows = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL), *extra]
    columns = [list(column) for column in zip(*rows, strict=True)]
    return Tokenizer(read_vocab(metadata(*columns, **keys)), native=native)
