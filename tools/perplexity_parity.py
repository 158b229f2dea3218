"""Compare `edgellm perplexity` with the same sums over llama.cpp's logits.

    python tools/perplexity_parity.py --peer-python /path/to/venv/bin/python [-c 256] [--chunks 8] [MODEL ...]

The peer's environment holds `llama-cpp-python`, which runs in a process of its own: it cuts the text into tokens, runs
each window and sums -ln p(token) over its second half, as llama-perplexity does. Default models: stories260K as F32 and
as Q8_0, converted here, with an F32 and an F16 cache; the text is the beginning of ../shared/data/text/grimm.txt. The
perplexities must agree to 1e-4 relative. tests/test_perplexity.py holds figures that this tool printed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
SHARED = ROOT.parent / "shared" / "data"
N_CHARS = 20_000  # of the text
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*")
    parser.add_argument("--peer-python", required=True, help="interpreter that has llama-cpp-python")
    parser.add_argument("-c", "--ctx-size", type=int, default=256)
    parser.add_argument("--chunks", type=int, default=8)
    args = parser.parse_args()
    import edgellm
    from edgellm.perplexity import perplexity

    text = (SHARED / "text" / "grimm.txt").read_text(encoding="utf-8")[:N_CHARS]
    good = True
    print("| model | cache | edgellm | llama.cpp | relative difference |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for path in args.models or convert_stories(Path(folder)):
            for kv in ("f32", "f16"):
                with edgellm.load(path, n_ctx=args.ctx_size, kv_type=kv, threads=1) as model:
                    ours = perplexity(model, text, args.ctx_size, args.chunks)
                version, theirs, n = ask_peer(
                    args.peer_python, path=path, kv=kv, n_ctx=args.ctx_size, chunks=args.chunks, text=text
                )
                far = abs(ours.ppl / theirs - 1)
                good = good and far <= TOLERANCE and n == ours.n_tokens
                print(f"| {Path(path).name} | {kv} | {ours.ppl:.6f} | {theirs:.6f} | {far:.1e} |")
    print(f"\nllama-cpp-python {version}; {n} tokens counted; at most {TOLERANCE:g} allowed: {'ok' if good else 'FAILED'}")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
