"""Arithmetic: sums and differences up to twenty, small products, comparing and counting."""

import random

from .dialogue import Dialogue, ask
from .wording import varied

SIGNS = {"plus": "+", "minus": "-", "times": "x"}
PHRASINGS = (
    "What is {q}?", "What's {q}?", "{q} = ?", "{q} =", "{q}", "{q}?", "How much is {q}?", "Calculate {q}.",
    "Compute {q}.", "Please calculate {q}.", "What does {q} make?", "What do you get for {q}?", "Tell me {q}.",
    "Solve {q}.", "Work out {q}.", "The result of {q}?", "How much do we get for {q}?", "What is the value of {q}?",
    "Can you calculate {q}?", "Answer this: {q}", "I need the result of {q}.", "Do the sum: {q}",
    "Say how much {q} is.",
)  # fmt: skip
STORIES = {
    "plus": (
        "I have {a} apples and get {b} more. How many apples do I have?", "Add {a} and {b}.", "Add {b} to {a}.",
        "There are {a} birds, then {b} more come. How many birds are there?", "What is the sum of {a} and {b}?",
        "{a} children play, and {b} children come. How many children play now?",
        "Tom has {a} nuts and Anna has {b} nuts. How many nuts do they have together?",
    ),
    "minus": (
        "I have {a} apples and eat {b}. How many apples are left?", "Take {b} away from {a}.", "Subtract {b} from {a}.",
        "There are {a} birds and {b} fly away. How many birds are left?", "What is the difference of {a} and {b}?",
        "Anna has {a} nuts and gives away {b}. How many nuts are left?", "What is {b} less than {a}?",
    ),
    "times": (
        "Multiply {a} by {b}.", "Multiply {a} and {b}.", "What is the product of {a} and {b}?",
        "{a} boxes hold {b} balls each. How many balls are there?",
    ),
}  # fmt: skip
LARGER = ("Which is larger, {a} or {b}?", "Which number is bigger: {a} or {b}?", "What is more, {a} or {b}?",
          "Name the larger number: {a} or {b}.", "Is {a} or {b} the larger number?",
          "Of {a} and {b}, which is larger?", "Which one is greater, {a} or {b}?")  # fmt: skip
SMALLER = ("Which is smaller, {a} or {b}?", "Which number is smaller: {a} or {b}?", "What is less, {a} or {b}?",
           "Name the smaller number: {a} or {b}.", "Is {a} or {b} the smaller number?",
           "Of {a} and {b}, which is smaller?")  # fmt: skip
COUNTING = ("Count from {a} to {b}.", "Please count from {a} up to {b}.", "List the numbers from {a} to {b}.",
            "Say the numbers from {a} to {b}.", "Write the numbers {a} to {b}.", "Name all numbers from {a} to {b}.",
            "Count up from {a} until {b}.")  # fmt: skip
NEXT = ("Which number comes after {a}?", "What number follows {a}?", "What is the next number after {a}?",
        "Name the number after {a}.", "After {a} comes which number?", "What comes after {a}?")  # fmt: skip


def operands(rng: random.Random, name: str) -> tuple[int, int, int]:
    """Two numbers for an operation, and the result."""
    if name == "times":
        a, b = rng.randint(1, 10), rng.randint(1, 5)
        a, b = (a, b) if rng.random() < 0.5 else (b, a)
        return a, b, a * b
    total = rng.randint(0, 20)
    part = rng.randint(0, total)
    return (part, total - part, total) if name == "plus" else (total, part, total - part)


def sum_dialogue(rng: random.Random) -> Dialogue:
    """A question for a sum, a difference or a product."""
    name = rng.choices(tuple(SIGNS), (5, 5, 3))[0]
    a, b, result = operands(rng, name)
    sign = SIGNS[name] if name != "times" else rng.choice("x*")
    asked = f"{a} {sign} {b}" if rng.random() < 0.6 else f"{a} {name} {b}"
    if rng.random() < 0.25:
        question = rng.choice(STORIES[name]).format(a=a, b=b)
    else:
        question = rng.choice(PHRASINGS).format(q=asked)
    return ask(varied(rng, question), f"{a} {SIGNS[name]} {b} = {result}")


def order_dialogue(rng: random.Random) -> Dialogue:
    """A question about the order of numbers."""
    a, b = rng.sample(range(21), 2)
    kind = rng.choice(("larger", "smaller", "count", "next"))
    if kind == "larger":
        return ask(varied(rng, rng.choice(LARGER).format(a=a, b=b)), f"{max(a, b)} is larger than {min(a, b)}.")
    if kind == "smaller":
        return ask(varied(rng, rng.choice(SMALLER).format(a=a, b=b)), f"{min(a, b)} is smaller than {max(a, b)}.")
    if kind == "next":
        return ask(varied(rng, rng.choice(NEXT).format(a=a)), f"{a + 1} comes after {a}.")
    a, b = min(a, b), min(max(a, b), min(a, b) + 9)
    return ask(varied(rng, rng.choice(COUNTING).format(a=a, b=b)), ", ".join(map(str, range(a, b + 1))))


def dialogue(rng: random.Random) -> Dialogue:
    """Any question about numbers."""
    return sum_dialogue(rng) if rng.random() < 0.8 else order_dialogue(rng)
