#!/usr/bin/env python3
"""How far the Numba backend is from compiled C, and how long its first token takes.

    tools/numba_ratio.py MODEL.gguf ... [-n 32 -p 64 -t 1 -r 5]

Each round runs the portable C kernels (no instruction set beyond the compiler's default), the best kernels that this
machine has, and Numba, each in a process of its own; ratios are taken within a round and their median counts. Both the
time that passed and the processor time are told: on a busy machine only the second means something. The first token is
timed on the built-in model with an empty cache and with a filled one. Exit 1: a limit was missed (Q4_0 and Q8_0 decode
within 4 x portable C, first token within 30 s cold and 3 s cached, processor time with `--busy`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT, COLD, CACHED = 4.0, 30.0, 3.0
SIDES = {"portable": ("native", "portable"), "best": ("native", ""), "numba": ("numba", "")}  # backend, EDGELLM_ISA


def measure(path: str, backend: str, n_prompt: int, n_gen: int, n_threads: int) -> dict[str, float]:
    """Seconds for each token, `pp` and `tg`, as time that passed and as processor time (`pp_cpu`, `tg_cpu`)."""
    import numpy as np

    import edgellm

    out: dict[str, float] = {}
    with edgellm.load(path, backend=backend, threads=n_threads, n_ctx=n_prompt + n_gen + 64) as model:
        engine = model._loaded.engine
        seq = engine.new_sequence()

        def feed(name: str, n: int, step: int) -> None:
            wall, cpu = [], []
            for at in range(0, n, step):
                ids = 10 + np.arange(at, min(at + step, n)) % 1000
                clocks = time.perf_counter(), time.process_time()
                engine.forward(seq, ids.tolist(), [ids.size - 1], np.zeros(1, np.int32))
                wall.append((time.perf_counter() - clocks[0]) / ids.size)
                cpu.append((time.process_time() - clocks[1]) / ids.size)
            if name:
                out[name], out[f"{name}_cpu"] = statistics.median(wall), statistics.median(cpu)

        feed("", 8, 4)  # whatever happens only once
        feed("pp", n_prompt, n_prompt)
        feed("tg", n_gen, 1)
    return out


def child(arguments: list[str], **environment: str) -> str:
    env = {**os.environ, **environment}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=env)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments[:3])} ...: exit {done.returncode}\n{done.stderr.strip()[-2000:]}")
    return done.stdout


def rounds(path: str, a: argparse.Namespace) -> list[dict[str, dict[str, float]]]:
    out = []
    for i in range(a.r):
        out.append({})
        for side, (backend, isa) in SIDES.items():
            line = child([__file__, "--child", path, backend, str(a.p), str(a.n), str(a.t)], EDGELLM_ISA=isa)
            out[-1][side] = json.loads(line)
        print(f"{Path(path).name}: round {i + 1} of {a.r}", file=sys.stderr)
    return out


def table(path: str, found: list[dict[str, dict[str, float]]], a: argparse.Namespace) -> float:
    """Prints the file's table and returns the ratio that the limit is about: Numba to portable C, decoding."""
    print(f"\n{Path(path).name}, {a.t} threads, median of {a.r} alternating rounds, ms for each token\n")
    print("| test | portable C | best C | Numba | Numba / portable | Numba / best |\n|---|---:|---:|---:|---:|---:|")
    ratios = {}
    for test, label in (("tg", f"tg{a.n}"), ("pp", f"pp{a.p}")):
        for suffix, kind in (("", ""), ("_cpu", ", processor time")):
            key = test + suffix
            times = [1e3 * statistics.median(r[side][key] for r in found) for side in SIDES]
            to = [statistics.median(r["numba"][key] / r[side][key] for r in found) for side in ("portable", "best")]
            ratios[key] = to[0]
            print("| {}{} | {:.2f} | {:.2f} | {:.2f} | {:.2f} | {:.2f} |".format(label, kind, *times, *to))
    return ratios["tg_cpu" if a.busy else "tg"]


def first_token() -> list[tuple[float, float]]:
    """(seconds, processor seconds) of the command for one token: with an empty cache, then with a filled one."""
    out = []
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(2):
            before, start = os.times(), time.perf_counter()
            child(["-m", "edgellm", "run", "-p", "hi", "-n", "1", "--backend", "numba"], NUMBA_CACHE_DIR=cache)
            wall, after = time.perf_counter() - start, os.times()
            out.append((wall, sum(after[2:4]) - sum(before[2:4])))
    return out


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        path, backend, *numbers = sys.argv[2:]
        print(json.dumps(measure(path, backend, *map(int, numbers))))
        return 0
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("models", nargs="*", metavar="MODEL.gguf")
    ap.add_argument("-n", type=int, default=32, help="tokens to decode")
    ap.add_argument("-p", type=int, default=64, help="tokens of the prompt")
    ap.add_argument("-t", type=int, default=1, help="threads")
    ap.add_argument("-r", type=int, default=5, help="rounds")
    ap.add_argument("--busy", action="store_true", help="hold processor time, not time, to the limits")
    a = ap.parse_args()
    missed = [path for path in a.models if table(path, rounds(path, a), a) > LIMIT]
    print("\n| first token, built-in model | seconds | processor seconds | limit |\n|---|---:|---:|---:|")
    for name, times, limit in zip(("cold cache", "cached"), first_token(), (COLD, CACHED), strict=True):
        print(f"| {name} | {times[0]:.2f} | {times[1]:.2f} | {limit:.0f} |")
        if times[a.busy] > limit:
            missed.append(name)
    if missed:
        print(f"over the limit: {', '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
