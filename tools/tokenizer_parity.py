"""Tokenizers against outside programs, on whole books and on random text: `make tokenizer-parity`.

Three tables are printed: folders of Hugging Face checkpoints against `tokenizers` and `sentencepiece` on every line of
two books; every pre-tokenizer rule against llama.cpp (a vocabulary-only GGUF with that rule's name is written); and the
time for 10 MB of one letter. What is not installed is left out, and said so.
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
sys.path.insert(0, str(ROOT))

from edgellm.convert import convert  # noqa: E402
from edgellm.gguf import open_gguf  # noqa: E402
from edgellm.tokenizers import Tokenizer  # noqa: E402
from edgellm.tokenizers.pretokenizers import RULES  # noqa: E402
from edgellm.tokenizers.vocab import read_vocab  # noqa: E402

LETTERS = ("a", "A", " ", "\n", "7", "!", "é", "🙂", "日")


def book_lines(data: Path) -> list[str]:
    names = ("grimm.txt", "wikitext2-test.txt")
    return [line for name in names for line in (data / "text" / name).read_text(encoding="utf-8").split("\n")]


def reference(folder: Path) -> Any:
    """A function text -> ids of the folder's own tokenizer, or None where the package is missing."""
    try:
        if (folder / "tokenizer.model").exists():
            import sentencepiece

            return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).encode
        import tokenizers

        own = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        return lambda text: own.encode(text, add_special_tokens=False).ids
    except ImportError:
        return None


def folders(data: Path, lines: list[str]) -> int:
    wrong = 0
    with tempfile.TemporaryDirectory() as place:
        for folder in sorted((data / "hf-tiny").iterdir()):
            encode = reference(folder)
            if encode is None:
                print(f"{folder.name:24} left out: its tokenizer's package is not installed")
                continue
            try:
                tokenizer = own_tokenizer(folder, Path(place))
            except Exception as error:
                print(f"{folder.name:24} left out: {error}")
                continue
            bad = sum(tokenizer.encode(line, add_special=False) != encode(line) for line in lines)
            lost = sum(tokenizer.decode(tokenizer.encode(line, add_special=False)) != line for line in lines)
            wrong += bad
            print(f"{folder.name:24} {tokenizer.kind:8} {len(lines):7} lines  {bad:5} differ  {lost:5} not read back")
    return wrong


def own_tokenizer(folder: Path, place: Path) -> Tokenizer:
    path = place / f"{folder.name}.gguf"
    if not path.exists():
        convert(folder, path, "f16")
    return Tokenizer.from_file(path)


# ---- llama.cpp -------------------------------------------------------------------------------------------------------


def random_texts(pieces: list[str], n: int, seed: int) -> list[str]:
    """Text that is hard to cut: pieces of the vocabulary, ASCII, white space, apostrophes, digits, any character."""
    rng = random.Random(seed)
    space = [" ", "  ", "\n", "\t", "\r\n", "\n\n", " \n ", "\u00a0", "\u3000", "\u2009", "\r"]
    words = [
        "'s", "'S", "'ll", "'VE", "I'm", "don't", "123", "4567890", "x2", "ABCdef", "HelloWorld", "日本語", "한국",
        "été", "नमस्ते", "🙂", "👩\u200d👧", "x\u0301", "٣٤", "½", "Ⅷ", "$1.50", "a/b//", "!?\n", "...", "_x_", "ﬁ",
        "İ", "ß",
    ]  # fmt: skip
    blocks = [(0xA0, 0x3000), (0x3000, 0xD7FF), (0x1F300, 0x1F500)]
    choices = (
        lambda: rng.choice(space),
        lambda: rng.choice(words),
        lambda: rng.choice(pieces),
        lambda: chr(rng.randrange(32, 127)),
        lambda: chr(rng.randrange(*rng.choice(blocks))),
    )
    return ["".join(rng.choice(choices)() for _ in range(rng.randrange(1, 16))) for _ in range(n)]


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


def rules(data: Path, n: int, every: bool) -> int:
    try:
        import llama_cpp  # noqa: F401
    except ImportError:
        print("llama.cpp: left out, llama-cpp-python is not installed")
        return 0
    wrong = 0
    with tempfile.TemporaryDirectory() as place:
        for i, (pre, rule) in enumerate(RULES.items()):
            if pre == "gemma4" or (rule in list(RULES.values())[:i] and not every):
                continue
            # A vocabulary that was trained with another rule still shows where words end: it has the same bytes.
            base = "deepseek-coder" if "deepseek" in pre else "gpt-2" if rule is RULES["gpt-2"] else "llama-bpe"
            source = data / "vocab" / f"ggml-vocab-{base}.gguf"
            path = Path(place) / "v.gguf"
            with_rule(source, path, pre)
            wrong += compare(pre, path, n, i)
    for path in sorted((data / "vocab").glob("*.gguf")):
        wrong += compare(path.stem, path, n, 1000)
    return wrong


def compare(name: str, path: Path, n: int, seed: int) -> int:
    with open_gguf(path) as file:
        tokenizer = Tokenizer(read_vocab(file.metadata, path))
    try:
        theirs = LlamaCpp(path)
    except OSError as error:
        print(f"{name:24} left out: {error}")
        return 0
    some = [tokenizer.decode([i], skip_special=True) for i in range(0, tokenizer.n_vocab, 97)]
    texts = random_texts([p for p in some if p and "\ufffd" not in p], n, seed)
    bad = [text for text in texts if tokenizer.encode(text, add_special=False) != theirs.encode(text)]
    theirs.close()
    print(f"{name:24} {len(texts):7} texts  {len(bad):5} differ  {ascii(min(bad, key=len, default=''))}", flush=True)
    return len(bad)


# ---- speed -----------------------------------------------------------------------------------------------------------


def speed(data: Path) -> int:
    from dataclasses import replace

    tokenizer = Tokenizer.from_file(data / "vocab" / "ggml-vocab-llama-bpe.gguf")
    slow, seen = 0, set()
    for pre, rule in RULES.items():
        if rule in seen or pre == "gemma4":
            continue
        seen.add(rule)
        other = Tokenizer(replace(tokenizer.vocab, pre=pre))
        times = []
        for letter in LETTERS:
            text = letter * (10_000_000 // len(letter.encode()))
            start = time.process_time()
            other.encode(text, add_special=False)
            times.append(time.process_time() - start)
        slow += max(times) >= 5
        print(f"{pre:24} 10 MB of one letter: {' '.join(f'{t:.1f}' for t in times)} s", flush=True)
    return slow


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--texts", type=int, default=5000, help="random texts per rule and vocabulary")
    parser.add_argument("--only", choices=["folders", "rules", "speed"])
    parser.add_argument("--every", action="store_true", help="every name of a rule, not one for each rule")
    args = parser.parse_args()
    wrong = 0
    if args.only in (None, "folders"):
        wrong += folders(args.data, book_lines(args.data))
    if args.only in (None, "rules"):
        wrong += rules(args.data, args.texts, args.every)
    if args.only in (None, "speed"):
        wrong += speed(args.data)
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
