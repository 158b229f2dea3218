#!/usr/bin/env python3
"""How much faster a model decodes when half of its tiles are zero: random tiles of 16 rows x 64 k, by seed.

    tools/sparse_bench.py MODEL.gguf [MODEL.gguf ...] [--share 0.5] [--rounds 9] [--write docs/sparsity.md]

For each model two copies are written into --folder (where they stay for the next run): zeros in the layers, and in
layers and output head. The logits of each must be those of the same file read row by row, where nothing is skipped, to
the bit. Then the model as it is and its copy decode in turns, and the median of the rounds' ratios is told, beside the
ratio of the bytes that a token reads: that is the most there is to gain. Prompts are timed the same way.

stdout: a Markdown table, or with --json all figures; --write puts the table into a page. A busy machine makes the
figures worth little. A model of 1.2 B parameters takes about two minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench_driver import Driver
from sparse_files import write_with_zeros
from speculation_figures import write_region

import edgellm
from edgellm.bench import tokens_for

HEADER = [
    "| model | zeros in | share | bytes a token | byte ratio | dense, t/s | sparse, t/s | faster "
    "| of the byte ratio | prompt |",
    "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
]
PROMPT = 128  # tokens


@dataclass(frozen=True)
class Figures:
    """One copy beside its model. Rates in tokens per second, medians; ratios are medians of the rounds' ratios."""

    model: str
    zeros_in: str
    share: float
    dense_bytes: int
    sparse_bytes: int
    dense_rate: float
    sparse_rate: float
    faster: float
    prompt_faster: float

    @property
    def byte_ratio(self) -> float:
        return self.dense_bytes / self.sparse_bytes

    def row(self) -> str:
        return (
            f"| {self.model} | {self.zeros_in} | {self.share:.0%} | {self.sparse_bytes / 1e6:.0f} MB of "
            f"{self.dense_bytes / 1e6:.0f} | {self.byte_ratio:.2f} | {self.dense_rate:.1f} | {self.sparse_rate:.1f} "
            f"| {self.faster:.2f} x | {self.faster / self.byte_ratio:.0%} | {self.prompt_faster:.2f} x |"
        )


def main() -> None:
    args = _arguments()
    found = []
    for path in args.models:
        for head in (False, True):
            copy = _copy(path, head, args)
            _check_logits(copy, args.threads)
            found.append(_measure(path, copy, head, args))
            print(found[-1].row(), file=sys.stderr)
    lines = [*HEADER, *(one.row() for one in found)]
    if args.write:
        write_region(args.write, "sparse-panels", lines)
    figures = [asdict(one) | {"byte_ratio": one.byte_ratio} for one in found]
    print(json.dumps(figures) if args.json else "\n".join(lines))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="0: as edgellm chooses")
    parser.add_argument("--folder", type=Path, default=Path("build/sparse"))
    parser.add_argument("--write", type=Path, help="a page with a section for the table")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _copy(path: Path, head: bool, args: argparse.Namespace) -> Path:
    where = "head" if head else "layers"
    out = args.folder / f"{path.stem}-{where}-{args.share:g}-{args.seed}.gguf"
    if not out.exists():
        args.folder.mkdir(parents=True, exist_ok=True)
        print(f"writing {out}", file=sys.stderr)
        write_with_zeros(path, out, args.share, head, args.seed)
    return out


def _load(path: Path, threads: int, **options: Any) -> edgellm.Model:
    return edgellm.load(path, n_ctx=512, threads=threads or "auto", exact=True, **options)


def _check_logits(path: Path, threads: int) -> None:
    """Ends the program where sparse panels give other logits than rows, in a pass of many tokens or of one."""
    got = []
    for pack in (True, False):
        with _load(path, threads, pack=pack) as model:
            ids = tokens_for(40, model.n_vocab, 13)
            got.append((model.logits(ids), model.logits(ids[:1])))
    for sparse, rows in zip(*got, strict=True):
        if not np.array_equal(sparse, rows):
            sys.exit(f"{path}: the logits of sparse panels are not those of the same file's rows")


def _measure(path: Path, copy: Path, head: bool, args: argparse.Namespace) -> Figures:
    decode: tuple[list[float], list[float]] = ([], [])
    prompt: tuple[list[float], list[float]] = ([], [])
    with ExitStack() as stack:
        models = [stack.enter_context(_load(p, args.threads)) for p in (path, copy)]
        drivers = [Driver(model) for model in models]
        for i in range(-1, args.rounds):  # the first round is not counted
            for which in (0, 1) if i % 2 else (1, 0):
                seconds = [drivers[which](["tg", str(args.tokens)]), drivers[which](["pp", str(PROMPT)])]
                if i >= 0:
                    decode[which].append(seconds[0])
                    prompt[which].append(seconds[1])
        dense, sparse = (_read_per_token(model) for model in models)
    return Figures(
        path.stem, "layers and head" if head else "layers", args.share, dense, sparse,
        *(args.tokens / statistics.median(times) for times in decode),
        *(statistics.median(a / b for a, b in zip(*times, strict=True)) for times in (decode, prompt)),
    )  # fmt: skip


def _read_per_token(model: edgellm.Model) -> int:
    """Bytes of the matrices that one decoded token is multiplied with, as they lie in memory."""
    loaded = model._loaded
    multiplied = {w for step in loaded.plan.steps if step.op.value == "linear" for w in step.weights[:1]}
    return sum(n for name, n in loaded.runner.weight_bytes().items() if name in multiplied)


if __name__ == "__main__":
    main()
