"""Stories: a few sentences about somebody, built from small parts."""

import random

from .dialogue import Dialogue, ask
from .wording import varied, with_article
from .words import NAMES

HEROES = (
    "fox", "cat", "dog", "king", "queen", "girl", "boy", "wolf", "bear", "mouse", "bird", "frog", "horse", "duck",
    "princess", "miller", "hen", "goat", "fish", "lion", "witch", "giant", "tailor", "sheep", "rabbit", "owl", "cow",
    "fisherman", "soldier", "hunter",
)  # fmt: skip
PHRASINGS = (
    "Tell me a story about {h}.", "Tell a story about {h}.", "Write a story about {h}.", "A story about {h}, please.",
    "Tell me a short story about {h}.", "Write a short story about {h}.", "I want a story about {h}.",
    "Can you tell a story about {h}?", "Do you know a story about {h}?", "Tell me a tale of {h}.", "Story: {h}",
    "Please tell me something about {h}.", "I would like to hear a story about {h}.", "Make up a story about {h}.",
    "Write a little tale about {h}.", "Give me a story with {h}.", "Tell my child a story about {h}.",
    "A short tale of {h}, please.", "Let me hear a story about {h}.",
)  # fmt: skip
NO_HERO = ("Tell me a story.", "Tell me a short story.", "Tell me a tale.", "A story, please.", "Do you know a story?",
           "I want to hear a story.", "Write a story.", "Please tell me a story.")  # fmt: skip
KINDS = ("little", "young", "old", "clever", "brave", "poor", "lonely", "kind", "small", "hungry", "proud")
PLACES = ("in a dark forest", "near a deep lake", "on a high mountain", "in a small house", "by the sea",
          "in an old castle", "at the edge of a village", "under a big tree", "in a green valley")  # fmt: skip
WISHES = ("wanted to see the world", "looked for a friend", "had nothing to eat", "dreamed of the sea",
          "wished for a golden ring", "could not sleep at night", "was afraid of the dark",
          "wanted to learn to sing")  # fmt: skip
MEETINGS = ("met {o}", "found {o} on the road", "saw {o} behind a stone", "heard {o} cry for help", "came upon {o}")
DEEDS = (
    ('"Help me," said the {o}, "and I will help you too."', "So the {h} helped the {o}, and they became friends."),
    ('"Where are you going?" asked the {o}.', "They walked together and shared their bread."),
    ('"I am lost," said the {o}.', "The {h} showed the {o} the way home."),
    ('"Give me your food," cried the {o}.', "But the {h} was clever and ran away as fast as the wind."),
    ('"I know a secret," said the {o}.', "The {o} led the {h} to a box full of gold."),
    ('"Why are you so sad?" asked the {o}.', "They talked until the moon was high, and the {h} was sad no more."),
)  # fmt: skip
ENDS = ("And they lived happily ever after.", "From that day on the {h} was never alone again.",
        "Then the {h} went home and slept well.", "And the {h} was happy until the end of the days.",
        "So the {h} learned that a friend is worth more than gold.")  # fmt: skip
TIMES = ("Once upon a time", "Long ago", "A long time ago", "Once")
LATER = ("One day", "One morning", "One evening", "One cold night", "One summer day")


def story(rng: random.Random, hero: str, kind: str) -> str:
    """A story of five or six sentences about the hero."""
    other = rng.choice([name for name in HEROES if name != hero])
    saying, deed = rng.choice(DEEDS)
    sentences = [
        f"{rng.choice(TIMES)} there was {with_article(f'{kind} {hero}')} who lived {rng.choice(PLACES)}.",
        f"The {hero} {rng.choice(WISHES)}.",
        f"{rng.choice(LATER)} the {hero} {rng.choice(MEETINGS).format(o=with_article(other))}.",
        saying.format(o=other, h=hero),
        deed.format(o=other, h=hero),
        rng.choice(ENDS).format(h=hero),
    ]
    if rng.random() < 0.2:
        sentences[1] = f"The name of the {hero} was {rng.choice(NAMES)}. " + sentences[1]
    return " ".join(sentences)


def dialogue(rng: random.Random) -> Dialogue:
    """A request for a story, nearly always with a hero, and the story."""
    hero, kind = rng.choice(HEROES), rng.choice(KINDS)
    if rng.random() < 0.12:
        return ask(varied(rng, rng.choice(NO_HERO)), story(rng, hero, kind))
    wanted = f"{kind} {hero}" if rng.random() < 0.3 else hero
    wanted = with_article(wanted) if rng.random() < 0.85 else f"the {wanted}"
    return ask(varied(rng, rng.choice(PHRASINGS).format(h=wanted)), story(rng, hero, kind))
