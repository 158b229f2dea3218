"""A tokenizer's pieces as `llguidance` walks them: bytes of each token, and which tokens are text at all."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.errors import GrammarError

if TYPE_CHECKING:
    from edgellm.tokenizers import Tokenizer

_BUILT: weakref.WeakKeyDictionary[Any, GrammarVocabulary] = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


def llguidance() -> Any:
    """The package. Raises GrammarError where it is not installed."""
    try:
        import llguidance
    except ImportError:
        raise GrammarError(
            "structured output needs the package llguidance; install it with: pip install 'edgellm[grammar]'"
        ) from None
    return llguidance


class GrammarVocabulary:
    """One per tokenizer, see `of`. Making it takes about a second for 128,000 tokens, and some 100 bytes for each.

    `n_vocab`; `eog_ids` int64 (n,): the tokens that end an answer; `is_text` bool (n_vocab,): tokens that add bytes to
    a text; `walker`: the `LLTokenizer`. To it, tokens that are no text are empty and can never be reached, and the end
    of the text is a token of its own behind all others, so no vocabulary's ids can be mixed up with it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.n_vocab = tokenizer.n_vocab
        ends = tokenizer.eog_ids
        self.eog_ids = np.array(sorted(ends), np.int64)  # (n eog,)
        self.tokens = [
            b"" if i in ends or tokenizer.is_control(i) else tokenizer.token_bytes(i, skip_special=True)
            for i in range(self.n_vocab)
        ]
        self.is_text = np.array([bool(data) for data in self.tokens])  # (n_vocab,)
        self.walker = llguidance().LLTokenizer(_Pieces(self.tokens))
        self._starts = [tokenizer.without_prefix(i, data) for i, data in enumerate(self.tokens)]
        self._begun: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def begun(self) -> tuple[np.ndarray, np.ndarray]:
        """For a text's first token, whose space is taken off: int64 (n,) tokens that lose one, and for each of them the
        token that has just these bytes, -1 where there is none."""
        if self._begun is None:
            ids = {data: i for i, data in enumerate(self.tokens) if data}
            pairs = [
                (i, ids.get(rest, -1) if rest else -1)
                for i, (rest, data) in enumerate(zip(self._starts, self.tokens, strict=True))
                if len(rest) < len(data)
            ]
            table = np.array(pairs, np.int64).reshape(-1, 2)
            self._begun = (table[:, 0], table[:, 1])
            self._starts = []
        return self._begun

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> GrammarVocabulary:
        """The vocabulary of a tokenizer, made once. Any thread; the first call takes its time."""
        with _LOCK:
            found = _BUILT.get(tokenizer)
            if found is None:
                found = _BUILT[tokenizer] = cls(tokenizer)
            return found


class _Pieces:
    """What `LLTokenizer` asks of a tokenizer."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokens: list[bytes]) -> None:
        self.tokens = [*tokens, b"<end of text>"]
        self.eos_token_id = len(tokens)
        self.special_token_ids = [len(tokens)]

    def __call__(self, text: Any) -> list[int]:
        """Would spell text that is certain to come; grammars are compiled so that nobody asks."""
        return []
