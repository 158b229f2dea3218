"""A short pass of a model through every backend that is there, and whether they agree."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.errors import EdgeLLMError
from edgellm.machine import choose_threads, memory
from edgellm.progress import Meter, ProgressCallback

if TYPE_CHECKING:
    from edgellm.gguf import GGUFFile
    from edgellm.plan import Plan
    from edgellm.weights import Weights

TEXT = "The quick brown fox"
MAX_TOKENS = 8
# the reference backend decodes every weight to float32 and takes its time: models up to so many bytes of these
MAX_REFERENCE_BYTES = 2 << 30
# NMSE of logits against those of the backend named first; both compute formats/arithmetic.md, so usually it is 0
SAME_ARITHMETIC = 1e-9
# and against the reference, whose activations are not rounded to 8 bits; a float model rounds nothing
ROUNDED, FLOATS = 2e-2, 1e-6


def run_backends(
    file: GGUFFile, backends: dict[str, dict[str, Any]], progress: ProgressCallback | None
) -> list[dict[str, Any]]:
    """One entry for each backend: `seconds` of the pass and `nmse` of its logits against the first one's, with the
    `limit` that they must keep to; or `skipped` or `error`, a reason."""
    from edgellm.models import build_plan, read_config
    from edgellm.weights import Weights

    plan = build_plan(read_config(file), file)
    weights = Weights(file, plan)
    tokens = _tokens(file, plan)
    out: list[dict[str, Any]] = []
    first: np.ndarray | None = None
    for name, state in backends.items():
        run: dict[str, Any] = {"backend": name}
        out.append(run)
        reason = _too_much(name, plan) if state["available"] else state["reason"]
        if reason:
            run["skipped"] = reason
            continue
        try:
            logits, run["seconds"] = _logits(name, plan, weights, tokens, progress)
        except EdgeLLMError as error:
            run |= {"error": str(error), "exit_code": error.exit_code}
            continue
        if first is None:
            first, run["token"] = logits, int(np.argmax(logits))
        else:
            run |= {"nmse": _nmse(first, logits), "limit": _limit(name, weights), "token": int(np.argmax(logits))}
    return out


def _tokens(file: GGUFFile, plan: Plan) -> np.ndarray:
    """int32 (n,): a few words, or ids from the middle of the vocabulary where the tokenizer cannot be read."""
    from edgellm.tokenizers import Tokenizer

    try:
        ids = Tokenizer.from_gguf(file).encode(TEXT)[:MAX_TOKENS]
    except EdgeLLMError:
        ids = []
    return np.array(ids or [plan.n_vocab // 2], dtype=np.int32)


def _too_much(name: str, plan: Plan) -> str:
    """Why a backend is left out; "": it is not."""
    n_bytes = 4 * sum(map(math.prod, plan.weights.values()))
    if name != "reference" or n_bytes <= min(MAX_REFERENCE_BYTES, memory().available // 2):
        return ""
    return f"as floats the weights take {n_bytes / 2**30:.1f} GiB"


def _limit(name: str, weights: Weights) -> float:
    if name != "reference":
        return SAME_ARITHMETIC
    return FLOATS if all(weights.type(n).activation == "f32" for n in weights.names) else ROUNDED


def _logits(
    name: str, plan: Plan, weights: Weights, tokens: np.ndarray, progress: ProgressCallback | None
) -> tuple[np.ndarray, float]:
    """float32 (n_vocab,) logits behind the last of `tokens` (an encoder's hidden state), and the pass's seconds."""
    from edgellm.backends import create
    from edgellm.cache import PagePool, Sequence, resolve_kv_type

    meter = Meter(progress, f"running it in {name}", 3, "steps")
    n, last = len(tokens), np.array([len(tokens) - 1], dtype=np.int32)
    kv_type = resolve_kv_type("auto", weights.matrix_types)
    backend = create(name, plan, weights, n_threads=choose_threads().n, max_tokens=n)
    try:
        meter.advance(1)
        if hasattr(backend, "prepare"):  # compiles its kernels
            backend.prepare(kv_type, None)
        meter.advance(1)
        pool = PagePool.for_tokens(plan.kv, kv_type, n)
        seq = Sequence(pool, n)
        try:
            seq.ensure(n)
            start = time.perf_counter()
            logits = backend.forward(tokens, 0, last, seq, hidden=plan.logits is None)[0].copy()
            seconds = time.perf_counter() - start
            meter.advance(1)
            return logits, seconds
        finally:
            seq.close()
            pool.close()
    finally:
        backend.close()


def _nmse(a: np.ndarray, b: np.ndarray) -> float:
    from edgellm.backends.compare import nmse

    return nmse(a, b)
