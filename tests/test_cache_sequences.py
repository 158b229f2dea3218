"""Sequences that share one pool, forget, fork and go back: random ones against plain lists, and one by one."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from cache_pages import append, check, seen, write
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from edgellm.cache import NO_PAGE, PAGE_TOKENS, Overflow, PagePool, PrefixTree, Sequence, cache_bytes, n_blocks
from edgellm.errors import ContextOverflowError, InvalidArgumentError, ModelClosedError, NotEnoughMemoryError
from edgellm.plan import KVShape

WINDOWS = (0, 70, 0, 200)
SHAPE = KVShape(n_layers=4, n_kv_heads=2, head_dim=2, windows=WINDOWS)
POLICIES = ["error", "sink", "sink:0:130", "sink:4:64", "sink:70:150", "shift", "shift:90", "drop-turns:10", "sink:3:3"]
N_CTX = 230


class Streams(RuleBasedStateMachine):
    """Random sequences over one pool, each beside the list of all values that were ever put into it, and the tree of
    finished ones, beside a list of their lists."""

    sequences = Bundle("sequences")
    shape = SHAPE

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(self.shape, "f32", 200)
        self.tree = PrefixTree(self.pool)
        self.pool.reclaim = self.reclaim
        self.finished: list[list[int]] = []
        self.forgotten = False  # the tree had to give something back
        self.values: dict[int, list[int]] = {}
        self.live: dict[int, Sequence] = {}
        self.counter = 0

    def reclaim(self, n_free: int) -> None:
        before = len(self.tree.pages)
        self.tree.evict(n_free)
        assert self.pool.n_free >= n_free or not len(self.tree.pages)
        self.forgotten |= len(self.tree.pages) < before

    def known(self, seq: Sequence, values: list[int]) -> Sequence:
        self.live[id(seq)], self.values[id(seq)] = seq, values
        return seq

    def fresh(self, n: int) -> list[int]:
        self.counter += n
        return list(range(self.counter - n, self.counter))

    @rule(target=sequences, policy=st.sampled_from(POLICIES), n_ctx=st.sampled_from([N_CTX, 300, 1200]))
    def open(self, policy: str, n_ctx: int) -> Sequence:
        return self.known(Sequence(self.pool, n_ctx, policy), [])

    @rule(seq=sequences, n=st.integers(1, 140), turn=st.booleans())
    def append(self, seq: Sequence, n: int, turn: bool) -> None:
        if turn:
            seq.begin_turn()
        values = self.values[id(seq)]
        before = (seq.table.copy(), seq.span, seq.length, list(seq.turns))
        try:
            append(seq, new := self.fresh(n))
        except ContextOverflowError:
            assert seq.overflow.kind in ("error", "drop-turns") or n > seq.overflow.pass_tokens(seq.n_ctx)
            assert len(values) - seq.dropped + n > seq.n_ctx
        except NotEnoughMemoryError:
            assert self.pool.n_free < (2 + n_blocks(n)) * SHAPE.n_layers and not len(self.tree.pages)
        else:
            values += new
            assert seq.overflow.kind == "sink" or seq.length - seq.dropped <= seq.n_ctx
            check(seq, values)
            return
        assert (seq.table == before[0]).all()
        assert (seq.span, seq.length, seq.turns) == before[1:]

    @rule(seq=sequences, n=st.integers(1, 100), passes=st.integers(2, 12))
    def run_on(self, seq: Sequence, n: int, passes: int) -> None:
        """Many passes, each a turn: far beyond the window."""
        values = self.values[id(seq)]
        n = min(n, seq.overflow.pass_tokens(seq.n_ctx))
        for _ in range(passes):
            seq.begin_turn()
            try:
                append(seq, new := self.fresh(n))
            except (ContextOverflowError, NotEnoughMemoryError):
                break
            values += new
            check(seq, values)

    @rule(seq=sequences, n=st.integers(1, 100))
    def fork_in_a_pass(self, seq: Sequence, n: int) -> None:
        """A fork has nothing of a pass that runs; the pass goes on."""
        values = self.values[id(seq)]
        try:
            seq.ensure(seq.length + n)
        except (NotEnoughMemoryError, ContextOverflowError):
            return
        write(seq, seq.length, new := self.fresh(n))
        with seq.fork() as other:
            check(other, values)
            assert other.can_rewind(other.length) and other.span == seq._settled
            pages = set(other.table[other.table != NO_PAGE].tolist())
            assert all(self.pool.refs[page] > 1 for page in pages)
        seq.commit(seq.length + n, new)
        values += new
        check(seq, values)

    @rule(seq=sequences, n=st.integers(1, 100))
    def fail_a_pass(self, seq: Sequence, n: int) -> None:
        """A pass that got its pages, wrote to them and then failed leaves nothing behind."""
        held, span, values = seq.n_pages, seq.span, self.values[id(seq)]
        try:
            seq.ensure(seq.length + n)
        except (NotEnoughMemoryError, ContextOverflowError):
            return
        write(seq, seq.length, [0.5] * n)
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
        write(seq, start, new)
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

    @rule(seq=sequences, at=st.sampled_from(["keep", "first", "seen"]), by=st.integers(-2, 2))
    def rewind_to_an_edge(self, seq: Sequence, at: str, by: int) -> None:
        """As `rewind`, to where head and tail begin or end."""
        span, length = seq.span, seq.length
        n = {"keep": span.keep, "first": span.first, "seen": span.start(length)}[at] + by
        self.rewind(seq, min(max(0, n), length) / max(1, length) + 1e-9)

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

    @rule(seq=sequences)
    def finish(self, seq: Sequence) -> None:
        """The tree keeps it, and a second time changes nothing."""
        free = self.pool.n_free
        self.tree.insert(seq)
        held = sorted(self.tree.pages.tolist())
        self.tree.insert(seq)
        assert sorted(self.tree.pages.tolist()) == held
        assert self.pool.n_free >= free, "it takes references, no pages"
        if not seq.dropped:
            self.finished.append(list(self.values[id(seq)]))

    @rule(
        target=sequences, seq=sequences, share=st.floats(0, 1), more=st.integers(0, 80),
        policy=st.sampled_from(POLICIES),
    )  # fmt: skip
    def match(self, seq: Sequence, share: float, more: int, policy: str) -> Sequence:
        """A text that begins as one of the sequences did: what is found is the longest that a list would find, or less
        where pages were given back."""
        values = self.values[id(seq)]
        ids = values[: int(share * len(values))] + self.fresh(more)
        free = self.pool.n_free
        found = self.tree.match(ids, N_CTX, policy)
        assert self.pool.n_free == free
        longest = max((common(ids, other) for other in self.finished), default=0)
        limit = Sequence(self.pool, N_CTX, policy).overflow
        longest = min(longest, limit.head + limit.tail_tokens(N_CTX))
        assert found.length <= longest
        if not self.forgotten and not any(self.shape.layer_windows):
            assert found.length == longest
        check(found, ids[: found.length])
        return self.known(found, ids[: found.length])

    @rule(n=st.integers(0, 200))
    def evict(self, n: int) -> None:
        self.reclaim(n)

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
        np.add.at(refs, self.tree.pages, 1)
        assert (refs == self.pool.refs).all()
        assert self.pool.n_free == int((refs == 0).sum())

    @invariant()
    def no_more_is_held_than_needed(self) -> None:
        for key, seq in self.live.items():
            length = len(self.values[key])
            for layer, window in enumerate(self.shape.layer_windows):
                needed = {p // PAGE_TOKENS for p in seen(seq, length, window + 512 if window else 0) if p < length}
                head = set(range(min(seq.head_blocks, n_blocks(length))))
                # Rewound to where the tail begins: its page, of which nothing is seen, takes the next token.
                empty = seq.span.start(length) == length and length % PAGE_TOKENS
                following = {length // PAGE_TOKENS} if empty else set()
                n = np.count_nonzero(seq.table[layer] != NO_PAGE)
                assert n <= len(needed | head | following)
                assert n >= len(needed | head) or window, "after a match a layer may hold its window only"

    def teardown(self) -> None:
        for key, seq in self.live.items():
            check(seq, self.values[key])
            seq.close()
        self.tree.clear()
        assert self.pool.n_free == self.pool.n_pages and not self.pool.refs.any()


class PlainStreams(Streams):
    """The same without layers that have a window of their own: the tree finds all that was kept."""

    shape = KVShape(n_layers=2, n_kv_heads=1, head_dim=2)


def common(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


TestStreams, TestPlainStreams = Streams.TestCase, PlainStreams.TestCase
for _case in (TestStreams, TestPlainStreams):
    _case.settings = settings(
        max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
    )
del _case


# ---- one by one ------------------------------------------------------------------------------------


def stream(
    policy: str, n: int, n_ctx: int = 200, n_pass: int = 40, shape: KVShape = SHAPE
) -> tuple[Sequence, list[int]]:
    """A sequence that took `n` tokens in passes, each a turn, and all the tokens."""
    seq, ids = Sequence(PagePool(shape, "f32", 400), n_ctx, policy), list(range(n))
    while seq.length < n:
        seq.begin_turn()
        append(seq, ids[seq.length :][:n_pass])
    return seq, ids


@pytest.mark.parametrize("policy", ["shift:10", "drop-turns:10"])
def test_a_failed_pass_takes_back_what_it_dropped(policy: str) -> None:
    seq, ids = stream(policy, 200)
    seq.ensure(220)
    assert seq.span.first > 10, "room had to be made"
    write(seq, 200, [0.5] * 20)
    seq.rewind(200)
    assert (seq.span.first, seq.dropped) == (0, 0)
    check(seq, ids)
    append(seq, [7] * 20)
    assert seq.dropped > 0


@pytest.mark.parametrize("policy", ["shift:10", "drop-turns:10", "sink:10:100"])
def test_rewinding_into_what_was_dropped(policy: str) -> None:
    seq, ids = stream(policy, 400)
    start = seq.span.start(400)
    assert start > 64 and seq.dropped
    for n in range(11, start // 64 * 64 if "sink" in policy else start):
        assert not seq.can_rewind(n)
    with pytest.raises(InvalidArgumentError, match=f"rewind to 11 tokens.*400, of which {seq.dropped} "):
        seq.rewind(11)
    seq.rewind(399)
    check(seq, ids[:399])
    if "sink" not in policy:
        seq.rewind(start)
        assert seq.ids == ids[:10]
    seq.rewind(10)
    check(seq, ids[:10])
    assert (seq.span.first, seq.dropped, seq.n_pages) == (0, 0, SHAPE.n_layers)
    append(seq, [3] * 150)
    check(seq, ids[:10] + [3] * 150)


@pytest.mark.parametrize("policy", ["shift:10", "drop-turns:10", "sink:10:100", "sink:0:64", "sink:70:100"])
def test_nothing_grows_with_the_length(policy: str) -> None:
    """Pages, ids and turns stay within what the window needs, however long the text is."""
    seq, _ = stream(policy, 1600)
    most = [0, 0, 0]
    for _ in range(100):
        seq.begin_turn()
        append(seq, list(range(seq.length, seq.length + 40)))
        now = (seq.n_pages, len(seq._ids) + len(seq._head_ids), len(seq.turns))
        most = [max(a, b) for a, b in zip(most, now, strict=True)]
    assert most[0] <= SHAPE.n_layers * (seq.head_blocks + n_blocks(200) + 1)
    assert most[1] <= 10 + 70 + 200 + 2 * PAGE_TOKENS and most[2] <= 200 // 40 + 2


def test_layers_with_a_window_of_their_own_hold_little() -> None:
    """Gemma 3's and Mistral's tables: the window, 512 tokens to go back, and no page more than the estimate says."""
    shape = KVShape(4, 1, 2, windows=(512, 512, 0, 512))
    seq, ids = stream("error", 4000, n_ctx=4096, n_pass=500, shape=shape)
    held = np.count_nonzero(seq.table != NO_PAGE, axis=1)
    assert held[2] == n_blocks(4000) and (held[[0, 1, 3]] <= n_blocks(512 + 512) + 1).all()
    assert cache_bytes(shape, "f32", 4096) < 0.7 * cache_bytes(KVShape(4, 1, 2), "f32", 4096)
    assert seq.n_pages * seq.pool.page_bytes <= cache_bytes(shape, "f32", 4096)
    assert seq.can_rewind(4000 - 512) and not seq.can_rewind(4000 - 512 - 64)
    seq.rewind(4000 - 512)
    check(seq, ids[:-512])


def test_a_pass_that_a_ring_has_no_room_for() -> None:
    with Sequence(PagePool(SHAPE, "f32", 400), 200, "sink:4:100") as seq:
        with pytest.raises(InvalidArgumentError, match="a pass of 1000 tokens; choose up to 512"):
            seq.ensure(1000)
        assert seq.n_pages == 0
        seq.ensure(512)


def test_the_edges_of_begin_turn_and_closed_sequences() -> None:
    seq, _ = stream("drop-turns:10", 100)
    assert seq.turns == [0, 40, 80]
    seq.begin_turn()
    seq.begin_turn()
    assert seq.turns == [0, 40, 80, 100]
    seq.rewind(80)
    assert seq.turns == [0, 40, 80]
    seq.close()
    for call in (seq.fork, lambda: seq.ensure(1)):
        with pytest.raises(ModelClosedError):
            call()
    assert seq.closed and seq.pool.n_free == seq.pool.n_pages


def test_a_pass_of_which_nothing_is_accepted_drops_nothing():
    """A full window makes room for a pass; when none of its tokens stays, what was dropped for them is there again."""
    pool = PagePool(KVShape(n_layers=1, n_kv_heads=1, head_dim=2), "f32", 16)
    with Sequence(pool, 230, Overflow("shift")) as seq:
        values = list(range(1, 179))
        append(seq, values)
        seq.ensure(178 + 53)
        assert seq.span.first > 0, "the older half would go"
        seq.commit(178, [])
        seq.rewind(178)
        assert (seq.dropped, seq.ids, seq.can_rewind(100)) == (0, values, True)
        check(seq, values)
    pool.close()
