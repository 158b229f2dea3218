#!/usr/bin/env python3
"""Check on real sizes that logits do not depend on the number of threads, and that every worker takes part.

    tools/check_threads.py MODEL.gguf [MODEL.gguf ...] [--threads 1,2,4 --depth 2048]

For each file: logits of 64 prompt tokens at depth 0, and of 4 decoded tokens at the given depth, for each thread count.
They must be equal bit for bit. Also prints how many chunks of work each worker ran. Exit 1 when anything differs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import edgellm
from edgellm import clib


def passes(path: str, threads: int, depth: int, ids: list[int]) -> tuple[np.ndarray, list[int]]:
    """(logits (64 + 4, n_vocab), chunks per worker)"""
    with edgellm.load(path, n_ctx=depth + 64, threads=threads, backend="native") as model:
        before = clib.pool_chunks() + [0] * threads
        shallow = model.logits(ids[:64])
        answers = []
        for i in range(4):  # each call continues from the cache of the one before
            result = model._worker.call(lambda job, n=depth + i: _decode(model, ids[: n + 1], job))
            answers.append(result)
        after = clib.pool_chunks() + [0] * threads
    return np.concatenate([shallow, np.stack(answers)]), [after[i] - before[i] for i in range(threads)]


def _decode(model: edgellm.Model, ids: list[int], job) -> np.ndarray:
    engine = model._loaded.engine
    with engine.new_sequence(ids=ids[:-1]) as seq:
        logits = engine.prefill(seq, ids[seq.length :], job).copy()
        engine.keep(seq)
    return logits


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("models", nargs="+")
    ap.add_argument("--threads", default="1,2,4")
    ap.add_argument("--depth", type=int, default=2048)
    a = ap.parse_args()
    ok = True
    for path in a.models:
        first: np.ndarray | None = None
        for n in (int(t) for t in a.threads.split(",")):
            ids = np.random.default_rng(0).integers(3, 30_000, a.depth + 8)
            with edgellm.load(path, n_ctx=64, backend="native") as model:
                ids = (ids % (model.n_vocab - 3) + 3).tolist()
            logits, chunks = passes(path, n, a.depth, ids)
            first = logits if first is None else first
            same = np.array_equal(logits, first)
            ok &= same and min(chunks) > 0
            print(f"{Path(path).name}, {n} threads: {'same bits' if same else 'DIFFERENT'}, chunks per worker {chunks}")
    raise SystemExit(0 if ok else 1)


if __name__ == "__main__":
    main()
