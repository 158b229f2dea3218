"""The pre-tokenizer rules of byte-level BPE, as data: `tokenizer.ggml.pre` -> how text is cut into words.

A rule is a list of regular expressions, each applied to the words that the one before left: its matches and what lies
between them are the new words. The expressions are those of the models' own tokenizer.json files; GGUF knows them by
the names that llama.cpp gave them (src/llama-vocab.cpp). The steps `Digits`, `Punctuation` and `ByteLevel` of
tokenizer.json are written as the expressions that they stand for.
"""

from __future__ import annotations

from dataclasses import dataclass

# Which words are looked up in the vocabulary as a whole before any merge: none, all, or those of line feeds only.
NO_WORDS, ALL_WORDS, LINE_FEEDS = 0, 1, 2

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DIGIT, DIGITS = r"\p{N}", r"\p{N}+"
# `Digits` behind `ByteLevel` sees letters for bytes. It also cuts at bytes b2, b3, b9 and bc to be, which look like
# digits then; no vocabulary that was made so has a merge across these cuts, and they are not made here.
BYTE_DIGITS = "[0-9]+"
PUNCTUATION = r"[\p{P}$+<=>^~|`]+"
SHORT_FORMS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = SHORT_FORMS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + _REST
QWEN2 = SHORT_FORMS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + _REST
QWEN35 = SHORT_FORMS + (
    r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = r"[^\r\n\p{L}\p{N}]?" + _UPPER
_REST_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT4O = (
    f"{_CASED}*{_LOWER}+{SHORT_FORMS}?|{_CASED}+{_LOWER}*{SHORT_FORMS}?" + r"|\p{N}{1,3}|" + _REST_SLASH
)
TEKKEN = f"{_CASED}*{_LOWER}+|{_CASED}+{_LOWER}*" + r"|\p{N}|" + _REST_SLASH
DEEPSEEK_CJK = r"[\u4E00-\u9FA5\u0800-\u4E00\uAC00-\uD7FF]+"
DEEPSEEK_MARKS = r"\s?[!-/:-~\uFF01-\uFF0F\uFF1A-\uFF5E\u2018-\u201F\u3000-\u3002]+"
# Letters as the deepseek-llm tokenizer lists them: those with two cases.
DEEPSEEK_LETTERS = (
    r"\s?[A-Za-z\xB5\xC0-\xD6\xD8-\xF6\xF8-\u01BA\u01BC-\u01BF\u01C4-\u0293\u0295-\u02AF\u0370-\u0373\u0376\u0377"
    r"\u037B-\u037D\u037F\u0386\u0388-\u038A\u038C\u038E-\u03A1\u03A3-\u03F5\u03F7-\u0481\u048A-\u052F"
    r"\u0531-\u0556\u10A0-\u10C5\u13A0-\u13F5\u13F8-\u13FD\u1C90-\u1CBA\u1CBD-\u1CBF\u1D00-\u1D2B\u1D6B-\u1D77"
    r"\u1D79-\u1D9A\u1E00-\u1F15\u1F18-\u1F1D\u1F20-\u1F45\u1F48-\u1F4D\u1F50-\u1F57\u1F59\u1F5B\u1F5D"
    r"\u1F5F-\u1F7D\u1F80-\u1FB4\u1FB6-\u1FBC\u1FBE\u1FC2-\u1FC4\u1FC6-\u1FCC\u1FD0-\u1FD3\u1FD6-\u1FDB"
    r"\u1FE0-\u1FEC\u1FF2-\u1FF4\u1FF6-\u1FFC\u2102\u2107\u210A-\u2113\u2115\u2119-\u211D\u2124\u2126\u2128"
    r"\u212A-\u212D\u212F-\u2134\u2139\u213C-\u213F\u2145-\u2149\u214E\u2183\u2184\u2C00-\u2C7B\u2C7E-\u2CE4"
    r"\u2CEB-\u2CEE\u2CF2\u2CF3\uA640-\uA66D\uA680-\uA69B\uA722-\uA76F\uA771-\uA787\uA78B-\uA78E\uAB70-\uABBF"
    r"\uFB00-\uFB06\uFB13-\uFB17\uFF21-\uFF3A\uFF41-\uFF5A\x{10400}-\x{1044F}\x{104B0}-\x{104D3}"
    r"\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}]+"
)


@dataclass(frozen=True)
class Rule:
    """How one family of vocabularies cuts text, and what it assumes where the file says nothing."""

    expressions: tuple[str, ...]
    whole_words: int = NO_WORDS
    add_bos: bool = False  # where the file has no `add_bos_token`


_DIGITS_APART = Rule((DIGIT, GPT2))
_PLAIN = Rule((GPT2,))

# The first name of equal rules is the one that the converter writes.
RULES: dict[str, Rule] = {
    "gpt-2": _PLAIN,
    "mpt": _PLAIN,
    "olmo": _PLAIN,
    "phi-2": _PLAIN,
    "exaone4": _PLAIN,
    "trillion": _PLAIN,
    "granite-docling": _PLAIN,
    "starcoder": _DIGITS_APART,
    "refact": _DIGITS_APART,
    "command-r": _DIGITS_APART,
    "smollm": _DIGITS_APART,
    "codeshell": _DIGITS_APART,
    "exaone": _DIGITS_APART,
    "minerva-7b": _DIGITS_APART,
    "llama-bpe": Rule((LLAMA3,), ALL_WORDS, add_bos=True),
    "llama3": Rule((LLAMA3,), ALL_WORDS, add_bos=True),
    "llama-v3": Rule((LLAMA3,), ALL_WORDS, add_bos=True),
    "falcon3": Rule((LLAMA3,), ALL_WORDS, add_bos=True),
    "pixtral": Rule((LLAMA3,), ALL_WORDS, add_bos=True),
    "lfm2": Rule((LLAMA3,), ALL_WORDS, add_bos=True),
    "smaug-bpe": Rule((LLAMA3,)),
    "dbrx": Rule((LLAMA3,)),
    "glm4": Rule((LLAMA3,)),
    "chatglm-bpe": Rule((LLAMA3,)),
    "qwen2": Rule((QWEN2,)),
    "deepseek-r1-qwen": Rule((QWEN2,)),
    "stablelm2": Rule((QWEN2,)),
    "megrez": Rule((QWEN2,)),
    "hunyuan": Rule((QWEN2,)),
    "qwen35": Rule((QWEN35,)),
    "deepseek-llm": Rule((r"[\r\n]", DEEPSEEK_LETTERS, DEEPSEEK_MARKS, r"\s+$", DEEPSEEK_CJK, DIGITS)),
    "deepseek-coder": Rule((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_CJK, DIGIT)),
    "falcon": Rule((PUNCTUATION, GPT2, BYTE_DIGITS, "[0-9][0-9][0-9]")),
    "gpt-4o": Rule((GPT4O,)),
    "llama4": Rule((GPT4O,)),
    "tekken": Rule((TEKKEN,), ALL_WORDS, add_bos=True),
    "gemma4": Rule((r"[^\n]+|[\n]+",), LINE_FEEDS, add_bos=True),
}
