"""Sequences that share one pool, forget, fork and go back: random ones against plain lists, and one by one."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from cache_pages import append, check, seen, write
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from edgellm.cache import NO_PAGE, PAGE_TOKENS, PagePool, Sequence, n_blocks
from edgellm.errors import ContextOverflowError, InvalidArgumentError, ModelClosedError, NotEnoughMemoryError
from edgellm.plan import KVShape

WINDOWS = (0, 70, 0, 200)
SHAPE = KVShape(n_layers=4, n_kv_heads=2, head_dim=2, windows=WINDOWS)
POLICIES = ["error", "sink", "sink:0:130", "sink:4:64", "sink:70:200", "shift", "shift:90", "drop-turns:10", "sink:3:3"]
N_CTX = 300


class Streams(RuleBasedStateMachine):
    """Random sequences over one pool, each beside the list of all values that were ever put into it."""

    sequences = Bundle("sequences")

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(SHAPE, "f32", 150)
        self.values: dict[int, list[int]] = {}
        self.live: dict[int, Sequence] = {}
        self.counter = 0

    def known(self, seq: Sequence, values: list[int]) -> Sequence:
        self.live[id(seq)], self.values[id(seq)] = seq, values
        return seq

    def fresh(self, n: int) -> list[int]:
        self.counter += n
        return list(range(self.counter - n, self.counter))

    @rule(target=sequences, policy=st.sampled_from(POLICIES), n_ctx=st.integers(N_CTX, 400))
    def open(self, policy: str, n_ctx: int) -> Sequence:
        return self.known(Sequence(self.pool, n_ctx, policy), [])

    @rule(seq=sequences, n=st.integers(1, 140), turn=st.booleans())
    def append(self, seq: Sequence, n: int, turn: bool) -> None:
        if turn:
            seq.begin_turn()
        values = self.values[id(seq)]
        before = (seq.table.copy(), seq.span, seq.length, list(seq.turns), self.pool.n_free)
        try:
            append(seq, new := self.fresh(n))
        except ContextOverflowError:
            assert seq.overflow.kind in ("error", "drop-turns") or n > seq.overflow.pass_tokens(seq.n_ctx)
            assert len(values) - seq.dropped + n > seq.n_ctx
        except NotEnoughMemoryError:
            assert self.pool.n_free < 3 * SHAPE.n_layers + n_blocks(n) * SHAPE.n_layers
        else:
            values += new
            assert seq.overflow.kind == "sink" or seq.length - seq.dropped <= seq.n_ctx
            check(seq, values)
            return
        assert (seq.table == before[0]).all()
        assert (seq.span, seq.length, seq.turns, self.pool.n_free) == before[1:]

    @rule(seq=sequences, n=st.integers(1, 100))
    def fail_a_pass(self, seq: Sequence, n: int) -> None:
        """A pass that got its pages, wrote to them and then failed leaves nothing behind."""
        held, span, values = seq.n_pages, seq.span, self.values[id(seq)]
        try:
            seq.ensure(seq.length + n)
        except (NotEnoughMemoryError, ContextOverflowError):
            return
        for i in range(n):
            write(seq, seq.length + i, 0.5)
        seq.rewind(seq.length)
        assert (seq.n_pages, seq.span) == (held, span)
        check(seq, values)

    @rule(seq=sequences, n=st.integers(2, 100), share=st.floats(0, 1))
    def accept_a_part(self, seq: Sequence, n: int, share: float) -> None:
        """Of a pass only the first tokens are accepted."""
        values, kept = self.values[id(seq)], int(share * n)
        try:
            seq.ensure(seq.length + n)
        except (NotEnoughMemoryError, ContextOverflowError):
            return
        new, start = self.fresh(n), seq.length
        for i, value in enumerate(new):
            write(seq, start + i, float(value))
        seq.commit(start + kept, new[:kept])
        seq.rewind(seq.length)
        values += new[:kept]
        check(seq, values)

    @rule(seq=sequences, share=st.floats(0, 1))
    def rewind(self, seq: Sequence, share: float) -> None:
        values = self.values[id(seq)]
        n = int(share * len(values))
        able, before = seq.can_rewind(n), seq.table.copy()
        if able:
            seq.rewind(n)
            del values[n:]
            check(seq, values)
            return
        with pytest.raises(InvalidArgumentError, match="rewind"):
            seq.rewind(n)
        assert (seq.table == before).all()
        assert n > seq.span.keep, "the head is always there"
        assert seq.dropped or n < len(values) - 512, "what no policy dropped is there for 512 tokens"

    @rule(target=sequences, seq=sequences)
    def fork(self, seq: Sequence) -> Sequence:
        free = self.pool.n_free
        other = seq.fork()
        assert self.pool.n_free == free, "a fork costs no page"
        assert other.ids == seq.ids and other.n_pages == seq.n_pages
        return self.known(other, list(self.values[id(seq)]))

    @rule(seq=sequences, n=st.integers(1, 100))
    def roll_back(self, seq: Sequence, n: int) -> None:
        """What is appended after a fork is gone when the sequence becomes that fork."""
        snapshot, values = seq.fork(), self.values[id(seq)]
        with contextlib.suppress(ContextOverflowError, NotEnoughMemoryError):
            append(seq, self.fresh(n))
        seq.restore(snapshot)
        snapshot.close()
        with pytest.raises(ModelClosedError):
            snapshot.ensure(1)
        check(seq, values)

    @rule(seq=consumes(sequences))
    def close(self, seq: Sequence) -> None:
        seq.close()
        seq.close()
        assert seq.n_pages == 0
        del self.live[id(seq)], self.values[id(seq)]

    @invariant()
    def references_add_up(self) -> None:
        refs = np.zeros(self.pool.n_pages, np.int32)
        for seq in self.live.values():
            np.add.at(refs, seq.table[seq.table != NO_PAGE], 1)
        assert (refs == self.pool.refs).all()
        assert self.pool.n_free == int((refs == 0).sum())

    @invariant()
    def no_more_is_held_than_needed(self) -> None:
        for key, seq in self.live.items():
            length = len(self.values[key])
            for layer, window in enumerate(WINDOWS):
                needed = {p // PAGE_TOKENS for p in seen(seq, length, window + 512 if window else 0) if p < length}
                head = set(range(min(seq.head_blocks, n_blocks(length))))
                assert np.count_nonzero(seq.table[layer] != NO_PAGE) == len(needed | head)

    def teardown(self) -> None:
        for key, seq in self.live.items():
            check(seq, self.values[key])
            seq.close()
        assert self.pool.n_free == self.pool.n_pages and not self.pool.refs.any()


TestStreams = Streams.TestCase
TestStreams.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
