"""The corpus: dialogues and passages of prose as token documents, packed into rows of equal length."""

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .dialogue import Dialogue
from .vocabulary import Vocabulary

ASIDE = 0.25
Document = tuple[list[int], list[float]]


@dataclass(frozen=True)
class Rows:
    """Token rows and the weight in the training loss of predicting each token."""

    tokens: np.ndarray
    weights: np.ndarray


def split_prose(text: str, held_share: float) -> tuple[str, str]:
    """The prose for training, and its tail for the held-out loss, cut between two paragraphs."""
    cut = text.index("\n\n", int(len(text) * (1 - held_share)))
    return text[:cut], text[cut:].strip()


def passages(text: str, rng: random.Random, length: int) -> list[str]:
    """The prose cut at ends of sentences into passages of about the given number of characters."""
    sentences = re.split(r"(?<=[.!?\"])(?=\s)", text)
    cut, current, limit = [], "", rng.randint(length // 2, length)
    for sentence in sentences:
        current += sentence
        if len(current) >= limit:
            cut.append(current.strip())
            current, limit = "", rng.randint(length // 2, length)
    return [*cut, current.strip()] if current.strip() else cut


def dialogue_document(vocabulary: Vocabulary, dialogue: Dialogue) -> Document:
    """A dialogue as tokens; what the user says counts less, since much of it is chance."""
    tokens, written = vocabulary.encode_dialogue(dialogue)
    return tokens, [1.0 if mine else ASIDE for mine in written]


def prose_document(vocabulary: Vocabulary, text: str) -> Document:
    """A passage as tokens of full weight."""
    tokens = vocabulary.encode_prose(text)
    return tokens, [1.0] * len(tokens)


def pack(documents: Iterable[Document], rows: int, length: int) -> Rows:
    """Fill rows with whole documents, each row starting with a new one; only the last of a row is cut."""
    tokens = np.zeros((rows, length), dtype=np.uint16)
    weights = np.zeros((rows, length), dtype=np.float32)
    at = row = 0
    for document, counts in documents:
        size = min(len(document), length - at)
        tokens[row, at : at + size] = document[:size]
        weights[row, at : at + size] = counts[:size]
        at += size
        if at == length:
            at, row = 0, row + 1
            if row == rows:
                return Rows(tokens, weights)
    raise ValueError(f"the documents fill only {row} of {rows} rows")
