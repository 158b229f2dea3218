"""`Decoding`: the logits behind each token of an answer, several from one pass where the tokens could be guessed.

A pass over the token that was chosen and k guesses gives k + 1 rows of logits. The first belongs to the token. Whoever
draws from it, with whatever sampler, penalties and constraint, comes back with the next token: is it the one that was
guessed, its row is there already; if not, the rest of the rows is worth nothing, and a new pass begins with the token
that was drawn. So the answer is what it would be without guesses, token for token, also at a temperature: a row of
logits is the same in a pass of any width (formats/arithmetic.md), and draw number i depends on the seed and i only.

The sequence takes a guess in when it was drawn, not before: at any time it holds what it would hold without guesses.
"""

from __future__ import annotations

import time
from collections.abc import Container
from collections.abc import Sequence as SequenceOf
from typing import Protocol

import numpy as np

from edgellm.cache import Sequence
from edgellm.errors import NonFiniteError
from edgellm.speculate.control import MAX_COLUMNS, Control
from edgellm.speculate.drafts import NOTHING, Draft, Proposer

REST_AFTER = 16  # tokens without a draft that was worth checking, after which only
REST = 4  # one in four is a moment to look for drafts
FEW = 4  # passes of one token of an answer from which their mean says what one takes
_ROWS = [list(range(n)) for n in range(MAX_COLUMNS + 1)]  # the outputs of a pass: all rows


class Passes(Protocol):
    """What `Decoding` needs of the engine."""

    def forward(
        self, seq: Sequence, tokens: SequenceOf[int], outputs: SequenceOf[int], cancel: np.ndarray | None,
        hidden: bool = ..., n_kept: int | None = ...,
    ) -> np.ndarray: ...  # fmt: skip

    def commit(self, seq: Sequence, tokens: SequenceOf[int]) -> None: ...


class Decoding:
    """The passes of one answer behind its prompt. `proposer` None: no guesses, one pass per token.

    `stop_ids` end the answer, so nothing behind them is guessed. `n_drafted` and `n_accepted` count the guesses that
    were checked and those that came true; `gain` is how many times faster than without them the answer was made, by
    the times of its passes and drafts (1.0 where none were checked, or where no pass without guesses was ever timed).
    """

    def __init__(
        self, engine: Passes, seq: Sequence, cancel: np.ndarray | None, *, stop_ids: Container[int] = (),
        proposer: Proposer | None = None, control: Control | None = None,
    ) -> None:  # fmt: skip
        self._engine, self._seq, self._cancel, self._stop_ids = engine, seq, cancel, stop_ids
        self._proposer, self._control = proposer, control or Control()
        self._draft: Draft | None = None  # what was proposed behind the token of the latest pass
        self._n_checked = self._n_true = 0  # tokens of it that the pass had, and that were drawn
        self._rows: np.ndarray | None = None  # float32 (1 + n_checked, n_vocab), valid until the next pass
        self._untold: list[int] = []  # tokens of the answer that the proposer does not know of yet
        self._n_idle = 0  # tokens since a draft was last worth checking
        self._seconds, self._n_rows = 0.0, 0  # of all passes and drafts so far; rows that were used
        self._plain: list[float] = [0, 0.0]  # passes of one token, their seconds
        self._counts: dict[str, list[int]] = {}  # source -> tokens checked, tokens that came true

    def begin(self, history: SequenceOf[int]) -> None:
        """The answer begins behind the ids `history`."""
        if self._proposer is not None:
            self._control.begin(self._proposer)
            self._proposer.begin(history)

    def next(self, token: int, most: int | None = None) -> np.ndarray:
        """Logits float32 (n_vocab,) behind `token`, which was drawn; valid until the next call.

        `most`: so many tokens may be drawn from now on; None: any number. The sequence has room for one token. Raises
        what the engine's `forward` raises; the sequence is then as it was.
        """
        self._n_rows += 1
        if self._is_next(token):
            self._n_true += 1
            self._engine.commit(self._seq, [token])
            return self._row(self._n_true)
        self._settle(token)
        draft = self._propose(token, most)
        if draft:
            try:
                self._pass([token, *draft])
                return self._row(0)
            except NonFiniteError:  # perhaps behind a guess; without guesses that would not be run
                pass
        self._pass([token])
        return self._row(0)

    def end(self) -> None:
        """No more tokens are drawn."""
        self._settle(None)
        self._seq.trim()

    def close(self) -> None:
        """The answer is done, or has failed: what made the drafts can go."""
        if self._proposer is not None:
            self._proposer.end()

    @property
    def drafts(self) -> tuple[tuple[str, int, int], ...]:
        """(source, guesses that were checked, those that came true) for each source of drafts that were checked."""
        return tuple((source, n, true) for source, (n, true) in self._counts.items())

    @property
    def n_drafted(self) -> int:
        return sum(n for _, n, _ in self.drafts)

    @property
    def n_accepted(self) -> int:
        return sum(true for _, _, true in self.drafts)

    @property
    def gain(self) -> float:
        plain = self._plain[1] / self._plain[0] if self._plain[0] >= FEW else self._control.costs.plain()
        if not self.n_drafted or plain is None or not self._seconds:
            return 1.0
        return self._n_rows * plain / self._seconds

    def _is_next(self, token: int) -> bool:
        """Whether the latest pass has a row for `token`."""
        draft = self._draft
        return draft is not None and self._n_true < self._n_checked and draft.tokens[self._n_true] == token

    def _settle(self, token: int | None) -> None:
        """The draft is done with: `token` was drawn behind those of it that came true (None: nothing was)."""
        draft, checked, true = self._draft, self._n_checked, self._n_true
        if draft is None:
            return
        self._draft = None
        if checked:
            counts = self._counts.setdefault(draft.source, [0, 0])
            counts[0], counts[1] = counts[0] + checked, counts[1] + true
        self._untold += draft.tokens[:true]
        for other in draft.watched:
            self._compare(other, draft.tokens[:true] if token is None else (*draft.tokens[:true], token))
        if token is None:
            self._control.note(draft, true, true)
        elif true < len(draft):  # one more is known, also where it was not worth a column
            self._control.note(draft, true + (draft.tokens[true] == token), true + 1)
        else:
            self._control.note(draft, true, true)
        self._seq.trim()

    def _compare(self, draft: Draft, said: SequenceOf[int]) -> None:
        """A draft that was not checked, with the tokens that came."""
        seen = min(len(draft), len(said))
        true = next((i for i in range(seen) if draft.tokens[i] != said[i]), seen)
        self._control.note(draft, true, seen)

    def _propose(self, token: int, most: int | None) -> list[int]:
        """The guesses behind `token` that are worth a longer pass."""
        if self._proposer is None:
            return []
        self._untold.append(token)
        self._n_idle += 1
        if self._n_idle > REST_AFTER and self._n_idle % REST:  # a look costs microseconds: a small model feels them
            return []
        room = MAX_COLUMNS - 1 if most is None else min(MAX_COLUMNS - 1, most - 1)
        room = self._seq.spare(room)
        start = time.perf_counter()
        self._proposer.accept(self._untold)
        self._untold.clear()
        draft = self._proposer.propose(room) if room > 0 else NOTHING
        self._seconds += time.perf_counter() - start
        self._n_checked = self._n_true = 0
        if not draft.tokens:
            return []
        self._draft = draft
        length = self._control.length(draft)
        if length:
            self._n_idle = 0
        tokens = list(draft.tokens[:length])
        return tokens[: next((i for i, t in enumerate(tokens) if t in self._stop_ids), len(tokens))]

    def _row(self, i: int) -> np.ndarray:
        """Logits (n_vocab,) of the latest pass."""
        assert self._rows is not None
        row: np.ndarray = self._rows[i]
        return row

    def _pass(self, tokens: list[int]) -> None:
        """One pass over the token that was drawn and guesses."""
        start = time.perf_counter()
        self._rows = self._engine.forward(self._seq, tokens, _ROWS[len(tokens)], self._cancel, n_kept=1)
        seconds = time.perf_counter() - start
        self._n_checked, self._seconds = len(tokens) - 1, self._seconds + seconds
        if len(tokens) == 1:
            self._plain = [self._plain[0] + 1, self._plain[1] + seconds]
        self._control.costs.note(len(tokens), seconds)
