"""What a desktop program does to a model, for as long as one likes: stop it at any moment, and ask from many threads.

    python tools/stress.py [MODEL [SECOND_MODEL]] [--runs 200] [--seconds 60] [--threads 32] [--json]

`latency`: calls are stopped and cancelled from another thread at random moments of prefill and of decoding; how long
the caller then waits, and whether the next call has the bits of a fresh model's. `calls`: random calls on two models
from many threads, each compared with the answer that it has alone; a watchdog looks for calls that never end, and
memory has to come back. Ends with 1 where something is wrong: p99 over 100 ms, a wrong answer, a deadlock, memory that
stays.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gc
import json
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

import edgellm

LIMIT_MS = 100.0  # p99 of the time from a stop to the end of the call
ROUNDS, GROWTH = 3, 48 << 20  # bytes that the last round may add to the memory in use, beside the cache
DEADLOCK = 120.0  # seconds that one call may take
GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True}
PROBE = 9  # tokens whose logits are compared


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def own_memory() -> int:
    """Bytes of memory that are this process' own (pages of mapped files are not); 0 where the system does not tell."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            return 1024 * next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))
    except (OSError, StopIteration):
        return 0


def cache_touched(models: list[edgellm.Model]) -> int:
    """Bytes of the caches that were ever handed out: they stay the process' own until a model is closed."""
    return sum(model._loaded.pool._fresh * model._loaded.pool.page_bytes for model in models)


def ids_of(model: edgellm.Model, n: int, seed: int) -> list[int]:
    """`n` random token ids."""
    return np.random.default_rng(seed).integers(3, model.n_vocab - 1, n).tolist()


# ---- latency -------------------------------------------------------------------------------------------------------


class Latency:
    """Stops calls of one model. `times` has milliseconds by (when, how)."""

    def __init__(self, path: str | None, options: dict[str, Any]) -> None:
        with edgellm.load(path, **options) as fresh:
            self._right = self._probe(fresh)
        self._model = edgellm.load(path, **options)
        self.wrong = 0
        self.times: dict[tuple[str, str], list[float]] = {}

    def _probe(self, model: edgellm.Model) -> tuple[bytes, tuple[int, ...]]:
        ids = ids_of(model, PROBE, 1)
        return model.logits(ids).tobytes(), model.generate(ids, max_tokens=2, **GREEDY).token_ids

    def run(self, when: str, runs: int, rng: random.Random) -> None:
        """Half of the runs are stopped, half cancelled."""
        for i in range(runs):
            how = ("stop", "cancel")[i % 2]
            self.times.setdefault((when, how), []).append(self._one(when, how, rng))
            if self._probe(self._model) != self._right:
                self.wrong += 1
            if i % 20 == 19:
                say(f"  {when}: {i + 1} of {runs}")

    def _one(self, when: str, how: str, rng: random.Random) -> float:
        """Milliseconds from the stop, in another thread, to the moment at which the waiting caller has its answer."""
        model = self._model
        n = min(model.n_ctx - 64, 1500)
        ids = ids_of(model, n if when == "prefill" else 16, rng.randrange(1 << 30))
        begun = threading.Event()
        stream = model.generate(ids, stream=True, overflow="sink", on_prefill=lambda p: begun.set(), **GREEDY)
        if when == "decode":
            for _ in range(rng.randrange(1, 6)):
                next(stream)
        begun.wait(DEADLOCK)
        pause, asked = rng.uniform(0, 0.15), [0.0]

        def end() -> None:
            time.sleep(pause)
            asked[0] = time.perf_counter()
            getattr(stream, how)()

        thread = threading.Thread(target=end)
        thread.start()
        with contextlib.suppress(edgellm.Cancelled):
            _ = stream.result
        done = time.perf_counter()
        thread.join()
        return max(0.0, done - asked[0]) * 1e3

    def close(self) -> None:
        self._model.close()


def quantiles(times: list[float]) -> dict[str, float]:
    return {name: float(np.quantile(times, q)) for name, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1))}


def latency(path: str | None, runs: int, options: dict[str, Any], seed: int) -> dict[str, Any]:
    """The distribution of waits, in ms, and how many answers after them were wrong."""
    say(f"stopping {runs} calls in prefill and {runs} in decoding")
    part = Latency(path, options)
    try:
        for when in ("prefill", "decode"):
            part.run(when, runs, random.Random(seed))
    finally:
        part.close()
    rows = {f"{when} {how}": quantiles(t) | {"runs": len(t)} for (when, how), t in part.times.items()}
    worst = max(row["p99"] for row in rows.values())
    return {"ms": rows, "wrong_after": part.wrong, "ok": part.wrong == 0 and worst < LIMIT_MS}


# ---- random calls --------------------------------------------------------------------------------------------------


def asks(model: edgellm.Model) -> dict[str, Callable[[], Any]]:
    """Ways to use a model, by name; each gives something that is the same whenever it is asked."""

    def cut(how: str) -> Any:
        stream = model.generate("Once upon a time", stream=True, max_tokens=60, **GREEDY)
        first = next(stream).token
        getattr(stream, how)()
        try:
            return first, stream.result.token_ids[0]
        except edgellm.Cancelled:
            return first, first

    def talk() -> Any:
        with model.session(max_tokens=3, seed=3) as session:
            return session.send("hello").token_ids, session.send("and then?").token_ids

    def fork() -> Any:
        with model.session(max_tokens=3, seed=3) as session:
            session.send("hello")
            with session.fork() as other:
                return session.undo() is not None, len(other.messages)

    found: dict[str, Callable[[], Any]] = {
        "generate": lambda: model.generate("hello", max_tokens=8, **GREEDY).token_ids,
        "sampled": lambda: model.generate("hello", max_tokens=8, temperature=1, seed=4, ignore_eos=True).token_ids,
        "stream": lambda: [e.token for e in model.generate("time", max_tokens=6, stream=True, **GREEDY)],
        "stop": lambda: cut("stop"), "cancel": lambda: cut("cancel"), "session": talk, "fork": fork,
        "logits": lambda: model.logits([5, 6, 7, 8]).tobytes(),
        "tokenize": lambda: model.tokenize("once upon a time, é🙂"),
    }  # fmt: skip
    if model.chat_template:
        messages = [{"role": "user", "content": "hello"}]
        found["chat"] = lambda: model.chat(messages, max_tokens=6, **GREEDY).token_ids
    return found


class Watchdog:
    """Knows since when each thread is in a call; where one never ends, it shows all threads and ends the process."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}
        threading.Thread(target=self._look, daemon=True).start()

    def begin(self) -> None:
        self._since[threading.get_ident()] = time.monotonic()

    def end(self) -> None:
        self._since.pop(threading.get_ident(), None)

    def _look(self) -> None:
        while True:
            time.sleep(1)
            if any(time.monotonic() - since > DEADLOCK for since in list(self._since.values())):
                say(f"a call has not ended for {DEADLOCK:.0f} seconds:")
                faulthandler.dump_traceback(all_threads=True)
                os._exit(1)


def calls(
    paths: list[str | None], n_threads: int, seconds: float, options: dict[str, Any], seed: int
) -> dict[str, Any]:
    """Random calls on two models from many threads."""
    say(f"{n_threads} threads ask two models for {seconds:.0f} seconds")
    models = [edgellm.load(path, **options) for path in paths]
    cases = [(f"{i} {name}", ask) for i, model in enumerate(models) for name, ask in asks(model).items()]
    right = {name: ask() for name, ask in cases}
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    watchdog = Watchdog()

    def work(number: int, end: float) -> None:
        rng = random.Random(seed * 1000 + number + end)
        while time.monotonic() < end:
            name, ask = rng.choice(cases)
            watchdog.begin()
            try:
                if ask() != right[name]:
                    wrong.append(name)
            except BaseException as error:
                wrong.append(f"{name}: {error!r}")
            watchdog.end()
            counts[name] += 1

    def memory_after_round() -> int:
        """Bytes in use, beside the caches, when all threads have asked for a part of the time and are gone."""
        end = time.monotonic() + seconds / ROUNDS
        threads = [threading.Thread(target=work, args=(i, end)) for i in range(n_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        gc.collect()
        say(f"  {sum(counts.values())} calls, {len(wrong)} wrong")
        return own_memory() - cache_touched(models)

    memory = [memory_after_round() for _ in range(ROUNDS)]
    grown = memory[-1] - min(memory[:-1])  # the first rounds fill what allocator and passes keep
    pages = sum(_pages_in_use(model) for model in models)
    cache = cache_touched(models)
    for model in models:
        model.close()
    gc.collect()
    return {
        "calls": sum(counts.values()), "by_name": dict(sorted(counts.items())), "wrong": wrong[:20],
        "pages_left": pages, "memory_after_rounds": memory, "grown_bytes": grown,
        "cache_bytes": cache, "bytes_when_closed": own_memory(),
        "ok": not wrong and pages == 0 and grown <= GROWTH,
    }  # fmt: skip


def _pages_in_use(model: edgellm.Model) -> int:
    """Pages of the cache that nobody can want any more: all that the prefix tree does not hold."""
    loaded = model._loaded

    def count(job: Any) -> int:
        loaded.engine._sweep()
        loaded.engine.tree.clear()
        return int(loaded.pool.refs.sum())

    found: int = model._worker.call(count)
    return found


# ---- the command ---------------------------------------------------------------------------------------------------


def show(results: dict[str, Any]) -> None:
    if "latency" in results:
        part = results["latency"]
        print(f"{'waits in ms':<16} {'runs':>5} {'p50':>8} {'p90':>8} {'p99':>8} {'max':>8}")
        for name, row in part["ms"].items():
            print(f"{name:<16} {row['runs']:>5} " + " ".join(f"{row[q]:>8.1f}" for q in ("p50", "p90", "p99", "max")))
        print(f"answers after them that were wrong: {part['wrong_after']}")
    if "calls" in results:
        part = results["calls"]
        print(f"{part['calls']} calls, {len(part['wrong'])} wrong, {part['pages_left']} pages not given back")
        grown, cache = part["grown_bytes"] / 2**20, part["cache_bytes"] / 2**20
        print(f"the last round added {grown:.1f} MiB to the memory beside the cache (which has {cache:.1f} MiB)")
        for line in part["wrong"]:
            print(f"  wrong: {line}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", help="one or two GGUF files; none: the built-in model")
    parser.add_argument("--part", choices=["latency", "calls", "all"], default="all")
    parser.add_argument("--runs", type=int, default=200, help="calls to stop in prefill, and as many in decoding")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--threads", type=int, default=32, help="threads that ask")
    parser.add_argument("--model-threads", default="auto", help="threads that compute")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--n-ctx", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    threads = given.model_threads if given.model_threads == "auto" else int(given.model_threads)
    options = {"n_ctx": given.n_ctx, "threads": threads, "backend": given.backend}
    first = given.models[0] if given.models else None
    second = given.models[1] if len(given.models) > 1 else None
    results: dict[str, Any] = {}
    if given.part != "calls":
        results["latency"] = latency(first, given.runs, options, given.seed)
    if given.part != "latency":
        results["calls"] = calls([first, second], given.threads, given.seconds, options, given.seed)
    if given.json:
        print(json.dumps(results, indent=2))
    else:
        show(results)
    sys.exit(0 if all(part["ok"] for part in results.values()) else 1)


if __name__ == "__main__":
    main()
