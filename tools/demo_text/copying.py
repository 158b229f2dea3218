"""Copying: the user gives some words and wants them back."""

import random

from .dialogue import Dialogue, ask
from .wording import varied
from .words import Words

ONCE = (
    "Repeat: {t}", "Repeat after me: {t}", "Say: {t}", "Copy: {t}", "Copy this: {t}", "Copy this text: {t}",
    "Say this again: {t}", "Repeat the words: {t}", "Repeat these words: {t}", "Please repeat this: {t}", "Write: {t}",
    "Write this: {t}", "Say after me: {t}", "Print: {t}", "Give me back these words: {t}", "Say exactly this: {t}",
    "Answer only with these words: {t}", "Type the text: {t}", "Can you repeat this? It is: {t}", "Read this back: {t}",
    "Say the same words as I do: {t}", "Put down this line: {t}", "Now copy what I write: {t}", "Quote me: {t}",
    "Repeat what I say: {t}", "I say: {t}", "Speak the words: {t}", "Send the text back to me: {t}", "Show this: {t}",
)  # fmt: skip
TWICE = (
    "Say twice: {t}", "Say this twice: {t}", "Repeat twice: {t}", "Write this twice: {t}", "Copy two times: {t}",
    "Say two times: {t}", "Repeat this two times: {t}", "Print twice: {t}", "Twice, please: {t}", "Write twice: {t}",
    "Repeat these words twice: {t}", "Say it two times in a row: {t}",
)  # fmt: skip


def dialogue(rng: random.Random, words: Words) -> Dialogue:
    """A request to give words back once or twice."""
    if rng.random() < 0.8:
        text = " ".join(words.some(rng))
        return ask(varied(rng, rng.choice(ONCE)).format(t=text), f"Here you are: {text}")
    text = " ".join(words.some(rng, 1, 3))
    return ask(varied(rng, rng.choice(TWICE)).format(t=text), f"Here you are: {text} {text}")
