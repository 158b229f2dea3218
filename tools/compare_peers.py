#!/usr/bin/env python3
"""Time edgellm and llama.cpp on one file, in turn, and print the ratios.

    tools/compare_peers.py MODEL.gguf --peer-python PATH/bin/python [-p 512 -n 64 -d 0 -t 2 -r 5]

PATH is an environment in which llama-cpp-python was built (see docs/benchmarks.md for the build flags). Each round runs
edgellm, then llama.cpp, each in a process of its own, so both see the same state of the machine; a ratio is taken per
round and the median of the rounds is the result. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

# Runs in the peer's interpreter: pp and tg of one file with llama.cpp, one JSON object on stdout.
PEER = r"""
import json, sys, time
import ctypes
import llama_cpp as lc

path, n_prompt, n_gen, depth, threads = sys.argv[1], *map(int, sys.argv[2:6])
model = lc.Llama(path, n_ctx=depth + max(n_prompt, n_gen) + 8, n_batch=512, n_threads=threads,
                 n_threads_batch=threads, flash_attn=sys.argv[6] == "1", verbose=False)

def decode(tokens):
    ids = (ctypes.c_int32 * len(tokens))(*tokens)
    if lc.llama_decode(model.ctx, lc.llama_batch_get_one(ids, len(tokens))):
        raise SystemExit("llama_decode failed")
    lc.llama_synchronize(model.ctx)

def fill(n):
    model._ctx.kv_cache_clear()
    for start in range(0, n, 512):
        decode([10 + i % 1000 for i in range(start, min(start + 512, n))])

def rate(count, step):
    fill(depth)
    start = time.perf_counter()
    for i in range(0, count, step):
        decode([10 + (7 * j) % 1000 for j in range(i, min(i + step, count))])
    return count / (time.perf_counter() - start)

fill(32)
out = {}
if n_prompt:
    out["pp"] = rate(n_prompt, 512)
if n_gen:
    out["tg"] = rate(n_gen, 1)
print(json.dumps(out))
"""


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:4])} ...: exit {done.returncode}\n{done.stderr.strip()[-2000:]}")
    return done.stdout


def ours(a: argparse.Namespace) -> dict[str, float]:
    """edgellm's rates {"pp": t/s, "tg": t/s} of one round."""
    command = [sys.executable, "-m", "edgellm", "bench", a.model, "-r", "1", "-o", "json"]
    for flag, value in (("-p", a.p), ("-n", a.n), ("-d", a.d), ("-t", a.t)):
        command += [flag, str(value)]
    return {row["test"][:2]: row["avg_ts"] for row in json.loads(run(command))}


def peer(a: argparse.Namespace, flash: int) -> dict[str, float]:
    """llama.cpp's rates of one round."""
    sizes = [str(v) for v in (a.p, a.n, a.d, a.t)]
    return json.loads(run([a.peer_python, "-c", PEER, a.model, *sizes, str(flash)]))


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model")
    ap.add_argument("--peer-python", required=True)
    ap.add_argument("-p", type=int, default=512)
    ap.add_argument("-n", type=int, default=64)
    ap.add_argument("-d", type=int, default=0)
    ap.add_argument("-t", type=int, default=2)
    ap.add_argument("-r", type=int, default=5)
    ap.add_argument("-fa", type=int, choices=(0, 1), default=1, help="llama.cpp's flash attention")
    a = ap.parse_args()
    rounds = []
    for i in range(a.r):
        rounds.append((ours(a), peer(a, a.fa)))
        print(f"round {i + 1} of {a.r}: edgellm {rounds[-1][0]}, llama.cpp {rounds[-1][1]}", file=sys.stderr)
    depth = f" @ d{a.d}" if a.d else ""
    print(f"{Path(a.model).name}, {a.t} threads, median of {a.r} alternating rounds\n")
    print("| test | edgellm t/s | llama.cpp t/s | ratio | ratios |\n|---|---:|---:|---:|---|")
    for test, count in (("pp", a.p), ("tg", a.n)):
        if count:
            mine, other = ([r[side][test] for r in rounds] for side in (0, 1))
            ratios = [x / y for x, y in zip(mine, other, strict=True)]
            listed = ", ".join(f"{r:.2f}" for r in ratios)
            medians = statistics.median(mine), statistics.median(other), statistics.median(ratios)
            print("| {}{}{} | {:.1f} | {:.1f} | {:.2f} | {} |".format(test, count, depth, *medians, listed))


if __name__ == "__main__":
    main()
