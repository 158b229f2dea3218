"""Random answers under the thirty schemas of tests/grammar_schemas.py, each held to `jsonschema` (Draft 2020-12).

    python tools/grammar_check.py --runs 1000 --vocab ../shared/data/vocab/ggml-vocab-llama-bpe.gguf \
        --write docs/structured_output.md

A run chooses tokens by random logits under the mask. Schemas of bounded size: every run must end by itself, and its
text must be valid. The others: a run is cut off after 1 to 150 tokens at random, and must be a valid prefix; the proof
is a valid text that begins with it, found by going on with what closes the text and judged by the validator alone. The
small vocabulary has all bytes and some longer pieces; --vocab adds the same over a real one, with --vocab-runs runs.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from grammar_schemas import ALL, BOUNDED  # noqa: E402
from grammar_walk import byte_tokenizer, complete, parsed, walk  # noqa: E402

from edgellm.grammar import compile_constraint  # noqa: E402
from edgellm.tokenizers import Tokenizer  # noqa: E402

MOST = 20_000  # tokens; a bounded answer that is longer has failed
BEGIN, END = "<!-- grammar_check: begin -->", "<!-- grammar_check: end -->"


@dataclass
class Tally:
    """What the runs of one schema came to."""

    name: str
    runs: int = 0
    ended: int = 0
    valid: int = 0  # whole texts that the validator took
    prefixes: int = 0  # cut off, and the beginning of a text that the validator took
    tokens: int = 0

    @property
    def good(self) -> bool:
        ended = self.ended == self.runs or self.name not in BOUNDED
        return ended and self.valid == self.ended and self.prefixes == self.runs - self.ended

    def row(self) -> str:
        kind = "bounded" if self.name in BOUNDED else "unbounded"
        average = self.tokens / max(1, self.runs)
        cells = (self.name, kind, self.runs, f"{average:.0f}", self.ended, self.valid, self.prefixes)
        return "| " + " | ".join(map(str, cells)) + " |"


def check(name: str, tokenizer: Tokenizer, runs: int, most: int) -> Tally:
    """All runs of one schema; what fails is told on stderr."""
    from jsonschema import Draft202012Validator

    validator = Draft202012Validator(ALL[name], format_checker=Draft202012Validator.FORMAT_CHECKER)
    make = compile_constraint(tokenizer, response_format=ALL[name])
    tally = Tally(name)
    for seed in range(runs):
        rng = np.random.default_rng([seed, tokenizer.n_vocab])
        cut = MOST if name in BOUNDED else int(rng.integers(1, most))
        tokens, ended = walk(make(), tokenizer, rng, cut)
        whole = tokens if ended else complete(make, tokenizer, tokens, rng)
        good = whole is not None and holds(validator, tokenizer, tokens, whole)
        tally.runs, tally.tokens, tally.ended = tally.runs + 1, tally.tokens + len(tokens), tally.ended + ended
        tally.valid, tally.prefixes = tally.valid + (good and ended), tally.prefixes + (good and not ended)
        if not good:
            print(f"{name}, seed {seed}: {tokenizer.decode(whole or tokens)!r}", file=sys.stderr)
    return tally


def holds(validator: Any, tokenizer: Tokenizer, tokens: list[int], whole: list[int]) -> bool:
    """Whether `whole` is valid, and begins with the bytes of `tokens`."""
    data, begin = (tokenizer.decode_bytes(ids, skip_special=True) for ids in (whole, tokens))
    try:
        return data.startswith(begin) and validator.is_valid(parsed(data.decode()))
    except ValueError:
        return False


def table(title: str, tallies: list[Tally]) -> list[str]:
    runs, ended, valid, prefixes = (sum(getattr(t, n) for t in tallies) for n in ("runs", "ended", "valid", "prefixes"))
    head = ["schema", "size", "runs", "tokens a run", "ended", "valid", "valid prefixes"]
    summary = (
        f"**{title}**: {runs} answers, {ended} ended, of which {valid} are valid; {prefixes} of the {runs - ended} "
        "that were cut off are valid prefixes."
    )
    return [summary, "", f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(t.row() for t in tallies), ""]


def write(path: Path, lines: list[str]) -> None:
    """Puts the tables between the marks of a page."""
    page = path.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN, 1)
    path.write_text(before + BEGIN + "\n" + "\n".join(lines) + rest[rest.index(END) :], encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000, help="per schema, over the small vocabulary")
    parser.add_argument("--vocab", type=Path, help="a GGUF file whose vocabulary is used too")
    parser.add_argument("--vocab-runs", type=int, default=50, help="per schema, over that vocabulary")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the tables into this page")
    options = parser.parse_args()
    parts = [("A small vocabulary of bytes and words", byte_tokenizer(), options.runs, 150)]
    if options.vocab is not None:
        tokenizer = Tokenizer.from_file(options.vocab)
        parts.append((f"{options.vocab.stem}, {tokenizer.n_vocab} tokens", tokenizer, options.vocab_runs, 60))
    lines: list[str] = []
    good = True
    for title, tokenizer, runs, most in parts:
        tallies = []
        for name in ALL:
            begun = time.perf_counter()
            tallies.append(check(name, tokenizer, runs, most))
            print(f"{tallies[-1].row()} {time.perf_counter() - begun:.0f} s", file=sys.stderr)
        good = good and all(tally.good for tally in tallies)
        lines += table(title, tallies)
    print("\n".join(lines))
    if options.write is not None:
        write(options.write, lines)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
