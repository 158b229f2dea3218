"""Wording: the small ways in which people vary the same request."""

import random

OPENERS = (
    "Please tell me: ", "Hey, ", "Hello! ", "Hi! ", "Quick question: ", "A question: ", "Can you help me? ",
    "Tell me, ", "So, ", "OK, ", "Now ", "Next question: ", "Well, ", "Listen: ", "My child asks: ", "I wonder: ",
    "Could you help? ", "Let me ask you something. ", "Another one: ", "For my homework: ", "Help me, please. ",
)  # fmt: skip
CLOSERS = (
    " Thanks.", " Please.", " Thank you!", " I want to know it.", " I forgot.", " Answer me, please.", " Be brief.",
)  # fmt: skip


def lower_first(text: str) -> str:
    """The text with a small first letter, unless it starts with the word I or an all-capital word."""
    if len(text) < 2 or not text[1].islower():
        return text
    return text[0].lower() + text[1:]


def with_article(noun: str) -> str:
    """The noun behind a or an."""
    return ("an " if noun[0].lower() in "aeio" else "a ") + noun


def varied(rng: random.Random, question: str) -> str:
    """The question with an opener, a closer, or careless writing, now and then."""
    draw = rng.random()
    if draw < 0.22:
        opener = rng.choice(OPENERS)
        question = opener + (question if opener[-2] in "!.?" else lower_first(question))
    elif draw < 0.32 and question[-1] in ".?!":
        question += rng.choice(CLOSERS)
    return careless(rng, question)


def careless(rng: random.Random, question: str) -> str:
    """The question as it is, or without its last mark, or with a small first letter."""
    draw = rng.random()
    if draw < 0.10 and question[-1] in ".?":
        question = question[:-1]
    if 0.05 < draw < 0.18:
        question = lower_first(question)
    return question
