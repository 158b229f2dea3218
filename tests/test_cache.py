"""Pages and sequences: against a plain list model, and one by one."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from edgellm.cache import (
    NO_PAGE,
    PAGE_TOKENS,
    PageError,
    PagePool,
    Sequence,
    cache_bytes,
    n_blocks,
    page_bytes,
    quantize_q4_0,
    quantize_q8_0,
    resolve_kv_type,
)
from edgellm.errors import ContextOverflowError, InvalidArgumentError, ModelClosedError, NotEnoughMemoryError
from edgellm.plan import KVShape

SHAPE = KVShape(n_layers=2, n_kv_heads=3, head_dim=4)
N_CTX = 5 * PAGE_TOKENS - 3


def write(seq: Sequence, position: int, value: float) -> None:
    """Puts `value` into every K and V lane of a position, as a pass would."""
    block, lane = divmod(position, PAGE_TOKENS)
    for layer in range(SHAPE.n_layers):
        for head in range(SHAPE.n_kv_heads):
            seq.pool.k_view(int(seq.table[layer, block]), head)[:, lane] = value + layer
            seq.pool.v_view(int(seq.table[layer, block]), head)[lane] = -value - head


def check(seq: Sequence, values: list[float]) -> None:
    assert seq.length == len(values)
    for position, value in enumerate(values):
        block, lane = divmod(position, PAGE_TOKENS)
        for layer in range(SHAPE.n_layers):
            for head in range(SHAPE.n_kv_heads):
                page = int(seq.table[layer, block])
                assert (seq.pool.k_view(page, head)[:, lane] == value + layer).all()
                assert (seq.pool.v_view(page, head)[lane] == -value - head).all()


Q8_CODES = 126  # values 1 .. 126 with scale 2^-k and a 127 beside them: exact in int8


def write_q8(seq: Sequence, position: int, value: float) -> None:
    """As `write`, through the pool's own rounding; K and V of a head get different values."""
    block, lane = divmod(position, PAGE_TOKENS)
    k = np.array([127, value % Q8_CODES + 1, -(value % 7), 0], np.float32)
    for layer in range(SHAPE.n_layers):
        for head in range(SHAPE.n_kv_heads):
            seq.pool.store(int(seq.table[layer, block]), head, lane, k * 2.0**-layer, -k * 2.0 ** (head - 4))


def check_q8(seq: Sequence, values: list[float]) -> None:
    assert seq.length == len(values)
    for position, value in enumerate(values):
        block, lane = divmod(position, PAGE_TOKENS)
        k = np.array([127, value % Q8_CODES + 1, -(value % 7), 0], np.float32)
        for layer in range(SHAPE.n_layers):
            for head in range(SHAPE.n_kv_heads):
                keys, rows = seq.pool.load(int(seq.table[layer, block]), head)
                assert (keys[lane] == k * 2.0**-layer).all()
                assert (rows[lane] == -k * 2.0 ** (head - 4)).all()


class Cache(RuleBasedStateMachine):
    """Random sequences over one pool of 24 pages, beside a list of values for each."""

    sequences = Bundle("sequences")
    kv_type, write, check = "f32", staticmethod(write), staticmethod(check)

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(SHAPE, self.kv_type, 24)
        self.model: dict[int, list[float]] = {}  # id of the sequence -> value of each position
        self.live: dict[int, Sequence] = {}
        self.counter = 0

    @rule(target=sequences)
    def open(self) -> Sequence:
        seq = Sequence(self.pool, N_CTX)
        self.model[id(seq)], self.live[id(seq)] = [], seq
        return seq

    @rule(seq=sequences, n=st.integers(1, 150))
    def append(self, seq: Sequence, n: int) -> None:
        values, before = self.model[id(seq)], seq.table.copy()
        start, free = len(values), self.pool.n_free
        need = (n_blocks(start + n) - n_blocks(start)) * SHAPE.n_layers
        try:
            seq.ensure(start + n)
        except ContextOverflowError:
            assert start + n > N_CTX
        except NotEnoughMemoryError:
            assert need > free
        else:
            assert start + n <= N_CTX
            assert self.pool.n_free == free - need
            for position in range(start, start + n):
                self.counter += 1
                self.write(seq, position, float(self.counter))
                values.append(float(self.counter))
            seq.commit(start + n)
            return
        assert (seq.table == before).all()
        assert self.pool.n_free == free

    @rule(seq=sequences, share=st.floats(0, 1))
    def rewind(self, seq: Sequence, share: float) -> None:
        values = self.model[id(seq)]
        del values[int(share * len(values)) :]
        seq.rewind(len(values))

    @rule(seq=sequences, n=st.integers(1, 100))
    def fail_a_pass(self, seq: Sequence, n: int) -> None:
        """A pass that got its pages and then failed gives them back."""
        held, n = seq.n_pages, min(n, N_CTX - seq.length)
        try:
            seq.ensure(seq.length + n)
        except NotEnoughMemoryError:
            return
        seq.rewind(seq.length)
        assert seq.n_pages == held

    @rule(seq=consumes(sequences))
    def close(self, seq: Sequence) -> None:
        seq.close()
        seq.close()
        del self.model[id(seq)], self.live[id(seq)]

    @invariant()
    def pages_add_up(self) -> None:
        held = [int(p) for s in self.live.values() for p in s.table[s.table != NO_PAGE]]
        assert len(set(held)) == len(held)
        assert len(held) + self.pool.n_free == self.pool.n_pages
        assert int(self.pool.refs.sum()) == len(held)
        for key, seq in self.live.items():
            assert seq.n_pages == n_blocks(len(self.model[key])) * SHAPE.n_layers

    def teardown(self) -> None:
        for key, seq in self.live.items():
            self.check(seq, self.model[key])
            seq.close()
        assert self.pool.n_free == self.pool.n_pages
        assert not self.pool.refs.any()


class CacheOfBytes(Cache):
    """The same with pages of q8_0."""

    kv_type, write, check = "q8_0", staticmethod(write_q8), staticmethod(check_q8)


TestCache, TestCacheOfBytes = Cache.TestCase, CacheOfBytes.TestCase
for _case, _n in ((TestCache, 50), (TestCacheOfBytes, 15)):
    _case.settings = settings(
        max_examples=_n, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
    )


def test_page_layout_is_the_one_of_the_header() -> None:
    """For each head K as [head_dim][64], then V as [64][head_dim], nothing between (native/edgellm.h)."""
    pool = PagePool(SHAPE, "f16", 3)
    pages = pool.allocate(2)
    for head in range(3):
        pool.k_view(pages[1], head)[:] = np.arange(4 * 64).reshape(4, 64) + head
        pool.v_view(pages[1], head)[:] = -np.arange(64 * 4).reshape(64, 4) - head
    assert pool.page_bytes == page_bytes(SHAPE, "f16") == 3 * 2 * 4 * 64 * 2
    flat = pool.arena[pages[1]].view(np.float16).reshape(3, 2, 256)
    for head in range(3):
        assert (flat[head, 0] == np.arange(256) + head).all()
        assert (flat[head, 1] == -np.arange(256) - head).all()
    assert not pool.arena[pages[0]].any()
    assert pool.address % 4096 == 0
    assert cache_bytes(SHAPE, "f16", 65) == 2 * 2 * pool.page_bytes


def test_layout_of_q8_0_pages() -> None:
    """int8 K, 64 float16 scales, int8 V, 64 scales; bytes per head and token: 2 * (head_dim + 2)."""
    pool = PagePool(SHAPE, "q8_0", 2)
    (page,) = pool.allocate(1)
    assert pool.page_bytes == page_bytes(SHAPE, "q8_0") == 3 * 2 * 64 * (4 + 2)
    pool.store(page, 1, 5, np.array([1, -2, 3, 127], np.float32), np.array([254, 0, -254, 100], np.float32))
    head = pool.arena[page].reshape(3, 2, 384)[1]
    assert head[0, :256].view(np.int8).reshape(4, 64)[:, 5].tolist() == [1, -2, 3, 127]
    assert head[1, :256].view(np.int8).reshape(64, 4)[5].tolist() == [127, 0, -127, 50]
    scales = head[:, 256:].copy().view(np.float16)
    assert scales[:, 5].tolist() == [1, 2]
    assert np.count_nonzero(scales) == 2 and not pool.arena[page].reshape(3, 2, 384)[[0, 2]].any()


@given(arrays(np.float32, st.integers(1, 40), elements=st.floats(-(2.0**20), 2.0**20, width=32)))
def test_rounding_to_q8_0(x: np.ndarray) -> None:
    q, d = quantize_q8_0(x)
    top = float(np.abs(x).max())
    assert q.dtype == np.int8 and q.min() >= -127
    assert np.abs(q * np.float64(d) - x).max() <= 0.501 * float(d) + 0.001 * top + 2.0**-18  # f16's smallest step
    assert top < 1e-3 or np.abs(q).max() >= 126


@given(arrays(np.float32, st.integers(1, 40), elements=st.floats(-(2.0**18), 2.0**18, width=32)))
def test_rounding_to_q4_0(x: np.ndarray) -> None:
    """No scale leaves a larger error than that of the extreme at -8; and that error is what rounding makes."""
    codes, d = quantize_q4_0(x)
    assert codes.dtype == np.uint8 and codes.max() <= 15
    error = float(np.square(x - np.float64(d) * (codes.astype(np.float64) - 8)).sum())
    step = np.abs(x).max() / 8
    assert error <= len(x) * (1.01 * step + 2.0**-21) ** 2  # +7/8 of the extreme is the largest of the other sign


def test_q4_0_takes_the_better_of_two_scales() -> None:
    assert quantize_q4_0(np.array([-8, 7, 1, -2], np.float32))[1] == 1
    assert quantize_q4_0(np.array([8, -7, -1, 2], np.float32))[0].tolist() == [0, 15, 9, 6]
    assert quantize_q4_0(np.array([-9, 4, 4, 4, 4, 4, 5, -4], np.float32))[1] == 1  # clipped: -9 becomes -8
    codes, d = quantize_q4_0(np.zeros(4, np.float32))
    assert codes.tolist() == [8] * 4 and d == 0


@pytest.mark.parametrize("quantize", [quantize_q8_0, quantize_q4_0])
def test_what_is_not_finite_shows(quantize) -> None:
    for bad in (np.nan, np.inf, -np.inf, 1e30):
        assert not np.isfinite(quantize(np.array([1, bad], np.float32))[1])


@pytest.mark.parametrize("dim", [2, 4, 14, 16, 18, 48, 64, 90])
def test_layout_of_q4_0_pages(dim: int) -> None:
    """Groups of 16 numbers in 8 bytes, the first 8 in the low halves; a rest of n in n / 2 bytes, likewise."""
    shape, rng = KVShape(n_layers=1, n_kv_heads=2, head_dim=dim), np.random.default_rng(dim)
    pool = PagePool(shape, "q4_0", 1)
    (page,) = pool.allocate(1)
    assert pool.page_bytes == page_bytes(shape, "q4_0") == 2 * 2 * 64 * (dim // 2 + 2)
    codes = rng.integers(0, 15, (2, 64, dim)).astype(np.uint8)  # K, V: the extreme is -8, so the scale is 1
    codes[:, :, 0] = 0
    for lane in rng.permutation(64):
        k, v = codes[:, lane].astype(np.float32) - 8
        pool.store(page, 1, lane, k, v)
        pool.store(page, 1, lane, k, v)  # again: nothing of a neighbour changes
    keys, values = pool.load(page, 1)
    assert (keys == codes[0].astype(np.float32) - 8).all() and (values == codes[1].astype(np.float32) - 8).all()
    half = pool.arena[page].reshape(2, 2, -1)[1]
    assert (half[:, 32 * dim :].copy().view(np.float16) == 1).all()
    rows = (codes[0].T, 64), (codes[1], dim)  # K [dim][64], V [64][dim]
    for raw, (numbers, width) in zip(half, rows, strict=True):
        row, at = raw[: width // 2].tolist(), numbers[0].tolist()
        for group in range(0, width, 16):
            n = min(16, width - group)
            low, high = at[group : group + n // 2], at[group + n // 2 : group + n]
            assert row[group // 2 : (group + n) // 2] == [a | b << 4 for a, b in zip(low, high, strict=True)]


def test_a_head_size_that_a_type_cannot_hold() -> None:
    for kv_type in ("q4_0", "f16:q4_0", "q4_0:q8_0"):
        with pytest.raises(InvalidArgumentError, match="head_dim is 7"):
            page_bytes(KVShape(1, 1, 7), kv_type)
    assert page_bytes(KVShape(1, 1, 7), "q8_0") == 2 * 64 * 9


def test_a_page_is_clean_when_it_is_handed_out_again() -> None:
    pool = PagePool(SHAPE, "f32", 1)
    (page,) = pool.allocate(1)
    pool.k_view(page, 0)[:] = np.nan
    pool.release(page)
    assert pool.allocate(1) == [page]
    assert not pool.arena[page].any()


def test_shared_pages_live_until_the_last_release() -> None:
    pool = PagePool(SHAPE, "f32", 2)
    (page,) = pool.allocate(1)
    pool.retain(page)
    pool.release(page)
    assert pool.n_free == 1
    pool.k_view(page, 0)[:] = 1.0
    pool.release(page)
    assert pool.n_free == 2


def test_misuse_of_pages_is_stopped() -> None:
    pool = PagePool(SHAPE, "f32", 2)
    (page,) = pool.allocate(1)
    pool.release(page)
    for call in (pool.release, pool.retain, lambda p: pool.k_view(p, 0)):
        for bad in (page, -1, 2, 1):
            with pytest.raises(PageError):
                call(bad)
    assert pool.n_free == 2


def test_allocation_is_all_or_nothing() -> None:
    pool = PagePool(SHAPE, "f32", 3)
    pool.allocate(1)
    with pytest.raises(NotEnoughMemoryError, match="KV cache") as error:
        pool.allocate(3)
    assert (error.value.need, error.value.have) == (3 * pool.page_bytes, 2 * pool.page_bytes)
    assert pool.n_free == 2


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc/self/statm")
def test_the_arena_costs_nothing_until_it_is_used() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    pool = PagePool(KVShape(1, 8, 128), "f32", 1 << 11)
    assert pool.arena.nbytes == 1 << 30
    (page,) = pool.allocate(1)
    pool.v_view(page, 7)[63, 127] = 1.0
    assert resident() - before < 32 << 20
    pool.close()


def test_a_pool_that_cannot_be_reserved() -> None:
    with pytest.raises(NotEnoughMemoryError):
        PagePool(KVShape(1024, 1 << 10, 1 << 10), "f32", 2**31 - 1)


def test_a_table_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise MemoryError

    monkeypatch.setattr(np, "full", full)
    with pytest.raises(NotEnoughMemoryError, match="page table") as error:
        Sequence(PagePool(SHAPE, "f32", 1), 6400)
    assert error.value.need == 4 * 2 * 100


@pytest.mark.parametrize("n_pages", [0, -1, 2**31])
def test_bad_page_counts(n_pages: int) -> None:
    with pytest.raises(InvalidArgumentError):
        PagePool(SHAPE, "f32", n_pages)


def test_bad_kv_type() -> None:
    with pytest.raises(InvalidArgumentError, match="q8_9"):
        PagePool(SHAPE, "q8_9", 1)


@pytest.mark.parametrize("n_ctx", [0, -5, 2**31])
def test_bad_context(n_ctx: int) -> None:
    with pytest.raises(InvalidArgumentError):
        Sequence(PagePool(SHAPE, "f32", 1), n_ctx)


def test_sequence_bounds() -> None:
    pool = PagePool.for_tokens(SHAPE, "f32", 100)
    assert pool.n_pages == 4
    with Sequence(pool, 100) as seq:
        assert seq.table.shape == (2, 2)
        assert seq.table.dtype == np.int32
        with pytest.raises(ContextOverflowError):
            seq.ensure(101)
        with pytest.raises(InvalidArgumentError, match="commit"):
            seq.commit(1)  # no page yet
        seq.ensure(64)
        seq.commit(64)
        with pytest.raises(InvalidArgumentError, match="commit"):
            seq.commit(65)
        with pytest.raises(InvalidArgumentError, match="commit"):
            seq.commit(63)
        for bad in (-1, 65):
            with pytest.raises(InvalidArgumentError, match="rewind"):
                seq.rewind(bad)
        assert seq.n_pages == 2
        seq.rewind(1)
        assert seq.n_pages == 2
    assert pool.n_free == 4
    with pytest.raises(ModelClosedError):
        seq.ensure(1)


def test_a_closed_pool_says_so() -> None:
    pool = PagePool(SHAPE, "f32", 2)
    pool.close()
    pool.close()
    with pytest.raises(ModelClosedError):
        pool.allocate(1)
    with pytest.raises(ModelClosedError):
        _ = pool.address


def test_kv_types() -> None:
    assert resolve_kv_type("auto", {"F32"}) == "f32"
    assert resolve_kv_type("auto", {"F32", "Q8_0"}) == "f16"
    assert resolve_kv_type("auto", {"F16"}) == "f16"
    assert resolve_kv_type("f32", {"Q4_0"}) == "f32"
    assert resolve_kv_type("f16", {"F32"}) == "f16"
    assert resolve_kv_type("q8_0", {"F32"}) == "q8_0"
    assert resolve_kv_type(("q8_0", "f16"), {"F32"}) == resolve_kv_type("q8_0:f16", {"F32"}) == "q8_0:f16"
    assert resolve_kv_type(("f16", "f16"), {"F32"}) == "f16"
    assert resolve_kv_type("auto:q8_0", {"F32"}) == "f32:q8_0"
    for bad in ("q4", "F16", "", ":", "f16:", "f16:f16:f16", (), ("f16", 3), ["f16", "f16"], None, 8):
        with pytest.raises(InvalidArgumentError, match="kv_type"):
            resolve_kv_type(bad, {"F32"})


def test_k_and_v_of_two_types() -> None:
    """Each half as it is in a page of its type alone."""
    pool = PagePool(SHAPE, "q8_0:f32", 2)
    (page,) = pool.allocate(1)
    assert pool.page_bytes == (page_bytes(SHAPE, "q8_0") + page_bytes(SHAPE, "f32")) // 2
    k, v = np.array([1, -2, 3, 127], np.float32), np.array([0.1, 2, 3, 4], np.float32)
    pool.store(page, 2, 5, k, v)
    keys, values = pool.load(page, 2)
    assert keys.shape == values.shape == (64, 4)
    assert (keys[5] == k).all() and (values[5] == v).all()
    assert np.count_nonzero(keys) == np.count_nonzero(values) == 4
    assert not pool.load(page, 1)[0].any() and not pool.load(page, 1)[1].any()
