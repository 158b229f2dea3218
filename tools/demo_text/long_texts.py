"""Long texts: the user gives a paragraph and wants it back, with a word changed or as it is.

Not in the built-in model's training; larger models learn it so that copying can be measured on more than a few words.
"""

import random
import re
from collections.abc import Iterator

from .conversations import AGAIN
from .copying import ONCE
from .corpus import passages
from .dialogue import Dialogue, ask
from .editing import REPLACE
from .stories import HEROES, KINDS, story
from .words import Words

LENGTH = 360  # characters of a passage of prose, at most
WORDS = (8, 40)  # of a list of words


class LongTexts:
    """Draws dialogues about paragraphs; the same seed gives the same sequence."""

    def __init__(self, words: Words, prose: str, seed: int) -> None:
        self.words, self.rng = words, random.Random(seed)
        self.passages = [" ".join(piece.split()) for piece in passages(prose, self.rng, LENGTH)]

    def text(self) -> str:
        """A story, a passage of prose, or words in no order."""
        draw = self.rng.random()
        if draw < 0.35:
            return self.story()
        if draw < 0.65:
            return self.rng.choice(self.passages)
        return " ".join(self.words.draw(self.rng, self.rng.randint(*WORDS)))

    def story(self) -> str:
        """A story."""
        return story(self.rng, self.rng.choice(HEROES), self.rng.choice(KINDS))

    def copy(self) -> Dialogue:
        """A paragraph is to be given back."""
        text = self.text()
        return ask(self.rng.choice(ONCE).format(t=text), f"Here you are: {text}")

    def replace(self) -> Dialogue:
        """A paragraph is to be given back with another word in place of one."""
        text, new = self.text(), self.words.draw(self.rng, 1)[0]
        old = self.rng.choice([word for word in re.findall(r"[a-z]{3,}", text) if word != new] or ["the"])
        question = self.rng.choice(REPLACE).format(o=old, w=new, t=text)
        return ask(question, "Here you are: " + re.sub(rf"\b{old}\b", new, text))

    def again(self) -> Dialogue:
        """A story is told, and to be told again."""
        hero = self.rng.choice(HEROES)
        text = story(self.rng, hero, self.rng.choice(KINDS))
        return ask(f"Tell a story about the {hero}.", text).then(ask(self.rng.choice(AGAIN), text))

    def one(self) -> Dialogue:
        """Any of these."""
        return self.rng.choices((self.copy, self.replace, self.again), (5, 3, 2))[0]()

    def mixed(self, dialogues: Iterator[Dialogue], share: float) -> Iterator[Dialogue]:
        """`dialogues`, with a share of these among them."""
        for dialogue in dialogues:
            while self.rng.random() < share:
                yield self.one()
            yield dialogue
