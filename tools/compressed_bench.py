"""Compressed panels beside dense ones: bytes and speed of a model with random zeros, the same file loaded both ways.

    python tools/compressed_bench.py MODEL.gguf [--rounds 5] [--tokens 32] [--json]

Zeros are drawn with a seed in the matrices of the layers (the output head with --head); nothing of the model's quality
is left, which does not matter here. Dense and compressed take turns, in one process, and their logits must be equal to
the bit. Break-even: the share of zeros from which compressed panels take fewer bytes, on the model's largest matrix.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from speculation_figures import write_region

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import edgellm  # noqa: E402
from edgellm.backends import compressed  # noqa: E402
from edgellm.bench import one_test, tokens_for  # noqa: E402
from edgellm.blocks import BlockType  # noqa: E402
from edgellm.gguf import GGUFFile, GGUFWriter, TensorInfo, open_gguf  # noqa: E402

KINDS = ("Q8_0", "Q4_0")
STRETCH = 8 << 20  # bytes of blocks that are changed at once
WIDTHS = (2, 4, 8, 128)  # tokens of a pass, beside decoding one by one


def zeros(shape: tuple[int, ...], pattern: str, rng: np.random.Generator) -> np.ndarray:
    """bool (blocks, 32): which weights go. `pattern`: "2:4", or the share of them."""
    if pattern != "2:4":
        return rng.random(shape, dtype=np.float32) < float(pattern)
    pairs = np.array([[a in p for a in range(4)] for p in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))])
    return pairs[rng.integers(0, 6, size=(shape[0], 8))].reshape(shape)


def thinned(data: np.ndarray, kind: BlockType, pattern: str, rng: np.random.Generator) -> np.ndarray:
    """Blocks, uint8, with some of their codes those of 0."""
    blocks = data.copy().view(kind.dtype)
    gone = zeros((blocks.size, 32), pattern, rng)
    if kind.name == "Q8_0":
        blocks["qs"][gone] = 0
        return blocks.view(np.uint8)
    low, high = blocks["qs"] & 15, blocks["qs"] >> 4
    low[gone[:, :16]] = 8
    high[gone[:, 16:]] = 8
    blocks["qs"] = low | high << 4
    return blocks.view(np.uint8)


def is_pruned(t: TensorInfo, head: bool) -> bool:
    layers = t.name.startswith("blk.") and len(t.shape) > 1
    return t.type.name in KINDS and (layers or (head and t.name == "output.weight"))


def write_thin(file: GGUFFile, out: Path, pattern: str, head: bool, seed: int = 0) -> None:
    """A copy of the file with zeros, a stretch at a time."""
    rng = np.random.default_rng(seed)

    def stretches(t: TensorInfo) -> Iterator[np.ndarray]:
        data, step = file.data(t.name), STRETCH // t.type.type_size * t.type.type_size
        for at in range(0, data.size, step):
            part = data[at : at + step]
            yield thinned(part, t.type, pattern, rng) if is_pruned(t, head) else part

    with GGUFWriter(out, None) as writer:
        for key in file.metadata:
            writer.add_raw(key, file.metadata.raw(key))
        for t in file.tensors.values():
            writer.add_tensor_info(t.name, t.shape, t.type)
        for t in file.tensors.values():
            writer.write_tensor(t.name, stretches(t))


def load(path: Path, dense: bool, threads: int | str) -> edgellm.Model:
    if not dense:
        return edgellm.load(path, n_ctx=512, threads=threads, backend="native")
    with patch.object(compressed, "find_compressed", lambda *_: {}):
        return edgellm.load(path, n_ctx=512, threads=threads, backend="native")


def weight_bytes(model: edgellm.Model) -> int:
    """Bytes of matrices that a decoded token reads."""
    loaded = model._loaded
    multiplied = {step.weights[0] for step in loaded.plan.steps if step.op.value == "linear"}
    return sum(n for name, n in loaded.runner.weight_bytes().items() if name in multiplied)


def compare(path: Path, rounds: int, n_tokens: int, threads: int | str) -> dict[str, Any]:
    """Both forms of one file: bytes, and tokens per second by turns (medians of rounds, and of their ratios)."""
    with load(path, True, threads) as dense, load(path, False, threads) as thin:
        ids = tokens_for(12, dense._loaded.plan.n_vocab, 7)
        if dense.logits(ids).tobytes() != thin.logits(ids).tobytes():
            raise SystemExit(f"{path}: logits of dense and compressed panels differ")
        found: dict[str, Any] = {"dense_bytes": weight_bytes(dense), "bytes": weight_bytes(thin)}
        found["byte_ratio"] = found["dense_bytes"] / found["bytes"]
        for what, n_prompt, n_gen in [("decode", 0, n_tokens), *((f"pass of {n}", n, 0) for n in WIDTHS)]:
            rates: dict[str, list[float]] = {"dense": [], "compressed": []}
            for i in range(rounds):
                order = [("dense", dense), ("compressed", thin)]
                for name, model in order if i % 2 else order[::-1]:
                    print(f"{path.name}: {what}, round {i + 1} of {rounds}, {name}", file=sys.stderr)
                    rates[name] += one_test(model, n_prompt, n_gen, 0, 8 if 0 < n_prompt < 16 else 1).samples_ts
            pairs = [b / a for a, b in zip(rates["dense"], rates["compressed"], strict=True)]
            found[what] = {name: statistics.median(r) for name, r in rates.items()}
            found[what]["ratio"] = statistics.median(pairs)
    return found


def break_even(file: GGUFFile) -> tuple[float, float]:
    """Shares of zeros from which the largest matrix takes fewer bytes, and few enough to be compressed at load."""
    t = max((t for t in file.tensors.values() if is_pruned(t, False)), key=lambda t: t.n_bytes)
    rows, k = min(512, math.prod(t.shape[:-1])), t.shape[-1]
    data = file.data(t.name)[: rows * t.type.row_bytes(k)]
    found = []
    for limit in (1.0, compressed.WORTH):
        low, high = 0.0, 1.0
        while high - low > 0.005:
            middle = (low + high) / 2
            part = thinned(data, t.type, str(middle), np.random.default_rng(1))
            small = compressed.sampled_share(part, t.type, rows, k) < limit
            low, high = (low, middle) if small else (middle, high)
        found.append(high)
    return found[0], found[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a GGUF file whose matrices are Q8_0 or Q4_0")
    parser.add_argument("--patterns", default="2:4,0.5,0.7", help="which zeros, comma-separated")
    parser.add_argument("--head", action="store_true", help="zeros in the output head too")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32, help="decoded in each measurement")
    parser.add_argument("--threads", default="auto")
    parser.add_argument("--write", type=Path, help="a page with a section for the table")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    threads = args.threads if args.threads == "auto" else int(args.threads)
    rows = []
    with open_gguf(args.model) as file, tempfile.TemporaryDirectory() as folder:
        even = break_even(file)
        for pattern in args.patterns.split(","):
            out = Path(folder) / f"{args.model.stem}-{pattern.replace(':', 'of')}.gguf"
            print(f"{args.model.name}: writing a copy with zeros ({pattern})", file=sys.stderr)
            write_thin(file, out, pattern, args.head)
            rows.append({"pattern": pattern} | compare(out, args.rounds, args.tokens, threads))
            os.unlink(out)
    if args.json:
        print(json.dumps({"model": str(args.model), "break_even": even, "rows": rows}))
        return
    lines = table(args.model.name, even, rows)
    if args.write:
        write_region(args.write, "compressed-panels", lines)
    print("\n".join(lines))


def table(name: str, even: tuple[float, float], rows: list[dict[str, Any]]) -> list[str]:
    """Markdown."""
    lines = [
        f"{name}: fewer bytes from {even[0]:.0%} zeros on, compressed at load from {even[1]:.0%}.",
        "",
        "| zeros | MB a token: dense | compressed | byte ratio | decode: dense, t/s | compressed | faster |"
        + "".join(f" pass of {n} |" for n in WIDTHS),
        "|---|" + "---:|" * (6 + len(WIDTHS)),
    ]
    for r in rows:
        d = r["decode"]
        lines.append(
            f"| {r['pattern']} | {r['dense_bytes'] / 1e6:.0f} | {r['bytes'] / 1e6:.0f} | {r['byte_ratio']:.2f} | "
            f"{d['dense']:.1f} | {d['compressed']:.1f} | {d['ratio']:.2f} x |"
            + "".join(f" {r[f'pass of {n}']['ratio']:.2f} x |" for n in WIDTHS)
        )
    return lines


if __name__ == "__main__":
    main()
