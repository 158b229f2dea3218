"""The sampler in NumPy: slow, obvious, and token for token the same as native/sampler.c.

The samplers and their meanings are llama.cpp's: penalties (Keskar et al. 2019), DRY (p-e-w 2024), top-n-sigma (Tang
et al. 2024), top-k (Fan et al. 2018), locally typical (Meister et al. 2022), top-p (Holtzman et al. 2020), min-p
(Nguyen et al. 2024), XTC (p-e-w 2024), temperature, Mirostat 2.0 (Basu et al. 2021), one draw from Philox4x32-10
(Salmon et al. 2011). Candidates stay in the order of their ids; sums run in that order, which is why `np.cumsum` (one
addition after the other) is used and not `np.sum`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgellm.errors import NonFiniteError
from edgellm.sampling.params import Sampling
from edgellm.sampling.tables import TokenTables

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


def uniforms(seed: int, index: int) -> tuple[float, float]:
    """Two numbers in [0, 1) for token `index` of a generation with `seed`, with 53 random bits each: for the draw, and
    for a sampler that takes chances."""
    out = philox([index & _MASK, index >> 32, 0, 0], [seed & _MASK, seed >> 32])
    return ((out[1] << 32 | out[0]) >> 11) * 2.0**-53, ((out[3] << 32 | out[2]) >> 11) * 2.0**-53


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


def best_first(x: np.ndarray) -> np.ndarray:
    """Indices by larger logit, equal ones by lower id."""
    return np.argsort(-x, kind="stable")


def last(ids: np.ndarray, n: int) -> np.ndarray:
    """The last `n` of `ids`; all where n is negative."""
    return ids if n < 0 else ids[len(ids) - min(n, len(ids)) :]


# ---- what came before lowers logits ----------------------------------------------------------------------------------


def penalise(x: np.ndarray, ids: np.ndarray, sampling: Sampling, recent: np.ndarray) -> None:
    """Lowers (or raises) the logits `x` of the candidates `ids` that are among the recent ones, in place."""
    if not sampling.has_penalties:
        return
    tokens, all_counts = np.unique(last(recent, sampling.repeat_last_n), return_counts=True)
    there = np.isin(ids, tokens)
    counts = all_counts[np.searchsorted(tokens, ids[there])]
    old = x[there]
    new = np.where(old <= 0.0, old * sampling.repeat_penalty, old / sampling.repeat_penalty)
    x[there] = new - (counts * sampling.frequency_penalty + sampling.presence_penalty)


def breakers_of(tables: TokenTables) -> dict[int, list[list[int]]]:
    """head -> tails"""
    found: dict[int, list[list[int]]] = {}
    start = 0
    for head, end in zip(tables.heads.tolist(), tables.tail_ends.tolist(), strict=True):
        found.setdefault(head, []).append(tables.tails[start:end].tolist())
        start = end
    return found


def unbroken(recent: list[int], breakers: dict[int, list[list[int]]]) -> int:
    """How many tokens at the end have no breaker in them: a repeated stretch is never longer."""
    for behind in range(len(recent)):
        at = len(recent) - 1 - behind
        lengths = [len(t) for t in breakers.get(recent[at], ()) if recent[at + 1 : at + 1 + len(t)] == t]
        if lengths:
            return behind - max(lengths)
    return len(recent)


def match_ends(recent: np.ndarray) -> np.ndarray:
    """For k >= 1: how many tokens before the last k are the same as those at the end."""
    n, matches = len(recent), np.zeros(len(recent), np.int64)
    alive = np.arange(1, n)
    for length in range(n):
        alive = alive[alive + length < n]
        alive = alive[recent[n - 1 - alive - length] == recent[n - 1 - length]]
        matches[alive] += 1
        if not alive.size:
            break
    return matches


def power(base: float, n: int) -> float:
    """base ** n by squaring; the same products as in C."""
    result = 1.0
    while n > 0:
        if n & 1:
            result *= base
        base *= base
        n >>= 1
    return result


def dry(x: np.ndarray, ids: np.ndarray, sampling: Sampling, recent: np.ndarray, tables: TokenTables) -> None:
    """Lowers the logits `x` of the candidates `ids` that would go on with a stretch that came before, in place."""
    if not sampling.has_dry:
        return
    recent = last(recent, sampling.dry_penalty_last_n)
    n, allowed, breakers = len(recent), sampling.dry_allowed_length, breakers_of(tables)
    limit = unbroken(recent.tolist(), breakers)
    if n <= allowed or limit < allowed:
        return
    longest: dict[int, int] = {}
    for k, length in enumerate(np.minimum(match_ends(recent), limit).tolist()):
        if k > 0 and length >= allowed:
            token = int(recent[n - k])
            longest[token] = max(longest.get(token, 0), length)
    most = int(88.7228391 / log(sampling.dry_base)) if sampling.dry_base > 1.0 else 2**63 - 1
    for token, length in longest.items():
        at = int(np.searchsorted(ids, token))
        if at < len(ids) and ids[at] == token and [] not in breakers.get(token, ()):
            x[at] -= sampling.dry_multiplier * power(sampling.dry_base, min(length - allowed, most))


# ---- which candidates stay: masks ------------------------------------------------------------------------------------


def top_k(x: np.ndarray, k: int) -> np.ndarray:
    """The k largest logits."""
    kept = np.zeros(len(x), dtype=bool)
    kept[best_first(x)[: k or None]] = True
    return kept


def entropy(x: np.ndarray) -> float:
    """Of the probabilities that the logits `x` stand for, in nats."""
    e = exp(x - x.max())
    s = total(e)
    terms = np.where(e > 0.0, e / s * ((x - x.max()) - log(s)), 0.0)
    return -total(terms)


def typical(x: np.ndarray, typical_p: float) -> np.ndarray:
    """The tokens whose surprise is nearest to the entropy, until their probability passes `typical_p`."""
    if typical_p >= 1.0:
        return np.ones(len(x), dtype=bool)
    e = exp(x - x.max())
    s = total(e)
    shift = np.abs(-((x - x.max()) - log(s)) - entropy(x))
    order = np.argsort(shift, kind="stable")
    return _until(order, np.cumsum(e[order] / s) > typical_p)


def top_p(x: np.ndarray, e: np.ndarray, p: float) -> np.ndarray:
    """The most probable tokens, until their probability reaches `p`."""
    if p >= 1.0:
        return np.ones(len(x), dtype=bool)
    order = best_first(x)
    return _until(order, np.cumsum(e[order]) >= p * total(e))


def _until(order: np.ndarray, reached: np.ndarray) -> np.ndarray:
    """The candidates in `order` up to and with the first one where `reached` is true."""
    n = int(np.argmax(reached)) + 1 if reached.any() else len(order)
    kept = np.zeros(len(order), dtype=bool)
    kept[order[:n]] = True
    return kept


def top_n_sigma(x: np.ndarray, n: float) -> np.ndarray:
    """Logits down to `n` standard deviations below the best one."""
    if n <= 0.0:
        return np.ones(len(x), dtype=bool)
    mean = total(x) / len(x)
    sigma = math.sqrt(total((x - mean) * (x - mean)) / len(x))
    return x >= x.max() - n * sigma


def xtc(x: np.ndarray, sampling: Sampling, chance: float) -> np.ndarray:
    """All but those that reach the threshold; of these the least probable one."""
    kept = np.ones(len(x), dtype=bool)
    if sampling.xtc_probability <= 0.0 or sampling.xtc_threshold > 0.5 or chance > sampling.xtc_probability:
        return kept
    e = exp(x - x.max())
    above = np.flatnonzero(e >= sampling.xtc_threshold * total(e))
    if above.size:
        kept[above] = False
        kept[above[best_first(x[above])[-1]]] = True
    return kept


# ---- temperature and the draw ----------------------------------------------------------------------------------------


def temperature_of(x: np.ndarray, sampling: Sampling) -> float:
    """The temperature for these candidates: the higher the more even they are, where it is dynamic."""
    t, spread = sampling.temperature, sampling.dynatemp_range
    if spread <= 0.0 or len(x) < 2:
        return t
    low, high = (t - spread if t > spread else 0.0), t + spread
    evenness = entropy(x) / log(float(len(x)))
    share = 1.0 if sampling.dynatemp_exponent == 0.0 else 0.0
    if evenness > 0.0:
        share = float(exp(np.array([sampling.dynatemp_exponent * log(evenness)]))[0])
    return low + (high - low) * share


def heat(x: np.ndarray, ids: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """(logits, ids) at a temperature; near 0 only the best one has a chance, and a quotient could overflow."""
    best = [int(np.argmax(x))]
    return (x[best], ids[best]) if temperature < 1e-6 else (x / temperature, ids)


def draw(x: np.ndarray, temperature: float, at: float) -> int:
    """Index of a candidate; `at` in [0, 1) says which."""
    if temperature <= 0.0:
        return int(np.argmax(x))
    mass = np.cumsum(exp((x - x.max()) / temperature))
    chosen = int(np.searchsorted(mass, at * mass[-1], side="right"))
    return min(chosen, len(x) - 1)


def mirostat(x: np.ndarray, sampling: Sampling, mu: float, at: float) -> tuple[np.ndarray, int, float]:
    """(indices of the candidates whose surprise is at most `mu` bits, index of the chosen one of them, the next mu)."""
    ln_2 = 0.69314718055994530942
    e, log_p = exp(x - x.max()), x - x.max()
    kept = np.flatnonzero((log_p == 0.0) | (-(log_p - log(total(e))) / ln_2 <= mu))
    log_p = log_p[kept] - log(total(e[kept]))
    chosen = draw(x[kept], 1.0, at)
    surprise = -float(log_p[chosen]) / ln_2
    return kept, chosen, mu - sampling.mirostat_eta * (surprise - sampling.mirostat_tau)


# ---- the whole -------------------------------------------------------------------------------------------------------


class ReferenceSampler:
    """The samplers of one generation, in the place of `clib.SampleCall`."""

    def __init__(self, sampling: Sampling, tables: TokenTables) -> None:
        self._sampling, self._tables, self.mu = sampling, tables, 2.0 * sampling.mirostat_tau

    def __call__(self, logits: np.ndarray, recent: np.ndarray, seed: int, counter: int) -> int:
        """The token id for one row of float32 logits (n_vocab,).

        `recent` (n_recent,): the ids before it. `counter`: index of the token in its generation. Raises NonFiniteError
        for NaN, +infinity, or a row of nothing but -infinity.
        """
        sampling, at_and_chance = self._sampling, uniforms(seed, counter)
        x, ids = self._begin(logits)
        temperature = 1.0
        for i, name in enumerate(sampling.order):
            if sampling.greedy and name not in ("penalties", "dry"):
                continue
            if name == "temperature":
                temperature = temperature_of(x, sampling)
                if i + 1 < len(sampling.order) or sampling.mirostat:  # where it comes last, the draw divides by it
                    x, ids = heat(x, ids, temperature)
                    temperature = 1.0
            else:
                x, ids = self._apply(name, x, ids, recent, at_and_chance[1])
        if sampling.greedy:
            return int(ids[np.argmax(x)])
        if sampling.mirostat:
            kept, chosen, self.mu = mirostat(x, sampling, self.mu, at_and_chance[0])
            return int(ids[kept[chosen]])
        return int(ids[draw(x, temperature, at_and_chance[0])])

    def _begin(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits float64 and ids of all that can be chosen."""
        x = logits.astype(np.float64)
        if not (x < np.inf).all():
            raise NonFiniteError("logits", "a logit is NaN or +infinity")
        x[self._tables.bias_ids] += self._tables.biases
        ids = np.flatnonzero(x > -np.inf)
        if ids.size == 0:
            raise NonFiniteError("logits", "all logits are -infinity")
        return x[ids], ids

    def _apply(
        self, name: str, x: np.ndarray, ids: np.ndarray, recent: np.ndarray, chance: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """One sampler but temperature: (logits, ids) of those that stay."""
        sampling = self._sampling
        if name == "penalties":
            penalise(x, ids, sampling, recent)
        elif name == "dry":
            dry(x, ids, sampling, recent, self._tables)
        else:
            mask = {
                "top_n_sigma": lambda: top_n_sigma(x, sampling.top_n_sigma),
                "top_k": lambda: top_k(x, sampling.top_k),
                "typical_p": lambda: typical(x, sampling.typical_p),
                "top_p": lambda: top_p(x, exp(x - x.max()), sampling.top_p),
                "min_p": lambda: exp(x - x.max()) >= sampling.min_p,
                "xtc": lambda: xtc(x, sampling, chance),
            }[name]()
            x, ids = x[mask], ids[mask]
        return x, ids
