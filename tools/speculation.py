#!/usr/bin/env python3
"""How much faster answers come with speculation: each prompt without and with it, in turns.

    tools/speculation.py [MODEL.gguf] [--speculate auto --speculate DRAFT.gguf] [--count 100] [--write PAGE]

The prompts are the frozen ones of tools/speculation_prompts.py: chat, copy (and edit), random characters. All are
answered at temperature 0 and 0.7, each prompt with one seed: without guesses and with each --speculate (a name, or the
file of a draft model), one after the other, the order changing from prompt to prompt and from round to round. Times
are of decoding only, behind the first token, and the middle one of the rounds. Answers must be the same. Those of
which more than 30 % of the 4-grams stood in them before are counted and left out, because text that runs in circles is
easily guessed. The gain of a class is all plain time over all fast time; beside it the median over the prompts; in
brackets where 95 % of bootstrap samples of the prompts lie. Without MODEL, the built-in one.

stdout: a Markdown table, or with --json all figures; --write puts the table into a page, when everything is measured
(a run that is broken off changes nothing). A busy machine makes the figures worth little: the load is printed with
them. A model of 25 M parameters takes some five minutes on two cores, larger ones more: see --count and --tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench_driver import Driver
from speculation_figures import gain, write_section
from speculation_prompts import COUNT, Prompt, load_prompts, repeated

import edgellm
from edgellm.speculate import KINDS

MOST_REPEATED = 0.3
CLASSES = ("chat", "copy", "random")
TEMPERATURES = (0.0, 0.7)
PLAIN = "off"
N_CTX = 512  # what the built-in model and its larger sister were trained for
HEADER = [
    "| prompts | temperature | guesses | answers | left out | tokens | tokens a pass | came true | plain, t/s "
    "| fast, t/s | gain | median gain |",
    "|---|---|---|---:|---:|---:|---:|---|---:|---:|---|---|",
]


@dataclass
class Column:
    """A way to answer: `speculate` of the call, None: as the model was loaded."""

    name: str
    model: edgellm.Model
    speculate: str | None

    def answer(self, ids: list[int], **options: Any) -> edgellm.Result:
        return self.model.generate(ids, speculate=self.speculate, **options)


@dataclass
class Drafts:
    """Guesses of one kind that were checked, and how many came true."""

    checked: int = 0
    true: int = 0


@dataclass
class Timed:
    """One prompt at one temperature. `seconds`: of decoding `tokens` tokens behind the first, per column and round."""

    tokens: int
    repeats: bool
    seconds: dict[str, list[float]] = field(default_factory=dict)
    first: dict[str, list[float]] = field(default_factory=dict)  # seconds to the first token
    passes: dict[str, int] = field(default_factory=dict)
    drafts: dict[str, dict[str, Drafts]] = field(default_factory=dict)  # column -> source

    def time_of(self, column: str) -> float:
        return statistics.median(self.seconds[column])


def drafts_of(stats: edgellm.Stats) -> dict[str, Drafts]:
    """What was guessed for an answer, by source."""
    return {source: Drafts(checked, true) for source, checked, true in stats.drafts}


def ids_of(model: edgellm.Model, prompt: Prompt) -> list[int]:
    """A prompt as tokens: a conversation by the model's template; without one, its last message as plain text."""
    if isinstance(prompt, str):
        return model.tokenize(prompt)
    return model.chat_ids(prompt) if model.chat_template is not None else model.tokenize(prompt[-1]["content"])


# ---- measuring ---------------------------------------------------------------------------------------------


class DifferentAnswers(Exception):
    """Guesses changed an answer."""


def time_one(
    columns: Sequence[Column], ids: list[int], order: int, options: dict[str, Any], timed: Timed | None
) -> Timed:
    """Answers one prompt in every column, the first being number `order`; adds to what earlier rounds measured."""
    results = {}
    for column in columns:  # the prompt is in the cache of each
        column.answer(ids, max_tokens=1, temperature=0.0)
    for i in range(len(columns)):
        column = columns[(i + order) % len(columns)]
        results[column.name] = column.answer(ids, **options)
    plain = results[PLAIN]
    timed = timed or Timed(len(plain.token_ids) - 1, repeated(plain.token_ids) > MOST_REPEATED)
    for name, result in results.items():
        if result.token_ids != plain.token_ids:
            raise DifferentAnswers(f"--speculate {name}: another answer than without, to {ids} with {options}")
        timed.seconds.setdefault(name, []).append(result.stats.generation_seconds)
        timed.first.setdefault(name, []).append(result.stats.ttft)
        timed.passes[name] = result.stats.passes - 1
        timed.drafts[name] = drafts_of(result.stats)
    return timed


def measure(columns: Sequence[Column], name: str, temperature: float, args: argparse.Namespace) -> list[Timed]:
    """All prompts of a class at one temperature, `args.rounds` times; those with no token behind the first are out."""
    prompts = [ids_of(columns[0].model, prompt) for prompt in load_prompts(name, args.count)]
    found: list[Timed | None] = [None] * len(prompts)
    options: dict[str, Any] = {"max_tokens": args.tokens, "temperature": temperature, "ignore_eos": name == "random"}
    if name == "random":
        options |= {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
    shown = 0.0
    for turn in range(args.rounds):
        for i, ids in enumerate(prompts):
            found[i] = time_one(columns, ids, i + turn, options | {"seed": i}, found[i])
            if time.monotonic() - shown > 1 and sys.stderr.isatty():
                done = f"{turn * len(prompts) + i + 1} of {args.rounds * len(prompts)}"
                print(f"\r{name} at {temperature:g}: {done} ", end="", file=sys.stderr, flush=True)
                shown = time.monotonic()
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    return [timed for timed in found if timed is not None and timed.tokens > 0]


def pass_costs(model: edgellm.Model, rounds: int = 7, repeats: int = 10) -> dict[int, float]:
    """v(2) to v(8): what a pass of so many tokens takes at 64 tokens of context, in passes of one; medians."""
    driver = Driver(model)
    driver(["depth", "64"])
    seconds: dict[int, list[float]] = {k: [] for k in range(1, 9)}
    for _ in range(rounds):
        for k, times in seconds.items():
            times.append(driver(["pass", str(k), str(repeats)]))
    driver.deep.close()
    one = seconds.pop(1)
    return {k: statistics.median(t / o for t, o in zip(times, one, strict=True)) for k, times in seconds.items()}


# ---- the table ---------------------------------------------------------------------------------------------


def share_text(drafts: dict[str, Drafts]) -> str:
    texts = [f"{source} {d.true / d.checked:.0%} of {d.checked:,}" for source, d in drafts.items() if d.checked]
    return ", ".join(texts) or "none made"


def summed(found: Sequence[Timed], column: str) -> dict[str, Drafts]:
    total: dict[str, Drafts] = {}
    for timed in found:
        for source, d in timed.drafts[column].items():
            into = total.setdefault(source, Drafts())
            into.checked, into.true = into.checked + d.checked, into.true + d.true
    return total


def rows_of(name: str, temperature: float, found: list[Timed], columns: Sequence[str]) -> list[str]:
    """A row of the table for each column but the plain one."""
    kept = [timed for timed in found if not timed.repeats]
    rows = []
    for column in columns:
        cells = [name, f"{temperature:g}", column, str(len(kept)), str(len(found) - len(kept))]
        if kept:
            plain, fast = ([timed.time_of(c) for timed in kept] for c in (PLAIN, column))
            tokens, passes = sum(timed.tokens for timed in kept), sum(timed.passes[column] for timed in kept)
            cells += [f"{tokens:,}", f"{tokens / passes:.2f}", share_text(summed(kept, column))]
            cells += [f"{tokens / sum(plain):,.0f}", f"{tokens / sum(fast):,.0f}", *gain(plain, fast).texts()]
        else:
            cells += [""] * 7
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def figures_of(found: list[Timed], columns: Sequence[str]) -> dict[str, Any]:
    """One class at one temperature for JSON: gains, and the times of every prompt."""
    kept = [timed for timed in found if not timed.repeats]
    gains = {}
    for column in columns if kept else ():
        gains[column] = asdict(gain([t.time_of(PLAIN) for t in kept], [t.time_of(column) for t in kept]))
    return {"left_out": len(found) - len(kept), "gains": gains, "prompts": [asdict(timed) for timed in found]}


def title_of(args: argparse.Namespace) -> str:
    return args.model.name if args.model else "the built-in model"


def report(columns: Sequence[Column], args: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """Measures everything and shows it line by line: lines of Markdown, and facts for JSON."""
    model, names, title = columns[0].model, [column.name for column in columns[1:]], title_of(args)
    lines: list[str] = []

    def show(*more: str) -> None:
        lines.extend(more)
        print(*more, sep="\n", file=sys.stderr if args.json else sys.stdout, flush=True)

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    costs = pass_costs(model)
    show(
        f"{title}, {model.backend} {model.isa}, {model.threads} threads; load of the machine {load:.1f}. Answers "
        f"of up to {args.tokens} tokens, {args.rounds} rounds, {args.count} prompts of each kind.",
        "A pass of k tokens, in passes of one: " + ", ".join(f"v({k}) {cost:.2f}" for k, cost in costs.items()) + ".",
    )
    show("", *HEADER)
    measured: dict[str, Any] = {}
    for name in args.classes:
        for temperature in TEMPERATURES:
            found = measure(columns, name, temperature, args)
            show(*rows_of(name, temperature, found, names))
            measured[f"{name} {temperature:g}"] = figures_of(found, names)
    facts = {"model": title, "backend": model.backend, "isa": model.isa, "threads": model.threads, "load": load}
    return lines, {**facts, "tokens": args.tokens, "pass_costs": costs, "classes": measured}


# ---- the command -------------------------------------------------------------------------------------------


def make_columns(args: argparse.Namespace, stack: ExitStack) -> list[Column]:
    """Plain, then one for each --speculate. Names share one model; a draft model's file is loaded beside its own."""
    threads = args.threads if args.threads == "auto" else int(args.threads)

    def load(speculate: str) -> edgellm.Model:
        return stack.enter_context(edgellm.load(args.model, threads=threads, n_ctx=N_CTX, speculate=speculate))

    shared = load("auto")
    columns = [Column(PLAIN, shared, PLAIN)]
    for kind in dict.fromkeys(args.speculate or ["auto"]):
        if kind in KINDS:
            columns.append(Column(kind, shared, kind))
        else:
            columns.append(Column(Path(kind).name, load(kind), None))
    for column in columns:  # what cannot be had is said before anything is measured
        column.answer([1], max_tokens=4)
    return columns


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, help="a GGUF file [default: the built-in model]")
    kinds = f"{', '.join(KINDS)} or a draft model's file; again for another column [default: auto]"
    parser.add_argument("--speculate", action="append", metavar="KIND|FILE", help=kinds)
    parser.add_argument("--count", type=int, default=COUNT, help="prompts of each class [default: %(default)s, all]")
    parser.add_argument("--classes", nargs="+", choices=CLASSES, default=CLASSES)
    parser.add_argument("--tokens", type=int, default=128, help="most of an answer [default: %(default)s]")
    parser.add_argument("--rounds", type=int, default=3, help="[default: %(default)s]")
    parser.add_argument("--threads", default="auto")
    parser.add_argument("--json", action="store_true", help="all figures as JSON instead of the table")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table into this page")
    args = parser.parse_args()
    if min(args.count, args.tokens, args.rounds) < 1:
        parser.error("--count, --tokens and --rounds are at least 1")
    return args


def main() -> int:
    args = arguments()
    try:
        with ExitStack() as stack:
            columns = make_columns(args, stack)
            lines, facts = report(columns, args)
    except (edgellm.EdgeLLMError, DifferentAnswers) as error:
        print(f"speculation: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nspeculation: stopped, nothing is written", file=sys.stderr)
        return 130
    if args.json:
        print(json.dumps(facts, indent=1))
    if args.write is not None:
        write_section(args.write, "speculation", title_of(args), lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
