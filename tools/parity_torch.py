"""The part of `tools/parity.py` that runs transformers, in an environment of its own.

    python tools/parity_torch.py FOLDER

reads FOLDER/cases.json and for every case writes FOLDER/NAME/ (the checkpoint as `save_pretrained` writes it, with a
byte-level tokenizer) and FOLDER/NAME.torch.npz: `logits` float32 (n, vocab) of eager attention without a cache, and
`greedy`, the continuation of the prompt.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers


def build(case: dict) -> torch.nn.Module:
    """The model with random weights: norms and biases too, and logits far enough apart for a fair argmax."""
    fields = case["config"] | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = transformers.AutoConfig.for_model(case["model_type"], **fields)
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", experts_implementation="eager", dtype=torch.float32
    )
    draw = torch.Generator().manual_seed(case["seed"])
    scaled = case["model_type"].startswith("gemma")  # multiplies embeddings by sqrt(width)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=draw)
            if p.ndim == 1:
                p.add_(0.2 * noise)
            elif "embed_tokens" in name:
                p.copy_(noise * (0.4 / p.shape[1] ** 0.5 if scaled else 0.4))
            else:
                p.copy_(noise * 1.4 / p.shape[-1] ** 0.5)
    return model.eval()


def answer(model: torch.nn.Module, ids: list[int]) -> np.ndarray:
    """Logits float32 (n, vocab)."""
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0].float().numpy()


def greedy(model: torch.nn.Module, prompt: list[int], n: int) -> list[int]:
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(answer(model, ids)[-1].argmax()))
    return ids[len(prompt) :]


def tokenizer() -> dict:
    """A tokenizer.json with one piece for each byte and four special tokens before them."""
    shown = {b: chr(b) for b in [*range(33, 127), *range(161, 173), *range(174, 256)]}
    hidden = [b for b in range(256) if b not in shown]
    shown |= {b: chr(256 + i) for i, b in enumerate(hidden)}  # GPT-2's table (Radford et al. 2019)
    special = ["<unk>", "<s>", "</s>", "<|endoftext|>"]  # llama.cpp looks for the last one in every Phi 3
    vocab = {text: i for i, text in enumerate([*special, *(shown[b] for b in range(256))])}
    vocab["ab"] = len(vocab)
    return {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": text, "special": True} for i, text in enumerate(special)],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": vocab, "merges": [["a", "b"]]},
    }


def main() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    folder = Path(sys.argv[1])
    table = json.dumps(tokenizer())
    for case in json.loads((folder / "cases.json").read_text()):
        model = build(case)
        out = folder / case["name"]
        model.save_pretrained(out)
        (out / "tokenizer.json").write_text(table)
        ids = case["ids"]
        text = greedy(model, ids[: case["n_prompt"]], case["n_greedy"])
        np.savez(folder / f"{case['name']}.torch.npz", logits=answer(model, ids), greedy=np.array(text))
        print(case["name"], flush=True)
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    (folder / "torch.json").write_text(json.dumps(versions))


if __name__ == "__main__":
    main()
