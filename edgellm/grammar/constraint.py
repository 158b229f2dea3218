"""`GrammarConstraint`: one answer's way through a compiled form."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.errors import GrammarError, one_line
from edgellm.grammar.vocabulary import GrammarVocabulary, llguidance

if TYPE_CHECKING:
    from edgellm.tokenizers import Tokenizer

# A grammar that needs more than this is refused, or ends the answer with an error; nothing hangs. A step is one mask.
LIMITS = {
    "max_items_in_row": 2_000, "initial_lexer_fuel": 1_000_000, "step_lexer_fuel": 1_000_000, "step_max_items": 100_000,
    "max_lexer_states": 100_000, "max_grammar_size": 200_000, "verbose_errors": False,
}  # fmt: skip


def limits() -> Any:
    """LIMITS as the package wants them."""
    return llguidance().LLParserLimits(**LIMITS)


class CompiledGrammar:
    """A checked form and a tokenizer: what all answers under it share. Calling it gives the constraint of one answer.

    `grammar` is in llguidance's own notation. The first mask needs the tokenizer's `GrammarVocabulary` and a compiled
    grammar; both are made then, on the thread that generates.
    """

    def __init__(self, tokenizer: Tokenizer, grammar: str) -> None:
        self.tokenizer, self.grammar = tokenizer, grammar
        self._lock = threading.Lock()
        self._fresh: Any = None

    def __call__(self) -> GrammarConstraint:
        return GrammarConstraint(self)

    def matcher(self) -> tuple[Any, GrammarVocabulary]:
        """A matcher at the beginning of a text, and its vocabulary. Raises GrammarError."""
        vocabulary = GrammarVocabulary.of(self.tokenizer)
        with self._lock:
            if self._fresh is None:
                fresh = llguidance().LLMatcher(vocabulary.walker, self.grammar, log_level=0, limits=limits())
                if fresh.is_error():
                    raise GrammarError(f"the grammar cannot be used: {reason(fresh.get_error())}")
                self._fresh = fresh
            return self._fresh.deep_copy(), vocabulary


class GrammarConstraint:
    """Holds one answer to a form; an `edgellm.sampling.Constraint`.

    It sees the bytes that the answer's text will have: tokens that are no text are never allowed, and where the text
    begins (`begin`), a token's leading space counts no more than the decoder shows it.
    """

    def __init__(self, compiled: CompiledGrammar) -> None:
        self._compiled = compiled
        self._at_start = self._ended = False
        self._begun: tuple[Any, GrammarVocabulary] | None = None

    def begin(self, at_start: bool) -> None:
        """`at_start`: nothing but control tokens comes before the answer, so the decoder takes off a first space."""
        self._at_start = at_start and self._compiled.tokenizer.add_space_prefix

    def _open(self) -> tuple[Any, GrammarVocabulary]:
        if self._begun is None:
            self._begun = self._compiled.matcher()
        return self._begun

    def mask(self) -> np.ndarray:
        """bool (n_vocab,). Raises GrammarError where nothing may follow or a limit is reached."""
        matcher, vocabulary = self._open()
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)  # 1 bit per token
        if matcher.is_error():
            why = matcher.get_error()
            if why.startswith("NoExtension"):
                raise dead_end()
            raise GrammarError(f"the answer cannot go on: {reason(why)}")
        allowed = np.unpackbits(bits, count=vocabulary.n_vocab, bitorder="little").view(bool)
        if self._at_start:
            whole, rest = vocabulary.begun
            allowed[whole] = (rest >= 0) & allowed[rest]
        if matcher.is_accepting():
            allowed[vocabulary.eog_ids] = True
        elif not allowed.any():
            raise dead_end()
        return allowed

    def accept(self, token: int) -> None:
        """`token` was chosen. Raises GrammarError where the last mask did not allow it."""
        matcher, vocabulary = self._open()
        if token in vocabulary.eog_ids:
            self._ended = True
            if matcher.is_accepting():
                return
        elif self._at_start:
            whole, rest = vocabulary.begun
            at = np.flatnonzero(whole == token)
            token = int(rest[at[0]]) if at.size else token
            self._at_start = False
        if not vocabulary.is_text[token] or not matcher.consume_token(token):
            raise GrammarError(f"token {token} is not allowed here; choose among those of the mask")

    @property
    def finished(self) -> bool:
        """Whether the text is whole and nothing can follow."""
        return self._ended or (self._begun is not None and self._begun[0].is_stopped())


def dead_end() -> GrammarError:
    return GrammarError("no token of this model can continue the text as the grammar wants it; change the grammar")


def reason(text: str) -> str:
    """The first line of an error of llguidance, without its place in a text that the caller has not written."""
    line = text.strip().split("\n", 1)[0]
    return one_line(line.split("failed to compile JSON schema: ", 1)[-1], 300)
