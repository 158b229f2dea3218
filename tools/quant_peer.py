#!/usr/bin/env python3
"""Quantisation errors of edgellm over those of llama.cpp, type by type, as a table in Markdown (docs/quantisation.md).

    python tools/quant_peer.py --peer-python PYTHON [--model F16.gguf] [--rows 128]

PYTHON is an interpreter with llama-cpp-python; its libggml-base quantises the same rows with ggml_quantize_chunk, with
and without an importance matrix. An entry is the ratio of the root mean squared errors, weighted by the importance
where there is one; below 1 edgellm's error is smaller. Weights: Gaussian, heavy-tailed (Student's t, 3 degrees of
freedom), and those of a model (by default the stories260K checkpoint of the shared data, if it is there).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from edgellm.blocks import BY_NAME  # noqa: E402
from edgellm.convert.pack import pack  # noqa: E402
from edgellm.quants import dequantize  # noqa: E402
from edgellm.quants.pack_search import SEARCH  # noqa: E402

TYPES = (*SEARCH, "TQ1_0", "TQ2_0", "MXFP4")

K = 1024
STORIES = ROOT.parent / "shared" / "data" / "stories260K" / "stories260K.bin"

# Runs in the peer's interpreter: reads rows and importance, writes the bytes of every type with and without importance.
PEER = """
import ctypes, importlib.util, json, pathlib, sys
import numpy as np
folder = pathlib.Path(importlib.util.find_spec("llama_cpp").origin).parent / "lib"
found = sorted(p for p in folder.iterdir() if "ggml-base" in p.name)
lib = ctypes.CDLL(str(found[0]))
f = lib.ggml_quantize_chunk
f.restype = ctypes.c_size_t
f.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3 + [ctypes.c_void_p]
data, out = np.load(sys.argv[1]), {}
for name, (code, row_bytes) in json.loads(sys.argv[3]).items():
    for what in ("gauss", "heavy", "model"):
        if what not in data.files:
            continue
        x = np.ascontiguousarray(data[what])
        for weighted in (0, 1):
            raw = np.zeros((len(x), row_bytes), np.uint8)
            w = np.ascontiguousarray(data["importance"])
            f(code, x.ctypes.data, raw.ctypes.data, 0, *x.shape, w.ctypes.data if weighted else None)
            out[f"{what} {name} {weighted}"] = raw
np.savez(sys.argv[2], **out)
"""


def weights_of(path: Path, n_rows: int) -> np.ndarray:
    """float32 (up to n_rows, K): matrices of a GGUF file, one after the other."""
    from edgellm.gguf import open_gguf

    parts = []
    with open_gguf(path) as file:
        for name, info in file.tensors.items():
            if len(info.shape) > 1:
                parts.append(dequantize(file.data(name), info.type, info.shape).reshape(-1))
    flat = np.concatenate(parts)
    rows = flat[: flat.size // K * K].reshape(-1, K)
    return rows[:: max(1, len(rows) // n_rows)][:n_rows]


def samples(model: Path | None, n_rows: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    found = {
        "gauss": rng.standard_normal((n_rows, K)).astype(np.float32),
        "heavy": rng.standard_t(3, (n_rows, K)).astype(np.float32),
        "importance": (rng.chisquare(2, K) * np.exp(rng.standard_normal(K))).astype(np.float32),
    }
    with tempfile.TemporaryDirectory() as folder:
        if model is None and STORIES.exists():
            from edgellm.convert import convert

            model = Path(folder) / "stories.gguf"
            convert(STORIES, model, "f32", tokenizer=STORIES.with_name("tok512.bin"))
        if model is not None:
            found["model"] = weights_of(model, n_rows)
    return found


def error(x: np.ndarray, raw: np.ndarray, name: str, w: np.ndarray) -> float:
    miss = dequantize(raw, name, x.shape) - x.astype(np.float64)
    return float(np.sqrt((np.square(miss) * w).sum()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--limit", type=float, default=1.02, help="exit 1 when a ratio is above this")
    args = parser.parse_args()
    data = samples(args.model, args.rows)
    importance, kinds = data["importance"], [k for k in ("gauss", "heavy", "model") if k in data]
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "x.npz", Path(folder) / "y.npz"
        np.savez(source, **data)
        table = "{" + ", ".join(f'"{n}": [{BY_NAME[n].id}, {BY_NAME[n].row_bytes(K)}]' for n in TYPES) + "}"
        subprocess.run([args.peer_python, "-c", PEER, str(source), str(target), table], check=True)
        peer = dict(np.load(target))
    print("| type | " + " | ".join(f"{k}{i}" for k in kinds for i in ("", ", importance")) + " |")
    print("|---" * (1 + 2 * len(kinds)) + "|")
    worst = 0.0
    for name in TYPES:
        row = []
        for kind in kinds:
            for w in (None, importance):
                counts = np.ones(K) if w is None else w.astype(np.float64)
                theirs = error(data[kind], peer[f"{kind} {name} {int(w is not None)}"], name, counts)
                row.append(error(data[kind], pack(data[kind], BY_NAME[name], w), name, counts) / theirs)
        print(f"| {name} | " + " | ".join(f"{r:.4f}" for r in row) + " |", flush=True)
        worst = max(worst, *row)
    print(f"\nErrors of {len(TYPES)} types are at most {worst:.4f} of llama.cpp's (limit {args.limit})")
    return int(worst > args.limit)


if __name__ == "__main__":
    sys.exit(main())
