#!/usr/bin/env python3
"""How much faster answers come with speculation: each prompt without and with it, in turns.

    tools/speculation.py [MODEL.gguf] [--prompts 100] [--tokens 128] [--write docs/speculation.md]

Three classes of prompts: questions and stories (chat), a passage to go on copying (copy), random tokens answered at
random at temperature 0.7 and 1.0 (random). The others are answered at 0 and 0.7, each prompt with one seed, plain and
fast one after the other, the order changing from prompt to prompt; both times are of decoding only. Answers of which
more than 30 % of the 4-grams stood in them before are counted and left out of the means, because text that runs in
circles is easily guessed. The gain of a class is all plain time over all fast time; the median is that of the prompts.
Without MODEL, the built-in one. A busy machine makes the figures worth little: the load is printed with them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path

from speculation_prompts import chat, copies, noise, repeated, write

import edgellm

MOST_REPEATED = 0.3
TEMPERATURES = {"chat": (0.0, 0.7), "copy": (0.0, 0.7), "random": (0.7, 1.0)}
HEADER = [
    "| class | temperature | answers | left out | tokens | tokens a pass | guesses right | plain, t/s | fast, t/s "
    "| gain | median gain |",
    "|---|---|---|---|---|---|---|---|---|---|---|",
]


@dataclass
class Tally:
    """The answers of one class at one temperature; seconds are of decoding."""

    name: str
    temperature: float
    left_out: int = 0
    tokens: int = 0
    passes: int = 0
    drafted: int = 0
    accepted: int = 0
    plain: list[float] = field(default_factory=list)
    fast: list[float] = field(default_factory=list)

    def row(self) -> str:
        if not self.plain:
            return f"| {self.name} | {self.temperature:g} | 0 | {self.left_out} |" + " |" * 7
        n, seconds, fast = len(self.plain), sum(self.plain), sum(self.fast)
        share = f"{100 * self.accepted / self.drafted:.0f} % of {self.drafted:,}" if self.drafted else "none made"
        median = statistics.median(p / f for p, f in zip(self.plain, self.fast, strict=True))
        cells = (
            self.name, f"{self.temperature:g}", n, self.left_out, f"{self.tokens:,}",
            f"{self.tokens / self.passes:.2f}", share, f"{self.tokens / seconds:.0f}", f"{self.tokens / fast:.0f}",
            f"{seconds / fast:.2f}", f"{median:.2f}",
        )  # fmt: skip
        return "| " + " | ".join(map(str, cells)) + " |"


def prompts_of(model: edgellm.Model, n: int) -> dict[str, list[list[int]]]:
    messages = [[{"role": "user", "content": text}] for text in chat(n)]
    template = model.chat_template is not None
    return {
        "chat": [model.chat_ids(m) if template else model.tokenize(m[0]["content"]) for m in messages],
        "copy": [model.tokenize(text) for text in copies(n)],
        "random": noise(n, model.tokenizer.n_vocab),
    }


def measure(model: edgellm.Model, name: str, prompts: list[list[int]], temperature: float, n: int) -> Tally:
    tally = Tally(name, temperature)
    for i, ids in enumerate(prompts):
        options = {"max_tokens": n, "temperature": temperature, "seed": i, "ignore_eos": name == "random"}
        if name == "random":
            options |= {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
        model.generate(ids, max_tokens=1)  # the prompt is in the cache for both
        results = {}
        for kind in ("off", "auto") if i % 2 else ("auto", "off"):
            results[kind] = model.generate(ids, speculate=kind, **options)
        plain, fast = results["off"], results["auto"]
        assert plain.token_ids == fast.token_ids, f"{name} {i}: the answers differ"
        if repeated(plain.token_ids) > MOST_REPEATED:
            tally.left_out += 1
        elif len(plain.token_ids) > 8:
            tally.tokens += len(plain.token_ids) - 1
            tally.passes += fast.stats.passes - 1
            tally.drafted += fast.stats.draft_tokens
            tally.accepted += fast.stats.draft_accepted
            tally.plain.append(plain.stats.generation_seconds)
            tally.fast.append(fast.stats.generation_seconds)
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--prompts", type=int, default=100, help="for each class")
    parser.add_argument("--tokens", type=int, default=128, help="of an answer")
    parser.add_argument("--threads", default="auto")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table into this page")
    args = parser.parse_args()
    threads = args.threads if args.threads == "auto" else int(args.threads)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    with edgellm.load(args.model, threads=threads, n_ctx=1024) as model:
        lines = []
        for name, prompts in prompts_of(model, args.prompts).items():
            for temperature in TEMPERATURES[name]:
                lines.append(measure(model, name, prompts, temperature, args.tokens).row())
                print(lines[-1], file=sys.stderr)
        costs = model._loaded.engine.control.costs
        widths = ", ".join(f"{n}: {costs.ratio(n):.2f}" for n in range(2, 9))
        where = f"{model.name}, {model.backend} {model.isa}, {model.threads} threads, load of the machine {load:.1f}"
    out = [f"{where}; cost of a pass by its tokens, in plain passes: {widths}.", "", *HEADER, *lines]
    print("\n".join(out))
    if args.write is not None:
        write(args.write, "speculation", out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
