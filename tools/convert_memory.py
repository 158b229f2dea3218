"""Show how much memory `edgellm convert` and `edgellm quantize` need at most, on a sharded checkpoint made for it.

    python tools/convert_memory.py --megabytes 2048

The limit is 3 x the largest tensor + 200 MB (whole process, Python and NumPy included). Ends with status 1 above it.
"""

import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
MB = 1_000_000
BASE_MB = 200
VOCAB, N_SHARDS = 8192, 4

MEASURE = """
import resource, sys
from edgellm.convert import convert
from edgellm.quantize import quantize
source, out, outtype = sys.argv[1:]
if outtype.startswith("quantize:"):
    quantize(source, out, outtype.split(":")[1])
else:
    convert(source, out, outtype)
try:  # a new program starts with its parent's maximum in ru_maxrss, not in this file
    with open("/proc/self/status") as status:
        print(next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM")))
except OSError:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""


def config_for(megabytes: float) -> dict:
    """A Llama with F16 weights of about that size. The embedding table is its largest tensor."""
    dim = 2048 if megabytes > 1000 else 512
    ffn, heads = 3 * dim, dim // 64
    layer = 2 * (4 * dim * dim + 3 * dim * ffn)
    layers = max(2, round((megabytes * MB - 4 * VOCAB * dim) / layer))
    return {
        "architectures": ["LlamaForCausalLM"], "hidden_size": dim, "intermediate_size": ffn, "vocab_size": VOCAB,
        "num_hidden_layers": layers, "num_attention_heads": heads, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    }  # fmt: skip


def shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape."""
    d, f = config["hidden_size"], config["intermediate_size"]
    out = {"model.embed_tokens.weight": (VOCAB, d), "lm_head.weight": (VOCAB, d), "model.norm.weight": (d,)}
    for i in range(config["num_hidden_layers"]):
        p = f"model.layers.{i}"
        out |= {f"{p}.self_attn.{n}_proj.weight": (d, d) for n in "qkvo"}
        out |= {
            f"{p}.mlp.gate_proj.weight": (f, d),
            f"{p}.mlp.up_proj.weight": (f, d),
            f"{p}.mlp.down_proj.weight": (d, f),
        }
        out |= {f"{p}.input_layernorm.weight": (d,), f"{p}.post_attention_layernorm.weight": (d,)}
    return out


def tokenizer_json() -> dict:
    """A byte-level tokenizer with one piece for each row of the embedding."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    vocab = {f"p{i}": i for i in range(VOCAB)}
    return {"pre_tokenizer": level, "model": {"type": "BPE", "vocab": vocab, "merges": []}}


def write_folder(folder: Path, megabytes: float) -> tuple[int, int]:
    """Returns the bytes of all tensors and of the largest one. The weights repeat one block of random numbers."""
    config = config_for(megabytes)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json()))
    noise = np.random.default_rng(0).standard_normal(1 << 20).astype("<f2").tobytes()
    tensors = list(shapes(config).items())
    weight_map, total, largest = {}, 0, 0
    for i in range(N_SHARDS):
        name, header, at = f"model-{i + 1:05d}-of-{N_SHARDS:05d}.safetensors", {}, 0
        for tensor, shape in tensors[i::N_SHARDS]:
            n = 2 * int(np.prod(shape))
            header[tensor] = {"dtype": "F16", "shape": shape, "data_offsets": [at, at + n]}
            at, largest = at + n, max(largest, n)
            weight_map[tensor] = name
        raw = json.dumps(header).encode()
        with open(folder / name, "wb") as out:
            out.write(struct.pack("<Q", len(raw)) + raw)
            for start in range(0, at, len(noise)):
                out.write(noise[: min(len(noise), at - start)])
        total += at
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total, largest


def peak(source: Path, out: Path, outtype: str) -> int:
    """High-water mark in bytes of a process of its own that does the work."""
    command = [sys.executable, "-c", MEASURE, str(source), str(out), outtype]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return int(subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout)


def measure(megabytes: float, outtypes: list[str], folder: Path) -> tuple[list[tuple[str, int]], int, int]:
    """[(outtype, peak)], bytes of the checkpoint, limit. An outtype `quantize:Q4_0` quantises the file made before."""
    source, out = folder / "model", folder / "out.gguf"
    source.mkdir()
    total, largest = write_folder(source, megabytes)
    rows = []
    for outtype in outtypes:
        quantised = outtype.startswith("quantize:")
        rows.append((outtype, peak(out if quantised else source, folder / "q.gguf" if quantised else out, outtype)))
    return rows, total, 3 * largest + BASE_MB * MB


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=2048, help="size of the checkpoint (default: %(default)s)")
    parser.add_argument("--outtypes", nargs="+", default=["q4_0", "q8_0", "f32", "f16", "quantize:Q4_0"])
    parser.add_argument("--folder", type=Path, help="where to work (default: the system's temporary folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        rows, total, limit = measure(args.megabytes, args.outtypes, Path(name))
    print(f"| checkpoint of {total / MB:.0f} MB, {N_SHARDS} shards | peak MB | limit MB |\n|---|---|---|")
    for outtype, high in rows:
        print(f"| {outtype} | {high / MB:.0f} | {limit / MB:.0f} |")
    return int(any(high > limit for _, high in rows))


if __name__ == "__main__":
    sys.exit(main())
