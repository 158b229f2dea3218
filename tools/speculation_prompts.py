"""Prompts for measuring and checking speculation, always the same ones, and how repetitive an answer is."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "tools" / "demo_prompts.json"
NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Henry", "Iris", "Jack", "Kate", "Leo", "Mia")
THINGS = ("apple", "ball", "boat", "book", "bird", "cake", "car", "cat", "chair", "dog", "door", "drum", "fish", "hat")
VERBS = ("found", "lost", "painted", "carried", "washed", "sold", "hid", "threw", "bought", "kept")
PLACES = ("garden", "kitchen", "forest", "school", "market", "river", "attic")


def chat(n: int, seed: int = 1) -> list[str]:
    """Questions of the kinds that the built-in model knows, and stories to tell."""
    rng = random.Random(seed)
    known = [item["prompt"] for item in json.loads(DEMO.read_text(encoding="utf-8"))]
    stories = [f"Tell me a story about a {rng.choice(THINGS)} and a {rng.choice(THINGS)}." for _ in range(n)]
    return [known[i // 2 % len(known)] if i % 2 else stories[i] for i in range(n)]


def passage(rng: random.Random, n: int) -> str:
    """`n` sentences that nobody has read before."""
    return " ".join(
        f"{rng.choice(NAMES)} {rng.choice(VERBS)} the {rng.choice(THINGS)} in the {rng.choice(PLACES)}."
        for _ in range(n)
    )


def copies(n: int, seed: int = 2) -> list[str]:
    """A passage twice and its first sentence: a model that has learned to copy goes on with the second."""
    out = []
    for i in range(n):
        text = passage(random.Random(seed * 1000 + i), 6)
        out.append(f"{text}\n{text}\n{text.split('.')[0]}.")
    return out


def noise(n: int, n_vocab: int, length: int = 40, seed: int = 3) -> list[list[int]]:
    """Token ids at random."""
    rng = random.Random(seed)
    return [[rng.randrange(min(3, n_vocab - 1), n_vocab) for _ in range(length)] for _ in range(n)]


def repeated(ids: Sequence[int], n: int = 4) -> float:
    """The share of n-grams of an answer that stood in it before, 0 to 1."""
    grams = Counter(tuple(ids[i : i + n]) for i in range(len(ids) - n + 1))
    total = sum(grams.values())
    return 1.0 - len(grams) / total if total else 0.0


def write(page: Path, name: str, lines: Sequence[str]) -> None:
    """Replaces what stands on a page between the marks `<!-- NAME: begin -->` and `<!-- NAME: end -->`."""
    text = page.read_text(encoding="utf-8")
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, rest = text.split(begin, 1)
    after = rest.split(end, 1)[1]
    page.write_text("\n".join([before + begin, *lines, end + after]), encoding="utf-8")
