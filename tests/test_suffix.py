"""The suffix index: the compiled one against its plain twin, and what its drafts are made of."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm import clib
from edgellm.errors import BackendError, InvalidArgumentError
from edgellm.speculate import SuffixProposer
from edgellm.speculate.suffix import LIMIT, NativeSuffixIndex
from edgellm.speculate.suffix_reference import ReferenceSuffixIndex

needs_native = pytest.mark.skipif(not clib.available(), reason="needs the compiled library")
NATIVE = [False, *([True] if clib.available() else [])]


def agree(native: NativeSuffixIndex, plain: ReferenceSuffixIndex) -> None:
    for k in (1, 8):
        ours, theirs = native.propose(k), plain.propose(k)
        assert ours == theirs or (not ours.tokens and not theirs.tokens)


steps = st.one_of(
    st.lists(st.integers(-1, 3), max_size=40).map(lambda ids: ("append", ids)),
    st.lists(st.integers(0, 1), max_size=300).map(lambda ids: ("append", ids)),
    st.tuples(st.integers(0, 2**31), st.integers(1, 700), st.integers(2, 60)).map(lambda t: ("random", t)),
    st.sampled_from([("fix", None), ("rewind", None)]),
)


@needs_native
@settings(max_examples=150, deadline=None)
@given(st.lists(steps, max_size=12))
def test_the_compiled_index_is_the_plain_one(todo: list) -> None:
    """Any tokens, in any portions, beyond the limit, with a fixed part, and back to it."""
    native, plain = NativeSuffixIndex(1024), ReferenceSuffixIndex(1024)
    for what, value in todo:
        if what == "fix" and len(plain.ids) <= 512:
            native.fix()
            plain.fix()
        elif what == "rewind":
            native.rewind()
            plain.rewind()
        elif what in ("append", "random"):
            ids = value
            if what == "random":
                seed, n, n_vocab = value
                rng = random.Random(seed)
                ids = [rng.randrange(n_vocab) for _ in range(n)]
            native.append(ids)
            plain.append(ids)
        agree(native, plain)
        assert len(plain.ids) <= plain.limit


@needs_native
def test_growing_and_forgetting() -> None:
    """Token by token through several limits: large indices grow, and forget their older half."""
    rng = random.Random(1)
    native, plain = NativeSuffixIndex(4096), ReferenceSuffixIndex(4096)
    for i in range(14_000):
        token = rng.randrange(12)
        native.append([token])
        plain.append([token])
        if i % 97 == 0 or abs(i - 4096) < 5:
            agree(native, plain)


@needs_native
def test_memory() -> None:
    """16 bytes a token of capacity, which is at most twice the tokens and never more than the limit."""
    index = NativeSuffixIndex(1 << 15)
    for n in range(0, 100_000, 1000):
        index.append(list(range(1000)))
        tokens = min(n + 1000, 1 << 15)
        assert index.n_bytes <= 16 * max(1024, 2 * tokens) + 200
    assert index.n_bytes <= (16 << 15) + 200
    assert 16 * LIMIT == 4 << 20


@needs_native
def test_bad_calls_are_refused() -> None:
    ffi, lib = clib.library()
    out, draft, one = ffi.new("el_suffix **"), ffi.new("el_suffix_draft *"), ffi.new("int32_t[1]")
    for limit in (-1, 0, 512, 1000, 1025, 1 << 29, 1 << 62):
        with pytest.raises(BackendError):
            NativeSuffixIndex(limit)
    assert lib.el_suffix_new(ffi.NULL, 1024) == clib.EL_E_ARGUMENT
    assert lib.el_suffix_new(out, 1024) == clib.EL_OK
    index = ffi.gc(out[0], lib.el_suffix_free)
    for n, ids in [(-1, one), (1, ffi.NULL), (2**63 - 1, one)]:
        assert lib.el_suffix_append(index, ids, n) == clib.EL_E_ARGUMENT
    for k in (-1, 9):
        assert lib.el_suffix_propose(index, k, draft) == clib.EL_E_ARGUMENT
    assert lib.el_suffix_append(ffi.NULL, one, 1) == lib.el_suffix_propose(ffi.NULL, 1, draft) == clib.EL_E_ARGUMENT
    assert lib.el_suffix_fix(ffi.NULL) == clib.EL_E_ARGUMENT and lib.el_suffix_bytes(ffi.NULL) == 0
    lib.el_suffix_rewind(ffi.NULL)
    lib.el_suffix_free(ffi.NULL)
    assert lib.el_suffix_append(index, ffi.new("int32_t[]", [1] * 600), 600) == clib.EL_OK
    assert lib.el_suffix_fix(index) == clib.EL_E_ARGUMENT, "half of the limit must be left for what comes"


# ---- drafts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("native", NATIVE)
def test_drafts(native: bool) -> None:
    made = SuffixProposer(native=native)
    made.begin([5, 6])
    assert made.propose(7).tokens == (), "two tokens are no match"
    made.begin([1, 2, 3, 4, 5, 6, 9, 1, 2, 3])
    assert made.propose(4).tokens == (4, 5, 6, 9)
    assert made.propose(7).tokens == (4, 5, 6, 9, 1, 2, 3)
    made.accept([4, 5])
    assert made.propose(2).tokens == (6, 9) and made.propose(0).tokens == ()
    made.accept([7])
    assert made.propose(7).tokens == ()


@pytest.mark.parametrize("native", NATIVE)
def test_a_draft_goes_on_behind_the_end(native: bool) -> None:
    made = SuffixProposer(native=native)
    made.begin([1, 2, 3, 1, 2, 3])
    assert made.propose(8).tokens == (1, 2, 3, 1, 2, 3, 1, 2)


@pytest.mark.parametrize("native", NATIVE)
def test_votes(native: bool) -> None:
    """The longest match decides; of equals most go on so; of these the latest. Classes say how sure a guess is."""
    made = SuffixProposer(native=native)
    begin = [1, 2, 3, 7, 0, 1, 2, 3, 7, 0, 1, 2, 3, 8, 0]
    made.begin([*begin, 1, 2, 3])  # the latest has the longest match: 0 1 2 3
    assert made.propose(1).tokens == (8,)
    made.begin([1, 2, 3, 7, 50, 1, 2, 3, 7, 51, 1, 2, 3, 8, 52, 1, 2, 3])
    first = made.propose(2)
    assert first.tokens == (7, 51) and first.classes[0] == 1, "two of three, after a match of 3"
    made.begin([1, 2, 3, 7, 50, 1, 2, 3, 8, 51, 1, 2, 3])
    assert made.propose(1).tokens == (8,) and made.propose(1).classes == (1,), "one of two: the later one"
    made.begin([*range(30), 99, *range(20)])
    assert made.propose(1).classes == (14,), "a long match, and all agree"
    assert all(0 <= kind < len(made.priors) for kind in made.propose(8).classes)


@pytest.mark.parametrize("native", NATIVE)
def test_a_corpus(native: bool) -> None:
    """It is known from the start of each answer, and what was said before is not."""
    made = SuffixProposer([[1, 2, 3, 4, 5], [6, 7, 8, 9]], native=native)
    made.begin([1, 2, 3])
    assert made.propose(7).tokens == (4, 5), "a draft ends where a text of the corpus does"
    made.begin([4, 5, 6, 7])
    assert made.propose(7).tokens == (), "no match goes across"
    made.begin([30, 31, 32, 33, 30, 31, 32])
    assert made.propose(1).tokens == (33,)
    made.begin([30, 31, 32])
    assert made.propose(1).tokens == ()
    with pytest.raises(InvalidArgumentError, match="choose up to 512"):
        SuffixProposer([[1] * 600], limit=1024, native=native)
