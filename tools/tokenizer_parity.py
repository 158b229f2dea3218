"""Tokenizers against outside programs, on whole books and on hard random text: `make tokenizer-parity`.

- folders: the thirteen Hugging Face folders against `tokenizers` and `sentencepiece`, every line of two books
- rules: every pre-tokenizer rule against the package `tokenizers` with the model's own steps
- llama: every rule and every vocabulary against llama.cpp (a vocabulary-only GGUF with that rule's name is written)
- speed: 10 MB of one letter, of a book, of mixed text, of letters without spaces, for every kind and every rule

What is not installed is left out, and said so. Differences that are known are counted apart, with their reason; any
other difference, and 10 MB that take 5 s or more, make the program end with 1.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from tokenizer_rules import PEER_RULES, comparable, hard_texts, own_words, peer_words  # noqa: E402

from edgellm.gguf import open_gguf  # noqa: E402
from edgellm.tokenizers import Tokenizer  # noqa: E402
from edgellm.tokenizers.characters import category  # noqa: E402
from edgellm.tokenizers.pretokenizers import RULES  # noqa: E402
from edgellm.tokenizers.vocab import read_vocab  # noqa: E402

GEMMA = ROOT / "build" / "gemma4-vocab.gguf"  # written by `rules`, which has the package to train it, for `llama`


def _points(name: str) -> frozenset[int]:
    return frozenset(p for a, b in category(name) for p in range(a, b))


MARKS = _points("M")
# Code points that came with Unicode 15 to 16 (and a few between them).
NEW_RANGES = (
    (0x897, 0x898), (0xCF3, 0xCF4), (0xECE, 0xECF), (0x1B4E, 0x1B80), (0x1C89, 0x1C8B), (0x2427, 0x242A), (0x2FFC,
    0x3000), (0x31E4, 0x31F0), (0xA7CB, 0xA7DD), (0x105C0, 0x105F4), (0x10D40, 0x10D90), (0x10EC2, 0x10F00),
    (0x1123F, 0x11242), (0x11380, 0x113E3), (0x116D0, 0x116E4), (0x11B00, 0x11B0A), (0x11BC0, 0x11BFA), (0x11F00,
    0x11F5B), (0x1342F, 0x143FB), (0x16100, 0x1613A), (0x16D40, 0x16D7A), (0x18CFF, 0x18D00), (0x1B132, 0x1B156),
    (0x1CC00, 0x1CEB4), (0x1D2C0, 0x1D2D4), (0x1DF25, 0x1DF2B), (0x1E030, 0x1E090), (0x1E4D0, 0x1E4FA), (0x1E5D0,
    0x1E600), (0x1F6DC, 0x1F6DD), (0x1F774, 0x1F780), (0x1F7D9, 0x1F7DA), (0x1F8B2, 0x1F8C2), (0x1FA75, 0x1FAF9),
    (0x1FBCB, 0x1FBF0), (0x2B739, 0x2B73A), (0x2EBF0, 0x2EE5E), (0x31350, 0x323B0),
)  # fmt: skip
NEW = frozenset(p for a, b in NEW_RANGES for p in range(a, b))
# Where llama.cpp is known to differ from the models' own tokenizers: (rules, characters of such texts, why).
KNOWN = (
    (("gpt-4o", "tekken"), MARKS, "combining marks: llama.cpp's rule takes them neither for letters nor apart"),
    (("deepseek-llm",), frozenset([0x3000]), "U+3000, white space and a mark: llama.cpp leaves it with the spaces"),
    (("every",), NEW, "characters newer than llama.cpp's tables of Unicode"),
)


def known_reason(rule: str, text: str) -> str | None:
    for names, points, why in KNOWN:
        if (rule in names or "every" in names) and any(ord(c) in points for c in text):
            return why
    return None


# ---- Hugging Face folders --------------------------------------------------------------------------------------------


def folders(data: Path) -> int:
    import pytest
    from test_tokenizer_folders import FOLDERS, book_lines, of_folder, peer

    wrong, lines = 0, book_lines(data / "text")
    for name in FOLDERS:
        try:
            encode, decode = peer(data / "hf-tiny" / name)
        except pytest.skip.Exception as error:
            print(f"{name:24} left out: {error}")
            continue
        tokenizer = of_folder(data / "hf-tiny" / name)
        theirs = encode(lines)
        ours = [tokenizer.encode(line, add_special=False) for line in lines]
        bad = sum(a != b for a, b in zip(ours, theirs, strict=True))
        lost = sum(tokenizer.decode(ids) != text for ids, text in zip(ours, decode(theirs), strict=True))
        wrong += bad + lost
        print(f"{name:24} {tokenizer.kind:8} {len(lines):7} lines  {bad:5} ids, {lost:5} texts differ", flush=True)
    return wrong


# ---- rules against the package ---------------------------------------------------------------------------------------


def rules(n: int) -> int:
    try:
        import tokenizers  # noqa: F401
    except ImportError:
        print("rules: left out, the package tokenizers is not installed")
        return 0
    wrong = 0
    for i, (name, steps) in enumerate(PEER_RULES.items()):
        theirs, ours = peer_words(steps), own_words(RULES[name])
        texts = [comparable(name, text) for text in hard_texts(n, i)]
        wrong += report(name, texts, [text for text in texts if theirs(text) != ours(text)])
    return wrong + gemma(n)


def gemma(n: int) -> int:
    from tokenizer_gemma import peer_and_metadata

    from edgellm.gguf.writer import GGUFWriter

    theirs, keys = peer_and_metadata()
    GEMMA.parent.mkdir(exist_ok=True)
    with GGUFWriter(GEMMA, "llama") as writer:
        for key, value in keys.items():
            writer.add(key, value)
    ours = Tokenizer(read_vocab(keys))
    texts = [text.replace("\u2581", "_") for text in hard_texts(n, 99)]
    bad = [text for text in texts if ours.encode(text, add_special=False) != theirs.encode(text).ids]
    return report("gemma4", texts, bad)


def report(name: str, texts: list[str], bad: list[str], reasons: dict[str, int] | None = None) -> int:
    known = "".join(f"  {count} known: {why}" for why, count in (reasons or {}).items())
    example = ascii(min(bad, key=len)) if bad else ""
    print(f"{name:24} {len(texts):7} texts  {len(bad):5} differ{known} {example}", flush=True)
    return len(bad)


# ---- llama.cpp -------------------------------------------------------------------------------------------------------


class LlamaCpp:
    """llama.cpp's tokenizer on a vocabulary-only GGUF file."""

    def __init__(self, path: Path) -> None:
        import ctypes

        import llama_cpp

        self._c, self._ctypes = llama_cpp, ctypes
        quiet = llama_cpp.llama_log_callback(lambda *args: None)
        self._quiet = quiet
        llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise OSError("llama.cpp does not read this file")
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)

    def encode(self, text: str) -> list[int]:
        data = text.encode()
        ids = (self._c.llama_token * (len(data) + 8))()
        n = self._c.llama_tokenize(self._vocab, data, len(data), ids, len(ids), False, False)
        return list(ids[:n])

    def close(self) -> None:
        self._c.llama_model_free(self._model)


def with_rule(source: Path, target: Path, pre: str) -> None:
    """`source` (a vocabulary-only GGUF: nothing in it depends on offsets) with another pre-tokenizer name."""
    data = source.read_bytes()
    key = b"tokenizer.ggml.pre"
    at = data.index(key) + len(key) + 4  # behind the key stand the type of the value, its length, the text
    n = int.from_bytes(data[at : at + 8], "little")
    target.write_bytes(data[:at] + len(pre).to_bytes(8, "little") + pre.encode() + data[at + 8 + n :])


def llama(data: Path, n: int) -> int:
    try:
        import llama_cpp  # noqa: F401
    except ImportError:
        print("llama.cpp: left out, llama-cpp-python is not installed")
        return 0
    wrong = 0
    with tempfile.TemporaryDirectory() as place:
        for i, pre in enumerate(pre for pre in PEER_RULES):
            # A vocabulary that was trained with another rule still shows where words end: it has the same bytes.
            base = "deepseek-coder" if "deepseek" in pre else "gpt-2" if RULES[pre] is RULES["gpt-2"] else "llama-bpe"
            path = Path(place) / "v.gguf"
            with_rule(data / "vocab" / f"ggml-vocab-{base}.gguf", path, pre)
            wrong += compare(pre, pre, path, n, i)
    for path in sorted((data / "vocab").glob("*.gguf")):
        wrong += compare(path.stem, path.stem, path, n, 1000)
    if GEMMA.exists():
        wrong += compare("gemma4", "gemma4", GEMMA, n, 2000)
    else:
        print("gemma4: left out, run `--only rules` with the package tokenizers first")
    return wrong


def compare(name: str, rule: str, path: Path, n: int, seed: int) -> int:
    with open_gguf(path) as file:
        tokenizer = Tokenizer(read_vocab(file.metadata, path))
    try:
        theirs = LlamaCpp(path)
    except OSError as error:
        print(f"{name:24} left out: {error}")
        return 0
    some = [tokenizer.decode([i], skip_special=True) for i in range(0, tokenizer.n_vocab, 97)]
    texts = hard_texts(n, seed, [p for p in some if p and "\ufffd" not in p])
    texts = [text.replace("\x00", "") for text in texts]
    bad: list[str] = []
    reasons: dict[str, int] = {}
    for text in texts:
        if tokenizer.encode(text, add_special=False) != theirs.encode(text):
            why = known_reason(rule, text)
            if why is None:
                bad.append(text)
            else:
                reasons[why] = reasons.get(why, 0) + 1
    theirs.close()
    return report(name, texts, bad, reasons)


# ---- speed -----------------------------------------------------------------------------------------------------------

N_BYTES = 10_000_000


def long_texts(data: Path) -> dict[str, str]:
    """Name -> 10 MB of it."""
    rng = random.Random(0)
    book = "".join((data / "text" / name).read_text(encoding="utf-8") for name in ("grimm.txt", "wikitext2-test.txt"))
    mixed = "".join(hard_texts(20_000, 5))
    letters = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(N_BYTES))
    parts = {
        "a": "a", "A": "A", "space": " ", "line feed": "\n", "7": "7", "!": "!", "é": "é", "日": "日", "emoji": "🙂",
        "mark": "\u0301", "'s": "'s", "a space": "a ", "a line": "a\n", "book": book, "mixed": mixed,
        "no spaces": book.replace(" ", "").replace("\n", ""),
    }  # fmt: skip
    texts = {name: part * (N_BYTES // len(part.encode()) + 1) for name, part in parts.items()}
    ends = {"spaces, 7": " " * N_BYTES + "7", "random letters": letters}
    return {name: text.encode()[:N_BYTES].decode("utf-8", "ignore") for name, text in texts.items()} | ends


def speed(data: Path) -> int:
    from dataclasses import replace

    tokenizer = Tokenizer.from_file(data / "vocab" / "ggml-vocab-llama-bpe.gguf")
    made: dict[str, Any] = {}
    for pre in {RULES[name]: name for name in reversed(RULES) if name != "gemma4"}.values():
        made[f"gpt2 {pre}"] = lambda pre=pre: Tokenizer(replace(tokenizer.vocab, pre=pre))
    for name in ("llama-spm", "bert-bge"):
        made[name] = lambda name=name: Tokenizer.from_file(data / "vocab" / f"ggml-vocab-{name}.gguf")
    made["t5 (unigram)"] = unigram
    if GEMMA.exists():
        made["gemma4"] = lambda: Tokenizer.from_file(GEMMA)
    slow, texts = 0, long_texts(data)
    print(f"| 10 MB, seconds of processor time | slowest of {len(texts)} texts | book | mixed | no spaces |")
    print("| --- | --- | --: | --: | --: |")
    for name, make in made.items():
        one, times = make(), {}
        for kind, text in texts.items():
            start = time.process_time()
            one.encode(text, add_special=False)
            times[kind] = time.process_time() - start
        worst = max(times, key=times.get)
        slow += times[worst] >= 5
        more = " | ".join(f"{times[kind]:.1f}" for kind in ("book", "mixed", "no spaces"))
        print(f"| {name} | {times[worst]:.1f} ({worst}) | {more} |", flush=True)
    return slow


def unigram() -> Tokenizer:
    """A Unigram vocabulary with SentencePiece's usual normaliser."""
    from test_unigram import charsmap_of, tokenizer, trained

    with tempfile.TemporaryDirectory() as place:
        model = trained(Path(place), normalization_rule_name="nmt_nfkc")
        charsmap = charsmap_of(Path(place) / "m.model")
        return tokenizer(model, charsmap, add_space_prefix=True, remove_extra_whitespaces=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--texts", type=int, default=10_000, help="random texts per rule and vocabulary")
    parser.add_argument("--only", choices=["folders", "rules", "llama", "speed"], action="append")
    args = parser.parse_args()
    wrong = 0
    for name, run in (
        ("folders", lambda: folders(args.data)), ("rules", lambda: rules(args.texts)),
        ("llama", lambda: llama(args.data, args.texts)), ("speed", lambda: speed(args.data)),
    ):  # fmt: skip
        if not args.only or name in args.only:
            print(f"\n## {name}", flush=True)
            wrong += run()
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
