"""The sampler in NumPy: slow, obvious, and token for token the same as native/sampler.c.

The chain and its meanings are llama.cpp's: penalties (Keskar et al. 2019), top-k (Fan et al. 2018), locally typical
(Meister et al. 2022), top-p (Holtzman et al. 2020), min-p (Nguyen et al. 2024), temperature, one draw from
Philox4x32-10 (Salmon et al. 2011). Candidates stay in the order of their ids; sums run in that order, which is why
`np.cumsum` (one addition after the other) is used and not `np.sum`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgellm.errors import NonFiniteError
from edgellm.sampling.params import Sampling

_MASK = 2**32 - 1


def philox(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Philox4x32-10 of four counter words and two key words: four words of 32 random bits."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & _MASK, (a >> 32) ^ c3 ^ k1, a & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return [c0, c1, c2, c3]


def uniform(seed: int, index: int) -> float:
    """The number in [0, 1) for token `index` of a generation with `seed`, with 53 random bits."""
    out = philox([index & _MASK, index >> 32, 0, 0], [seed & _MASK, seed >> 32])
    return ((out[1] << 32 | out[0]) >> 11) * 2.0**-53


def exp(x: np.ndarray) -> np.ndarray:
    """e^x of float64 values <= 709, 0 below -708; the same additions and products as in C, so the same bits."""
    small = ~(x >= -708.0)
    x = np.where(small, 0.0, x)
    shifter = 6755399441055744.0  # 1.5 * 2^52: adding it rounds to an integer
    n = (x * 1.4426950408889634 + shifter) - shifter
    r = (x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10
    p = np.full_like(r, 1.0 / math.factorial(13))
    for k in range(12, -1, -1):
        p = p * r + 1.0 / math.factorial(k)
    return np.where(small, 0.0, np.ldexp(p, n.astype(np.int64)))


def log(x: float) -> float:
    """ln x for x > 0; the same steps as in C."""
    m, k = math.frexp(x)
    if m < 0.70710678118654752440:
        m, k = m + m, k - 1
    s = (m - 1.0) / (m + 1.0)
    q, p = s * s, 1.0 / 23.0
    for d in range(21, 0, -2):
        p = p * q + 1.0 / d
    return k * 0.69314718055994530942 + 2.0 * s * p


def total(values: np.ndarray) -> float:
    """The sum in index order."""
    return float(np.cumsum(values)[-1])


def penalise(x: np.ndarray, sampling: Sampling, recent: Sequence[int]) -> None:
    """Lowers (or raises) the logits of recent tokens, in place."""
    ids, counts = np.unique(np.asarray(recent, dtype=np.int64), return_counts=True)
    old = x[ids]
    new = np.where(old <= 0.0, old * sampling.repeat_penalty, old / sampling.repeat_penalty)
    x[ids] = new - (counts * sampling.frequency_penalty + sampling.presence_penalty)


def best_first(x: np.ndarray) -> np.ndarray:
    """Indices by larger logit, equal ones by lower id."""
    return np.argsort(-x, kind="stable")


def top_k(x: np.ndarray, k: int) -> np.ndarray:
    """Mask of the k largest logits."""
    kept = np.zeros(len(x), dtype=bool)
    kept[best_first(x)[: k or None]] = True
    return kept


def typical(x: np.ndarray, e: np.ndarray, typical_p: float) -> np.ndarray:
    """Mask of the tokens whose surprise is nearest to the entropy, until their probability passes `typical_p`."""
    if typical_p >= 1.0:
        return np.ones(len(x), dtype=bool)
    s = total(e)
    log_p = (x - x.max()) - log(s)
    terms = np.where(e > 0.0, -(e / s * log_p), 0.0)
    shift = np.abs(-log_p - total(terms))
    order = np.argsort(shift, kind="stable")
    return _until(order, np.cumsum(e[order] / s) > typical_p)


def top_p(x: np.ndarray, e: np.ndarray, p: float) -> np.ndarray:
    """Mask of the most probable tokens, until their probability reaches `p`."""
    if p >= 1.0:
        return np.ones(len(x), dtype=bool)
    order = best_first(x)
    return _until(order, np.cumsum(e[order]) >= p * total(e))


def _until(order: np.ndarray, reached: np.ndarray) -> np.ndarray:
    """Mask of the candidates in `order` up to and with the first one where `reached` is true."""
    n = int(np.argmax(reached)) + 1 if reached.any() else len(order)
    kept = np.zeros(len(order), dtype=bool)
    kept[order[:n]] = True
    return kept


def sample(sampling: Sampling, logits: np.ndarray, recent: Sequence[int], seed: int, counter: int) -> int:
    """The token id for one row of float32 logits (n_vocab,).

    `recent`: the ids that the penalties look at. `counter`: index of the token in its generation. Raises NonFiniteError
    for NaN, +infinity, or a row of nothing but -infinity.
    """
    x = logits.astype(np.float64)
    if not (x < np.inf).all():
        raise NonFiniteError("logits", "a logit is NaN or +infinity")
    if sampling.has_penalties and len(recent):
        penalise(x, sampling, recent)
    ids = np.flatnonzero(x > -np.inf)
    if ids.size == 0:
        raise NonFiniteError("logits", "all logits are -infinity")
    if sampling.greedy:
        return int(np.argmax(x))
    x = x[ids]

    def keep(mask: np.ndarray) -> None:
        nonlocal x, e, ids
        x, e, ids = x[mask], e[mask], ids[mask]

    e = np.zeros_like(x)
    keep(top_k(x, sampling.top_k))
    e = exp(x - x.max())
    keep(typical(x, e, sampling.typical_p))
    keep(top_p(x, e, sampling.top_p))
    keep(e >= sampling.min_p * e.max())
    mass = np.cumsum(exp((x - x.max()) / sampling.temperature))
    at = int(np.searchsorted(mass, uniform(seed, counter) * mass[-1], side="right"))
    return int(ids[min(at, len(ids) - 1)])
