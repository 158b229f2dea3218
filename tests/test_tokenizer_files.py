"""Vocabularies that are refused, each with its typed error (rules V of formats/container.md)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import BYTE, NORMAL, tiny_llama_gguf, tiny_vocab
from tokenizer_helpers import metadata

from edgellm.errors import TokenizerError
from edgellm.tokenizers import Tokenizer
from edgellm.tokenizers.vocab import read_vocab


def with_piece(piece: str, kind: int = NORMAL) -> dict[str, Any]:
    pieces, scores, types = tiny_vocab()
    return {"tokens": [*pieces, piece], "scores": [*scores, 0.0], "token_type": [*types, kind]}


N = len(tiny_vocab()[0])
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "scores too short": ({"scores": np.zeros(N - 1, np.float32)}, "V1.*scores"),
    "scores too long": ({"scores": np.zeros(N + 1, np.float32)}, "V1"),
    "scores are integers": ({"scores": np.zeros(N, np.int32)}, "V1"),
    "scores missing": ({"scores": None}, "scores"),
    "score not finite": ({"scores": np.full(N, np.nan, np.float32)}, "not finite"),
    "types too short": ({"token_type": np.ones(N - 1, np.int32)}, "V1.*token_type"),
    "types are floats": ({"token_type": np.ones(N, np.float32)}, "V1"),
    "type 0": ({"token_type": np.zeros(N, np.int32)}, "unknown type"),
    "type 7": ({"token_type": np.full(N, 7, np.int32)}, "1 to 6"),
    "tokens missing": ({"tokens": None}, "no vocabulary"),
    "tokens are numbers": ({"tokens": np.zeros(3, np.int32)}, "not a string"),
    "tokens is a string": ({"tokens": "abc"}, "array of strings"),
    "no tokens": ({"tokens": []}, "no pieces"),
    "bos outside": ({"bos_token_id": N}, f"V2.*bos_token_id.*{N}"),
    "eos outside": ({"eos_token_id": 2**32 - 1}, "V2.*eos_token_id"),
    "unk negative": ({"unknown_token_id": -1}, "V2"),
    "eot outside": ({"eot_token_id": 2**31}, "V2.*eot_token_id"),
    "pad is a string": ({"padding_token_id": "0"}, "K12"),
    "eos is a bool": ({"eos_token_id": True}, "K12"),
    "add_bos is a number": ({"add_bos_token": 1}, "K12"),
    "byte ZZ": (with_piece("<0xZZ>", BYTE), "V3.*<0xZZ>"),
    "byte -1": (with_piece("<0x-1>", BYTE), "V3"),
    "byte 1": (with_piece("<0x1>", BYTE), "V3"),
    "byte of words": (with_piece("byte", BYTE), "V3"),
    "piece twice": (with_piece("he"), "same text.*V5"),
    "piece empty": (with_piece(""), "empty.*V5"),
    "piece not UTF-8": (with_piece("a\udcff"), "not valid UTF-8.*V5"),
    "piece of 1 MB": (with_piece("x" * 2**20), "too long.*V9"),
    "no kind": ({"model": None}, "no vocabulary"),
    "kind is a number": ({"model": 3}, "K12"),
    "BPE without rule": ({"model": "gpt2"}, "pre-tokenizer 'default' is not supported; supported: gpt-2.*V7"),
    "unheard of rule": ({"model": "gpt2", "pre": "x\n" * 99}, "V7.*tokenizer.ggml.pre"),
    "BPE without merges": ({"model": "gpt2", "pre": "gpt-2"}, "K11.*merges"),
    "merge without space": ({"model": "gpt2", "pre": "gpt-2", "merges": ["he"]}, "no pair.*V4"),
    "merge empty": ({"model": "gpt2", "pre": "gpt-2", "merges": [""]}, "no pair.*V4"),
    "merge half empty": ({"model": "gpt2", "pre": "gpt-2", "merges": ["he "]}, "no pair.*V4"),
    "merge of unknown pieces": ({"model": "gpt2", "pre": "gpt-2", "merges": ["q z"]}, "no piece.*V4"),
    "merge to unknown piece": ({"model": "gpt2", "pre": "gpt-2", "merges": ["he he"]}, "hehe.*no piece.*V4"),
    "merge twice": ({"model": "gpt2", "pre": "gpt-2", "merges": ["h e", "h e"]}, "twice.*V4"),
    "merges are numbers": ({"model": "gpt2", "pre": "gpt-2", "merges": np.zeros(2, np.int32)}, "V5.*merges"),
    "RWKV": ({"model": "rwkv"}, "RWKV.*not supported; supported: llama.*V7"),
    "charsmap is text": ({"model": "t5", "precompiled_charsmap": np.zeros(3)}, "V8"),
    "charsmap too short": ({"model": "t5", "precompiled_charsmap": np.zeros(3, np.uint8)}, "not possible.*V8"),
    "charsmap without trie": ({"model": "t5", "precompiled_charsmap": np.zeros(8, np.uint8)}, "trie does not fit.*V8"),
    "charsmap of a long trie": ({"model": "t5", "precompiled_charsmap": np.full(8, 255, np.uint8)}, "does not fit.*V8"),
    "charsmap without end": ({"model": "t5", "precompiled_charsmap": np.array([4, *[0] * 7, 9], np.uint8)}, "no end"),
    "unheard of": ({"model": "x\n" * 500}, "not supported"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_vocabularies(name: str) -> None:
    changes, match = BAD[name]
    keys = {k: np.array(v, np.int32) if k == "token_type" and isinstance(v, list) else v for k, v in changes.items()}
    if isinstance(keys.get("scores"), list):
        keys["scores"] = np.array(keys["scores"], np.float32)
    start = time.perf_counter()
    with pytest.raises(TokenizerError, match=match) as info:
        Tokenizer(read_vocab(metadata(*tiny_vocab()) | _prefixed(keys), "model.gguf"))
    assert time.perf_counter() - start < 1
    assert "model.gguf" in str(info.value) and "\n" not in str(info.value) and len(str(info.value)) < 2000
    assert info.value.exit_code == 3 and info.value.field.startswith("tokenizer.ggml.")


def _prefixed(keys: dict[str, Any]) -> dict[str, Any]:
    return {f"tokenizer.ggml.{name}": value for name, value in keys.items()}


def test_bad_vocabulary_in_a_file(tmp_path: Path) -> None:
    path = tiny_llama_gguf(tmp_path / "m.gguf", **{"tokenizer.ggml.eos_token_id": 10**6})
    with pytest.raises(TokenizerError, match="V2.*1000000") as info:
        Tokenizer.from_file(path)
    assert info.value.path is not None
