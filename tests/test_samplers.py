"""Samplers beyond the usual ones: DRY, XTC, top-n-sigma, dynamic temperature, Mirostat, biases, and their order.

Tables worked by hand, llama.cpp's definition of DRY written down naively, and the compiled ones against their twins.
(tools/sampler_parity.py compares with llama.cpp itself.)
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm import Tokenizer, clib
from edgellm.errors import InvalidArgumentError, NonFiniteError
from edgellm.sampling import Sampler, Sampling, reference
from edgellm.sampling.order import SAMPLERS, parse_order
from edgellm.sampling.recent import RecentTokens
from edgellm.sampling.tables import TokenTables, token_tables

needs_native = pytest.mark.skipif(not clib.available(), reason="needs the compiled library")
BOTH = [False, pytest.param(True, marks=needs_native)]
OFF: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}  # nothing but the draw
VOCABULARIES = Path(__file__).parents[2] / "shared/data/vocab"

# Probabilities 1/2, 1/4, 1/8, 1/16, 1/16 of the ids 3, 0, 4, 1, 2.
HALVES = [math.log(p) for p in (1 / 4, 1 / 16, 1 / 16, 1 / 2, 1 / 8)]


def drawn(logits: list[float], native: bool, n: int = 250, history: list[int] | None = None, **params: Any) -> set[int]:
    """The tokens that ever come out of n draws."""
    sampler = Sampler(Sampling(**{**OFF, "seed": 1, **params}), len(logits), native=native)
    row = np.array(logits, np.float32)
    return {sampler.sample(row, history or []) for _ in range(n)}


# ---- parameters ------------------------------------------------------------------------------------------------------


def test_defaults_are_llama_cpps_and_change_nothing() -> None:
    s = Sampling()
    assert (s.dry_multiplier, s.dry_base, s.dry_allowed_length, s.dry_penalty_last_n) == (0.0, 1.75, 2, 64)
    assert s.dry_sequence_breakers == ("\n", ":", '"', "*")
    assert (s.xtc_probability, s.xtc_threshold, s.top_n_sigma) == (0.0, 0.1, -1.0)
    assert (s.dynatemp_range, s.dynatemp_exponent) == (0.0, 1.0)
    assert (s.mirostat, s.mirostat_tau, s.mirostat_eta) == (0, 5.0, 0.1)
    assert (s.logit_bias, s.samplers) == ((), SAMPLERS) and s.history == 0


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("dry_base", 0.9, "1 to 1000"),
        ("dry_multiplier", -1, "0 to 1000"),
        ("dry_allowed_length", -1, "an integer from 0"),
        ("dry_penalty_last_n", -2, "from -1"),
        ("dry_sequence_breakers", ("x", ""), "non-empty strings"),
        ("dry_sequence_breakers", ("x" * 41,), "at most 40 bytes"),
        ("dry_sequence_breakers", tuple(map(str, range(65))), "at most 64"),
        ("xtc_probability", 1.5, "0 to 1"),
        ("xtc_threshold", math.nan, "0 to 1"),
        ("top_n_sigma", math.inf, "-1 to 1000"),
        ("dynatemp_range", -0.1, "0 to 1000"),
        ("dynatemp_exponent", "x", "a number"),
        ("mirostat", 1, "the first version"),
        ("mirostat", 3, "0 to 2"),
        ("mirostat_eta", -1, "0 to 1000"),
        ("logit_bias", 5, "must map tokens"),
        ("logit_bias", {1: "much"}, "a number from -1e"),
        ("logit_bias", {1: math.inf}, "-inf or False"),
        ("logit_bias", {1: math.nan}, "-inf or False"),
        ("logit_bias", {1: True}, "-inf or False"),
        ("logit_bias", {-1: 1.0}, "by id or text"),
        ("logit_bias", {1.5: 1.0}, "by id or text"),
        ("logit_bias", {"": 1.0}, "no text"),
        ("samplers", "top_k;magic", "no sampler 'magic'"),
        ("samplers", ("top_k", "top-k"), "twice"),
        ("samplers", ("top_k", 3), "no sampler"),
        ("samplers", 3, "a list of names"),
    ],
)
def test_bad_parameters(field: str, value: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message) as info:
        Sampling(**{field: value})
    assert "\n" not in str(info.value)


def test_order_is_read_as_llama_cpp_reads_it() -> None:
    assert parse_order("penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature") == SAMPLERS
    assert parse_order("Top-K; nucleus;temp;minp;typ") == ("top_k", "top_p", "temperature", "min_p", "typical_p")
    assert parse_order("") == parse_order([]) == ()
    assert Sampling(samplers=["xtc", "topk"]).samplers == ("xtc", "top_k")


def test_biases_become_pairs() -> None:
    s = Sampling(logit_bias={"7": -100, 3: False, " the": 1})
    assert s.logit_bias == ((7, -100.0), (3, -math.inf), (" the", 1.0))
    assert Sampling(logit_bias=s.logit_bias) == s and hash(s) == hash(dataclasses.replace(s))
    assert Sampling(logit_bias={"7": 1, 7: 2}).logit_bias == ((7, 2.0),)


# ---- tables worked by hand -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("native", BOTH)
def test_xtc_by_hand(native: bool) -> None:
    assert drawn(HALVES, native, xtc_probability=1.0, xtc_threshold=0.2) == {0, 4, 1, 2}  # of 3 and 0, 0 stays
    assert drawn(HALVES, native, xtc_probability=1.0, xtc_threshold=0.1) == {4, 1, 2}
    assert drawn(HALVES, native, xtc_probability=1.0, xtc_threshold=0.05) == {2}  # of equals the highest id
    assert drawn(HALVES, native, xtc_probability=1.0, xtc_threshold=0.0) == {2}
    assert drawn(HALVES, native, xtc_probability=1.0, xtc_threshold=0.3) == {3, 0, 4, 1, 2}  # one alone is kept
    assert drawn(HALVES, native, xtc_probability=1.0, xtc_threshold=0.51) == {3, 0, 4, 1, 2}  # off
    assert drawn(HALVES, native, xtc_probability=0.0, xtc_threshold=0.2) == {3, 0, 4, 1, 2}
    assert drawn(HALVES, native, n=400, xtc_probability=0.5, xtc_threshold=0.1, top_k=2) == {0, 3}


@pytest.mark.parametrize("native", BOTH)
def test_xtc_works_as_often_as_it_is_told(native: bool) -> None:
    """And whether it does says nothing about what is drawn then."""
    params = {**OFF, "xtc_probability": 0.3, "xtc_threshold": 0.4, "seed": 5}
    sampler = Sampler(Sampling(**params), 3, native=native)
    row = np.log(np.array([0.45, 0.45, 0.1], np.float32))
    counts = np.bincount([sampler.sample(row) for _ in range(4000)], minlength=3)
    want = np.array([0.7 * 0.45, 0.7 * 0.45 + 0.3 * 0.45 / 0.55, 0.7 * 0.1 + 0.3 * 0.1 / 0.55]) * 4000
    assert ((counts - want) ** 2 / want).sum() < 18  # chi-square, 2 degrees of freedom: p = 1e-4


@pytest.mark.parametrize("native", BOTH)
def test_top_n_sigma_by_hand(native: bool) -> None:
    logits = [0.0, 1.0, 2.0, 3.0, 4.0]  # mean 2, deviation sqrt 2
    assert drawn(logits, native, temperature=5.0, top_n_sigma=0.5) == {4}  # from 3.29
    assert drawn(logits, native, temperature=5.0, top_n_sigma=1.0) == {4, 3}  # from 2.59
    assert drawn(logits, native, temperature=5.0, top_n_sigma=2.0) == {4, 3, 2}  # from 1.17
    assert drawn(logits, native, temperature=5.0, top_n_sigma=-1.0) == drawn(logits, native, temperature=5.0)
    assert drawn([7.0, -math.inf, 7.0], native, top_n_sigma=1.0) == {0, 2}  # what cannot come has no part in it


def test_dynamic_temperature_by_hand() -> None:
    even, one = np.zeros(4), np.array([0.0, -50.0, -50.0, -50.0])
    s = Sampling(temperature=1.0, dynatemp_range=0.5)
    assert reference.temperature_of(even, s) == pytest.approx(1.5)
    assert reference.temperature_of(one, s) == pytest.approx(0.5)
    halves = np.log(np.array([0.5, 0.5, 1e-300, 1e-300]))  # 1 of 2 bits
    assert reference.temperature_of(halves, s) == pytest.approx(1.0)
    squared = dataclasses.replace(s, dynatemp_exponent=2.0)
    assert reference.temperature_of(halves, squared) == pytest.approx(0.5 + 0.25)
    assert reference.temperature_of(one, dataclasses.replace(s, dynatemp_exponent=0.0)) == pytest.approx(1.5)
    wide = dataclasses.replace(s, dynatemp_range=3.0)
    assert reference.temperature_of(even, wide) == pytest.approx(4.0)  # and never below 0
    assert reference.temperature_of(one, wide) == pytest.approx(0.0, abs=1e-9)
    assert reference.temperature_of(np.zeros(1), s) == 1.0


@pytest.mark.parametrize("native", BOTH)
def test_dynamic_temperature_draws(native: bool) -> None:
    """A row at whose entropy the temperature is 2 is drawn from as at 2."""
    row = np.array([0.0, 0.0, 0.0, 0.0], np.float32)
    a = Sampler(Sampling(**{**OFF, "temperature": 1.0, "dynatemp_range": 1.0, "seed": 3}), 4, native=native)
    b = Sampler(Sampling(**{**OFF, "temperature": 2.0, "seed": 3}), 4, native=native)
    assert [a.sample(row) for _ in range(50)] == [b.sample(row) for _ in range(50)]


@pytest.mark.parametrize("native", BOTH)
def test_biases_by_hand(native: bool) -> None:
    greedy = {"temperature": 0.0, "n": 1}
    assert drawn([1.0, 2.0], native, logit_bias={0: 1.5}, **greedy) == {0}
    assert drawn([1.0, 2.0], native, logit_bias={1: False}) == {0}
    assert drawn([1.0, 2.0, 3.0], native, logit_bias={1: -math.inf, 2: -1000.0}) == {0}
    assert drawn([-math.inf, 2.0], native, logit_bias={0: 100.0}) == {1}
    assert drawn([1.0, 2.0], native, logit_bias={0: 1.5}, samplers=(), n=50) == {0, 1}, "whatever the order is"
    # Before the penalties: 1 + 3 = 4, halved, is less than 2.1.
    assert drawn([1.0, 2.1], native, logit_bias={0: 3.0}, repeat_penalty=2.0, history=[0], **greedy) == {1}
    sampler = Sampler(Sampling(logit_bias={0: False, 1: False}), 2, native=native)
    with pytest.raises(InvalidArgumentError, match="bans every token"):
        sampler.sample(np.zeros(2, np.float32))
    with pytest.raises(NonFiniteError):
        sampler.sample(np.array([0, math.nan], np.float32))
    for bad, message in (({5: 1.0}, r"0 to 1"), ({"a": 1.0}, "without a tokenizer")):
        with pytest.raises(InvalidArgumentError, match=message):
            Sampler(Sampling(logit_bias=bad), 2, native=native)


@pytest.mark.parametrize("native", BOTH)
def test_order_by_hand(native: bool) -> None:
    # At temperature 10 first, the probabilities are nearly even: min-p 0.8 keeps all. Else only the best.
    assert drawn(HALVES, native, temperature=10.0, min_p=0.8, samplers="temperature;min_p") == {0, 1, 2, 3, 4}
    assert drawn(HALVES, native, temperature=10.0, min_p=0.8, samplers="min_p;temperature") == {3}
    # A sampler that is not named does not work, temperature 0 neither.
    assert drawn(HALVES, native, top_k=1, samplers="top_p") == {0, 1, 2, 3, 4}
    assert drawn(HALVES, native, temperature=0.0, samplers="top_k") == {0, 1, 2, 3, 4}
    assert drawn(HALVES, native, temperature=0.0, samplers="temperature;top_k") == {3}
    # Penalties behind top-k cannot bring back what it cut.
    assert drawn(HALVES, native, top_k=1, presence_penalty=9.0, history=[3], samplers="top_k;penalties") == {3}
    assert drawn(HALVES, native, top_k=1, presence_penalty=9.0, history=[3], samplers="penalties;top_k") == {0}
    assert drawn(HALVES, native, top_k=2, presence_penalty=9.0, history=[3], samplers="top_k;penalties;min_p",
                 min_p=0.5) == {0}  # fmt: skip


def test_mirostat_by_hand() -> None:
    x, s = np.array(HALVES), Sampling(mirostat=2, mirostat_tau=3.0, mirostat_eta=0.5)
    kept, chosen, mu = reference.mirostat(x, s, 2.5, 0.0)  # 1 and 2 bits are below 2.5
    assert kept.tolist() == [0, 3] and kept[chosen] == 0
    assert mu == pytest.approx(2.5 - 0.5 * (math.log2(3) - 3.0))  # of the two, 0 has 1/3
    assert reference.mirostat(x, s, 2.5, 0.9)[2] == pytest.approx(2.5 - 0.5 * (math.log2(1.5) - 3.0))
    assert reference.mirostat(x, s, -7.0, 0.5)[0].tolist() == [3], "the best one always stays"


@pytest.mark.parametrize("native", BOTH)
def test_mirostat_takes_its_aim(native: bool) -> None:
    row = np.log(1.0 / np.arange(1, 1001, dtype=np.float64)).astype(np.float32)  # Zipf
    spread = []
    for tau in (1.0, 3.0, 6.0):
        params = Sampling(temperature=1.0, mirostat=2, mirostat_tau=tau, seed=1)
        sampler = Sampler(params, 1000, native=native)
        spread.append(len(set([sampler.sample(row) for _ in range(300)][100:])))
        assert 2**tau <= spread[-1] <= 2 ** (tau + 1.5), "so many equal tokens have the surprise that it aims at"
    sampler = Sampler(Sampling(mirostat=2, seed=1, top_k=1, repeat_penalty=9.0), 1000, native=native)
    assert len({sampler.sample(row) for _ in range(50)}) > 3, "other samplers do not work beside it"
    assert drawn(HALVES, native, mirostat=2, temperature=0.0, n=5) == {3}


# ---- DRY -------------------------------------------------------------------------------------------------------------


def naive_dry(recent: list[int], breakers: list[list[int]], allowed: int) -> dict[int, int]:
    """Token -> exponent, from the definition: for each place where the same tokens stand as at the end, the token
    behind it would make a repeated stretch longer. A stretch begins behind the last breaker that is whole."""
    n, limit = len(recent), len(recent)
    for at in range(n - 1, -1, -1):
        whole = [b for b in breakers if recent[at : at + len(b)] == b]
        if whole:
            limit = n - at - max(len(b) for b in whole)
            break
    found: dict[int, int] = {}
    for end in range(n - 1):  # the stretch that is compared ends here
        length = 0
        while length < min(limit, end + 1) and recent[end - length] == recent[n - 1 - length]:
            length += 1
        if length >= allowed and n > allowed and [recent[end + 1]] not in breakers:
            found[recent[end + 1]] = max(found.get(recent[end + 1], 0), length - allowed)
    return found


def tables_of(breakers: list[list[int]]) -> TokenTables:
    return TokenTables({}, [(b[0], tuple(b[1:])) for b in breakers])


@pytest.mark.parametrize("native", BOTH)
@settings(max_examples=300, deadline=None)
@given(
    recent=st.lists(st.integers(0, 3), max_size=40),
    breakers=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3), max_size=3),
    allowed=st.integers(0, 4),
    base=st.sampled_from([1.0, 1.75, 3.0]),
)
def test_dry_is_what_its_definition_says(
    native: bool, recent: list[int], breakers: list[list[int]], allowed: int, base: float
) -> None:
    given = {"dry_multiplier": 0.5, "dry_base": base, "dry_allowed_length": allowed, "dry_penalty_last_n": -1}
    params = Sampling(temperature=0, **given)
    want = np.array([0.5 * base ** n if (n := naive_dry(recent, breakers, allowed).get(t)) is not None else 0.0
                     for t in range(4)])  # fmt: skip
    tables = tables_of(breakers)
    for token in range(4):  # each token in turn is so good that it is chosen exactly if its penalty is small enough
        for slack, chosen in ((1e-3, True), (-1e-3, False)):
            row = np.full(4, -1e30, np.float32)
            row[token], row[(token + 1) % 4] = want[token] + slack, 0.0
            if want[(token + 1) % 4] > 0.0:
                row[(token + 1) % 4] = want[(token + 1) % 4]
            made = clib.SampleCall(params.chain(), 4, tables) if native else reference.ReferenceSampler(params, tables)
            got = made(row, np.array(recent, np.int32), 1, 0)
            assert (got == token) == chosen, (token, want.tolist())


@pytest.mark.parametrize("native", BOTH)
def test_dry_window_and_growth(native: bool) -> None:
    greedy = {"temperature": 0.0, "n": 1, "dry_multiplier": 0.1, "dry_sequence_breakers": ()}
    again = [0, 1, 2, 3, 0, 1, 2]  # 3 would make three tokens four: 0.1 * 1.75
    assert drawn([0.0, 0, 0.9, 1.0], native, history=again, **greedy) == {2}  # 0.825
    assert drawn([0.0, 0, 0.8, 1.0], native, history=again, **greedy) == {3}
    assert drawn([0.0, 0, 0.9, 1.0], native, history=again, dry_allowed_length=4, **greedy) == {3}
    assert drawn([0.0, 0, 0.9, 1.0], native, history=again, dry_penalty_last_n=6, **greedy) == {3}  # 0.1: 1 2 only
    assert drawn([0.0, 0, 0.91, 1.0], native, history=again, dry_penalty_last_n=-1, **greedy) == {2}
    # Very long stretches: the penalty stays a number, and nothing takes quadratic time.
    long = [0, 1] * 50_000
    assert drawn([5.0, 1.0, 0.0], native, history=long, dry_penalty_last_n=-1 if native else 500, **greedy) == {1}


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    path = VOCABULARIES / "ggml-vocab-gpt-2.gguf"
    if not path.exists():
        pytest.skip(f"needs {path}")
    return Tokenizer.from_file(path)


class Letters:
    """A tokenizer whose pieces are given, and which encodes letter by letter."""

    kind = "letters"

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces, self.n_vocab = pieces, len(pieces)

    def token_bytes(self, token: int) -> bytes:
        return self.pieces[token]

    def encode(self, text: str, **options: Any) -> list[int]:
        if options.get("parse_special") and text.encode() in self.pieces:
            return [self.pieces.index(text.encode())]
        return [self.pieces.index(bytes([b])) for b in text.encode()]


def test_breakers_inside_tokens_and_across_them() -> None:
    """As llama.cpp: a token with the whole text inside counts, and each that ends in the beginning of it."""
    letters = Letters([b"a", b"b", b"c", b"xab", b"ab", b"abcd", b"ca", b"\xc3", b"\xa9"])
    sampling = Sampling(dry_multiplier=1.0, dry_sequence_breakers=("abc",))
    assert reference.breakers_of(token_tables(sampling, 9, letters)) == {
        5: [[]], 0: [[1, 2]], 6: [[1, 2]], 3: [[2]], 4: [[2]]
    }  # fmt: skip
    inside = Sampling(dry_multiplier=1.0, dry_sequence_breakers=("é", "b"))
    assert reference.breakers_of(token_tables(inside, 9, letters)) == {1: [[]], 3: [[]], 4: [[]], 5: [[]]}
    assert token_tables(Sampling(dry_sequence_breakers=("b",)), 9, letters).heads.size == 0, "DRY is off"
    assert token_tables(inside, 9, None).heads.size == 0


def test_texts_as_tokens(gpt2: Tokenizer) -> None:
    the = gpt2.encode(" the")[0]
    tables = token_tables(Sampling(logit_bias={" the": 2.0, "<|endoftext|>": False, "50": 1}), gpt2.n_vocab, gpt2)
    assert dict(zip(tables.bias_ids.tolist(), tables.biases.tolist(), strict=True)) == {
        the: 2.0, gpt2.eos_id: -math.inf, 50: 1.0
    }  # fmt: skip
    with pytest.raises(InvalidArgumentError, match="is 4 tokens|is 3 tokens|is 5 tokens"):
        Sampler(Sampling(logit_bias={"unpronounceable words": 1.0}), gpt2.n_vocab, gpt2)
    breakers = reference.breakers_of(token_tables(Sampling(dry_multiplier=1.0), gpt2.n_vocab, gpt2))
    assert all(tails == [[]] for tails in breakers.values())
    want = {i for i in range(gpt2.n_vocab) if any(mark in gpt2.token_bytes(i) for mark in (b"\n", b":", b'"', b"*"))}
    assert set(breakers) == want and len(want) > 100


# ---- the compiled samplers against their twins -----------------------------------------------------------------------

_NUMBERS: dict[str, list[Any]] = {
    "temperature": [0, 0.3, 1, 2.5],
    "dynatemp_range": [0, 0, 0.5, 3],
    "dynatemp_exponent": [0, 0.5, 1, 3],
    "top_k": [0, 1, 5, 40],
    "top_p": [0, 0.5, 0.95, 1],
    "min_p": [0, 0, 0.05, 0.5],
    "typical_p": [0.2, 0.9, 1, 1],
    "top_n_sigma": [-1, 0, 0.5, 2],
    "xtc_probability": [0, 0.5, 1],
    "xtc_threshold": [0, 0.05, 0.2, 0.5, 0.6],
    "repeat_penalty": [1, 1.3, 0.7],
    "presence_penalty": [0, 0.5, -0.5],
    "frequency_penalty": [0, 0.2],
    "repeat_last_n": [-1, 0, 8, 64],
    "dry_multiplier": [0, 0.8, 5],
    "dry_base": [1, 1.75, 1000],
    "dry_allowed_length": [0, 1, 2, 5],
    "dry_penalty_last_n": [-1, 0, 5, 64],
    "mirostat": [0, 0, 0, 2],
    "mirostat_tau": [0, 2, 5],
}


def _random_case(rng: np.random.Generator) -> tuple[Sampling, np.ndarray, list[int], TokenTables]:
    n = int(rng.integers(1, 60))
    logits = (rng.standard_normal(n) * rng.choice([0, 0.1, 1, 5, 200])).astype(np.float32)
    if rng.random() < 0.3:
        logits = np.round(logits)  # many equal values
    if rng.random() < 0.2:
        logits[rng.random(n) < 0.5] = -np.inf
        logits[int(rng.integers(n))] = 0
    values = {name: rng.choice(choices).item() for name, choices in _NUMBERS.items()}
    order = tuple(rng.permutation(SAMPLERS)[: int(rng.integers(0, len(SAMPLERS) + 1))].tolist())
    params = Sampling(**values, samplers=SAMPLERS if rng.random() < 0.4 else order, seed=int(rng.integers(2**63)))
    few = min(n, int(rng.choice([2, 4, 60])))  # of few different tokens stretches come again
    recent = rng.integers(0, few, int(rng.integers(0, 100))).tolist()
    breakers = [rng.integers(0, few, int(rng.integers(1, 4))).tolist() for _ in range(int(rng.integers(0, 3)))]
    biases = {int(i): float(b) for i, b in zip(rng.integers(0, n, 3), [1.5, -2.0, -math.inf], strict=True)}
    tables = TokenTables(biases if rng.random() < 0.3 else {}, [(b[0], tuple(b[1:])) for b in breakers])
    return params, logits, recent, tables


@needs_native
def test_native_gives_the_tokens_of_its_twin_in_any_order() -> None:
    rng = np.random.default_rng(12)
    differing = 0
    for _ in range(4000):
        params, logits, recent, tables = _random_case(rng)
        fast, slow = clib.SampleCall(params.chain(), len(logits), tables), reference.ReferenceSampler(params, tables)
        for counter in range(3):
            ids = np.array(params.history and recent or [], np.int32)
            try:
                want = slow(logits, ids, params.seed or 0, counter)
            except NonFiniteError:
                with pytest.raises(NonFiniteError):
                    fast(logits, ids, params.seed or 0, counter)
                continue
            assert fast(logits, ids, params.seed or 0, counter) == want, (params, logits.tolist(), recent, counter)
            differing += want != int(np.argmax(logits))
    assert differing > 3000, "most cases are not trivial"


@needs_native
@settings(max_examples=300, deadline=None)
@given(
    logits=st.lists(
        st.one_of(st.floats(width=32, allow_nan=False, allow_infinity=False), st.just(-math.inf)),
        min_size=1,
        max_size=12,
    ),
    order=st.permutations(SAMPLERS),
    numbers=st.tuples(*[st.floats(0, 1)] * 6),
    recent=st.lists(st.integers(0, 11), max_size=30),
    seed=st.integers(0, 2**64 - 1),
)
def test_native_gives_the_tokens_of_its_twin_at_the_edges(
    logits: list[float], order: list[str], numbers: tuple[float, ...], recent: list[int], seed: int
) -> None:
    row, history = np.array(logits, np.float32), [t % len(logits) for t in recent]
    names = ("temperature", "top_p", "xtc_probability", "xtc_threshold", "dynatemp_range", "typical_p")
    params = Sampling(**dict(zip(names, numbers, strict=True)), samplers=order, seed=seed, top_n_sigma=numbers[0] * 3,
                      dry_multiplier=1.0, dry_penalty_last_n=-1, dry_allowed_length=1, repeat_penalty=1.1)  # fmt: skip
    results = []
    for native in (True, False):
        try:
            results.append(Sampler(params, len(row), native=native).sample(row, history))
        except NonFiniteError:
            results.append("not finite")
    assert results[0] == results[1]


# ---- recent tokens ---------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.none(), st.integers(0, 90)), st.lists(st.lists(st.integers(0, 9), max_size=80), max_size=12))
def test_recent_tokens_are_the_last_of_a_list(limit: int | None, batches: list[list[int]]) -> None:
    recent, want = RecentTokens(limit), []
    for batch in batches:
        if len(batch) == 1:
            recent.append(batch[0])
        elif len(batch) == 7:
            recent.clear()
            want.clear()
            continue
        else:
            recent.extend(batch)
        want += batch
        assert recent.ids.tolist() == (want if limit is None else want[max(0, len(want) - limit) :])
