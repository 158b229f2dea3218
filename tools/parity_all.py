#!/usr/bin/env python3
"""Everything that is held to other programs and too slow for the tests, as one page: `make parity`.

    python tools/parity_all.py --peer-python PATH --llama-python PATH [--part families ...] [--write docs/parity.md]

`--peer-python` is the Python of an environment with torch and transformers, `--llama-python` that of one with
llama-cpp-python. Each part is a tool of its own that prints Markdown and ends with 1 where one of its limits is broken;
the last line that it prints is its result. `--write` puts all of it between the marks in the page; what stands there
of parts that were not run stays. Ends with 1 where a part does, or where a part could not be run.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
Paths = argparse.Namespace


@dataclass(frozen=True)
class Part:
    """`command(paths)`: what is run, given the paths of the interpreters."""

    name: str
    title: str
    command: Callable[[Paths], list[str]]
    fenced: bool = False  # its output is no Markdown
    gated: bool = True  # False: its exit status does not count, because differences are known


def tool(name: str, *more: str) -> list[str]:
    return [sys.executable, str(TOOLS / name), *more]


PARTS = (
    Part(
        "families",
        "Families against transformers and llama.cpp",
        lambda p: tool("parity.py", "--peer-python", p.peer_python, "--llama-python", p.llama_python),
    ),
    Part(
        "types",
        "Quantised types: distance to the exact answer, beside llama.cpp",
        lambda p: tool("parity_quants.py", "--llama-python", p.llama_python),
    ),
    Part(
        "perplexity",
        "Perplexity by llama.cpp's method",
        lambda p: tool("perplexity_parity.py", "--peer-python", p.llama_python),
    ),
    Part(
        "quantising",
        "Quantisation errors over llama.cpp's",
        lambda p: tool("quant_peer.py", "--peer-python", p.llama_python),
    ),
    Part(
        "embeddings",
        "Embeddings against transformers",
        lambda p: tool("parity_embed.py", "--peer-python", p.peer_python),
    ),
    Part("templates", "Chat templates against transformers",
         lambda p: tool("template_parity.py", "--peer-python", p.peer_python)),
    Part("tokenizers", "Tokenizers against tokenizers and sentencepiece",
         lambda p: tool("tokenizer_parity.py", "--only", "folders"), fenced=True),
    Part("rules", "Split rules against llama.cpp (which is not always right)",
         lambda p: [p.llama_python, *tool("tokenizer_parity.py", "--only", "rules", "--texts", "1000")[1:]],
         fenced=True, gated=False),
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    part: Part
    code: int
    text: str
    seconds: float

    @property
    def result(self) -> str:
        """The last line; of a tokenizer's table the sums."""
        pairs = [(int(n), int(d)) for n, d in re.findall(r"(\d+) (?:lines|texts) +(\d+) differ", self.text)]
        if pairs:
            return f"{sum(n for n, _ in pairs)} texts, {sum(d for _, d in pairs)} differ"
        lines = self.text.strip().splitlines()
        return lines[-1].strip("`* ") if lines else "it printed nothing"

    def row(self) -> str:
        state = "ok" if self.code == 0 else "**FAILED**" if self.part.gated else "shown"
        return f"| {self.part.title} | {self.result.replace('|', '/')} | {state} |"

    def section(self) -> str:
        body = f"```\n{self.text.strip()}\n```" if self.part.fenced else self.text.strip()
        return f"### {self.part.title}\n{body}\n"


def run(part: Part, paths: Paths) -> Outcome:
    """Run one tool; its progress goes to stderr as it comes."""
    print(f"parity: {part.name} ...", file=sys.stderr, flush=True)
    start = time.monotonic()
    done = subprocess.run(part.command(paths), stdout=subprocess.PIPE, text=True)
    text = done.stdout.replace(str(TOOLS.parent.parent), "..")  # the page is no place for paths of a machine
    outcome = Outcome(part, done.returncode, text, time.monotonic() - start)
    state = "ok" if done.returncode == 0 else f"FAILED (exit {done.returncode})"
    print(f"parity: {part.name} {state} after {outcome.seconds:.0f} s: {outcome.result}", file=sys.stderr, flush=True)
    return outcome


def page(outcomes: list[Outcome], before: str = "") -> str:
    """The summary and then what each tool printed; rows and sections of other parts are taken from `before`."""
    new = {o.part.title: o for o in outcomes}
    rows, sections = _old(before)
    rows |= {title: o.row() for title, o in new.items()}
    sections |= {title: o.section() for title, o in new.items()}
    titles = [part.title for part in PARTS if part.title in rows]
    table = ["| part | result | |", "|---|---|---|", *(rows[title] for title in titles)]
    return "\n".join([*table, "", *(sections[title] for title in titles if title in sections)])


def _old(text: str) -> tuple[dict[str, str], dict[str, str]]:
    """Title -> row and title -> section of a text that `page` made."""
    summary, *parts = text.split("### ")
    rows = {line.split("|")[1].strip(): line for line in summary.splitlines()[2:] if line.startswith("|")}
    return rows, {part.splitlines()[0]: f"### {part.rstrip()}\n" for part in parts}


def between(text: str) -> tuple[str, str, str]:
    """What stands before, between and behind the marks. Raises ValueError where there are none."""
    before, begin, rest = text.partition(BEGIN)
    inside, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no marks {BEGIN} and {END}")
    return before, inside.lstrip("\n"), after


def put_into(text: str, outcomes: list[Outcome]) -> str:
    """The page `text` with the new results between its marks."""
    before, inside, after = between(text)
    return f"{before}{BEGIN}\n{page(outcomes, inside)}{END}{after}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", required=True, help="the Python of an environment with transformers and torch")
    parser.add_argument("--llama-python", required=True, help="the Python of an environment with llama-cpp-python")
    parser.add_argument("--part", action="append", choices=[p.name for p in PARTS], help="only this (may be repeated)")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the result between the marks of this page")
    args = parser.parse_args(arguments)
    if args.write is not None:
        between(args.write.read_text(encoding="utf-8"))  # before the work begins
    outcomes = [run(part, args) for part in PARTS if not args.part or part.name in args.part]
    if args.write is None:
        print(page(outcomes), end="")
    else:
        args.write.write_text(put_into(args.write.read_text(encoding="utf-8"), outcomes), encoding="utf-8")
    return int(any(outcome.code and outcome.part.gated for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
