"""Editing: the user gives some words and wants a small change."""

import random
from collections.abc import Callable

from .dialogue import Dialogue, ask
from .wording import varied
from .words import CAPITALISED, Words

FIRST = (
    "What is the first word of: {t}", "Give me the first word of: {t}", "First word: {t}", "Name the first word: {t}",
    "Say only the first word: {t}", "Which word comes first: {t}", "What is the first word here: {t}",
    "Find the first word: {t}", "Tell me the first word in this text: {t}", "Which word stands first here: {t}",
    "Only the first word, please: {t}", "Take the first word of this: {t}", "The first word of these words: {t}",
)  # fmt: skip
LAST = (
    "What is the last word of: {t}", "Give me the last word of: {t}", "Last word: {t}", "Name the last word: {t}",
    "Say only the last word: {t}", "Which word comes last: {t}", "What is the last word here: {t}",
    "Find the last word: {t}", "Tell me the last word in this text: {t}", "Which word stands last here: {t}",
    "Only the last word, please: {t}", "Take the last word of this: {t}", "The last word of these words: {t}",
)  # fmt: skip
SWAP = (
    "Swap the two words: {t}", "Swap: {t}", "Swap these words: {t}", "Reverse the order: {t}",
    "Exchange the words: {t}", "Turn these two words around: {t}", "Reverse the two words: {t}",
    "Write in the other order: {t}", "Change the order of the words: {t}", "Put the second word first: {t}",
    "Say it in reverse order: {t}", "Turn the order around: {t}", "Write these words the other way round: {t}",
)  # fmt: skip
ADD = (
    "Add the word {w} at the end: {t}", "Add {w} at the end of: {t}", "Put {w} at the end of: {t}",
    "Put the word {w} after this: {t}", "Append {w} to: {t}", "Append the word {w}: {t}", "Write {w} behind: {t}",
    "Add {w} to the end of this: {t}", "At the end, add {w}: {t}", "Let this end with {w}: {t}",
    "Place {w} at the end: {t}", "Extend this by the word {w}: {t}",
)  # fmt: skip
BEFORE = (
    "Put {w} before: {t}", "Add {w} at the beginning of: {t}", "Add the word {w} at the start: {t}",
    "Begin with {w}: {t}", "Put the word {w} in front of: {t}", "Write {w} before this: {t}", "Start with {w}: {t}",
    "Place {w} at the start: {t}",
)  # fmt: skip
REPLACE = (
    "Replace {o} with {w}: {t}", "Replace {o} by {w}: {t}", "Replace the word {o} with {w}: {t}",
    "Change {o} to {w}: {t}", "Change the word {o} to {w}: {t}", "Put {w} in place of {o}: {t}",
    "Write {w} instead of {o}: {t}", "Say {w} instead of {o}: {t}", "Exchange {o} for {w}: {t}",
    "Make {o} into {w}: {t}", "Turn {o} into {w}: {t}", "Instead of {o} put {w}: {t}",
)  # fmt: skip
REMOVE = (
    "Remove {o}: {t}", "Remove the word {o}: {t}", "Leave out {o}: {t}", "Leave out the word {o}: {t}",
    "Delete {o}: {t}", "Delete the word {o} from: {t}", "Take {o} out of: {t}", "Drop the word {o}: {t}",
    "Write this without {o}: {t}",
)  # fmt: skip
UPPER = (
    "Write {w} in capital letters.", "Write {w} in upper case.", "Put {w} in capitals.", "Make {w} upper case.",
    "Turn {w} into capital letters.", "Write the word {w} in big letters.", "Upper case: {w}", "Capital letters: {w}",
    "How does {w} look in capitals?", "Convert {w} to upper case.", "Shout the word {w}.", "Change {w} to capitals.",
)  # fmt: skip
PLAIN = ("the {a} is {b}", "a {a} and a {b}", "my {a} has a {b}", "we saw the {a} near the {b}", "the {a} {b} here")


def pick_end(rng: random.Random, words: Words) -> Dialogue:
    """Ask for the first or the last word."""
    text = words.some(rng, 2, 6)
    which, phrasings, at = rng.choice((("first", FIRST, 0), ("last", LAST, -1)))
    return ask(varied(rng, rng.choice(phrasings)).format(t=" ".join(text)), f"The {which} word is {text[at]}")


def swap(rng: random.Random, words: Words) -> Dialogue:
    """Ask for two words in the other order."""
    first, second = words.draw(rng, 2)
    return ask(varied(rng, rng.choice(SWAP)).format(t=f"{first} {second}"), f"Here you are: {second} {first}")


def add(rng: random.Random, words: Words) -> Dialogue:
    """Ask for one word more, at the end or at the start."""
    word, *text = words.draw(rng, rng.randint(2, 5))
    at_end = rng.random() < 0.65
    question = varied(rng, rng.choice(ADD if at_end else BEFORE)).format(w=word, t=" ".join(text))
    return ask(question, "Here you are: " + " ".join([*text, word] if at_end else [word, *text]))


def replace(rng: random.Random, words: Words) -> Dialogue:
    """Ask for one word in place of another."""
    new, old, *rest = words.draw(rng, rng.randint(3, 5))
    if rng.random() < 0.4:
        pair = rng.sample((old, rest[0]), 2)
        text = rng.choice(PLAIN).format(a=pair[0], b=pair[1]).split()
    else:
        text = rng.sample([old, *rest], 1 + len(rest))
    question = varied(rng, rng.choice(REPLACE)).format(o=old, w=new, t=" ".join(text))
    return ask(question, "Here you are: " + " ".join(new if word == old else word for word in text))


def remove(rng: random.Random, words: Words) -> Dialogue:
    """Ask for the text without one word."""
    text = words.draw(rng, rng.randint(2, 5))
    old = rng.choice(text)
    question = varied(rng, rng.choice(REMOVE)).format(o=old, t=" ".join(text))
    return ask(question, "Here you are: " + " ".join(word for word in text if word != old))


def upper(rng: random.Random, _: Words) -> Dialogue:
    """Ask for a word in capital letters; the words are few, since each is spelled from memory."""
    word = rng.choice(CAPITALISED)
    return ask(varied(rng, rng.choice(UPPER)).format(w=word), f"Here you are: {word.upper()}")


EDITS: tuple[tuple[int, Callable[[random.Random, Words], Dialogue]], ...] = (
    (6, pick_end), (4, swap), (6, add), (6, replace), (3, remove), (3, upper),
)  # fmt: skip


def dialogue(rng: random.Random, words: Words) -> Dialogue:
    """A request for any of the small changes."""
    weights, edits = zip(*EDITS, strict=True)
    return rng.choices(edits, weights)[0](rng, words)
