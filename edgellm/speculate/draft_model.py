"""Drafts of a second, smaller model with the same tokens: it goes along with the text and runs ahead of it.

Its sequence holds the text as far as its passes have run it, and nothing else: the tokens of a draft are run at the
positions behind its end, and those that came true are taken in afterwards, without another pass. What was said while
nobody asked for drafts waits, and is run together with the next step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from contextlib import suppress
from typing import Any, Protocol

import numpy as np

from edgellm.cache import PASS_TOKENS, Overflow, Sequence
from edgellm.errors import Cancelled
from edgellm.speculate.drafts import NoDrafts

N_SINKS = 4  # first tokens that stay when the window is full, which then slides over the text
LONG = 64  # tokens; a window shorter than this has no room for sinks
PRIOR = 0.8  # how often its most probable token is the model's, before that was seen
QUICK_MODEL = 64 << 20  # bytes of weights below which the first passes take much longer than the following ones
WARMING = 4  # passes
FEW = 8  # tokens that wait are run together with the first step of a draft
OVERLAP = 32  # tokens that must be the same where a text goes on whose beginning has left the window


_log = logging.getLogger("edgellm")


class DraftEngine(Protocol):
    """What `DraftModelPasses` needs of an `edgellm.engine.Engine`."""

    n_ctx: int
    weight_bytes: int

    def new_sequence(self, overflow: Overflow | None = ..., ids: SequenceOf[int] = ...) -> Sequence: ...
    def keep(self, seq: Sequence) -> None: ...
    def forward(
        self, seq: Sequence, tokens: SequenceOf[int], outputs: SequenceOf[int], cancel: np.ndarray | None,
        hidden: bool = ..., n_kept: int | None = ..., ahead: int = ...,
    ) -> np.ndarray: ...  # fmt: skip
    def commit(self, seq: Sequence, tokens: SequenceOf[int]) -> None: ...
    def check_file(self) -> None: ...


class DraftModelPasses:
    """The `DraftPasses` of a draft model, and the `DraftMaker` that gives them to one answer after the other.

    `n_vocab`: tokens of the model that it drafts for; `cost`: what a pass takes before that was measured, in passes of
    that model.

    Whatever the policy of the model's own sequence is, the draft model's window slides: it never ends and drops what is
    oldest. Finished texts stay in its cache, so that the next turn of a chat runs only what is new.
    """

    source = "draft"

    def __init__(self, engine: DraftEngine, n_vocab: int, cost: float) -> None:
        self._engine, self._n_vocab, self.cost, self.prior = engine, n_vocab, cost, PRIOR
        self._overflow = Overflow("sink", n_sinks=N_SINKS if engine.n_ctx >= LONG else 0)
        self._seq: Sequence | None = None
        self._pending: list[int] = []  # tokens of the text behind the sequence, not run yet
        self._ahead: list[int] = []  # tokens that were run behind it: the last one of the text, then those of a draft
        self._cancel: np.ndarray | None = None  # int32 (1,)
        self._failed = False
        self._cold = engine.weight_bytes < QUICK_MODEL
        self._row: np.ndarray | None = None  # float32 (n_vocab,), where the draft model has fewer tokens

    def __call__(self, seq: Sequence, cancel: np.ndarray | None) -> DraftModelPasses:
        """Itself, for an answer that ends when `cancel` is set. `seq` is the model's own and plays no part."""
        self._cancel, self._failed = cancel, False
        if self._cold:
            self._cold = False
            self._warm_up()
        return self

    def close(self) -> None:
        """Gives its pages back; the engine is closed by its owner."""
        seq, self._seq = self._seq, None
        if seq is not None:
            seq.close()

    def begin(self, ids: SequenceOf[int]) -> None:
        self._ahead.clear()
        try:
            self._engine.check_file()
            self._begin(ids)
        except Exception as error:
            self._fail(error)

    def accept(self, tokens: SequenceOf[int]) -> None:
        if self._failed:
            return
        if self._ahead:
            n = _common(tokens, self._ahead[1:])
            n_true = min(1 + n, len(tokens))  # but for the last token of the text, whose logits are wanted again
            self._engine.commit(self._sequence, self._ahead[:n_true])
            self._ahead = self._ahead[n : 1 + n] if n == len(tokens) else []
            tokens = tokens[n:]
        self._pending += tokens

    def catch_up(self) -> None:
        if len(self._pending) > FEW:
            self._guarded(self._read)

    def run(self, drafted: SequenceOf[int]) -> np.ndarray:
        row: np.ndarray = self._guarded(lambda: self._fitted(self._run(drafted)))
        return row

    def _guarded(self, work: Callable[[], Any]) -> Any:
        """What `work` returns. Raises Cancelled, or NoDrafts for any other error."""
        if self._failed:
            raise NoDrafts
        try:
            return work()
        except Cancelled:
            raise
        except Exception as error:
            self._fail(error)
            raise NoDrafts from error

    def end(self) -> None:
        seq, self._cancel = self._seq, None
        if seq is not None and self._ahead:
            self._engine.commit(seq, self._ahead[:1])
        self._ahead.clear()
        if seq is not None and not seq.dropped:
            self._engine.keep(seq)
            seq.close()
            self._seq = None

    def _fail(self, error: Exception) -> None:
        """An answer does not fail because its guesses do: it goes on without them."""
        _log.warning("the draft model makes no more guesses for this answer: %s", error)
        self._failed = True
        self._ahead.clear()
        self.close()

    def _begin(self, ids: SequenceOf[int]) -> None:
        """A sequence that holds as much of `ids` as is known; the rest is pending."""
        seq, self._seq = self._seq, None
        n = 0 if seq is None else _known(seq, ids)
        if seq is not None and not n:
            seq.close()  # also what a call has left whose process was forked, or that failed
        if seq is None or not n:
            seq = self._engine.new_sequence(self._overflow, ids[:-1])
            n = seq.length
        self._seq, self._pending = seq, list(ids[n:])
        if len(self._pending) > self._engine.n_ctx:  # more than it will ever see
            seq.rewind(0)
            self._pending = self._pending[-(self._engine.n_ctx // 2) :]

    def _warm_up(self) -> None:
        """A few passes, before the first that are timed: those of a cold model would make its guesses look dear."""
        with self._engine.new_sequence(self._overflow) as seq, suppress(Exception):  # the answer's own pass will tell
            for _ in range(WARMING):
                self._engine.forward(seq, [0], [0], None, n_kept=0)

    def _read(self) -> None:
        """Runs what is pending, all but its last token."""
        pending = self._pending
        while len(pending) > 1:
            n = min(PASS_TOKENS, len(pending) - 1)
            self._engine.forward(self._sequence, pending[:n], [], self._cancel)
            del pending[:n]

    def _run(self, drafted: SequenceOf[int]) -> np.ndarray:
        """Logits as the draft model has them, behind the text and `drafted`."""
        pending, ahead = self._pending, self._ahead
        if pending:
            if len(pending) > PASS_TOKENS:
                self._read()
            row = self._forward(pending, n_kept=len(pending) - 1)
            ahead[:] = pending[-1:]
            pending.clear()
        elif drafted:
            row = self._forward(drafted[-1:], ahead=len(drafted))
            ahead[len(drafted) :] = drafted[-1:]
        else:
            row = self._forward(ahead[:1])
        return row

    def _forward(self, tokens: SequenceOf[int], n_kept: int = 0, ahead: int = 0) -> np.ndarray:
        """Logits behind the last of `tokens`."""
        last = [len(tokens) - 1]
        row: np.ndarray = self._engine.forward(self._sequence, tokens, last, self._cancel, n_kept=n_kept, ahead=ahead)[
            0
        ]
        return row

    @property
    def _sequence(self) -> Sequence:
        assert self._seq is not None  # `begin` has made it
        return self._seq

    def _fitted(self, row: np.ndarray) -> np.ndarray:
        """A row of logits with one for each token of the model: those that the draft model does not know never come."""
        if row.size >= self._n_vocab:
            return row
        if self._row is None:
            self._row = np.full(self._n_vocab, -np.inf, np.float32)
        self._row[: row.size] = row
        return self._row


def _common(a: SequenceOf[int], b: SequenceOf[int]) -> int:
    """Length of the common beginning."""
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n


def _known(seq: Sequence, ids: SequenceOf[int]) -> int:
    """How many of `ids`, the last one aside, a sequence holds whose beginning has left its window; 0: another text.

    The two windows need not have dropped the same, so the last tokens of the sequence are looked for.
    """
    last = seq.ids[seq.overflow.head :][-OVERLAP:]
    if not seq.dropped or len(last) < OVERLAP:
        return 0
    for end in range(len(ids) - 1, OVERLAP - 1, -1):
        if ids[end - 1] == last[-1] and list(ids[end - OVERLAP : end]) == last:
            return end
    return 0
