#!/usr/bin/env python3
"""Every quantised type beside llama.cpp, on models as wide as the types need: how far the fast kernels are from exact.

    python tools/parity_quants.py --llama-python PATH [--texts 24] [--type Q4_K ...] [--model "llama 512" ...]

Both programs round activations to 8 bits, so both lie some distance (NMSE) from the exact answer: that of the same
weights as an F32 file, where nothing is rounded. Models: a random Llama and a random Mixtral, 512 wide, and the
built-in model, 256 wide, whose weights are trained; `edgellm quantize --pure` writes them in every type. The cache is
F32. The ratio edgellm / llama.cpp is taken over all tokens of several texts: of the medians (NMSE of single tokens)
and of the means (NMSE of all). At most 1.1 is allowed, for a mixture of experts of the medians only: where two experts
are as good as equal, a token that tips over to the other one weighs as much as all other tokens together, so the mean
tells which program had bad luck. Ends with 1 where it is more.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

TOOLS = Path(__file__).resolve().parent
ROOT = TOOLS.parent
sys.path[:0] = [str(ROOT), str(TOOLS)]

from parity_scores import _line  # noqa: E402

TYPES = (
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4",
    "TQ1_0", "TQ2_0",
)  # fmt: skip
MODELS = ("llama 512", "mixtral 512", "trained 256")
LIMIT = 1.1
N_TOKENS, N_CTX = 72, 128


@dataclass
class Ratio:
    """Squared errors of each token, and the squared size of its exact logits: float64 (tokens,) each."""

    model: str
    type: str
    ours: np.ndarray = field(default_factory=lambda: np.zeros(0))
    theirs: np.ndarray = field(default_factory=lambda: np.zeros(0))
    sizes: np.ndarray = field(default_factory=lambda: np.zeros(0))
    error: str = ""

    @property
    def median(self) -> float:
        return float(np.median(self.ours / self.sizes) / np.median(self.theirs / self.sizes))

    @property
    def mean(self) -> float:
        return float(self.ours.sum() / self.theirs.sum())

    @property
    def nmse(self) -> float:
        """edgellm's, over all tokens."""
        return float(self.ours.sum() / self.sizes.sum())

    def faults(self) -> list[str]:
        """What is above the limit."""
        if self.error:
            return [f"{self.model}, {self.type}: {self.error}"]
        gated = {"median": self.median} | ({} if "mixtral" in self.model else {"mean": self.mean})
        return [
            f"{self.model}, {self.type}: ratio of the {name}s {value:.3f}, limit {LIMIT}"
            for name, value in gated.items()
            if not value <= LIMIT
        ]


# ---- models and texts ------------------------------------------------------------------------------------------------


def write_random(path: Path, n_experts: int, seed: int, dim: int = 512, n_layers: int = 2, n_vocab: int = 611) -> None:
    """An F32 file of a Llama, or of a Mixtral where there are experts, with the weights of a normal distribution."""
    from edgellm.gguf import GGUFWriter

    rng, n_heads, n_kv, head, ffn = np.random.default_rng(seed), 8, 2, 64, 768 if not n_experts else 512
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (n_vocab, dim)}
    for b in (f"blk.{i}." for i in range(n_layers)):
        shapes |= {
            f"{b}attn_norm.weight": (dim,), f"{b}attn_q.weight": (n_heads * head, dim),
            f"{b}attn_k.weight": (n_kv * head, dim), f"{b}attn_v.weight": (n_kv * head, dim),
            f"{b}attn_output.weight": (dim, n_heads * head), f"{b}ffn_norm.weight": (dim,),
        }  # fmt: skip
        end, first = ("_exps", (n_experts,)) if n_experts else ("", ())
        if n_experts:
            shapes[f"{b}ffn_gate_inp.weight"] = (n_experts, dim)
        for name, shape in (("gate", (ffn, dim)), ("up", (ffn, dim)), ("down", (dim, ffn))):
            shapes[f"{b}ffn_{name}{end}.weight"] = (*first, *shape)
    shapes |= {"output_norm.weight": (dim,), "output.weight": (n_vocab, dim)}
    with GGUFWriter(path, "llama") as writer:
        numbers = {
            "context_length": 512, "embedding_length": dim, "block_count": n_layers, "feed_forward_length": ffn,
            "attention.head_count": n_heads, "attention.head_count_kv": n_kv, "rope.dimension_count": head,
            "vocab_size": n_vocab, **({"expert_count": n_experts, "expert_used_count": 2} if n_experts else {}),
        }  # fmt: skip
        for key, value in numbers.items():
            writer.add(f"llama.{key}", value, "u32")
        writer.add("llama.attention.layer_norm_rms_epsilon", 1e-5, "f32")
        for key, value, kind in vocabulary(n_vocab):
            writer.add(f"tokenizer.ggml.{key}", value, kind)
        for name, shape in shapes.items():
            writer.add_tensor_info(name, shape, "F32")
        for name, shape in shapes.items():
            noise = rng.standard_normal(shape)
            scale = 0.4 if name.startswith("token") else 1.2 / dim**0.5
            writer.write_tensor(name, (noise * scale if len(shape) > 1 else 1 + 0.2 * noise).astype(np.float32))


def vocabulary(n: int) -> Iterator[tuple[str, object, str | None]]:
    """The keys of a tokenizer with a piece for each byte; the rest are names that no text has."""
    n_rest = n - 259
    yield "model", "llama", "str"
    rest = [f"\u2581{i}" for i in range(n_rest)]
    yield "tokens", ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *rest], None
    yield "scores", np.concatenate([np.zeros(259), -np.arange(n_rest)]).astype(np.float32), None
    yield "token_type", np.array([2, 3, 3] + [6] * 256 + [1] * n_rest, dtype=np.int32), None
    yield "bos_token_id", 1, "u32"
    yield "eos_token_id", 2, "u32"


def source(model: str, folder: Path) -> Path:
    """The file that is quantised."""
    if model.startswith("trained"):
        return ROOT / "edgellm" / "data" / "edgellm-toy.gguf"
    path = folder / f"{model.replace(' ', '-')}.gguf"
    write_random(path, 6 if model.startswith("mixtral") else 0, seed=7)
    return path


def texts(model: str, path: Path, n: int) -> list[list[int]]:
    """Token ids: random ones for a random model, parts of the licence for the trained one."""
    rng = np.random.default_rng(8)
    if not model.startswith("trained"):
        return [[1, *rng.integers(3, 611, N_TOKENS - 1).tolist()] for _ in range(n)]
    import edgellm

    with edgellm.load(path) as loaded:
        ids = loaded.tokenize((ROOT / "LICENSE").read_text(encoding="utf-8"), add_special=False)
    starts = np.linspace(0, len(ids) - N_TOKENS, n).astype(int)
    return [[1, *ids[s : s + N_TOKENS - 1]] for s in starts]


def distances(got: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Squared errors of each token: float64 (texts * n,) of logits (texts, n, vocab); infinite where one is none."""
    found = np.square(got.astype(np.float64) - exact).sum(axis=-1)
    return np.where(np.isfinite(found), found, np.inf).ravel()


# ---- answers ---------------------------------------------------------------------------------------------------------


def logits(path: Path, asked: list[list[int]]) -> np.ndarray:
    """float32 (texts, n, vocab)."""
    import edgellm

    with edgellm.load(path, backend="native", kv_type="f32", n_ctx=N_CTX, threads=1) as model:
        return np.stack([model.logits(ids) for ids in asked])


def compare(model: str, args: argparse.Namespace, folder: Path) -> list[Ratio]:
    """One row for each type of this model."""
    from edgellm.quantize import quantize

    base, out = source(model, folder), []
    asked = texts(model, base, args.texts)
    (folder / "texts.json").write_text(json.dumps({"texts": asked, "n_ctx": N_CTX}))
    for name in args.type or TYPES:
        path, plain, ratio = folder / f"{name}.gguf", folder / "plain.gguf", Ratio(model, name)
        quantize(base, path, name, pure=True, allow_requantize=True)
        quantize(path, plain, "F32", allow_requantize=True)
        command = [args.llama_python, str(TOOLS / "parity_llama.py"), "--texts", str(folder), path.stem]
        done = subprocess.run(command, capture_output=True, text=True)
        answer = folder / f"{name}.llama.npz"
        if done.returncode or not answer.exists():
            note = folder / f"{name}.llama.txt"
            ratio.error = f"llama.cpp gave no answer: {note.read_text() if note.exists() else done.stderr[-300:]}"
        else:
            exact = logits(plain, asked)
            ratio.ours = distances(logits(path, asked), exact)
            ratio.theirs = distances(np.load(answer)["logits"], exact)
            ratio.sizes = distances(exact, 0 * exact)
        out.append(ratio)
        answer.unlink(missing_ok=True)
        path.unlink()
        print(f"parity: {model}, {name}: {ratio.error or f'{ratio.median:.3f} {ratio.mean:.3f}'}", file=sys.stderr)
    return out


def table(ratios: list[Ratio]) -> list[str]:
    """One row for each type: NMSE of edgellm, and the two ratios, for every model."""
    models = list(dict.fromkeys(r.model for r in ratios))
    cells = [cell for m in models for cell in (f"{m}: NMSE", "median", "mean")]
    lines = [_line(["type", *cells]), _line(["---"] + ["--:"] * len(cells))]
    for name in dict.fromkeys(r.type for r in ratios):
        found = {r.model: r for r in ratios if r.type == name}
        row: list[object] = [name]
        for r in (found[m] for m in models):
            row += ["failed", "", ""] if r.error else [f"{r.nmse:.1e}", f"{r.median:.2f}", f"{r.mean:.2f}"]
        lines.append(_line(row))
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-python", required=True, help="the Python of an environment with llama-cpp-python")
    parser.add_argument("--texts", type=int, default=24, help=f"texts of {N_TOKENS} tokens (default 24)")
    parser.add_argument("--type", action="append", choices=TYPES, help="only this type (may be repeated)")
    parser.add_argument("--model", action="append", choices=MODELS, help="only this model (may be repeated)")
    args = parser.parse_args()
    ratios: list[Ratio] = []
    with tempfile.TemporaryDirectory(prefix="parity-quants-") as folder:
        for model in args.model or MODELS:
            ratios += compare(model, args, Path(folder))
        version = json.loads((Path(folder) / "llama.json").read_text())
    print("\n".join(table(ratios)))
    what = ", ".join(f"{name} {number}" for name, number in version.items())
    print(f"\n{args.texts} texts of {N_TOKENS} tokens; {what}. Ratio: edgellm's NMSE over llama.cpp's.")
    faults = [fault for ratio in ratios for fault in ratio.faults()]
    print("\n".join(f"WRONG {fault}\n" for fault in faults))
    good = [r for r in ratios if not r.error]
    medians, means = ([f(r) for r in good] for f in (lambda r: r.median, lambda r: r.mean))
    if good:
        print(
            f"{len(good)} pairs of model and type: ratio of the medians {min(medians):.2f} to {max(medians):.2f}, "
            f"of the means {min(means):.2f} to {max(means):.2f} (limit {LIMIT})"
        )
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
