"""`MissingTokenizer`: stands in for a vocabulary whose kind edgellm cannot read.

The weights of such a file are fine: `Model.logits`, `edgellm bench` and `edgellm show` need token ids only. Whatever
needs text raises the error that the reader raised.
"""

from __future__ import annotations

from typing import Any, NoReturn

from edgellm.errors import TokenizerError


class MissingTokenizer:
    """Knows how many pieces there are; every use of text raises `error`."""

    kind = "missing"
    add_bos = add_eos = False
    bos_id = eos_id = unk_id = None
    eog_ids: frozenset[int] = frozenset()

    def __init__(self, n_vocab: int, error: TokenizerError) -> None:
        self.n_vocab, self.error = n_vocab, error

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise self.error

    encode = encode_parts = decode = decode_bytes = piece = id_of = is_control = _refuse
