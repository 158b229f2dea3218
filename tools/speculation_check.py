#!/usr/bin/env python3
"""Answers with speculation beside answers without it: they must be the same, token for token.

    tools/speculation_check.py [MODEL.gguf ...] [--drafts suffix,self,draft,auto] [--prompts 400] [--write PAGE]

For each model --prompts prompts: random tokens, a random stretch three times, a short period, and stretches of a text.
Each is answered at temperature 0 and at 0.8 without speculation, with each kind of --drafts as it is (`suffix`), and
with every draft made and checked to its full length, whether it pays or not (`suffix, all`): most guesses are wrong
there. Kinds are those of a call's `speculate`; a model whose file names no layers to leave out (`edgellm draft`) gets
self-drafts without the feed-forward part of every other layer, and the draft model is a copy in 4 bits. Without MODEL:
the built-in model and four tiny families of ../shared/data/hf-tiny. Exit 1: an answer differs.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speculation_figures import write_region
from speculation_prompts import ROOT, noise

import edgellm
from edgellm import engine
from edgellm.builtin import builtin_model
from edgellm.convert import convert
from edgellm.quantize import quantize
from edgellm.speculate import Control, LayerDrafts, SkipSet

DATA = ROOT.parent / "shared" / "data"
FAMILIES = ("llama", "qwen3", "gemma2", "mixtral")


@dataclass
class Tally:
    """What the answers of one model with one kind of drafts came to."""

    model: str
    drafts: str
    answers: int = 0
    tokens: int = 0
    passes: int = 0
    drafted: int = 0
    accepted: int = 0
    differ: int = 0

    def note(self, plain: edgellm.Result, result: edgellm.Result, where: str) -> None:
        """One more answer, with the one that it must be."""
        self.answers += 1
        self.tokens += len(result.token_ids)
        self.passes += result.stats.passes
        self.drafted += result.stats.draft_tokens
        self.accepted += result.stats.draft_accepted
        same = (plain.token_ids, plain.text, plain.finish_reason)
        if (result.token_ids, result.text, result.finish_reason) != same:
            self.differ += 1
            print(f"{self.model}, {self.drafts}: prompt {where} differs", file=sys.stderr)

    def row(self) -> str:
        cells = (self.model, self.drafts, self.answers, self.tokens, self.drafted, self.accepted, self.passes)
        return "| " + " | ".join(f"{c:,}" if isinstance(c, int) else c for c in cells) + f" | {self.differ} |"


HEADER = [
    "| model | drafts | answers | tokens | guesses checked | came true | passes | answers that differ |",
    "|---|---|---|---|---|---|---|---|",
]


def prompts_of(model: edgellm.Model, n: int) -> list[list[int]]:
    rng = random.Random(5)
    out = noise(n, model.n_vocab, 24)
    text = (DATA / "text" / "grimm.txt").read_text(encoding="utf-8") if DATA.exists() else ""
    ids = model.tokenize(text[:200_000]) if model.tokenizer.kind != "missing" else []
    for i in range(n):
        kind = i % 4
        if kind == 1:
            out[i] = out[i] * 3
        elif kind == 2:
            out[i] = out[i][: rng.randrange(1, 6)] * 8
        elif kind == 3 and len(ids) > 100:
            at = rng.randrange(len(ids) - 60)
            out[i] = ids[at : at + 60]
    return out


@contextmanager
def every_draft() -> Iterator[None]:
    """All of every draft is made, and checked."""
    length, goes_on = Control.length, Control.goes_on
    Control.length = lambda self, draft: len(draft)  # type: ignore[method-assign]
    Control.goes_on = lambda self, source, classes: len(classes) < 7  # type: ignore[method-assign]
    try:
        yield
    finally:
        Control.length, Control.goes_on = length, goes_on  # type: ignore[method-assign]


def add_self_drafts(model: edgellm.Model) -> None:
    """Self-drafts for a model whose file has no set of its own."""
    loaded = model._loaded
    if "self" not in loaded.engine.draft_makers:
        skip = SkipSet((), tuple(range(1, loaded.plan.kv.n_layers, 2)))
        loaded.engine.draft_makers["self"] = LayerDrafts(loaded.runner, loaded.plan, loaded.weights, skip)


def draft_model(path: Path | None, folder: Path) -> Path:
    """A copy of a model in 4 bits: it says nearly the same."""
    copy = folder / "draft.gguf"
    quantize(builtin_model() if path is None else path, copy, "Q4_0", allow_requantize=True)
    return copy


def check(name: str, path: Path | None, args: argparse.Namespace, folder: Path) -> list[Tally]:
    """All kinds of drafts beside none, for one model."""
    tallies = [Tally(name, kind + how) for kind in args.drafts for how in ("", ", all")]
    speculate = draft_model(path, folder) if "draft" in args.drafts else "auto"
    with edgellm.load(path, backend=args.backend, n_ctx=512, speculate=speculate) as model:
        if "self" in args.drafts or "auto" in args.drafts:
            add_self_drafts(model)
        for i, ids in enumerate(prompts_of(model, args.prompts)):
            for temperature in (0.0, 0.8):
                options: dict[str, Any] = {"max_tokens": args.tokens, "temperature": temperature, "seed": i}
                options["ignore_eos"] = i % 2 == 0
                plain = model.generate(ids, speculate="off", **options)
                for kind, fast, most in zip(args.drafts, tallies[::2], tallies[1::2], strict=True):
                    fast.note(plain, model.generate(ids, speculate=kind, **options), f"{i} at {temperature}")
                    with every_draft():
                        most.note(plain, model.generate(ids, speculate=kind, **options), f"{i} at {temperature}")
            if sys.stderr.isatty():
                print(f"\r{name} {i + 1}/{args.prompts}", end="", file=sys.stderr)
    return tallies


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--prompts", type=int, default=400, help="for each model")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--drafts", default=["suffix", "self", "draft", "auto"], type=lambda text: text.split(","),
                        metavar="KINDS", help="kinds of drafts, with commas between them")  # fmt: skip
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table into this page")
    args = parser.parse_args()
    engine.SMALL_MODEL = 0  # "auto" would leave these models alone
    tallies: list[Tally] = []
    with tempfile.TemporaryDirectory() as folder:
        models: list[tuple[str, Path | None]] = [(path.stem, path) for path in args.models]
        if not models:
            models = [("built-in", None)]
            for family in FAMILIES:
                path = Path(folder) / f"{family}.gguf"
                convert(DATA / "hf-tiny" / family, path, outtype="f32")
                models.append((f"hf-tiny {family}", path))
        for name, path in models:
            tallies += check(name, path, args, Path(folder))
            print("\n".join(t.row() for t in tallies[-2 * len(args.drafts) :]), flush=True)
    n = args.prompts * len(models)
    lines = [f"{n:,} prompts, each at temperature 0 and 0.8, answers of up to {args.tokens} tokens.", "", *HEADER]
    lines += [tally.row() for tally in tallies]
    if args.write is not None:
        write_region(args.write, "speculation_check", lines)
    return int(any(tally.differ for tally in tallies))


if __name__ == "__main__":
    sys.exit(main())
