#!/usr/bin/env python3
"""Activation sparsity, the experiment: would it pay to skip small inputs of `attn_output` and `ffn_down`?

    tools/sparse_act.py calibrate [MODEL.gguf] [-o FILE.json]    thresholds within budgets of perplexity
    tools/sparse_act.py speed [MODEL.gguf] [-c FILE.json]        whole tokens, dense and sparse in turns (idle machine)
    tools/sparse_act.py table [MODEL.gguf ...] [--speed-only MODEL.gguf ...] [--write PAGE] [--picture PNG]

Without MODEL, the built-in one. `table` does both for each model (calibrations are kept in build/sparse_act) and writes
Markdown. The first run compiles the native library once more, with the sparse pass (tools/sparse_act).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import sparse_act_native as native  # noqa: E402

from edgellm.builtin import builtin_model  # noqa: E402

TEXT = ROOT.parent / "shared" / "data" / "text" / "grimm.txt"
BUDGETS = (0.005, 0.01, 0.03)
SHARES = (0.0, 0.25, 0.5, 0.6, 0.7, 0.9)


def calibrated(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """What was found before for this model, text and sizes, or is found now."""
    key = hashlib.sha256(f"{BUDGETS} {args.ctx} {args.held_out}".encode() + args.text.read_bytes() + path.read_bytes())
    kept = native.BUILD / f"{path.stem}-{key.hexdigest()[:16]}.json"
    if not kept.exists():
        found = calibration(path, args)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    result: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    return result


def calibration(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    from sparse_act_budget import calibrate
    from sparse_act_model import SparseModel

    from edgellm.prune.windows import split

    with SparseModel(path, args.ctx, args.threads) as model:
        text = args.text.read_text(encoding="utf-8")
        windows = split(model.loaded.tokenizer, text, args.ctx, 64, args.held_out, need=True)
        return calibrate(model, windows, BUDGETS)


def speeds(path: Path, calibration: dict[str, Any] | None, args: argparse.Namespace) -> dict[str, Any]:
    """Of the budgets of a calibration and its curve, or of plain shares of every input."""
    from sparse_act_model import SparseModel
    from sparse_act_speed import PAST, RUN, quick_thresholds, speed

    with SparseModel(path, 512, args.threads) as model:
        ids = model.loaded.tokenizer.encode(args.text.read_text(encoding="utf-8")[-20000:])
        tokens = np.array(ids[: PAST + 8 * RUN], np.int32)
        if calibration is None:
            settings = quick_thresholds(model, tokens[:PAST], SHARES)
        else:
            settings = {f"budget {one['budget']:g}": one["thresholds"] for one in calibration["budgets"]}
            settings |= {f"{one['sparsity']:.2f}": one["thresholds"] for one in calibration["curve"][4:7]}
        return speed(model, tokens, settings, args.seconds, args.block_rows)


def table(args: argparse.Namespace) -> None:
    """All models, to stdout and where the arguments say."""
    from sparse_act_page import draw, page
    from speculation_figures import write_region

    from edgellm import clib

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    results: list[dict[str, Any]] = []
    for path in args.models or [Path(builtin_model())]:
        found = calibrated(path, args)
        results.append({"name": path.stem, "calibration": found, "speed": speeds(path, found, args)})
    for path in args.speed_only:
        results.append({"name": path.stem, "speed": speeds(path, None, args)})
    lines = page(results, f"Kernels {clib.isa()}, load of the machine when it began {load:.1f}.")
    print("\n".join(lines))
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if args.picture is not None:
        draw(results, args.picture)
    if args.write is not None:
        write_region(args.write, "sparse-act", lines)


def main() -> int:
    args = parsed()
    native.take_over()
    if args.command == "calibrate":
        found = json.dumps(calibrated(args.model, args), indent=1) + "\n"
        if args.output is None:
            print(found, end="")
        else:
            args.output.write_text(found, encoding="utf-8")
    elif args.command == "speed":
        known = json.loads(args.calibration.read_text(encoding="utf-8")) if args.calibration else None
        print(json.dumps(speeds(args.model, known, args), indent=1))
    else:
        table(args)
    return 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = parser.add_subparsers(dest="command", required=True)
    one, two, all_ = sub.add_parser("calibrate"), sub.add_parser("speed"), sub.add_parser("table")
    for command in (one, two, all_):
        if command is not all_:
            command.add_argument("model", nargs="?", type=Path, default=Path(builtin_model()))
        command.add_argument("--text", type=Path, default=TEXT)
        command.add_argument("--threads", default="auto")
    for command in (one, all_):
        command.add_argument("--ctx", type=int, default=512, help="tokens of a window, at most 512")
        command.add_argument(
            "--held-out", type=int, default=32, help="windows at the end that perplexity is measured on"
        )
    for command in (two, all_):
        command.add_argument("--seconds", type=float, default=40, help="of timing, for each model")
        command.add_argument("--block-rows", type=int, choices=(128, 256))
    one.add_argument("-o", "--output", type=Path)
    two.add_argument("-c", "--calibration", type=Path, help="what calibrate wrote; else shares of every input alike")
    all_.add_argument("models", nargs="*", type=Path)
    all_.add_argument("--speed-only", nargs="*", type=Path, default=[], help="models without sense, as random weights")
    all_.add_argument("--write", type=Path, metavar="PAGE", help="put the tables into this page")
    all_.add_argument("--picture", type=Path, metavar="PNG", help="draw perplexity over sparsity")
    all_.add_argument("--json", type=Path, help="all figures")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
