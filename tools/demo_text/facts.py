"""Facts: small closed tables, with many ways to ask for each entry."""

import random
from dataclasses import dataclass

from . import fact_tables as tables
from .dialogue import Dialogue, ask
from .wording import varied, with_article


@dataclass(frozen=True)
class Topic:
    """One table of facts, the phrasings that ask for an entry and the sentence that answers."""

    name: str
    entries: tuple[tuple[str, str], ...]
    phrasings: tuple[str, ...]
    answers: tuple[str, ...]

    def dialogue(self, rng: random.Random) -> Dialogue:
        """A question about one entry, with its answer."""
        key, value = rng.choice(self.entries)
        answer = fill(rng.choice(self.answers), key, value)
        return ask(varied(rng, fill(rng.choice(self.phrasings), key, value)), answer)


def fill(text: str, key: str, value: str) -> str:
    """Put an entry into a sentence: {k} the key, {ak} the key with its article, {v} and {av} the value."""
    text = text.format(k=key, ak=with_article(key), v=value, av=with_article(value))
    return text[0].upper() + text[1:]


def neighbours(cycle: tuple[str, ...], step: int) -> tuple[tuple[str, str], ...]:
    """Each name of a cycle with the name so many steps further."""
    return tuple((name, cycle[(at + step) % len(cycle)]) for at, name in enumerate(cycle))


def number_names() -> tuple[tuple[str, str], ...]:
    """Digits and words of the numbers from zero to twenty."""
    return tuple((str(number), name) for number, name in enumerate(tables.NUMBERS))


def flipped(entries: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """The entries with key and value exchanged."""
    return tuple((value, key) for key, value in entries)


def topics() -> tuple[tuple[int, Topic], ...]:
    """Every topic with its weight, which grows with the size of its table."""
    numbers = number_names()
    ask_for = tables.PHRASINGS
    return (
        (10, Topic("capital", tables.CAPITALS, ask_for["capital"], ("The capital of {k} is {v}.",))),
        (3, Topic("country", flipped(tables.CAPITALS), ask_for["country"], ("{k} is the capital of {v}.",))),
        (6, Topic("sound", tables.SOUNDS, ask_for["sound"], ("{ak} says {v}.",))),
        (6, Topic("legs", tables.LEGS, ask_for["legs"], ("{ak} has {v} legs.",))),
        (6, Topic("young", tables.YOUNG, ask_for["young"], ("A young {k} is called {av}.",))),
        (12, Topic("opposite", tables.OPPOSITES + flipped(tables.OPPOSITES), ask_for["opposite"],
                   ("The opposite of {k} is {v}.",))),
        (12, Topic("plural", tables.PLURALS, ask_for["plural"], ("The plural of {k} is {v}.",))),
        (8, Topic("colour", tables.COLOURS, ask_for["colour"], ("{k} is {v}.",))),
        (4, Topic("day after", neighbours(tables.DAYS, 1), ask_for["after"] + ask_for["day after"],
                  ("{v} comes after {k}.",))),
        (4, Topic("day before", neighbours(tables.DAYS, -1), ask_for["before"] + ask_for["day before"],
                  ("{v} comes before {k}.",))),
        (5, Topic("month after", neighbours(tables.MONTHS, 1), ask_for["after"] + ask_for["month after"],
                  ("{v} comes after {k}.",))),
        (5, Topic("month before", neighbours(tables.MONTHS, -1), ask_for["before"] + ask_for["month before"],
                  ("{v} comes before {k}.",))),
        (2, Topic("season after", neighbours(tables.SEASONS, 1), ask_for["after"] + ask_for["season after"],
                  ("{v} comes after {k}.",))),
        (3, Topic("season", tables.SEASON_SIGNS, ask_for["season"], ("{k} in {v}.",))),
        (5, Topic("number name", numbers, ask_for["number name"], ("The number {k} is written {v}.",))),
        (4, Topic("number digits", flipped(numbers), ask_for["number digits"], ("{k} is {v}.",))),
        (3, Topic("sides", tables.SIDES, ask_for["sides"], ("{ak} has {v} sides.",))),
        (5, Topic("home", tables.HOMES, ask_for["home"], ("{ak} lives in {v}.",))),
        (4, Topic("kind", tables.KINDS, ask_for["kind"], ("{ak} is {av}.",))),
    )  # fmt: skip
