"""How the models' own tokenizer.json files cut text, for the package `tokenizers`, and texts that are hard to cut.

Each list is the `pre_tokenizer` of a published model, without the step that only writes bytes as letters. They are
spelled out here, not taken from edgellm's table: the two are compared.
"""

from __future__ import annotations

import random
from functools import lru_cache
from typing import Any

import numpy as np

_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_END = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CJK = "[一-龥ࠀ-一가-퟿]+"
_DEEPSEEK_LETTERS = (
    "\\s?[A-Za-z\xb5\xc0-\xd6\xd8-\xf6\xf8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377"
    "\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556"
    "\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00"
    "-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-"
    "\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102"
    "\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-"
    "\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-"
    "\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-"
    "\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-"
    "\U000118df\U0001e900-\U0001e943]+"
)


def split(expression: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}


GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
DIGIT, DIGITS = ({"type": "Digits", "individual_digits": one} for one in (True, False))
PUNCTUATION = {"type": "Punctuation", "behavior": "Contiguous"}
_LLAMA3 = rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_END}"
_QWEN2 = rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_END}"
_QWEN35 = (
    rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_O_END = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?"
_GPT4O = (
    rf"{_WORD}{_UPPER}*{_LOWER}+{_SHORT}?|{_WORD}{_UPPER}+{_LOWER}*{_SHORT}?|\p{{N}}{{1,3}}|{_O_END}"
)
_TEKKEN = rf"{_WORD}{_UPPER}*{_LOWER}+|{_WORD}{_UPPER}+{_LOWER}*|\p{{N}}|{_O_END}"

# Name in GGUF -> steps of the pre-tokenizer.
PEER_RULES: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [GPT2],
    "mpt": [GPT2],
    "starcoder": [DIGIT, GPT2],
    "refact": [DIGIT, GPT2],
    "command-r": [DIGIT, GPT2],
    "smollm": [DIGIT, GPT2],
    "llama-bpe": [split(_LLAMA3)],
    "smaug-bpe": [split(_LLAMA3)],
    "qwen2": [split(_QWEN2)],
    "qwen35": [split(_QWEN35)],
    "deepseek-llm": [
        split("[\r\n]"), split(_DEEPSEEK_LETTERS), split("\\s?[!-/:-~！-／：-～‘-‟　-。]+"), split(r"\s+$"),
        split(_CJK), DIGITS,
    ],
    "deepseek-coder": [split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split(_CJK), DIGIT],
    "falcon": [PUNCTUATION, GPT2, DIGITS, split("[0-9][0-9][0-9]")],
    "gpt-4o": [split(_GPT4O)],
    "tekken": [split(_TEKKEN)],
}  # fmt: skip


def peer_words(steps: list[dict[str, Any]]) -> Any:
    """A function text -> [end of each word], by the package."""
    import json

    import tokenizers

    table = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}, "post_processor": None, "decoder": None,
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }  # fmt: skip
    pre = tokenizers.Tokenizer.from_str(json.dumps(table)).pre_tokenizer
    return lambda text: list(dict.fromkeys(end for _, (_, end) in pre.pre_tokenize_str(text)))


_SPACES = [" ", "  ", "   ", "\n", "\t", "\r\n", "\n\n", " \n ", "\u00a0", "\u3000", "\u2009", "\r", "\u0085", "\u2028"]
_WORDS = [
    "'s", "'S", "'ll", "'VE", "I'm", "don't", "'ſ", "’s", "123", "4567890", "x2", "ABCdef",
    "HelloWorld", "日本語", "한국", "été", "नमस्ते", "🙂", "👩\u200d👧", "🏳️\u200d🌈", "x\u0301",
    "e\u0323\u0301", "٣٤", "½", "Ⅷ", "$1.50", "a/b//", "!?\n", "...", "_x_", "ﬁ", "İ", "ß", "Ǆ",
    "ǅ", "K", "ªº", "µ", "ℵ", "〇", "ー", "\u200b", "\ufeff", "\x00", "\x1f", "العربية", "עברית",
    "ไทย", "ქართული", "ᏣᎳᎩ", "𐐷", "𝟘", "中文，", "「」", "＄", "～", "\U0001f1fa\U0001f1f8",
]  # fmt: skip


def hard_texts(n: int, seed: int, pieces: list[str] | None = None) -> list[str]:
    """Texts of all scripts: words, white space, digits, apostrophes, emoji, marks, and any code point, unassigned ones
    too. `pieces` of a vocabulary are mixed in."""
    rng = random.Random(seed)
    ranges = [(32, 127)] * 4 + [
        (0xA0, 0x250), (0x250, 0x800), (0x300, 0x370), (0x800, 0x1100), (0x1100, 0x3000), (0x3000, 0xA000),
        (0xA000, 0xD800), (0xE000, 0x10000), (0x10000, 0x20000), (0x1F300, 0x1FB00), (0x20000, 0x110000),
    ]  # fmt: skip

    def one() -> str:
        kind = rng.random()
        if kind < 0.2:
            return rng.choice(_SPACES)
        if kind < 0.5:
            return rng.choice(_WORDS)
        if pieces and kind < 0.65:
            return rng.choice(pieces)
        return chr(rng.randrange(*rng.choice(ranges)))

    return ["".join(one() for _ in range(rng.randrange(1, 16))) for _ in range(n)]


def own_words(rule: Any) -> Any:
    """A function text -> [end of each word], by edgellm."""
    from edgellm.tokenizers.patterns import compiled

    patterns = compiled(rule.expressions)
    return lambda text: patterns.split(np.frombuffer(text.encode("utf-32-le"), np.uint32)).tolist()


# Numbers that came with Unicode 17; edgellm's tables are those of Unicode 16, and the package's parts differ here.
NEWER = {*range(0x11DE0, 0x11DEA), *range(0x16FF4, 0x16FF7)}
_DIGIT_BYTES = set(b"\xb2\xb3\xb9\xbc\xbd\xbe")


@lru_cache(maxsize=1)
def newer_punctuation() -> frozenset[int]:
    """Characters that the package's step `Punctuation` takes otherwise: its table is that of Unicode 8."""
    from edgellm.tokenizers.characters import category

    cut = peer_words([PUNCTUATION])
    new = [p for a, b in category("P") for p in range(a, b) if cut(f"a{chr(p)}a") != [1, 2, 3]]
    old = [p for a, b in category("S") for p in range(max(a, 128), b) if cut(f"a{chr(p)}a") == [1, 2, 3]]
    return frozenset(new + old)


def comparable(name: str, text: str) -> str:
    """A text without the characters for which the package's result says nothing about a vocabulary.

    Falcon's file looks for digits after it has written bytes as letters, and so cuts inside characters that have one of
    six bytes. No vocabulary that was made so can have a merge there. Its punctuation is that of an old Unicode.
    """

    def odd(c: str) -> bool:
        return ord(c) in newer_punctuation() or bool(set(c.encode()) & _DIGIT_BYTES)

    return "".join("x" if ord(c) in NEWER or (name == "falcon" and odd(c)) else c for c in text)
