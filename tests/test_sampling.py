"""The sampler: known answers, tables worked by hand, and the compiled one against its NumPy twin."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm import clib
from edgellm.errors import BackendError, InvalidArgumentError, NonFiniteError
from edgellm.sampling import Sampler, Sampling, reference
from edgellm.sampling.tables import TokenTables

needs_native = pytest.mark.skipif(not clib.available(), reason="needs the compiled library")
BOTH = [False, pytest.param(True, marks=needs_native)]
OFF: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}  # nothing but the draw


def drawn(logits: list[float], native: bool, n: int = 250, history: list[int] | None = None, **params: Any) -> set[int]:
    """The tokens that ever come out of n draws."""
    sampler = Sampler(Sampling(**{**OFF, "seed": 1, **params}), len(logits), native=native)
    row = np.array(logits, np.float32)
    return {sampler.sample(row, history or []) for _ in range(n)}


# ---- random numbers --------------------------------------------------------------------------------------------------

# Random123's kat_vectors for philox4x32, 10 rounds: counter, key, output.
KNOWN = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize("counter, key, want", KNOWN)
def test_philox_known_answers(counter: list[int], key: list[int], want: list[int]) -> None:
    assert reference.philox(counter, key) == want
    if clib.available():
        assert clib.philox(counter, key) == want


def test_uniform_is_uniform_and_depends_on_seed_and_index() -> None:
    draws = np.array([reference.uniforms(7, i)[0] for i in range(4000)])
    assert ((draws >= 0) & (draws < 1)).all()
    counts = np.histogram(draws, bins=20, range=(0, 1))[0]
    assert ((counts - 200) ** 2 / 200).sum() < 50  # chi-square, 19 degrees of freedom: p = 1e-4
    assert reference.uniforms(7, 3)[0] == draws[3] != reference.uniforms(8, 3)[0]
    assert reference.uniforms(2**64 - 1, 2**64 - 1) != reference.uniforms(2**64 - 1, 2**32 - 1)


@needs_native
def test_own_exp_and_log_have_the_same_bits_everywhere() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(-720, 700, 20_000), rng.uniform(-1, 1, 20_000), [0.0, -708.0, -708.1, -np.inf]])
    e, log = clib.exp_log(x)
    assert np.array_equal(e, reference.exp(x))
    assert np.allclose(e, np.exp(np.maximum(x, -800)), rtol=1e-15, atol=1e-307)
    positive = np.concatenate([x[x > 0][:3000], [1.0, 1.5, 2.0, 1e5]])
    log = clib.exp_log(positive)[1]
    assert log.tolist() == [reference.log(v) for v in positive.tolist()]
    assert np.allclose(log, np.log(positive), rtol=1e-14, atol=1e-15)


# ---- parameters ------------------------------------------------------------------------------------------------------


def test_defaults_are_llama_cpps() -> None:
    s = Sampling()
    assert (s.temperature, s.top_k, s.top_p, s.min_p, s.typical_p) == (0.8, 40, 0.95, 0.05, 1.0)
    assert (s.repeat_penalty, s.repeat_last_n, s.presence_penalty, s.frequency_penalty) == (1.0, 64, 0.0, 0.0)
    assert s.seed is None and s.stop == ()
    with pytest.raises(dataclasses.FrozenInstanceError):
        s.seed = 3


@pytest.mark.parametrize(
    "name, value, limits",
    [
        ("temperature", -0.1, "0 to 1000"),
        ("temperature", math.nan, "0 to 1000"),
        ("temperature", math.inf, "0 to 1000"),
        ("temperature", "hot", "a number"),
        ("temperature", None, "a number"),
        ("top_k", -1, "an integer from 0"),
        ("top_k", 2.5, "an integer"),
        ("top_k", True, "an integer"),
        ("top_p", 1.1, "0 to 1"),
        ("top_p", -0.1, "0 to 1"),
        ("min_p", 2, "0 to 1"),
        ("typical_p", -1, "0 to 1"),
        ("repeat_penalty", 0, "0.001 to 1000"),
        ("repeat_last_n", -2, "-1 to"),
        ("presence_penalty", 1e9, "-1000 to 1000"),
        ("frequency_penalty", math.nan, "-1000 to 1000"),
        ("seed", -1, "0 to"),
        ("seed", 2**64, "0 to"),
        ("seed", "x", "an integer"),
        ("stop", ("",), "non-empty strings"),
        ("stop", (1,), "non-empty strings"),
        ("stop", 5, "non-empty strings"),
        ("stop", ("x",) * 300, "at most 256"),
    ],
)
def test_bad_parameters_name_field_value_and_limits(name: str, value: Any, limits: str) -> None:
    with pytest.raises(InvalidArgumentError, match=limits) as info:
        Sampling(**{name: value})
    assert name in str(info.value) and "\n" not in str(info.value)


def test_values_are_made_plain() -> None:
    s = Sampling(temperature=np.float32(0.5), top_k=np.int64(3), stop="END", seed=2**64 - 1)
    assert (s.temperature, s.top_k, s.stop) == (0.5, 3, ("END",))
    assert type(s.temperature) is float and type(s.top_k) is int
    assert Sampling(stop=["a", "b"]).stop == ("a", "b")


# ---- tables worked by hand -------------------------------------------------------------------------------------------

# Probabilities 1/2, 1/4, 1/8, 1/16, 1/16 of the ids 3, 0, 4, 1, 2.
HALVES = [math.log(p) for p in (1 / 4, 1 / 16, 1 / 16, 1 / 2, 1 / 8)]


@pytest.mark.parametrize("native", BOTH)
def test_filters_by_hand(native: bool) -> None:
    assert drawn(HALVES, native) == {0, 1, 2, 3, 4}
    for k, want in (
        (1, {3}),
        (2, {3, 0}),
        (3, {3, 0, 4}),
        (4, {3, 0, 4, 1}),
        (5, {0, 1, 2, 3, 4}),
        (99, {0, 1, 2, 3, 4}),
    ):
        assert drawn(HALVES, native, top_k=k) == want  # of the equal ids 1 and 2 the lower one stays
    for p, want in (
        (0.0, {3}),
        (0.4, {3}),
        (0.6, {3, 0}),
        (0.8, {3, 0, 4}),
        (0.9, {3, 0, 4, 1}),
        (0.97, {0, 1, 2, 3, 4}),
    ):
        assert drawn(HALVES, native, top_p=p) == want
    for p, want in ((1.0, {3}), (0.6, {3}), (0.4, {3, 0}), (0.2, {3, 0, 4}), (0.1, {0, 1, 2, 3, 4})):
        assert drawn(HALVES, native, min_p=p) == want
    # Entropy 1.875 bits; distances of the surprises 1, 2, 3, 4, 4 bits: 0.875, 0.125, 1.125, 2.125, 2.125.
    for p, want in ((0.0, {0}), (0.2, {0}), (0.3, {0, 3}), (0.7, {0, 3}), (0.8, {0, 3, 4}), (0.9, {0, 3, 4, 1})):
        assert drawn(HALVES, native, typical_p=p) == want


@pytest.mark.parametrize("native", BOTH)
def test_order_of_the_chain(native: bool) -> None:
    # top_k first: of {3, 0} the best has 2/3, so top_p 0.6 keeps one, where 0.6 of all five would keep two.
    assert drawn(HALVES, native, top_k=2, top_p=0.6) == {3}
    # Filters see the probabilities at temperature 1: a hot draw is from the same tokens.
    assert drawn(HALVES, native, min_p=0.4, temperature=100.0) == {3, 0}
    # Penalties come before everything.
    assert drawn(HALVES, native, top_k=1, presence_penalty=10.0, history=[3]) == {0}


@pytest.mark.parametrize("native", BOTH)
def test_penalties_by_hand(native: bool) -> None:
    greedy = {"temperature": 0.0, "n": 1}
    assert drawn([2.0, 1.5, -1.0], native, history=[0], repeat_penalty=1.4, **greedy) == {1}  # 2 / 1.4 < 1.5
    assert drawn([2.0, 1.5, -1.0], native, history=[0], repeat_penalty=1.3, **greedy) == {0}  # 2 / 1.3 > 1.5
    assert drawn([-1.0, -1.5], native, history=[0], repeat_penalty=2.0, **greedy) == {1}  # -2 < -1.5
    assert drawn([2.0, 1.5], native, history=[0], presence_penalty=0.6, **greedy) == {1}
    assert drawn([2.0, 1.5], native, history=[0, 0], frequency_penalty=0.3, **greedy) == {1}  # twice 0.3
    assert drawn([2.0, 1.5], native, history=[0], frequency_penalty=0.3, **greedy) == {0}
    assert drawn([2.0, 1.5], native, history=[0, 1, 1], presence_penalty=0.6, repeat_last_n=2, **greedy) == {0}
    assert drawn([2.0, 1.5], native, history=[0, 1, 1], presence_penalty=0.6, repeat_last_n=0, **greedy) == {0}
    assert drawn([2.0, 1.5], native, history=[0] + [1] * 99, frequency_penalty=0.01, repeat_last_n=-1, **greedy) == {0}
    assert drawn([2.0, 1.9], native, history=[0], presence_penalty=-5.0, **greedy) == {0}


@pytest.mark.parametrize("native", BOTH)
def test_greedy_takes_the_lowest_of_equals(native: bool) -> None:
    assert drawn([1.0, 3.0, 3.0], native, n=1, temperature=0.0) == {1}
    assert drawn([0.0, 0.0, 0.0], native, n=1, temperature=0.0) == {0}
    assert drawn([-math.inf, -5.0], native, n=1, temperature=0.0) == {1}
    assert drawn([5.0], native, n=3) == {0}


@pytest.mark.parametrize("native", BOTH)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_probabilities(native: bool, temperature: float) -> None:
    logits = np.array([0.0, 1.0, -1.0, 2.0, -math.inf], np.float32)
    p = np.exp(logits / temperature)
    p /= p.sum()
    sampler = Sampler(Sampling(**{**OFF, "temperature": temperature, "seed": 3}), 5, native=native)
    n = 4000
    counts = np.bincount([sampler.sample(logits) for _ in range(n)], minlength=5)
    assert counts[4] == 0
    assert ((counts - n * p)[:4] ** 2 / (n * p)[:4]).sum() < 22  # chi-square, 3 degrees of freedom: p = 1e-4


# ---- the Sampler class -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("native", BOTH)
def test_seed_is_reported_and_repeats(native: bool) -> None:
    logits = np.zeros(1000, np.float32)
    a = Sampler(Sampling(top_k=0), 1000, native=native)
    first = [a.sample(logits) for _ in range(20)]
    b = Sampler(Sampling(top_k=0, seed=a.seed), 1000, native=native)
    assert [b.sample(logits) for _ in range(20)] == first
    assert len({Sampler(Sampling(), 10).seed for _ in range(5)}) > 1
    assert Sampler(Sampling(seed=0), 10).seed == 0
    assert len(set(first)) > 10  # the draws differ


def test_known_draws() -> None:
    # These may never change: a seed that someone wrote down must give the same text in a later version.
    sampler = Sampler(Sampling(**{**OFF, "seed": 42}), 1000, native=False)
    assert [sampler.sample(np.zeros(1000, np.float32)) for _ in range(6)] == [468, 327, 658, 670, 839, 293]


@pytest.mark.parametrize("native", BOTH)
def test_sampler_keeps_the_recent_tokens(native: bool) -> None:
    sampler = Sampler(Sampling(temperature=0.0, presence_penalty=1.0, repeat_last_n=2), 4, native=native)
    logits = np.array([3.0, 2.5, 2.25, 2.1], np.float32)
    assert [sampler.sample(logits) for _ in range(6)] == [0, 1, 2, 0, 1, 2]
    sampler = Sampler(Sampling(temperature=0.0, presence_penalty=1.0), 4, native=native)
    sampler.accept([0, 1])
    assert sampler.sample(logits) == 2
    assert sampler.sample(logits, history=[1]) == 0
    for wrong in ([4], [-1]):
        with pytest.raises(InvalidArgumentError, match="0 to 3"):
            sampler.accept(wrong)


@pytest.mark.parametrize("native", BOTH)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_non_finite_logits_are_errors(native: bool, bad: float, temperature: float) -> None:
    sampler = Sampler(Sampling(temperature=temperature, seed=1), 3, native=native)
    with pytest.raises(NonFiniteError, match="logits"):
        sampler.sample(np.array([0.0, bad, 1.0], np.float32))
    with pytest.raises(NonFiniteError, match="infinity"):
        sampler.sample(np.full(3, -math.inf, np.float32))
    assert sampler.sample(np.array([9.0, -math.inf, -math.inf], np.float32)) == 0  # still usable


@pytest.mark.parametrize("native", BOTH)
def test_shapes_are_checked(native: bool) -> None:
    sampler = Sampler(Sampling(), 3, native=native)
    for wrong in (np.zeros(4), np.zeros((1, 3)), np.zeros(0)):
        with pytest.raises(InvalidArgumentError, match="shape"):
            sampler.sample(wrong)
    assert sampler.sample(np.zeros(3)) in (0, 1, 2)  # float64 is converted
    with pytest.raises(InvalidArgumentError, match="n_vocab"):
        Sampler(Sampling(), 0, native=native)


# ---- the compiled sampler against its twin ---------------------------------------------------------------------------


def _random_case(rng: np.random.Generator) -> tuple[Sampling, np.ndarray, list[int]]:
    n = int(rng.integers(1, 300))
    logits = (rng.standard_normal(n) * rng.choice([0, 0.1, 1, 5, 200])).astype(np.float32)
    if rng.random() < 0.3:
        logits = np.round(logits)  # many equal values
    if rng.random() < 0.3:
        logits[rng.random(n) < 0.5] = -np.inf
        logits[int(rng.integers(n))] = 0
    params = Sampling(
        temperature=rng.choice([0, 0.3, 1, 2.5]),
        top_k=int(rng.choice([0, 1, 5, 40, 1000])),
        top_p=rng.choice([0, 0.5, 0.9, 0.95, 1 - 1e-9, 1]),
        min_p=rng.choice([0, 0.05, 0.5, 1]),
        typical_p=rng.choice([0, 0.2, 0.9, 1, 1]),
        repeat_penalty=rng.choice([1, 1.3, 0.7]),
        presence_penalty=rng.choice([0, 0.5, -0.5]),
        frequency_penalty=rng.choice([0, 0.2]),
        repeat_last_n=int(rng.choice([-1, 0, 8, 64])),
        seed=int(rng.integers(2**63)),
    )
    return params, logits, rng.integers(0, n, int(rng.integers(0, 100))).tolist()


@needs_native
def test_native_gives_the_tokens_of_its_twin() -> None:
    rng = np.random.default_rng(11)
    for _ in range(2000):
        params, logits, history = _random_case(rng)
        fast, slow = (Sampler(params, len(logits), native=flag) for flag in (True, False))
        for _ in range(2):
            assert fast.sample(logits, history) == slow.sample(logits, history), (params, logits.tolist(), history)


@needs_native
@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(st.floats(width=32, allow_nan=False, allow_infinity=False), st.just(-math.inf)),
        min_size=1,
        max_size=20,
    ),
    st.integers(0, 2**64 - 1),
    st.floats(0, 3),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_native_gives_the_tokens_of_its_twin_at_the_edges(
    logits: list[float], seed: int, temperature: float, top_p: float, min_p: float, typical_p: float
) -> None:
    row = np.array(logits, np.float32)
    params = Sampling(temperature=temperature, top_k=0, top_p=top_p, min_p=min_p, typical_p=typical_p, seed=seed)
    results = []
    for native in (True, False):
        try:
            results.append(Sampler(params, len(row), native=native).sample(row))
        except NonFiniteError:
            results.append("not finite")
    assert results[0] == results[1]


@needs_native
def test_native_and_twin_on_a_large_vocabulary() -> None:
    rng = np.random.default_rng(2)
    n = 128_256
    for scale in (0.0, 1.0, 4.0):
        logits = (rng.standard_normal(n) * scale).astype(np.float32)
        for params in ({}, {"top_k": 0}, {"top_k": 0, "typical_p": 0.5}, {**OFF}, {"top_k": 5000}, {"temperature": 0}):
            made = Sampling(**{"seed": 5, **params})
            fast, slow = (Sampler(made, n, native=flag) for flag in (True, False))
            assert fast.sample(logits) == slow.sample(logits), (scale, params)


@needs_native
def test_native_call_checks_its_arguments() -> None:
    chain, none = Sampling(repeat_penalty=2.0).chain(), TokenTables({})
    row, nothing = np.zeros(4, np.float32), np.zeros(0, np.int32)
    call = clib.SampleCall(chain, 4, none)
    assert call(row, np.array([0, 3], np.int32), 1, 0) in range(4)
    for recent in ([4], [-1], [2**31 - 1]):
        with pytest.raises(BackendError, match="argument"):
            call(row, np.array(recent, np.int32), 1, 0)
    wrong = [("temperature", -1.0), ("temperature", math.nan), ("top_p", math.nan), ("repeat_penalty", 0.0)]
    wrong += [("dry_base", 0.5), ("dry_allowed_length", -1), ("xtc_threshold", math.nan), ("dynatemp_range", math.inf)]
    wrong += [("mirostat", 1), ("mirostat_tau", -1.0), ("samplers", ("top_k", "top_k")), ("samplers", ("top_k",) * 9)]
    for name, value in wrong:
        with pytest.raises(BackendError, match="argument"):
            clib.SampleCall({**chain, name: value}, 4, none)(row, nothing, 1, 0)
    broken = [TokenTables({4: 1.0}), TokenTables({0: math.nan}), TokenTables({0: math.inf})]
    backwards = TokenTables({}, [(1, (2, 3)), (2, (1,))])
    backwards.tail_ends = backwards.tail_ends[::-1].copy()
    unsorted = TokenTables({}, [(1, ()), (2, ())])
    unsorted.heads = unsorted.heads[::-1].copy()
    for tables in (*broken, backwards, unsorted):
        with pytest.raises(BackendError, match="argument"):
            clib.SampleCall(chain, 4, tables)(row, nothing, 1, 0)
    for n_vocab in (0, -1, 2**31):
        with pytest.raises(InvalidArgumentError, match="vocabulary"):
            clib.SampleCall(chain, n_vocab, none)
