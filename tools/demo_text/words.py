"""Words: the stock from which texts to copy and to edit are drawn."""

import random
import re
from collections import Counter

CAPITALISED = (
    "dog", "cat", "sun", "red", "king", "tree", "fox", "book", "fish", "home", "milk", "star", "moon", "bird", "hat",
    "cup", "rain", "snow", "blue", "lamp", "ring", "wolf", "girl", "boy", "door", "salt", "gold", "hand", "cow", "bed",
)  # fmt: skip
NAMES = (
    "Anna", "Tom", "Mary", "Peter", "Lisa", "Paul", "Emma", "Max", "Sara", "Ben", "Clara", "Hans", "Julia", "David",
    "Nina", "Leo", "Ella", "Simon", "Greta", "Felix", "Ida", "Oscar", "Rosa", "Victor",
)  # fmt: skip


class Words:
    """The common words of a text, and draws from them."""

    def __init__(self, text: str, least: int = 20) -> None:
        counts = Counter(re.findall(r"(?<![A-Za-z'-])[a-z]{3,8}(?![A-Za-z'-])", text))
        common = sorted(word for word, count in counts.items() if count >= least)
        self.stock = tuple(word for word in common if word not in ("the", "and"))

    def draw(self, rng: random.Random, count: int) -> list[str]:
        """So many different words."""
        return rng.sample(self.stock, count)

    def some(self, rng: random.Random, least: int = 1, most: int = 6) -> list[str]:
        """A few words, seldom with a name among them."""
        words = self.draw(rng, rng.randint(least, most))
        if rng.random() < 0.15:
            words[rng.randrange(len(words))] = rng.choice(NAMES)
        return words
