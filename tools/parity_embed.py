#!/usr/bin/env python3
"""Hold embeddings to transformers: random BERTs, and the hidden states of every decoder family; a Markdown table.

    python tools/parity_embed.py --peer-python PATH [--models 10] [--seed 1]

`--peer-python` is the Python of an environment with torch and transformers; this file runs there too (`--torch`), saves
the checkpoints and its last hidden states, in float32 with eager attention. `edgellm.convert` makes F32 files of them,
and every backend embeds the same tokens with pooling "none". Demanded: NMSE at most 1e-9. Decoders are those of
../shared/data/hf-tiny. Ends with 1 if anything is missed.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

TOOLS = Path(__file__).resolve().parent
SHARED = TOOLS.parent.parent / "shared" / "data" / "hf-tiny"
sys.path[:0] = [str(TOOLS.parent), str(TOOLS)]

N_VOCAB, LIMIT = 263, 1e-9


def bert_configs(n: int, seed: int) -> list[dict]:
    """Sizes that are no multiples of anything nice; texts of one token, of a page and of many."""
    draw = random.Random(seed)
    found = []
    for i in range(n):
        heads, size = draw.choice([(1, 64), (3, 32), (4, 18), (5, 20), (7, 16), (12, 32)])
        found.append({
            "hidden_size": heads * size, "num_attention_heads": heads, "num_hidden_layers": draw.choice([1, 2, 4]),
            "intermediate_size": draw.choice([33, 100, 256, 480]), "vocab_size": N_VOCAB, "type_vocab_size": 1 + i % 3,
            "max_position_embeddings": 512, "layer_norm_eps": draw.choice([1e-12, 1e-5]), "hidden_act": "gelu",
        })  # fmt: skip
    return found


def ids_of(name: str, i: int, n_vocab: int) -> list[int]:
    n = (1, 2, 63, 64, 65, 130, 511, 512)[i % 8] if name.startswith("bert") else 72
    return [random.Random(i).randrange(5, n_vocab) for _ in range(n)]


# ---- in the environment of transformers ------------------------------------------------------------------------------


def answer_with_torch(folder: Path) -> None:
    """For each case: a checkpoint in FOLDER/NAME (of BERTs) and FOLDER/NAME.npy, float32 (n, dim)."""
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for case in json.loads((folder / "cases.json").read_text()):
        if case["config"] is None:
            model = transformers.AutoModel.from_pretrained(case["folder"], attn_implementation="eager")
        else:
            config = transformers.BertConfig(**case["config"])
            model = transformers.BertModel(config).float()
            model.set_attn_implementation("eager")
            draw = torch.Generator().manual_seed(case["seed"])
            with torch.no_grad():
                for p in model.parameters():
                    noise = torch.randn(p.shape, generator=draw)
                    p.add_(0.2 * noise) if p.ndim == 1 else p.copy_(noise * 1.4 / p.shape[-1] ** 0.5)
            model.save_pretrained(case["folder"])
        with torch.no_grad():
            states = model.float().eval()(torch.tensor([case["ids"]])).last_hidden_state[0].numpy()
        np.save(folder / f"{case['name']}.npy", states)
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")


# ---- here ------------------------------------------------------------------------------------------------------------


def word_pieces() -> dict:
    """A tokenizer.json of N_VOCAB pieces: the converter wants one, the comparison is by ids."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(N_VOCAB - 5))]
    return {
        "added_tokens": [{"id": i, "content": pieces[i], "special": True} for i in range(5)],
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                       "strip_accents": None, "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": {piece: i for i, piece in enumerate(pieces)}},
    }  # fmt: skip


def cases(folder: Path, n: int, seed: int) -> list[dict]:
    found = []
    for i, config in enumerate(bert_configs(n, seed)):
        ids = ids_of("bert", i, N_VOCAB)
        found.append({"name": f"bert-{i}", "folder": str(folder / f"bert-{i}"), "config": config, "seed": seed + i,
                      "ids": ids})  # fmt: skip
    for path in sorted(SHARED.iterdir()) if SHARED.is_dir() else []:
        reference = np.load(path / "reference.npz")
        ids = reference["input_ids" if "input_ids" in reference else "ids_1"].tolist()
        found.append({"name": path.name, "folder": str(path), "config": None, "ids": ids})
    return found


def scores(case: dict, folder: Path) -> dict[str, float]:
    """The NMSE of each backend."""
    from parity import usable_backends
    from parity_scores import nmse

    import edgellm
    from edgellm.convert import convert

    if case["config"] is not None:
        (Path(case["folder"]) / "tokenizer.json").write_text(json.dumps(word_pieces()))
    path, want, found = folder / "model.gguf", np.load(folder / f"{case['name']}.npy"), {}
    convert(case["folder"], path, outtype="f32")
    for name in usable_backends():
        with edgellm.load(path, backend=name, kv_type="f32", threads=1) as model:
            found[name] = nmse(model.embed([case["ids"]], pooling="none", normalize=False)[0], want)
    return found


def main(args: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--models", type=int, default=10, help="random BERTs")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--torch", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(args)
    if options.torch is not None:
        answer_with_torch(options.torch)
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wanted = cases(folder, options.models, options.seed)
        (folder / "cases.json").write_text(json.dumps(wanted))
        command = [options.peer_python, str(Path(__file__).resolve()), "--torch", str(folder)]
        told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip().splitlines()[-1]
        found = [(case["name"], len(case["ids"]), scores(case, folder)) for case in wanted]
    backends = list(found[0][2])
    print(f"| model | tokens | {' | '.join(f'NMSE {b}' for b in backends)} |\n|---|---:|{'---:|' * len(backends)}")
    wrong = 0
    for name, n, score in found:
        wrong += any(not value <= LIMIT for value in score.values())
        print(f"| {name} | {n} | {' | '.join(f'{score[b]:.1e}' for b in backends)} |")
    worst = max(max(score.values()) for _, _, score in found)
    print(f"\n{told}.\n\n{len(found)} models, {wrong} over the limit, largest NMSE {worst:.1e}")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
