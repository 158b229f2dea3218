"""The generator: an endless, seeded mix of dialogues from every skill."""

import random
from collections.abc import Iterator

from . import arithmetic, conversations, copying, editing, facts, smalltalk, stories
from .dialogue import Dialogue
from .words import Words

SHARES = {"facts": 27, "arithmetic": 17, "copying": 16, "editing": 22, "smalltalk": 8, "stories": 5, "memory": 5}


class Generator:
    """Draws dialogues; the same seed gives the same sequence."""

    def __init__(self, words: Words, seed: int) -> None:
        self.words = words
        self.rng = random.Random(seed)
        weights, self.topics = zip(*facts.topics(), strict=True)
        self.topic_weights = weights

    def one(self, skill: str) -> Dialogue:
        """A single exchange of one skill."""
        rng = self.rng
        if skill == "facts":
            return rng.choices(self.topics, self.topic_weights)[0].dialogue(rng)
        if skill in ("copying", "editing"):
            return {"copying": copying, "editing": editing}[skill].dialogue(rng, self.words)
        if skill == "memory":
            return self.memory()
        return {"arithmetic": arithmetic, "smalltalk": smalltalk, "stories": stories}[skill].dialogue(rng)

    def any(self) -> Dialogue:
        """A single exchange of any skill."""
        return self.one(self.rng.choices(tuple(SHARES), tuple(SHARES.values()))[0])

    def memory(self) -> Dialogue:
        """A conversation whose end depends on its start, sometimes with something else in between."""
        kind = self.rng.choice(("name", "name", "colour", "follow", "again"))
        if kind == "follow":
            return conversations.joined(conversations.follow_up(self.rng))
        if kind == "again":
            before = self.one(self.rng.choice(("facts", "arithmetic", "copying")))
            return conversations.joined(conversations.again(self.rng, before))
        build = conversations.name_dialogue if kind == "name" else conversations.colour_dialogue
        first, *last = build(self.rng)
        between = [self.one("facts")] if last and self.rng.random() < 0.3 else []
        return conversations.joined((first, *between, *last))

    def dialogues(self) -> Iterator[Dialogue]:
        """Dialogues for ever: most are one exchange, some are several, some have a system message."""
        while True:
            whole = self.any()
            while self.rng.random() < 0.35:
                whole = whole.then(self.any())
            if self.rng.random() < 0.1:
                whole = whole.under(self.rng.choice(conversations.SYSTEMS))
            yield whole
