"""`Engine`: what an answer may touch, gathered: the backend, the pool of pages, and the prefix tree, in which finished
sequences stay, so that a following call that starts with the same tokens (the next turn of a chat) works only on what
is new.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Container, Iterator
from collections.abc import Sequence as SequenceOf
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.cache import PASS_TOKENS, PrefixTree, Sequence
from edgellm.errors import Cancelled, NonFiniteError
from edgellm.speculate import Control, Decoding, DraftMaker, make_proposer
from edgellm.speculate.control import MAX_COLUMNS

if TYPE_CHECKING:
    from edgellm.backends import Backend
    from edgellm.cache import Overflow, PagePool
    from edgellm.callbacks import TappedJob
    from edgellm.gguf import GGUFFile
    from edgellm.sampling import Sampler
    from edgellm.worker import Job

PREFILL_CHUNK = PASS_TOKENS  # prompt tokens per pass
SMALL_MODEL = 8 << 20  # bytes of weights below which "auto" does not speculate
QUICK_MODEL = 64 << 20  # bytes of weights below which passes are timed before the first answer with guesses


class Engine:
    """A backend with its pages. Only the worker thread uses it.

    A sequence comes from `new_sequence`; its owner runs passes over it (`prefill`, `forward`), offers it to others
    (`keep`) and closes it. When the pool is full, what was kept makes room.
    """

    def __init__(
        self, backend: Backend, pool: PagePool, tokenizer: Any, n_ctx: int, threads: int, isa: str,
        exact: bool = False, overflow: Overflow | None = None, source: GGUFFile | None = None,
        weight_bytes: int = 0,
    ) -> None:  # fmt: skip
        self.weight_bytes = weight_bytes
        self.backend, self.pool, self.tokenizer = backend, pool, tokenizer
        self.source = source  # the mapped file, where passes read it
        self.n_ctx, self.threads, self.isa, self.overflow = n_ctx, threads, isa, overflow
        self.set_exact(exact)
        self.passes, self.control = 0, Control()
        self.draft_makers: dict[str, DraftMaker] = {}  # by kind: what can run passes for drafts
        self.gate: AbstractContextManager[Any] = nullcontext()  # the worker's; open around what a fork may interrupt
        self._undo: list[Callable[[], Any]] = []
        self.tree = PrefixTree(pool)
        self.abandoned: deque[Sequence] = deque()  # by owners that were forgotten; added to at any time
        self.backup: Sequence | None = None  # what a running call would go back to: given up before the call itself
        pool.reclaim = self._reclaim

    def _sweep(self) -> None:
        while self.abandoned:
            self.abandoned.popleft().close()

    def _reclaim(self, n_free: int) -> None:
        self._sweep()
        self.tree.evict(n_free)
        if self.pool.n_free < n_free and self.backup is not None:
            self.backup.close()

    def set_exact(self, exact: bool) -> None:
        """Whether the following passes keep to kernels whose bits do not depend on how tokens are cut into passes."""
        self.backend.exact = exact

    def speculation(self, kind: str) -> str:
        """What `speculate=kind` comes to here: "off" where passes of other widths have other bits, and where "auto"
        would cost more than it brings, because a token takes a tenth of a millisecond anyway. A draft model that was
        loaded beside a small one is used: somebody asked for it."""
        small = kind == "auto" and self.weight_bytes < SMALL_MODEL and "draft" not in self.draft_makers
        return "off" if small or not self.backend.any_width else kind

    def decoding(
        self, seq: Sequence, cancel: np.ndarray | None, kind: str, sampler: Sampler, stop_ids: Container[int] = ()
    ) -> Decoding:
        """The passes of an answer behind a prompt in `seq`, with guesses as `speculate=kind` says. Close it."""
        kind = self.speculation(kind)
        if kind != "off" and not self.control.costs.plain() and self.weight_bytes < QUICK_MODEL:
            self._time_passes()
        proposer = make_proposer(
            kind, seq, cancel, sampler=sampler, control=self.control, makers=self.draft_makers,
            stop_ids=stop_ids,
        )  # fmt: skip
        return Decoding(self, seq, cancel, stop_ids=stop_ids, proposer=proposer, control=self.control)

    def _time_passes(self) -> None:
        """What passes of several widths take, before the first answer with guesses: a few milliseconds, on pages that
        nobody needs. Longer passes are timed as they come."""
        if self.pool.n_free < 2 * self.pool.shape.n_layers:
            return
        with Sequence(self.pool, MAX_COLUMNS) as seq, suppress(NonFiniteError):  # the answer's own pass will tell
            seq.ensure(MAX_COLUMNS)
            self._timed(seq, MAX_COLUMNS)  # warms up
            for columns in (1, 2, 4, MAX_COLUMNS):  # the shorter of two: other processes only make them longer
                self.control.costs.note(columns, min(self._timed(seq, columns) for _ in range(2)))

    def _timed(self, seq: Sequence, columns: int) -> float:
        """Seconds of a pass over so many tokens, at the beginning of `seq`."""
        rows = np.arange(columns, dtype=np.int32)
        start = time.perf_counter()
        self.backend.forward(rows % self.tokenizer.n_vocab, 0, rows, seq)
        return time.perf_counter() - start

    def new_sequence(self, overflow: Overflow | None = None, ids: SequenceOf[int] = ()) -> Sequence:
        """A sequence that begins with the longest cached prefix of `ids` (those that were run are `seq.length`).

        While passes are exact, only what exact passes have made is used again. `overflow` None: the engine's.
        """
        self._sweep()
        policy = self.overflow if overflow is None else overflow
        return self.tree.match(ids, self.n_ctx, policy, exact=self.backend.exact)

    def keep(self, seq: Sequence) -> None:
        """What `seq` holds may be used again by later calls, also when it is closed."""
        self.tree.insert(seq)

    @contextmanager
    def undoing(self, undo: Callable[[], Any]) -> Iterator[None]:
        """What is done inside is taken back by `undo()` in the child of a fork, where nobody goes on with it."""
        self._undo.append(undo)
        try:
            yield
        finally:
            self._undo.pop()

    def undo_all(self) -> None:
        """Take back what the call has done that was running when the process forked."""
        while self._undo:
            self._undo.pop()()
        self.backup = None

    def check_file(self) -> None:
        """Raises ModelFileChanged when passes read a file that is not what it was: before and after a call."""
        if self.source is not None:
            self.source.check_unchanged()

    def forward(
        self, seq: Sequence, tokens: SequenceOf[int], outputs: SequenceOf[int], cancel: np.ndarray | None,
        hidden: bool = False, n_kept: int | None = None, ahead: int = 0,
    ) -> np.ndarray:  # fmt: skip
        """One pass over `tokens` at the end of `seq`; logits (len(outputs), vocab), with `hidden` the hidden states
        (len(outputs), dim) before the output head. A failed pass changes nothing. `n_kept`: so many of the tokens
        belong to `seq` now (None: all); `commit` adds further ones. With `ahead` the pass begins that many positions
        behind the end: there stand the tokens of passes before it that do not belong to `seq`; keep none then."""
        position = seq.length + ahead
        seq.ensure(position + len(tokens))
        try:
            with self.gate:
                logits = self.backend.forward(
                    np.asarray(tokens, np.int32), position, np.asarray(outputs, np.int32), seq, cancel, hidden
                )
            if self.source is not None:
                self.source.check_faults()
        except BaseException as error:
            seq.rewind(seq.length)
            if isinstance(error, Exception) and not isinstance(error, Cancelled):
                self.check_file()  # what zeros in place of weights do to a pass says nothing
            raise
        self.commit(seq, tokens[:n_kept])
        self.passes += 1
        return logits

    def commit(self, seq: Sequence, tokens: SequenceOf[int]) -> None:
        """The next positions of the latest pass, which are those of `tokens`, belong to `seq` now."""
        exact = self.backend.exact or not self.backend.has_prefill
        seq.commit(seq.length + len(tokens), tokens, exact=exact)

    def prefill(
        self,
        seq: Sequence,
        ids: SequenceOf[int],
        job: Job | TappedJob,
        on_chunk: Callable[[int, int], Any] | None = None,
    ) -> np.ndarray:
        """Run `ids` in chunks at the end of `seq`; logits (vocab,) after the last one."""
        logits = None
        if on_chunk is not None:
            with self.gate:
                on_chunk(0, len(ids))
        step = min(PREFILL_CHUNK, seq.overflow.pass_tokens(seq.n_ctx))
        for start in range(0, len(ids), step):
            chunk = ids[start : start + step]
            last = start + len(chunk) == len(ids)
            if job.stopped:
                raise Cancelled()
            logits = self.forward(seq, chunk, [len(chunk) - 1] if last else [], job.flag)
            if on_chunk is not None:
                with self.gate:
                    on_chunk(start + len(chunk), len(ids))
        assert logits is not None
        last_row: np.ndarray = logits[-1]
        return last_row

    def logits(self, ids: SequenceOf[int], job: Job, first: int = 0, exact: bool = False) -> np.ndarray:
        """Logits (n - first, vocab) float32 of every position from `first` on, computed anew."""
        self.set_exact(exact)
        self.check_file()
        rows = []
        with Sequence(self.pool, self.n_ctx) as seq, self.undoing(seq.close):
            for start in range(0, len(ids), PREFILL_CHUNK):
                chunk = ids[start : start + PREFILL_CHUNK]
                rows.append(np.array(self.forward(seq, chunk, range(max(0, first - start), len(chunk)), job.flag)))
        self.check_file()
        return np.concatenate(rows)

    def close(self) -> None:
        """Give back what was kept. Backend and pool are closed by their owner."""
        for maker in self.draft_makers.values():
            maker.close()
        self.draft_makers.clear()
        self.tree.clear()
