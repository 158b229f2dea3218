#!/usr/bin/env python3
"""Prompts for measuring and checking speculation, always the same ones, and how repetitive an answer is.

    tools/speculation_prompts.py [--grimm ../shared/data/text/grimm.txt]     writes tools/speculation_prompts.json again

100 prompts for each of three classes lie in tools/speculation_prompts.json. They are made from a seed by the generator
of the built-in model's training text (tools/demo_text), with another seed than the training, so that this model and
larger ones trained on that text have something to say:

- chat: none to three exchanges of any kind, then a wish for a story (every second), one of the held-out questions of
  tools/demo_prompts.json, or a question of another kind.
- copy: every second one a paragraph (story, prose, words) that is to be given back, with a word replaced or as it is,
  or a story that is to be told again (demo_text/long_texts.py; the built-in model has not learnt that); the others, one
  to three exchanges of copying and editing a few words, then such a wish again, or "Say that again.".
- random: 60 characters at random, no chat.
"""

from __future__ import annotations

import argparse
import json
import random
import string
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from demo_text.generator import Generator
    from demo_text.long_texts import LongTexts

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = ROOT / "tools" / "speculation_prompts.json"
HELD_OUT = ROOT / "tools" / "demo_prompts.json"
SEED, COUNT = 20_000_003, 100  # the training text has seed 1, its held-out rows 1,000,003
OTHERS = ("facts", "arithmetic", "smalltalk", "memory")
RANDOM_LENGTH = 60  # characters
Message: TypeAlias = dict[str, str]  # {"role": ..., "content": ...}
Prompt: TypeAlias = "list[Message] | str"  # a conversation that the model is to answer, or a text to go on with


def load_prompts(name: str, count: int = COUNT) -> list[Prompt]:
    """The first `count` prompts of a class: "chat", "copy" or "random"."""
    prompts: list[Prompt] = json.loads(PROMPTS.read_text(encoding="utf-8"))[name][:count]
    return prompts


# ---- making them -------------------------------------------------------------------------------------------


def messages(pairs: Sequence[tuple[str, str]]) -> list[Message]:
    """A conversation up to the user's last message."""
    return [{"role": role, "content": text} for role, text in pairs[:-1]]


def chat(generator: Generator, n: int) -> list[list[Message]]:
    """Conversations of which every second ends with the wish for a story."""
    rng, out = generator.rng, []
    held = [item["prompt"] for item in json.loads(HELD_OUT.read_text(encoding="utf-8"))]
    rng.shuffle(held)
    for i in range(n):
        before = [pair for _ in range(rng.randrange(4)) for pair in generator.any().messages]
        if i % 2 == 0:
            last = generator.one("stories").messages
        elif i % 4 == 1:
            last = (("user", held[i // 4 % len(held)]), ("assistant", ""))
        else:
            last = generator.one(rng.choice(OTHERS)).messages
        out.append(messages([*before, *last]))
    return out


def copies(generator: Generator, long_texts: LongTexts, n: int) -> list[list[Message]]:
    """Wishes to give a paragraph back, and between them wishes to give a few words back, some with a small change,
    behind others of that kind; the longest of several."""
    from demo_text.conversations import AGAIN

    rng, out = generator.rng, []
    skills = ("copying", "editing")

    def long(skill: str) -> tuple[tuple[str, str], ...]:
        return max((generator.one(skill).messages for _ in range(8)), key=lambda m: len(m[1][1]))

    for i in range(n):
        if i % 2 == 0:
            out.append(messages(long_texts.one().messages))
            continue
        before = [pair for _ in range(rng.randint(1, 3)) for pair in long(rng.choice(skills))]
        last = long(skills[i % 3 - 1]) if i % 3 else (("user", rng.choice(AGAIN)), ("assistant", ""))
        out.append(messages([*before, *last]))
    return out


def random_texts(n: int, seed: int = SEED) -> list[str]:
    """Characters at random, one in six of them a blank."""
    rng = random.Random(seed)
    letters = string.ascii_letters + string.digits + string.punctuation
    return ["".join(rng.choice(letters) if rng.randrange(6) else " " for _ in range(RANDOM_LENGTH)) for _ in range(n)]


def made(prose: str) -> dict[str, list[Prompt]]:
    """All prompts; the words to copy are the common ones of `prose`, as in training."""
    from demo_text.corpus import split_prose
    from demo_text.generator import Generator
    from demo_text.long_texts import LongTexts
    from demo_text.words import Words

    common, held_out = split_prose(prose, 0.02)
    generator = Generator(Words(common), SEED)
    talks = chat(generator, COUNT)
    copied = copies(generator, LongTexts(generator.words, held_out, SEED), COUNT)
    return {"chat": [*talks], "copy": [*copied], "random": [*random_texts(COUNT)]}


def noise(n: int, n_vocab: int, length: int = 40, seed: int = 3) -> list[list[int]]:
    """Token ids at random."""
    rng = random.Random(seed)
    return [[rng.randrange(min(3, n_vocab - 1), n_vocab) for _ in range(length)] for _ in range(n)]


# ---- judging -----------------------------------------------------------------------------------


def repeated(ids: Sequence[int], n: int = 4) -> float:
    """The share of n-grams of an answer that stood in it before, 0 to 1."""
    grams = Counter(tuple(ids[i : i + n]) for i in range(len(ids) - n + 1))
    total = sum(grams.values())
    return 1.0 - len(grams) / total if total else 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grimm", type=Path, default=ROOT.parent / "shared" / "data" / "text" / "grimm.txt")
    prompts = made(parser.parse_args().grimm.read_text(encoding="utf-8"))
    rows = [f"{json.dumps(name)}: [\n" + ",\n".join(map(json.dumps, items)) + "\n]" for name, items in prompts.items()]
    PROMPTS.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")
    print(f"{PROMPTS}: {PROMPTS.stat().st_size / 1000:.0f} KB", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
