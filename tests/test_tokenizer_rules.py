"""Every pre-tokenizer rule against the package `tokenizers`, and the work that texts cost, counted."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from helpers import CONTROL, NORMAL, UNKNOWN, tiny_vocab
from tokenizer_helpers import metadata, needs_native
from tokenizer_rules import PEER_RULES, comparable, hard_texts, own_words, peer_words

from edgellm import clib
from edgellm.tokenizers import Tokenizer
from edgellm.tokenizers.pattern_syntax import parse
from edgellm.tokenizers.patterns import _members, anchored
from edgellm.tokenizers.pretokenizers import RULES
from edgellm.tokenizers.vocab import read_vocab


@pytest.mark.parametrize("name", list({RULES[name]: name for name in PEER_RULES}.values()))
def test_words_of_the_package(name: str) -> None:
    """tools/tokenizer_parity.py does the same with 10,000 texts for every name."""
    pytest.importorskip("tokenizers")
    theirs, ours = peer_words(PEER_RULES[name]), own_words(RULES[name])
    for text in hard_texts(1000, 7):
        text = comparable(name, text)
        assert ours(text) == theirs(text), ascii(text)


def test_every_rule_has_its_file() -> None:
    """All rules but Gemma 4's (it has no split of its own: test_characters_as_the_package) are compared."""
    assert {RULES[name] for name in PEER_RULES} == set(RULES.values()) - {RULES["gemma4"]}


@pytest.mark.parametrize("native", [False, pytest.param(True, marks=needs_native)])
def test_characters_as_the_package(native: bool) -> None:
    """Gemma 4's file replaces spaces, cuts nothing, and falls back to bytes; its merges never join a line feed."""
    pytest.importorskip("tokenizers")
    from tokenizer_gemma import peer_and_metadata

    theirs, keys = peer_and_metadata()
    ours = Tokenizer(read_vocab(keys), native=native)
    for text in hard_texts(1500, 8):
        text = text.replace("\u2581", "_")
        assert ours.encode(text, add_special=False) == theirs.encode(text).ids, ascii(text)


# ---- counted work ----------------------------------------------------------------------------------------------------


class Counted:
    """Expressions matched by plain backtracking on one character after the other, every attempt counted: what a rule
    costs does not depend on how fast a machine is. Slow and obvious, and it must find the words that `Patterns` finds.
    """

    def __init__(self, expressions: tuple[str, ...]) -> None:
        self.trees = [anchored(parse(text)) for text in expressions]
        self.steps = 0

    def split(self, text: str) -> list[int]:
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.int64)
        ends = [len(text)] if text else []
        for tree in self.trees:
            inside = self._inside(tree, points)
            start, new = 0, set()
            for end in ends:
                new |= self._word(tree, inside, start, end)
                start = end
            ends = sorted(new)
        return ends

    def _inside(self, tree: Any, points: np.ndarray) -> dict[Any, np.ndarray]:
        kind = tree[0]
        if kind in ("set", "not behind"):
            return {tree[1]: _members(tree[1], points)}
        parts = tree[1] if kind in ("seq", "alt") else tree[1:2] if kind in ("repeat", "ahead") else ()
        return {key: value for part in parts for key, value in self._inside(part, points).items()}

    def _word(self, tree: Any, inside: dict[Any, np.ndarray], start: int, end: int) -> set[int]:
        found, at = {end}, start
        while at < end:
            stop = next(self._match(tree, inside, start, at, end), at)
            if stop > at:
                found |= {at, stop}
            at = max(stop, at + 1)
        return found - {start}

    def _match(self, tree: Any, inside: Any, start: int, at: int, end: int) -> Any:
        """Every place where a match from `at` may end, in the order of backtracking."""
        self.steps += 1
        kind = tree[0]
        if kind == "set":
            if at < end and inside[tree[1]][at]:
                yield at + 1
        elif kind == "not behind":
            if at == start or not inside[tree[1]][at - 1]:
                yield at
        elif kind == "end":
            if at == end:
                yield at
        elif kind == "ahead":
            if (next(self._match(tree[1], inside, start, at, end), None) is not None) == tree[2]:
                yield at
        elif kind == "alt":
            for part in tree[1]:
                yield from self._match(part, inside, start, at, end)
        elif kind == "seq":
            yield from self._sequence(tree[1], 0, inside, start, at, end)
        else:
            yield from self._repeat(tree, inside, start, at, end)

    def _sequence(self, parts: Any, i: int, inside: Any, start: int, at: int, end: int) -> Any:
        if i == len(parts):
            yield at
            return
        for middle in self._match(parts[i], inside, start, at, end):
            yield from self._sequence(parts, i + 1, inside, start, middle, end)

    def _repeat(self, tree: Any, inside: Any, start: int, at: int, end: int) -> Any:
        _, part, low, high = tree
        places = [at]
        while len(places) <= (high if high is not None else end - at):
            place = next(self._match(part, inside, start, places[-1], end), None)
            if place is None:
                break
            places.append(place)
        for place in reversed(places[low:]):
            self.steps += 1
            yield place


LONG = [" ", "a", "A", "7", "\n", "!", "日", "🙂", "\u0301", "'s", " a", "a'", "\r\n", "\u3000", "Aa", " \n", "$"]
ENDS = ["", "7", "a", "!", "日"]


@pytest.mark.parametrize("name", list({RULES[name]: name for name in RULES}.values()))
def test_rules_are_linear(name: str) -> None:
    """Twice the text is at most a little more than twice the work, whatever the text repeats."""
    twin, ours = Counted(RULES[name].expressions), own_words(RULES[name])
    for text in LONG:
        for end in ENDS:
            counts = []
            for n in (30, 60):
                long, before = text * (n // len(text)) + end, twin.steps
                assert twin.split(long) == ours(long)
                counts.append(twin.steps - before)
            assert counts[1] <= 2.2 * counts[0] + 50, (ascii(text), ascii(end), counts)


@pytest.mark.parametrize("name", list(PEER_RULES))
def test_rules_do_what_plain_backtracking_does(name: str) -> None:
    twin, ours = Counted(RULES[name].expressions), own_words(RULES[name])
    for text in hard_texts(100, 9):
        assert twin.split(text) == ours(text), ascii(text)


@lru_cache
def one_of_each_kind() -> dict[str, Tokenizer]:
    from test_bpe import tokenizer as bpe

    spm = Tokenizer(read_vocab(metadata(*tiny_vocab())))
    rows = [("<unk>", 0.0, UNKNOWN), ("</s>", 0.0, CONTROL), *((p, -float(i), NORMAL) for i, p in enumerate(
        ["a", "aa", "aaaa", "▁", "▁▁", "▁a", "e", "日", "日日", "🙂", "A", "aA", "a" * 200])), ("\n\n", -3.0, NORMAL)]
    pieces, scores, types = (list(column) for column in zip(*rows, strict=True))
    unigram = Tokenizer(read_vocab(metadata(pieces, scores, types, model="t5")))
    words = Tokenizer(read_vocab(metadata(["<unk>", "▁a", "a", "aa", "▁日"], [0.0] * 5, [UNKNOWN, *[NORMAL] * 4],
                                          model="bert")))
    found = {"llama": spm, "t5": unigram, "bert": words, "gemma4": bpe("gemma4", None, "gemma4")}
    return found | {pre: bpe(pre) for pre in ("llama-bpe", "tekken")}


@needs_native
@pytest.mark.parametrize("name", ["llama", "t5", "bert", "gemma4", "llama-bpe", "tekken"])
def test_loops_are_linear(name: str) -> None:
    """Steps of the compiled loops, which count themselves."""
    tokenizer, steps = one_of_each_kind()[name], clib.library()[1].el_text_steps
    mixed = "".join(hard_texts(300, 3))
    for text in [*LONG, "no spaces at all".replace(" ", ""), "aab", "abracadabra", mixed]:
        counts = []
        for n in (5_000, 10_000):
            tokenizer.encode((text * (n // len(text) + 1))[:n], add_special=False)
            counts.append(steps())
        assert counts[1] <= 2.5 * counts[0] + 1000, (ascii(text)[:40], counts)
