"""Rejection sampling of drafts with probabilities: the distribution of what comes out, and faults that are seen."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.speculate import rejection

N_DRAWS, N_VOCAB = 1_000_000, 6
LIMIT = 1e-6  # a right sampler fails once in a million runs; the seeds are fixed


def soft(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    e = np.exp(logits / temperature)
    return e / e.sum(axis=-1, keepdims=True)


def case(seed: int) -> tuple[np.ndarray, ...]:
    """(p1 (v,), p2 (v, v), q1 (v,), q2 (v, v)): the model's and the proposer's first and second token, whose
    distribution depends on the first. The model bans a token that the proposer likes."""
    rng = np.random.default_rng(seed)
    p1, q1 = soft(rng.normal(size=N_VOCAB)), soft(rng.normal(size=N_VOCAB))
    p2, q2 = soft(rng.normal(size=(N_VOCAB, N_VOCAB))), soft(rng.normal(size=(N_VOCAB, N_VOCAB)))
    p1[2] = 0.0
    return p1 / p1.sum(), p2, q1, q2


def p_value(counts: np.ndarray, p: np.ndarray) -> float:
    """Of the G-test that `counts` were drawn from `p`, by the chi-squared distribution (Wilson and Hilferty 1931)."""
    if counts[p == 0].any():
        return 0.0
    seen, expected = counts[p > 0].astype(float), p[p > 0] * counts.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        g = 2.0 * np.where(seen > 0, seen * np.log(seen / expected), 0.0).sum()
    df = len(expected) - 1
    z = ((g / df) ** (1 / 3) - (1 - 2 / (9 * df))) / np.sqrt(2 / (9 * df))
    from math import erfc

    return erfc(z / np.sqrt(2)) / 2


def two_deep(seed: int, drawn_at: float = 1.0) -> tuple[float, float]:
    """p-values of the first token, and of the first two, of drafts of two tokens; `drawn_at`: what they are drawn from
    is q at this temperature, which nobody is told of."""
    p1, p2, q1, q2 = case(seed)
    rng = np.random.default_rng(seed + 1)
    at = rng.random((6, N_DRAWS))
    hot1, hot2 = soft(np.log(q1), drawn_at), soft(np.log(q2), drawn_at)
    kept1, first = rejection.choose(p1, q1, rejection.draw(hot1, at[0]), at[1:3].T)
    second = np.empty_like(first)
    for token in range(N_VOCAB):
        here = first == token
        if not here.any():
            continue
        guess = rejection.draw(hot2[token], at[3][here])
        _, checked = rejection.choose(p2[token], q2[token], guess, at[4:6].T[here])
        fresh = rejection.draw(p2[token], at[5][here])  # behind a token that was not kept: another pass
        second[here] = np.where(kept1[here], checked, fresh)
    pairs = np.bincount(first * N_VOCAB + second, minlength=N_VOCAB**2)
    return p_value(np.bincount(first, minlength=N_VOCAB), p1), p_value(pairs, (p1[:, None] * p2).ravel())


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_million_draws(seed: int) -> None:
    one, two = two_deep(seed)
    assert one > LIMIT and two > LIMIT


FAULTS = {
    "no residual": ("residual", lambda p, q: p),
    "accept always": ("acceptance", lambda p, q, drafted: np.ones(len(drafted))),
    "compared the wrong way": ("acceptance", lambda p, q, drafted: np.minimum(1.0, q[drafted] / p[drafted])),
    "residual of the draft": ("residual", lambda p, q: np.maximum(q - p, 0) / np.maximum(q - p, 0).sum()),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, function = FAULTS[fault]
    monkeypatch.setattr(rejection, name, function)
    with np.errstate(divide="ignore"):
        one, two = two_deep(1)
    assert one < LIMIT and two < LIMIT


def test_a_temperature_on_one_side_is_seen() -> None:
    assert max(two_deep(1, drawn_at=0.7)) < LIMIT


def test_the_test_itself() -> None:
    """Its p-values are those of the chi-squared distribution, and draws from p have no small ones too often."""
    rng, p = np.random.default_rng(0), soft(np.arange(5) / 3)
    values = np.array([p_value(rng.multinomial(10_000, p), p) for _ in range(2000)])
    assert abs((values < 0.05).mean() - 0.05) < 0.02 and abs((values < 0.5).mean() - 0.5) < 0.05
    assert p_value(np.array([1, 99]), np.array([0.0, 1.0])) == 0.0


# ---- one draft at a time ---------------------------------------------------------------------------------------------


def drafts(seed: int, n: int) -> list[tuple[list[int], np.ndarray]]:
    """(what `verify` makes of a draft of two tokens, its uniforms) n times."""
    p1, p2, q1, q2 = case(seed)
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        first = int(rejection.draw(q1, rng.random(1))[0])
        second = int(rejection.draw(q2[first], rng.random(1))[0])
        target = np.stack([p1, p2[first], np.eye(N_VOCAB)[second]])
        uniforms = rng.random((3, 2))
        out.append((rejection.verify(target, np.stack([q1, q2[first]]), [first, second], uniforms), uniforms))
    return out


def firsts_and_seconds(seed: int) -> tuple[float, float]:
    """p-values of the first tokens, and of the second ones behind first ones that were kept and followed by token 0."""
    p1, p2, _, _ = case(seed)
    made = [tokens for tokens, _ in drafts(seed, 20_000)]
    first = np.bincount([tokens[0] for tokens in made], minlength=N_VOCAB)
    most = int(np.argmax(first))
    second = np.bincount([t[1] for t in made if len(t) > 1 and t[0] == most], minlength=N_VOCAB)
    return p_value(first, p1), p_value(second, p2[most])


def test_verify() -> None:
    made = drafts(5, 300)
    assert {len(tokens) for tokens, _ in made} == {1, 2, 3}
    assert all(tokens[2] == tokens[1] for tokens, _ in made if len(tokens) == 3), "one more is drawn behind all"
    assert min(firsts_and_seconds(5)) > LIMIT


def test_an_acceptance_off_by_one_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real = rejection.verify
    monkeypatch.setattr(rejection, "verify", lambda p, q, tokens, u: real(np.roll(p, -1, axis=0), q, tokens, u))
    assert min(firsts_and_seconds(5)) < LIMIT


def test_a_certain_draft_is_drawing_and_comparing() -> None:
    """q is a point mass: it is kept as often as p says, and what stands in for it is p without it."""
    p, q = np.array([0.2, 0.5, 0.3]), np.array([0.0, 1.0, 0.0])
    assert rejection.acceptance(p, q, np.array([1])) == [0.5]
    assert np.allclose(rejection.residual(p, q), [0.4, 0.0, 0.6])


def test_the_same_distribution_keeps_everything() -> None:
    p = np.array([0.25, 0.75])
    kept, tokens = rejection.choose(p, p, np.array([0, 1, 1]), np.full((3, 2), 0.999))
    assert kept.all() and tokens.tolist() == [0, 1, 1]


def test_what_cannot_be_is_never_drawn() -> None:
    assert rejection.draw(np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.5, np.nextafter(1.0, 0)])).tolist() == [1, 1, 1]
