#!/usr/bin/env python3
"""Perplexity of a model pruned by each method in each pattern, as a table in Markdown (docs/sparsity.md).

    python tools/prune_table.py [--model MODEL.gguf] [--text TEXT] [--sparsity 0.5] [--chunks 64] [--type TYPE]
                                [--patterns unstructured 2:4 ...] [--write PAGE [--mark NAME]]

By default the built-in model on Grimm's tales of the shared data; it was trained on 15 of the 32 windows held out.
Exits with 1 when wanda is no better than magnitude, or sparsegpt is worse than wanda, at unstructured sparsity.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from speculation_figures import write_region  # noqa: E402

from edgellm.builtin import builtin_model  # noqa: E402
from edgellm.prune import PruneReport, prune  # noqa: E402
from edgellm.prune.wish import METHODS, PATTERNS, WHOLE  # noqa: E402

TEXT = ROOT.parent / "shared" / "data" / "text" / "grimm.txt"


def measure(args: argparse.Namespace, folder: str) -> dict[tuple[str, str], PruneReport]:
    """The report of each (pattern, method); heads and layers have no method."""
    text, found = args.text.read_text(encoding="utf-8"), {}
    parts = [pattern for pattern in args.patterns if pattern not in WHOLE]
    rows = [(pattern, method, args.sparsity) for pattern in parts for method in METHODS]
    rows += [(pattern, None, share) for pattern in args.patterns if pattern in WHOLE for share in (0.25, 0.5)]
    for pattern, method, share in rows:
        print(f"{pattern} {method or share}", file=sys.stderr, flush=True)
        found[pattern, method or str(share)] = prune(
            args.model, Path(folder) / "pruned.gguf", None if pattern == "2:4" else share, pattern, method,
            text=text, n_chunks=args.chunks, held_out=args.held_out, type=args.type,
        )  # fmt: skip
        print(f"  {cell(found[pattern, method or str(share)])}", file=sys.stderr, flush=True)
    return found


def cell(report: PruneReport) -> str:
    return f"{report.ppl_after:.2f} ± {report.ppl_after_error:.2f}"


def table(args: argparse.Namespace, found: dict[tuple[str, str], PruneReport]) -> list[str]:
    """The lines for the page: patterns by method, then what is whole by its share."""
    first = next(iter(found.values()))
    lines = [
        f"Perplexity before: {first.ppl_before:.2f}, on {first.held_out} windows of {first.n_ctx} tokens; weights were "
        f"chosen by {args.chunks} others."
    ]
    if parts := [pattern for pattern in args.patterns if pattern not in WHOLE]:
        lines += ["", "| pattern | " + " | ".join(METHODS) + " |", "|---" + "|---:" * len(METHODS) + "|"]
        lines += [f"| {p} | " + " | ".join(cell(found[p, method]) for method in METHODS) + " |" for p in parts]
    if whole := [pattern for pattern in args.patterns if pattern in WHOLE]:
        lines += ["", "| what goes | 25 % | 50 % |", "|---|---:|---:|"]
        lines += [f"| {p} | {cell(found[p, '0.25'])} | {cell(found[p, '0.5'])} |" for p in whole]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path(builtin_model()))
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--chunks", type=int, default=64)
    parser.add_argument("--held-out", type=int, default=32)
    parser.add_argument("--type")
    parser.add_argument("--patterns", nargs="+", choices=PATTERNS, default=list(PATTERNS))
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the tables into this page")
    parser.add_argument("--mark", default="prune-table", help="between which marks of the page")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(args, folder)
    lines = table(args, found)
    print("\n".join(lines))
    if args.write is not None:
        write_region(args.write, args.mark, lines)
    ppl = [found["unstructured", m].ppl_after for m in METHODS if ("unstructured", m) in found]
    return int(any(b > a for a, b in zip(ppl, ppl[1:], strict=False)))


if __name__ == "__main__":
    sys.exit(main())
