"""Check with llama.cpp that the files `edgellm convert` and `edgellm quantize` write are good files.

    python tools/peer_check.py --peer-python /path/to/venv/bin/python [MODEL ...]

The peer's environment holds `llama-cpp-python`, which runs in a process of its own. Checkpoints: stories260K, two with
random weights, the built-in model, and every MODEL (a Hugging Face folder or a plain GGUF file). Gates:

- F32: every position has the same most likely token, and llama.cpp writes the same greedy text;
- Q8_0 and Q4_0 of the built-in model and of MODELs: the same token on 99 % of the positions of the texts they write;
- every type: edgellm is no further from the exact answer (reference backend, dequantised weights) than 1.2 x llama.cpp.

Both programs round activations to 8 bits, each in its own order of sums, and the two errors part within two layers.
For models as small as stories260K llama.cpp itself picks another token than the exact answer on 1 % of the positions.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
SHARED = ROOT.parent / "shared" / "data"
BUILT_IN = sorted((ROOT / "edgellm" / "data").glob("*.gguf"))
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
NEEDED = {"F32": 1.0, "Q8_0": 0.99, "Q4_0": 0.99}  # share of positions, where the model is large enough
NOISE = 1.2  # llama.cpp's error x this bounds edgellm's; the errors of a thousand positions scatter by a tenth
N_TEXT, N_SAMPLES = 200, 4  # tokens of a text; texts that are sampled to see more positions

# Runs in the peer's environment: {"path", "windows", "n_text", ...} on stdin, logits to files, the rest to stdout.
PEER = """
import json, sys
import numpy as np
from llama_cpp import Llama
job = json.load(sys.stdin)
model = Llama(job["path"], n_ctx=job["n_ctx"], logits_all=True, verbose=False, n_threads=1, type_k=0, type_v=0)
text = None
if job["n_text"]:
    start, ids = model.tokenize(b"", add_bos=True), []
    for token in model.generate(start, temp=0.0, top_k=1, repeat_penalty=1.0):
        ids.append(token)
        if len(ids) == job["n_text"]:
            break
    text = ids
top = []
for window in job["windows"]:
    model.reset()
    model.eval(window)
    logits = np.array(model.scores[: len(window)])
    top += logits.argmax(axis=1).tolist()
    np.save(job["out"] + "." + str(len(top)) + ".npy", logits)
print("RESULT" + json.dumps({"ids": text, "top": top}))
"""


def ask_peer(python: str, path: Path, windows: list[list[int]], n_text: int, folder: Path) -> tuple[dict, np.ndarray]:
    """llama.cpp's greedy ids and its logits, (positions, vocab), with an F32 cache."""
    n_ctx = max([n_text + 8, *(len(w) for w in windows)])
    job = {"path": str(path), "windows": windows, "n_text": n_text, "n_ctx": n_ctx, "out": str(folder / "logits")}
    done = subprocess.run([python, "-c", PEER], input=json.dumps(job), capture_output=True, text=True)
    line = next((x for x in done.stdout.splitlines() if x.startswith("RESULT")), None)
    if line is None:
        raise SystemExit(f"llama.cpp could not use {path}:\n{done.stderr[-2000:]}")
    ends = np.cumsum([len(w) for w in windows])
    logits = [np.load(folder / f"logits.{end}.npy") for end in ends]
    return json.loads(line[6:]), np.concatenate(logits)


@dataclass(frozen=True)
class Job:
    """One file to check on token windows; `gate`: the share of positions that must have the same token."""

    what: str
    path: Path
    windows: list[list[int]]
    gate: float = 0.0
    greedy: bool = False  # the first window is edgellm's greedy text, which llama.cpp must write too


def logits_of(path: Path, windows: list[list[int]], backend: str) -> np.ndarray:
    import edgellm

    with edgellm.load(path, backend=backend, kv_type="f32", threads=1) as model:
        return np.concatenate([model.logits(w) for w in windows])


def check(python: str, job: Job, folder: Path) -> tuple[str, bool]:
    """A row of the table, and whether it passed."""
    ours, exact = (logits_of(job.path, job.windows, backend) for backend in ("native", "reference"))
    peer, theirs = ask_peer(python, job.path, job.windows, N_TEXT if job.greedy else 0, folder)
    good = same(ours, theirs) >= job.gate and nmse(ours, exact) <= max(NOISE * nmse(theirs, exact), 1e-10)
    share = f"{same(ours, theirs):.2%}" + (f" (>= {job.gate:.0%})" if job.gate else "")
    if job.greedy:
        wrote = peer["ids"] == job.windows[0][1:]
        good = good and wrote
        share += ", same text" if wrote else ", OTHER TEXT"
    to_exact = [f"{same(x, exact):.2%}, {nmse(x, exact):.1e}" for x in (ours, theirs)]
    cells = [job.what, len(ours), share, f"{nmse(ours, theirs):.1e}", *to_exact, "ok" if good else "FAILED"]
    return f"| {' | '.join(map(str, cells))} |", good


def same(a: np.ndarray, b: np.ndarray) -> float:
    """Share of positions with the same most likely token."""
    return float((a.argmax(1) == b.argmax(1)).mean())


def nmse(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.square(a - b).sum() / np.square(b, dtype=np.float64).sum())


# ---- what is checked -------------------------------------------------------------------------------------------------


def own_texts(path: Path) -> list[list[int]]:
    """Token ids that the model itself writes: greedy first, then sampled ones; each starts with its BOS."""
    import edgellm

    with edgellm.load(path, backend="native", kv_type="f32") as model:
        n = min(N_TEXT, model.n_ctx - 1)
        bos = model.tokenize("", add_special=True)
        greedy = model.generate("", max_tokens=n, temperature=0, ignore_eos=True)
        sampled = [model.generate("", max_tokens=n, temperature=0.7, seed=i, ignore_eos=True) for i in range(N_SAMPLES)]
    return [[*bos, *one.token_ids] for one in (greedy, *sampled)]


def family(
    name: str, source: Path, folder: Path, tokenizer: Path | None = None, *, trained: bool = True, large: bool = True
) -> Iterator[Job]:
    """Everything that edgellm writes from one checkpoint; from a GGUF file, what `quantize` makes of it."""
    from edgellm.convert import convert
    from edgellm.quantize import quantize

    plain = folder / f"{name}-f32.gguf"
    if source.suffix == ".gguf":
        quantize(source, plain, "F32", allow_requantize=True)
    else:
        convert(source, plain, "f32", tokenizer)
    windows = own_texts(plain) if trained else [np.random.default_rng(0).integers(3, 600, 240).tolist()]
    yield Job(f"{name} F32", plain, windows, NEEDED["F32"], greedy=trained)
    for outtype in ("f16", "bf16", "q8_0", "q4_0") if source.suffix != ".gguf" else ():
        path, kind = folder / f"{name}-{outtype}.gguf", outtype.upper()
        convert(source, path, outtype, tokenizer)
        yield Job(f"{name} convert {kind}", path, windows, NEEDED.get(kind, 0.0) if large else 0.0)
    for kind in TYPES[1:] if trained else ():
        path = folder / f"{name}-quantize-{kind}.gguf"
        quantize(plain, path, kind)
        yield Job(f"{name} quantize {kind}", path, windows, NEEDED.get(kind, 0.0) if large else 0.0)


def jobs(models: list[Path], folder: Path) -> Iterator[Job]:
    stories = SHARED / "stories260K"
    yield from family("stories260K", stories / "stories260K.bin", folder, stories / "tok512.bin", large=False)
    for name in ("llama", "llama3-rope"):  # random weights: their best tokens lie too close together
        yield from family(name, SHARED / "hf-tiny" / name, folder, trained=False, large=False)
    for model in [*BUILT_IN, *models]:
        yield from family(model.stem, model, folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", required=True, help="the Python of an environment with llama-cpp-python")
    parser.add_argument("models", nargs="*", type=Path, help="trained models: Hugging Face folders or plain GGUF files")
    args = parser.parse_args()
    failed = []
    print("| file | positions | same best token | NMSE | edgellm to exact | llama.cpp to exact | |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        for job in jobs(args.models, Path(name)):
            row, good = check(args.peer_python, job, Path(name))
            print(row, flush=True)
            failed += [] if good else [job.what]
    print(f"\nfailed: {', '.join(failed)}" if failed else "\nall checks passed")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
