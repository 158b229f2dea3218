#!/usr/bin/env python3
"""Chat with speculation, edgellm beside llama.cpp on the same file: tokens per second, and times llama.cpp's default.

    tools/compare_speculation.py MODEL.gguf [--speculate auto --speculate DRAFT.gguf] [--draft DRAFT.gguf] [--write]

edgellm answers without guesses and with each --speculate; llama.cpp's server, which this builds (tools/peer_builds.py),
without guesses, with its n-gram kinds as they are by default, with one that looks for three tokens as edgellm does,
and with --draft the draft model. The prompts are the frozen ones of tools/speculation.py, at temperature 0. All
programs hold the model at once and answer each prompt one after the other, the first one changing; each says itself
how long it decoded (behind the first token). The servers start anew for every round: one kind remembers answers. Times
are the middle ones of the rounds. Answers are not always equal, because the programs round differently: a ratio
compares times of as many tokens, prompt by prompt. Prompts whose answer runs in circles are left out, as in
tools/speculation.py.

stdout: a Markdown table, or with --json all figures; --write puts them into docs/speculation.md and README.md when
everything is measured. Some five minutes for a model of 25 M parameters; nothing else should run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import peer_builds
from compare_peers import describe
from peer_server import Answer, PeerServer, ServerError
from speculation import MOST_REPEATED, N_CTX, PLAIN, Column, ids_of, make_columns
from speculation_figures import Gain, gain, write_region, write_section
from speculation_prompts import COUNT, ROOT, load_prompts, repeated

import edgellm

LLAMA = "llama.cpp"
NGRAMS = {
    "--spec-default (ngram-mod)": ("--spec-default",),
    **{name: ("--spec-type", name) for name in ("ngram-simple", "ngram-map-k", "ngram-map-k4v", "ngram-cache")},
    "ngram-simple, from 3 tokens": (
        "--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", "3", "--spec-ngram-simple-size-m", "7",
    ),
}  # fmt: skip
REST = 0.02  # seconds: the threads of the program that answered before have gone to sleep
Ask = Callable[[list[int], int], Answer]  # ids of a prompt, most tokens -> answer


@dataclass
class Contestant:
    """A program with its way to guess, and what it answered: one list of rounds for each prompt."""

    program: str
    guesses: str
    answers: list[list[Answer]] = field(default_factory=list)

    def time_of(self, prompt: int) -> float:
        return statistics.median(answer.seconds for answer in self.answers[prompt])

    def ids_of(self, prompt: int) -> tuple[int, ...]:
        return self.answers[prompt][-1].ids


# ---- measuring ---------------------------------------------------------------------------------------------


def ask_column(column: Column, ids: list[int], max_tokens: int) -> Answer:
    result = column.answer(ids, max_tokens=max_tokens, temperature=0.0)
    stats = result.stats
    return Answer(result.token_ids, stats.generation_seconds, stats.draft_tokens, stats.draft_accepted)


def peer_options(args: argparse.Namespace) -> dict[str, tuple[str, ...]]:
    """The ways of llama.cpp to guess, as words of its command line."""
    draft = {f"{args.draft.name}": ("--spec-type", "draft-simple", "-md", str(args.draft))} if args.draft else {}
    return {"none": (), **NGRAMS, **draft}


def one_round(asked: dict[str, tuple[Contestant, Ask]], prompts: list[list[int]], turn: int, max_tokens: int) -> None:
    """Every prompt to everybody; whoever begins changes."""
    pairs, shown = list(asked.values()), 0.0
    for i, ids in enumerate(prompts):
        for k in range(len(pairs)):
            contestant, ask = pairs[(k + i + turn) % len(pairs)]
            time.sleep(REST)
            while len(contestant.answers) <= i:
                contestant.answers.append([])
            contestant.answers[i].append(ask(ids, max_tokens))
        if sys.stderr.isatty() and time.monotonic() - shown > 1:
            print(f"\rround {turn + 1}: {i + 1} of {len(prompts)} ", end="", file=sys.stderr, flush=True)
            shown = time.monotonic()
    print("\r\033[K" * sys.stderr.isatty() + f"round {turn + 1} is done", file=sys.stderr, flush=True)


def measure(columns: Sequence[Column], name: str, program: Path, args: argparse.Namespace) -> list[Contestant]:
    """All rounds of a class of prompts; the first contestant is llama.cpp without guesses, then edgellm without."""
    prompts = [ids_of(columns[0].model, prompt) for prompt in load_prompts(name, args.count)]
    options = peer_options(args)
    peers = [Contestant(LLAMA, kind) for kind in options]
    ours = [Contestant("edgellm", "none" if column.name == PLAIN else column.name) for column in columns]
    for turn in range(args.rounds):
        with ExitStack() as stack:
            asked: dict[str, tuple[Contestant, Ask]] = {}
            for contestant, column in zip(ours, columns, strict=True):
                asked[f"edgellm {contestant.guesses}"] = contestant, partial(ask_column, column)
            for contestant, words in zip(peers, options.values(), strict=True):
                server = stack.enter_context(PeerServer(program, args.model, args.threads, N_CTX, words))
                asked[f"{LLAMA} {contestant.guesses}"] = contestant, server.answer
            one_round(asked, prompts, turn, args.tokens)
    return [peers[0], *ours, *peers[1:]]


# ---- figures -----------------------------------------------------------------------------------------------


@dataclass
class Line:
    """What a contestant came to. `ratio`: to llama.cpp without guesses; `same`: prompts with the answer of that."""

    program: str
    guesses: str
    rate: float
    ratio: Gain
    same: int
    prompts: int
    drafted: int
    accepted: int

    def row(self) -> str:
        right = f"{self.accepted / self.drafted:.0%} of {self.drafted:,}" if self.drafted else ""
        cells = (self.program, self.guesses, f"{self.rate:,.0f}", self.ratio.texts()[0], right)
        return "| " + " | ".join(cells) + f" | {self.same} of {self.prompts} |"


HEADER = [
    "| program | guesses | t/s | times llama.cpp's default | came true | same answer |",
    "|---|---|---:|---|---|---|",
]


def kept_prompts(contestants: Sequence[Contestant]) -> list[int]:
    """Numbers of the prompts to which everybody said more than one token and nobody the same again and again."""
    kept = []
    for i in range(len(contestants[0].answers)):
        answers = [contestant.ids_of(i) for contestant in contestants]
        if min(map(len, answers)) > 1 and max(map(repeated, answers)) <= MOST_REPEATED:
            kept.append(i)
    return kept


def lines_of(contestants: Sequence[Contestant], kept: Sequence[int]) -> list[Line]:
    """A line for each; the first contestant is the one that all are compared with."""
    first = contestants[0]
    wanted = [len(first.ids_of(i)) - 1 for i in kept]  # tokens behind the first
    times = [first.time_of(i) for i in kept]
    lines = []
    for c in contestants:
        scaled = [c.time_of(i) * n / (len(c.ids_of(i)) - 1) for i, n in zip(kept, wanted, strict=True)]
        same = sum(c.ids_of(i) == first.ids_of(i) for i in kept)
        latest = [c.answers[i][-1] for i in kept]
        counts = sum(a.drafted for a in latest), sum(a.accepted for a in latest)
        rate = sum(wanted) / sum(scaled)
        lines.append(Line(c.program, c.guesses, rate, gain(times, scaled), same, len(kept), *counts))
    return lines


def short_table(lines: Sequence[Line]) -> list[str]:
    """For README.md: of llama.cpp's n-gram kinds its own default and the fastest."""
    grams = [line for line in lines if line.program == LLAMA and line.guesses in NGRAMS]
    best = max(grams, key=lambda line: line.rate)
    out = ["| program | guesses | t/s | times llama.cpp's default |", "|---|---|---:|---:|"]
    for line in lines:
        if line in grams and line is not best and line is not grams[0]:
            continue
        name = f"{line.guesses} (the fastest of {len(grams)} n-gram kinds)" if line is best else line.guesses
        out.append(f"| {line.program} | {name} | {line.rate:,.0f} | {line.ratio.total:.2f} |")
    return out


# ---- the command -------------------------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a GGUF file")
    kinds = "how edgellm guesses: a name or a draft model's file; again for another [default: auto]"
    parser.add_argument("--speculate", action="append", metavar="KIND|FILE", help=kinds)
    parser.add_argument("--draft", type=Path, metavar="FILE", help="a draft model for llama.cpp")
    parser.add_argument("--classes", nargs="+", choices=("chat", "copy"), default=("chat",))
    parser.add_argument("--count", type=int, default=COUNT, help="prompts of a class [default: %(default)s, all]")
    parser.add_argument("--tokens", type=int, default=128, help="most of an answer [default: %(default)s]")
    parser.add_argument("--rounds", type=int, default=3, help="[default: %(default)s]")
    parser.add_argument("-t", "--threads", type=int, default=2, help="[default: %(default)s]")
    parser.add_argument("--build", default="cpu", choices=("cpu", "amx"), help="of llama.cpp [default: %(default)s]")
    parser.add_argument("--cache", type=Path, default=peer_builds.default_cache(), help="folder of llama.cpp's build")
    parser.add_argument("--json", action="store_true", help="all figures as JSON instead of the table")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/speculation.md and README.md")
    args = parser.parse_args()
    if min(args.count, args.tokens, args.rounds, args.threads) < 1:
        parser.error("--count, --tokens, --rounds and --threads are at least 1")
    return args


def report(args: argparse.Namespace) -> tuple[dict[str, list[Line]], list[str], dict[str, Any]]:
    """Measures everything: lines by class, the page's Markdown, and facts for JSON."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    about = describe(str(args.model))[0]
    program = peer_builds.server(args.build, args.cache)
    page = [
        f"{about}; {args.threads} threads, load of the machine {load:.1f}, llama.cpp as in {peer_builds.LLAMA}. "
        f"Temperature 0, answers of up to {args.tokens} tokens, medians of {args.rounds} rounds.",
    ]
    tables: dict[str, list[Line]] = {}
    facts: dict[str, Any] = {
        "model": about,
        "threads": args.threads,
        "load": load,
        "tokens": args.tokens,
        "classes": {},
    }
    with ExitStack() as stack:
        columns = make_columns(args, stack)
        for name in args.classes:
            found = measure(columns, name, program, args)
            kept = kept_prompts(found)
            if not kept:
                raise ServerError(f"{name}: every answer runs in circles or is a single token; nothing to compare")
            tables[name] = lines_of(found, kept)
            left_out = len(found[0].answers) - len(kept)
            page += ["", f"*{name}*: {len(kept)} prompts, {left_out} left out.", "", *HEADER]
            page += [line.row() for line in tables[name]]
            facts["classes"][name] = {"kept": kept, "lines": [asdict(line) for line in tables[name]],
                                      "contestants": [asdict(c) for c in found]}  # fmt: skip
    return tables, page, facts


def main() -> int:
    args = arguments()
    try:
        tables, page, facts = report(args)
    except (edgellm.EdgeLLMError, ServerError) as error:
        print(f"compare_speculation: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ncompare_speculation: stopped, nothing is written", file=sys.stderr)
        return 130
    print(json.dumps(facts, indent=1) if args.json else "\n".join(page))
    if args.write:
        write_section(ROOT / "docs" / "speculation.md", "compare_speculation", args.model.name, page)
        name = next(iter(tables))
        intro = (f"Answers to {tables[name][0].prompts} frozen prompts ({name}, temperature 0), {facts['model']}, "
                 f"{args.threads} threads (`make compare-speculation`; [more](docs/speculation.md)):")  # fmt: skip
        write_region(ROOT / "README.md", "compare_speculation", [intro, "", *short_table(tables[name])])
    return 0


if __name__ == "__main__":
    sys.exit(main())
