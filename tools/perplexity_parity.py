"""Compare `edgellm perplexity` with the same sums over llama.cpp's logits.

    python tools/perplexity_parity.py --peer-python /path/to/venv/bin/python [-c 256] [--chunks 800] [MODEL ...]

The peer's environment holds `llama-cpp-python`, which runs in a process of its own: it cuts the text into tokens, runs
each window and sums -ln p(token) over its second half, as llama-perplexity does. Default models: stories260K as F32,
with an F32 and an F16 cache, and as Q8_0, converted here; the text is the beginning of ../shared/data/text/grimm.txt.
Perplexities must agree to 1e-4 relative. Fast kernels of both programs round activations to 8 bits, and one sum in
another order tips a rounding, which tips others: token by token the two differ as much as each from the exact answer
(1.4e-3 over 1,000 tokens of the Q8_0 file, 3e-4 over 10,000), and over 100,000 that averages out. Hence the long text;
some three minutes.
tests/test_perplexity.py holds figures that this tool printed.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
SHARED = ROOT.parent / "shared" / "data"
N_CHARS = 1_000_000  # of the text
TOLERANCE = 1e-4

PEER = """
import json, sys
import numpy as np
import llama_cpp
job = json.load(sys.stdin)
kv = {"f32": 0, "f16": 1}[job["kv"]]
model = llama_cpp.Llama(job["path"], n_ctx=job["n_ctx"], n_batch=job["n_ctx"], logits_all=True, verbose=False,
                        n_threads=1, type_k=kv, type_v=kv)
ids = model.tokenize(job["text"].encode(), add_bos=True, special=False)
n_ctx, bos = job["n_ctx"], model.token_bos()
loss = []
for i in range(min(len(ids) // n_ctx, job["chunks"])):
    window = ids[i * n_ctx : (i + 1) * n_ctx]
    model.reset()
    model.eval([bos] + window[1:])
    first = n_ctx // 2
    logits = np.array(model.scores[first : n_ctx - 1], dtype=np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    loss += (-logits[np.arange(len(logits)), window[first + 1 :]]).tolist()
print("RESULT" + json.dumps([llama_cpp.__version__, float(np.exp(np.mean(loss))), len(loss)]))
"""


def ask_peer(python: str, **job: object) -> tuple[str, float, int]:
    """llama-cpp-python's version, the perplexity and the number of counted tokens."""
    done = subprocess.run([python, "-c", PEER], input=json.dumps(job), capture_output=True, text=True)
    line = next((x for x in done.stdout.splitlines() if x.startswith("RESULT")), None)
    if line is None:
        raise SystemExit(f"llama.cpp could not be asked:\n{done.stderr[-2000:]}")
    return json.loads(line[6:])


def convert_stories(folder: Path) -> list[str]:
    from edgellm.convert import convert

    out = []
    for outtype in ("f32", "q8_0"):
        path = folder / f"stories260K-{outtype}.gguf"
        source = SHARED / "stories260K"
        convert(source / "stories260K.bin", path, outtype, tokenizer=source / "tok512.bin")
        out.append(str(path))
    return out


def dequantise(plain: str, quantised: str, out: Path) -> str:
    """A copy of the F32 file `plain` that holds the weights of `quantised`, so that llama.cpp rounds no activations."""
    import gguf
    import numpy as np

    shutil.copy(plain, out)
    weights = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(quantised).tensors}
    reader = gguf.GGUFReader(out, "r+")
    for tensor in reader.tensors:
        tensor.data[:] = np.asarray(weights[tensor.name], np.float32).reshape(tensor.data.shape)
        tensor.data.flush()
    return str(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*")
    parser.add_argument("--peer-python", required=True, help="interpreter that has llama-cpp-python")
    parser.add_argument("-c", "--ctx-size", type=int, default=256)
    parser.add_argument("--chunks", type=int, default=800)
    args = parser.parse_args()
    import edgellm
    from edgellm.perplexity import perplexity

    text = (SHARED / "text" / "grimm.txt").read_text(encoding="utf-8")[:N_CHARS]
    good, worst = True, 0.0
    print("| model | cache | backend | edgellm | llama.cpp | relative difference |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        rows = [(path, path, kv, "native", False) for path in args.models for kv in ("f32", "f16")]
        if not rows:
            f32, q8_0 = convert_stories(Path(folder))
            exact = dequantise(f32, q8_0, Path(folder) / "stories260K-q8_0-as-f32.gguf")
            rows = [(f32, f32, "f32", "native", True), (f32, f32, "f16", "native", True),
                    (q8_0, exact, "f32", "reference", True), (q8_0, q8_0, "f32", "native", True)]  # fmt: skip
        for path, peer_path, kv, backend, gate in rows:
            with edgellm.load(path, n_ctx=args.ctx_size, kv_type=kv, threads=1, backend=backend) as model:
                ours = perplexity(model, text, args.ctx_size, args.chunks)
            version, theirs, n = ask_peer(
                args.peer_python, path=peer_path, kv=kv, n_ctx=args.ctx_size, chunks=args.chunks, text=text
            )
            far = abs(ours.ppl / theirs - 1)
            good = good and (far <= TOLERANCE or not gate) and n == ours.n_tokens
            worst = max(worst, far if gate else 0.0)
            name = Path(path).name if path == peer_path else f"{Path(path).name} (llama.cpp: the same weights as F32)"
            print(f"| {name} | {kv} | {backend} | {ours.ppl:.6f} | {theirs:.6f} | {far:.1e} |")
    print(f"\nllama-cpp-python {version}; {n} tokens counted.")
    print(f"at most {worst:.1e} relative (limit {TOLERANCE:.0e})")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
