"""The n-gram model that the network has to beat: Kneser-Ney, counted with NumPy."""

from dataclasses import dataclass

import numpy as np

BITS = 12


@dataclass(frozen=True)
class Level:
    """The n-grams of one order with their discounted counts, and each context with its total and what it spares."""

    grams: np.ndarray
    counts: np.ndarray
    contexts: np.ndarray
    totals: np.ndarray
    spared: np.ndarray


def keys(tokens: np.ndarray, order: int) -> np.ndarray:
    """Each run of so many tokens as one integer, the earliest token in the highest bits."""
    size = len(tokens) - order + 1
    packed = np.zeros(size, dtype=np.uint64)
    for at in range(order):
        packed = (packed << np.uint64(BITS)) | tokens[at : at + size].astype(np.uint64)
    return packed


def make_level(grams: np.ndarray, counts: np.ndarray) -> Level:
    """Discount the counts of one order and sum them up by context."""
    contexts, start = np.unique(grams >> np.uint64(BITS), return_index=True)
    taken = discounts(counts)[np.minimum(counts, 3)]
    totals, spared = np.add.reduceat(counts, start), np.add.reduceat(taken, start)
    return Level(grams, counts - taken, contexts, totals, spared)


def discounts(counts: np.ndarray) -> np.ndarray:
    """What to take from counts of 0, 1, 2, and 3 or more, after Chen and Goodman."""
    ones, twos, threes, fours = (max(1, np.count_nonzero(counts == size)) for size in range(1, 5))
    share = ones / (ones + 2 * twos)
    taken = (0, 1 - 2 * share * twos / ones, 2 - 3 * share * threes / twos, 3 - 4 * share * fours / threes)
    return np.clip(taken, 0, (0, 0.99, 1.99, 2.99))


def find(sorted_keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The place of each wanted key, and whether it is there."""
    places = np.minimum(np.searchsorted(sorted_keys, wanted), len(sorted_keys) - 1)
    return places, sorted_keys[places] == wanted


class KneserNey:
    """Interpolated, modified Kneser-Ney smoothing: lower orders count in how many contexts a token occurs."""

    def __init__(self, tokens: np.ndarray, vocab: int, order: int = 5) -> None:
        if vocab > 1 << BITS:
            raise ValueError(f"the n-gram model takes at most {1 << BITS} pieces, not {vocab}")
        self.vocab, self.order = vocab, order
        grams, counts = np.unique(keys(tokens, order), return_counts=True)
        levels = [make_level(grams, counts)]
        for size in range(order - 1, 0, -1):
            shorter = grams & np.uint64((1 << (BITS * size)) - 1)
            grams, counts = np.unique(shorter, return_counts=True)
            levels.append(make_level(grams, counts))
        self.levels = levels[::-1]

    def probabilities(self, tokens: np.ndarray) -> np.ndarray:
        """The probability of every token from the fifth on, given the four before it."""
        size = len(tokens) - self.order + 1
        result = np.full(size, 1.0 / self.vocab)
        for order, level in enumerate(self.levels, start=1):
            wanted = keys(tokens[self.order - order :], order)
            result = interpolate(level, wanted, result)
        return result

    def loss(self, rows: np.ndarray) -> float:
        """Nats per token over rows, each read from its fifth token on."""
        return float(np.mean([-np.log(self.probabilities(row)).mean() for row in rows]))


def interpolate(level: Level, wanted: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Mix the discounted counts of one order with the probabilities of the order below."""
    place, known = find(level.grams, wanted)
    count = np.where(known, level.counts[place], 0)
    place, known = find(level.contexts, wanted >> np.uint64(BITS))
    mixed = (count + level.spared[place] * lower) / level.totals[place]
    return np.where(known, mixed, lower)
