"""Conversations: dialogues in which a later question needs an earlier message."""

import random

from . import fact_tables as tables
from .dialogue import Dialogue, ask
from .wording import careless
from .words import NAMES

SYSTEMS = (
    "You are a helpful assistant.", "You are edgellm's demo model.", "Answer briefly.", "You are a friendly assistant.",
    "Be kind and short.", "You are a small model.", "Answer the user's questions.", "You help children to learn.",
)  # fmt: skip
MY_NAME = ("My name is {n}.", "I am {n}.", "Hello, I am {n}.", "Hi! My name is {n}.", "I am called {n}.",
           "You can call me {n}.", "They call me {n}.")  # fmt: skip
ASK_NAME = ("What is my name?", "Who am I?", "Do you remember my name?", "What am I called?", "Say my name.",
            "Tell me my name.", "Do you know who I am?", "What's my name?")  # fmt: skip
LIKES = ("I like {c}.", "My favourite colour is {c}.", "I love the colour {c}.", "The colour I like best is {c}.")
ASK_LIKES = ("Which colour do I like?", "What is my favourite colour?", "What colour do I like best?",
             "Do you remember my favourite colour?")  # fmt: skip
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "orange", "brown", "pink", "grey")
AGAIN = ("Say that again.", "Repeat that.", "Can you repeat this?", "What did you say?", "Once more, please.", "Again.")
AND_NOW = ("And {k}?", "And of {k}?", "What about {k}?", "And {k}, please?")


def name_dialogue(rng: random.Random) -> tuple[Dialogue, ...]:
    """The user gives a name and asks for it, at once or in the same message."""
    name = rng.choice(NAMES)
    told, asked = rng.choice(MY_NAME).format(n=name), rng.choice(ASK_NAME)
    answer = f"Your name is {name}."
    if rng.random() < 0.3:
        return (ask(f"{told} {asked}", answer),)
    return ask(careless(rng, told), f"Hello {name}! Nice to meet you."), ask(careless(rng, asked), answer)


def colour_dialogue(rng: random.Random) -> tuple[Dialogue, ...]:
    """The user names a favourite colour and asks for it."""
    colour = rng.choice(COLOURS)
    told, asked = rng.choice(LIKES).format(c=colour), rng.choice(ASK_LIKES)
    answer = f"You like {colour}."
    if rng.random() < 0.3:
        return (ask(f"{told} {asked}", answer),)
    return ask(careless(rng, told), f"{colour.capitalize()} is a nice colour."), ask(careless(rng, asked), answer)


def follow_up(rng: random.Random) -> tuple[Dialogue, ...]:
    """A question about a capital, and the same question for other countries in short."""
    (first, city), *others = rng.sample(tables.CAPITALS, rng.randint(2, 3))
    question = rng.choice(tables.PHRASINGS["capital"]).format(k=first)
    more = (ask(rng.choice(AND_NOW).format(k=k), f"The capital of {k} is {v}.") for k, v in others)
    return ask(question, f"The capital of {first} is {city}."), *more


def again(rng: random.Random, before: Dialogue) -> tuple[Dialogue, ...]:
    """The last answer of a dialogue, asked for a second time."""
    return before, ask(rng.choice(AGAIN), before.messages[-1][1])


def joined(parts: tuple[Dialogue, ...]) -> Dialogue:
    """Dialogues one after another."""
    whole, *rest = parts
    for part in rest:
        whole = whole.then(part)
    return whole
