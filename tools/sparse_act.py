#!/usr/bin/env python3
"""Activation sparsity, the experiment: would it pay to skip small inputs of `attn_output` and `ffn_down`?

    tools/sparse_act.py calibrate [MODEL.gguf] -o FILE.json      thresholds within budgets of perplexity
    tools/sparse_act.py speed [MODEL.gguf] [-c FILE.json]        whole tokens, dense and sparse in turns (idle machine)
    tools/sparse_act.py table [MODEL.gguf ...] --write PAGE      both for each model, as Markdown

Without MODEL, the built-in one. The first run compiles the native library once more, with the sparse pass (tools/sparse_act).
"""

from __future__ import annotations

import argparse
import json
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

    with SparseModel(path, 1024, args.threads) as model:
        ids = model.loaded.tokenizer.encode(args.text.read_text(encoding="utf-8")[-20000:])
        tokens = np.array(ids[: PAST + 8 * RUN], np.int32)
        if calibration is None:
            settings = quick_thresholds(model, tokens[:PAST], SHARES)
        else:
            settings = {f"budget {one['budget']:g}": one["thresholds"] for one in calibration["budgets"]}
            settings |= {f"{one['sparsity']:.2f}": one["thresholds"] for one in calibration["curve"][4:7]}
        return speed(model, tokens, settings, args.rounds, args.block_rows)


def main() -> int:
    args = parsed()
    native.take_over()
    if args.command == "calibrate":
        args.output.write_text(json.dumps(calibrated(args.model, args), indent=1) + "\n", encoding="utf-8")
    elif args.command == "speed":
        found = json.loads(args.calibration.read_text(encoding="utf-8")) if args.calibration else None
        print(json.dumps(speeds(args.model, found, args), indent=1))
    return 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = parser.add_subparsers(dest="command", required=True)
    one, two = sub.add_parser("calibrate"), sub.add_parser("speed")
    for command in (one, two):
        command.add_argument("model", nargs="?", type=Path, default=Path(builtin_model()))
        command.add_argument("--text", type=Path, default=TEXT)
        command.add_argument("--threads", default="auto")
    one.add_argument("--ctx", type=int, default=512, help="tokens of a window, at most 512")
    one.add_argument("--held-out", type=int, default=32, help="windows at the end that perplexity is measured on")
    one.add_argument("-o", "--output", type=Path, required=True)
    two.add_argument("-c", "--calibration", type=Path, help="what calibrate wrote; else shares of every input alike")
    two.add_argument("--rounds", type=int, default=24)
    two.add_argument("--block-rows", type=int, choices=(128, 256))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
