#!/usr/bin/env python3
"""edgellm as a process that times what it is told on stdin; tools/peer_driver.c speaks the same for llama.cpp.

    python tools/bench_driver.py MODEL THREADS N_CTX FLASH KV     (FLASH means nothing here)

It prints "ready", then for each line (`depth D`, `pp N`, `tg N`, `pass K R`) one line: seconds, or "error ...".
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import edgellm  # noqa: E402
from edgellm.bench import tokens_for  # noqa: E402


class Driver:
    """One model and a sequence that holds `depth` tokens before every test; each test works on a fork of it."""

    def __init__(self, model: Any) -> None:
        self.model, self.engine = model, model._loaded.engine
        self.deep = self.engine.new_sequence()

    def tokens(self, n: int, step: int = 11) -> list[int]:
        return tokens_for(n, self.model.n_vocab, step)

    def __call__(self, words: list[str]) -> float:
        """Seconds of the test in `words`. Raises EdgeLLMError, ValueError."""
        what, numbers = words[0], [int(word) for word in words[1:]]
        if what == "depth":
            self.model._worker.call(lambda job: self.fill(job, *numbers))
            return 0.0
        work = {"pp": self.prompt, "tg": self.generate, "pass": self.passes}[what]
        return self.model._worker.call(lambda job: self.timed(work, job, numbers))

    def timed(self, work: Any, job: Any, numbers: list[int]) -> float:
        with self.deep.fork() as seq:
            start = time.perf_counter()
            work(seq, job, *numbers)
            return time.perf_counter() - start

    def fill(self, job: Any, depth: int) -> None:
        self.deep.rewind(0)
        if depth:
            self.engine.prefill(self.deep, self.tokens(depth, 7), job)

    def prompt(self, seq: Any, job: Any, n: int) -> None:
        self.engine.prefill(seq, self.tokens(n), job)

    def generate(self, seq: Any, job: Any, n: int) -> None:
        for token in self.tokens(n):
            self.engine.forward(seq, [token], [0], job.flag)

    def passes(self, seq: Any, job: Any, k: int, repeats: int) -> None:
        depth, tokens, wanted = seq.length, self.tokens(k), range(k)
        for _ in range(repeats):
            self.engine.forward(seq, tokens, wanted, job.flag)
            seq.rewind(depth)


def main() -> None:
    path, threads, n_ctx, _, kv = sys.argv[1:]
    with edgellm.load(path, threads=int(threads), n_ctx=int(n_ctx), kv_type=kv) as model:
        driver = Driver(model)
        print("ready", flush=True)
        for line in sys.stdin:
            try:
                answer = f"{driver(line.split()):.9f}"
            except (edgellm.EdgeLLMError, ValueError, KeyError, TypeError) as error:
                answer = f"error {type(error).__name__}: {error}".replace("\n", " ")
            print(answer, flush=True)


if __name__ == "__main__":
    main()
