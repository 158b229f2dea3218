"""Tokenizers of converted folders against the packages that made them, on every line of two books: ids and texts."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from edgellm.convert.hf_config import read_config
from edgellm.convert.hf_tokenizer import tokenizer_keys
from edgellm.convert.strict_json import read_object
from edgellm.tokenizers import Tokenizer
from edgellm.tokenizers.vocab import read_vocab

FOLDERS = [
    "gemma2", "gemma3", "granite", "llama", "llama3-rope", "mistral", "mixtral", "olmo2", "phi3", "qwen2", "qwen3",
    "qwen3moe", "smollm3",
]  # fmt: skip


@lru_cache(maxsize=1)
def book_lines(folder: Path) -> list[str]:
    names = ("grimm.txt", "wikitext2-test.txt")
    return [line for name in names for line in (folder / name).read_text(encoding="utf-8").split("\n")]


def of_folder(folder: Path) -> Tokenizer:
    """The tokenizer that `edgellm convert` writes for a folder."""
    config = read_config(read_object(str(folder / "config.json")), str(folder / "config.json"))
    keys, _, _ = tokenizer_keys(str(folder), config)
    return Tokenizer(read_vocab({name: value for name, value, _ in keys}, folder))


def peer(folder: Path) -> tuple[Any, Any]:
    """Two functions of the folder's own package: texts -> ids, and ids -> texts."""
    if (folder / "tokenizer.model").exists():
        package = pytest.importorskip("sentencepiece")
        one = package.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        return one.encode, one.decode
    package = pytest.importorskip("tokenizers")
    one = package.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return (
        lambda texts: [found.ids for found in one.encode_batch_fast(texts, add_special_tokens=False)],
        lambda ids: one.decode_batch(ids, skip_special_tokens=False),
    )


@pytest.mark.parametrize("name", FOLDERS)
def test_every_line_of_two_books(shared_data: Path, name: str) -> None:
    folder = shared_data / "hf-tiny" / name
    lines = book_lines(shared_data / "text")
    encode, decode = peer(folder)
    tokenizer = of_folder(folder)
    assert len(lines) > 7_900
    ids = encode(lines)
    texts = decode(ids)
    for line, theirs, text in zip(lines, ids, texts, strict=True):
        ours = tokenizer.encode(line, add_special=False)
        assert ours == theirs, line
        assert tokenizer.decode(ours) == text, line
        assert text == line
