"""What sampling parameters mean in one vocabulary: texts as token ids."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from edgellm.errors import InvalidArgumentError, one_line
from edgellm.sampling.params import Sampling

MAX_TAIL = 20  # tokens of a breaker behind its first one that are looked at


class TokenTables:
    """Biases and sequence breakers of a `Sampling` as ids: what `reference.sample` and the native sampler take.

    `bias_ids` int32 (n_biases,), `biases` float64 (n_biases,). Breaker b begins with token `heads[b]`; its rest is
    `tails[tail_ends[b - 1] : tail_ends[b]]`. `heads` int32 and `tail_ends` int64 (n_breakers,) ascend; `tails` int32.
    """

    def __init__(self, biases: dict[int, float], breakers: Iterable[tuple[int, tuple[int, ...]]] = ()) -> None:
        rows = sorted(set(breakers))
        self.bias_ids = np.array(list(biases), dtype=np.int32)
        self.biases = np.array(list(biases.values()), dtype=np.float64)
        self.heads = np.array([head for head, _ in rows], dtype=np.int32)
        self.tail_ends = np.cumsum([len(tail) for _, tail in rows], dtype=np.int64)
        self.tails = np.array([token for _, tail in rows for token in tail], dtype=np.int32)


def token_tables(sampling: Sampling, n_vocab: int, tokenizer: Any = None) -> TokenTables:
    """The tables of `sampling` for a `tokenizer` (None: there is no text, only ids).

    Raises InvalidArgumentError for a token that is not in the vocabulary, or a text that is not one token.
    """
    biases: dict[int, float] = {}
    for token, bias in sampling.biases:
        biases[_token_id(token, n_vocab, tokenizer)] = bias
    known = tokenizer is not None and tokenizer.kind != "missing"
    breakers = _breakers(sampling.dry_sequence_breakers, tokenizer) if sampling.has_dry and known else ()
    return TokenTables(biases, breakers)


def _token_id(token: int | str, n_vocab: int, tokenizer: Any) -> int:
    if isinstance(token, int):
        if token >= n_vocab:
            raise InvalidArgumentError(f"logit_bias: token id {token} is outside the vocabulary (0 to {n_vocab - 1})")
        return token
    if tokenizer is None:
        raise InvalidArgumentError(f"logit_bias: without a tokenizer tokens are named by id, not '{one_line(token)}'")
    ids = tokenizer.encode(token, add_special=False, parse_special=True, at_start=False)
    if len(ids) != 1:
        raise InvalidArgumentError(
            f"logit_bias: '{one_line(token)}' is {len(ids)} tokens ({', '.join(map(str, ids[:8]))}), not one; name "
            "them by id"
        )
    return int(ids[0])


_KNOWN: WeakKeyDictionary[Any, dict[tuple[str, ...], set[tuple[int, tuple[int, ...]]]]] = WeakKeyDictionary()


def _breakers(texts: tuple[str, ...], tokenizer: Any) -> set[tuple[int, tuple[int, ...]]]:
    """(head, tail) for every way in which a token can begin one of `texts`, or have it inside."""
    known = _KNOWN.setdefault(tokenizer, {})
    if texts not in known:
        words = [tokenizer.token_bytes(token) for token in range(tokenizer.n_vocab)]
        found = {pair for text in texts for pair in _ways(text, words, tokenizer)}
        if len(known) >= 8:  # whoever tries many gets none of them remembered
            known.clear()
        known[texts] = found
    return known[texts]


def _ways(text: str, words: list[bytes], tokenizer: Any) -> Iterable[tuple[int, tuple[int, ...]]]:
    """As llama.cpp: a token with the whole text in it is a breaker by itself; one that ends in the beginning of the
    text is the head of what the rest of the text is in tokens. (A rest that begins inside a character has none.)"""
    data = text.encode("utf-8", "replace")
    whole = {token for token, word in enumerate(words) if data in word}
    yield from ((token, ()) for token in whole)
    for n in range(1, len(data)):
        try:
            rest = data[n:].decode()
        except UnicodeDecodeError:
            continue
        tail = tuple(tokenizer.encode(rest, add_special=False, at_start=False)[:MAX_TAIL])
        start = data[:n]
        yield from ((token, tail) for token, word in enumerate(words) if word.endswith(start) and token not in whole)
