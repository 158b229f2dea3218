"""Runs a model far beyond its context window: does memory stay flat, does it stay fast, does it stay sensible?

    python tools/stream_forever.py --tokens 100000 --check-model
    python tools/stream_forever.py --write docs/streaming.md --pictures docs/pictures

Three runs over the same text, one token per pass as in decoding: `sink` (policy sink: first tokens and a window),
`window` (the same without sinks) and `dense` (everything kept, as far as --dense tokens). Without --model it takes
stories260K (../shared/data) and stories that it tells itself, repeated every 100,000 tokens. Ends with status 1 where
memory or the loss is not within its bounds; times depend on what else the machine does and are only reported.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from pathlib import Path

import numpy as np
from stream_model import StreamModel
from stream_pictures import draw, save
from stream_run import Bins, feed, own_stories

import edgellm
from edgellm.convert import convert

ROOT = Path(__file__).resolve().parent.parent
STORIES = ROOT.parent / "shared" / "data" / "stories260K"
TEXT_TOKENS = 100_000  # of the text, before it is repeated
FLAT, SAME = 0.01, 0.01  # bounds: spread of memory, mean loss against NumPy
MARKS = ("<!-- measured by tools/stream_forever.py -->", "<!-- end of what was measured -->")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1_000_000, help="tokens of the endless runs")
    parser.add_argument("--dense", type=int, default=32_000, help="tokens of the run that keeps everything")
    parser.add_argument("--model", type=Path, help="a GGUF file (default: stories260K)")
    parser.add_argument("--text", type=Path, help="a text file (default: the model's own stories)")
    parser.add_argument("--sinks", type=int, default=4)
    parser.add_argument("--window", type=int, help="tokens behind the sinks (default: n_ctx of training less sinks)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--check-model", action="store_true", help="compare 100,000 tokens with NumPy (a minute)")
    parser.add_argument("--pictures", type=Path, help="folder for the pictures")
    parser.add_argument("--save", type=Path, default=ROOT / "build" / "stream.npz")
    parser.add_argument("--write", type=Path, help="a page whose measured part is replaced")
    return parser.parse_args()


def main() -> int:
    args = options()
    with tempfile.TemporaryDirectory() as folder:
        path = args.model or stories(Path(folder))
        with edgellm.load(path, threads=args.threads, backend=args.backend) as model:
            n_ctx, machine = model.n_ctx_train, f"{platform.machine()} {model.backend} {model.isa}".strip()
            if args.text:
                text = np.array(model.tokenizer.encode(args.text.read_text(encoding="utf-8")), np.int32)
            else:
                text = own_stories(model, min(TEXT_TOKENS, args.tokens))
        window = args.window or n_ctx - args.sinks
        curves = {}
        for name, overflow, context, n in (
            ("sink", f"sink:{args.sinks}:{window}", args.sinks + window, args.tokens),
            ("window", f"sink:0:{args.sinks + window}", args.sinks + window, args.tokens),
            ("dense", "error", args.dense, min(args.dense, args.tokens)),
        ):
            print(f"{name}: {n} tokens, {overflow}, n_ctx {context}", file=sys.stderr)
            settings = {"n_ctx": context, "overflow": overflow, "threads": args.threads, "backend": args.backend}
            with edgellm.load(path, **settings) as model:
                curves[name] = feed(model, text, n)
        save(curves, args.save, n_ctx)
        lines, kept = report(curves, args.sinks + window)
        if args.check_model:
            line, same = check(path, text, args.sinks, window, curves["sink"])
            lines, kept = [*lines, line], kept and same
    print("\n".join(lines))
    if args.pictures:
        draw(curves, args.pictures, n_ctx)
    if args.write:
        write(args.write, [f"{args.tokens:,} tokens, {args.threads} thread, {machine}.", "", *lines])
    return 0 if kept else 1


def stories(folder: Path) -> Path:
    """stories260K as a GGUF file in `folder`."""
    path = folder / "stories260K.gguf"
    convert(STORIES / "stories260K.bin", path, outtype="f32", tokenizer=STORIES / "tok512.bin")
    return path


def report(curves: dict[str, Bins], n_full: int) -> tuple[list[str], bool]:
    """A table, and whether the endless runs kept their memory. `n_full`: tokens that fill a window."""
    lines = [
        "| run | tokens | resident memory, MB | flat within | pages | median bin, ms | slowest / median bin "
        "| in CPU time | of median tokens | perplexity | last tenth |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    kept = True
    for name, bins in curves.items():
        steady = bins.position > 2 * n_full + bins.size  # the window has filled, and its pages have gone round
        if not steady.any():
            steady[-1:] = True
        memory, pages = bins.resident[steady], bins.pages[steady]
        spread = float((memory.max() - memory.min()) / np.median(memory))
        tenth = bins.loss[-max(1, len(bins.loss) // 10) :]
        slowest = [f"{t[steady].max() / np.median(t[steady]):.2f}" for t in (bins.seconds, bins.cpu, bins.typical)]
        lines.append(
            f"| {name} | {bins.position[-1]:,} | {memory.min() / 1e6:.1f} to {memory.max() / 1e6:.1f} | "
            f"{100 * spread:.2f} % | {pages.min():.0f} to {pages.max():.0f} | "
            f"{1000 * np.median(bins.seconds[steady]):.1f} | {' | '.join(slowest)} | "
            f"{np.exp(bins.loss.mean()):.3f} | {np.exp(tenth.mean()):.3f} |"
        )
        kept = kept and (name == "dense" or not spread > FLAT)
    return lines, kept


def check(path: Path, text: np.ndarray, n_sinks: int, window: int, bins: Bins) -> tuple[str, bool]:
    """The loss beside that of StreamingLLM in NumPy, over the first tokens of the stream."""
    n = min(TEXT_TOKENS, int(bins.position[-1]))
    wanted = StreamModel(path, n_sinks, window).losses(np.resize(text, n + 1)).reshape(-1, bins.size).mean(axis=1)
    found = bins.loss[: len(wanted)]
    off = abs(found.mean() / wanted.mean() - 1)
    worst = np.abs(found / wanted - 1).max()
    line = (
        f"\nOver {n:,} tokens the mean loss is {found.mean():.6f}, that of the NumPy model {wanted.mean():.6f} "
        f"(off by {100 * off:.4f} %; the worst bin by {100 * worst:.4f} %)."
    )
    return line, bool(off <= SAME)


def write(path: Path, lines: list[str]) -> None:
    """Replaces what stands between the marks of a page."""
    text = path.read_text(encoding="utf-8")
    before, rest = text.split(MARKS[0])
    path.write_text("\n".join([before + MARKS[0], *lines, MARKS[1] + rest.split(MARKS[1])[1]]), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
