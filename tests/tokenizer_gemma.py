"""A vocabulary as Gemma 4's: characters, bytes for those without a piece, no merge of a line feed with other text."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import numpy as np
from helpers import BYTE, CONTROL, NORMAL, UNKNOWN


@lru_cache(maxsize=1)
def peer_and_metadata() -> tuple[Any, dict[str, Any]]:
    """A trained tokenizer of the package, whose file says what Gemma 4's says, and the same as GGUF keys."""
    import tokenizers
    from tokenizer_rules import hard_texts
    from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers

    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    trained = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trained.normalizer = normalizers.Replace(" ", "\u2581")
    trained.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\n]+|\n+"), "isolated")
    letters = sorted({c for text in hard_texts(300, 2) for c in text if ord(c) < 0x3000} - {" "})
    trainer = trainers.BpeTrainer(
        vocab_size=1500, show_progress=False, initial_alphabet=letters[:400], limit_alphabet=450,
        special_tokens=[*special, *(f"<0x{b:02X}>" for b in range(256))],
    )  # fmt: skip
    lines = ["hello world, the quick brown fox", "Hello World 4567", "été 日本語 été", "\n\n\n", "\n\n\n\n", "a   b"]
    trained.train_from_iterator(lines * 20 + hard_texts(400, 2), trainer)
    table = json.loads(trained.to_str())
    table["added_tokens"] = [row for row in table["added_tokens"] if row["content"] in special]
    table["pre_tokenizer"] = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
                              "invert": False}  # fmt: skip
    vocab = table["model"]["vocab"]
    pieces = sorted(vocab, key=vocab.get)
    kinds = {"<unk>": UNKNOWN, "<pad>": CONTROL, "<eos>": CONTROL, "<bos>": CONTROL}
    kinds |= {f"<0x{b:02X}>": BYTE for b in range(256)}
    keys = {
        "model": "gemma4", "tokens": pieces, "token_type": np.array([kinds.get(p, NORMAL) for p in pieces], np.int32),
        "merges": [" ".join(row) if isinstance(row, list) else row for row in table["model"]["merges"]],
        "bos_token_id": pieces.index("<bos>"), "eos_token_id": pieces.index("<eos>"),
        "unknown_token_id": pieces.index("<unk>"),
    }  # fmt: skip
    peer = tokenizers.Tokenizer.from_str(json.dumps(table))
    return peer, {f"tokenizer.ggml.{name}": value for name, value in keys.items()}
