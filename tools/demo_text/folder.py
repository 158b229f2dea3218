"""The folder: a trained model written the way Hugging Face stores a Llama."""

import json
import os
import shutil
import tempfile
from pathlib import Path

from safetensors.torch import save_file

from .dialogue import BOS, CHAT_TEMPLATE, END, EOS, START
from .llama import Llama, Shape
from .vocabulary import Vocabulary


def config(shape: Shape, vocabulary: Vocabulary) -> dict:
    """The content of config.json."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": shape.vocab,
        "hidden_size": shape.width, "intermediate_size": shape.hidden, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads, "head_dim": shape.head_dim,
        "max_position_embeddings": shape.context, "rms_norm_eps": shape.norm_eps, "rope_theta": shape.rope_theta,
        "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True,
        "bos_token_id": vocabulary.bos, "eos_token_id": vocabulary.end, "torch_dtype": "float32",
    }  # fmt: skip


def tokenizer_config() -> dict:
    """The content of tokenizer_config.json."""
    return {
        "tokenizer_class": "LlamaTokenizer", "bos_token": BOS, "eos_token": END, "unk_token": "<unk>",
        "add_bos_token": True, "add_eos_token": False, "add_prefix_space": False, "legacy": False,
        "clean_up_tokenization_spaces": False, "additional_special_tokens": [START, END, EOS],
        "chat_template": CHAT_TEMPLATE,
    }  # fmt: skip


def write_folder(target: Path, model: Llama, vocabulary: Vocabulary) -> None:
    """Write every file beside the target, then put the finished ones in place."""
    target.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=target))
    try:
        weights = {name: weight.detach().float().contiguous() for name, weight in model.named_parameters()}
        save_file(weights, draft / "model.safetensors", metadata={"format": "pt"})
        vocabulary.save(draft)
        write_json(draft / "config.json", config(model.shape, vocabulary))
        write_json(draft / "tokenizer_config.json", tokenizer_config())
        stops = [vocabulary.end, vocabulary.eos]
        chosen = {"do_sample": True, "temperature": 0.3}  # a small model is wrong more often when it is adventurous
        ids = {"bos_token_id": vocabulary.bos, "eos_token_id": stops}
        write_json(draft / "generation_config.json", ids | chosen)
        for file in draft.iterdir():
            os.replace(file, target / file.name)
    finally:
        shutil.rmtree(draft)


def write_json(path: Path, content: dict) -> None:
    """Write readable JSON."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
