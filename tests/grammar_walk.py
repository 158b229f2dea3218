"""Random answers under a constraint, without a model: random logits, the mask, a choice."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from tokenizer_helpers import metadata

from edgellm.sampling import Constraint
from edgellm.tokenizers import Tokenizer
from edgellm.tokenizers.vocab import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, read_vocab

_WORDS = (
    '{"', '":', '",', '":"', '"}', "}]", "},", "[{", '": "', "true", "false", "null", "na", "me", "ing", "the", "e ",
    " a", " {", "00", "12", "20", "é", "日", "😀", "\n", "  ", "\n\n", "\\n", "kind", '"name"', "-0", "1.", "e+",
)  # fmt: skip


def byte_tokenizer(**keys: Any) -> Tokenizer:
    """All bytes and some longer pieces; SentencePiece BPE with its space before a text."""
    rows = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    rows += [(f"<0x{i:02X}>", 0.0, BYTE) for i in range(256)]
    pieces = dict.fromkeys([*(chr(i) for i in range(33, 127)), "\u2581", *(w.replace(" ", "\u2581") for w in _WORDS)])
    rows += [(piece, -float(i), NORMAL) for i, piece in enumerate(pieces)]
    rows += [('{"ok":', 0.0, USER_DEFINED), ("<|tool|>", 0.0, CONTROL), ("<|im_end|>", 0.0, CONTROL)]
    columns = [list(column) for column in zip(*rows, strict=True)]
    return Tokenizer(read_vocab(metadata(*columns, bos_token_id=1, eos_token_id=2, **keys)))


def walk(
    constraint: Constraint, tokenizer: Tokenizer, rng: np.random.Generator, most: int, at_start: bool = True,
    bias: np.ndarray | None = None,
) -> tuple[list[int], bool]:  # fmt: skip
    """An answer from its beginning: see `go_on`."""
    constraint.begin(at_start)
    return go_on(constraint, tokenizer, rng, most, bias)


def go_on(
    constraint: Constraint, tokenizer: Tokenizer, rng: np.random.Generator, most: int, bias: np.ndarray | None = None
) -> tuple[list[int], bool]:
    """Tokens (without the end token) and whether the text came to its end within `most` of them.

    Logits are normal with a spread of 2, plus `bias` float (n_vocab,).
    """
    tokens: list[int] = []
    while len(tokens) < most:
        logits = rng.normal(0.0, 2.0, tokenizer.n_vocab) + (0.0 if bias is None else bias)
        logits[~constraint.mask()] = -np.inf
        token = int(logits.argmax())
        assert np.isfinite(logits[token])
        constraint.accept(token)
        if token in tokenizer.eog_ids:
            return tokens, True
        tokens.append(token)
        if constraint.finished:
            return tokens, True
    return tokens, False


def complete(
    make: Callable[[], Constraint], tokenizer: Tokenizer, tokens: list[int], rng: np.random.Generator,
    at_start: bool = True,
) -> list[int] | None:  # fmt: skip
    """`tokens` and more that bring the text to an end; None where none was found.

    That a validator which knows nothing of grammars takes the whole text proves that `tokens` are a valid prefix.
    """
    bias = closing_bias(tokenizer)
    for attempt in range(20):
        constraint = make()
        constraint.begin(at_start)
        for token in tokens:
            assert constraint.mask()[token]
            constraint.accept(token)
        if constraint.finished:
            return tokens
        more, ended = go_on(constraint, tokenizer, rng, 2000, bias / (1 + attempt / 4))
        if ended:
            return tokens + more
    return None


def closing_bias(tokenizer: Tokenizer) -> np.ndarray:
    """float (n_vocab,): what ends a JSON text is likely, white space and what opens is not."""
    out = np.zeros(tokenizer.n_vocab)
    for token in range(tokenizer.n_vocab):
        data = tokenizer.token_bytes(token, skip_special=True)
        if token in tokenizer.eog_ids:
            out[token] = 80
        elif data[:1] in (b"}", b"]"):
            out[token] = 50
        elif data == b'"':
            out[token] = 60  # before brackets, which are text inside a string
        elif data == b"z":  # ends the one pattern among the schemas that asks for more than a quote
            out[token] = 55
        elif data[:1] == b",":  # where nothing can be closed, or digits would go on for ever
            out[token] = 20
        elif data[:1] in (b"{", b"[", b" ", b"\n", b"\t"):
            out[token] = -20
    return out


def parsed(text: str) -> Any:
    """JSON that is held to the standard: no NaN, no infinity."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)
