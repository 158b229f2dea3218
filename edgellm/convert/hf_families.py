"""The families of transformers that can be converted: one row each, which says how its files differ from a Llama's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import ConvertError, UnsupportedFeatureError

if TYPE_CHECKING:
    from .hf_config import HFConfig

Key = tuple[str, Any, "str | None"]  # GGUF key, value, type

# Name in a layer of the checkpoint -> name in a layer of GGUF.
_LLAMA_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
_POST_NORMS = {"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm"}
_GEMMA_NORMS = {"input_layernorm": "attn_norm", "pre_feedforward_layernorm": "ffn_norm", **_POST_NORMS}


@dataclass(frozen=True)
class Family:
    """How one architecture of transformers becomes a family of GGUF.

    `arch` is GGUF's name for it. `optional_keys`: numbers that go into the file where config.json has them, as
    {name in config.json: (GGUF key below the family, type)}; `keys` gives those that must be worked out (below the
    family's name too). `defaults` are the values of config.json that transformers takes where it says nothing.
    """

    arch: str
    optional_keys: dict[str, tuple[str, str]] = field(default_factory=dict)
    activations: tuple[str, ...] = ("silu", "swish")
    activation_name: str = "hidden_act"
    defaults: dict[str, Any] = field(default_factory=dict)
    keys: Callable[[HFConfig], list[Key]] | None = None
    window_period: int | None = None  # all but the last of every n layers have the window (0: all); None: no window
    local_rope: bool = False  # layers with a window turn with a theta of their own
    long_rope: bool = False  # longrope, and heads that are rotated only in part
    interleaved: bool = False  # rows of q and k are reordered so that neighbours are rotated together
    qkv_bias: bool = False  # always, not only with attention_bias
    norms: dict[str, str] = field(default_factory=lambda: _LLAMA_NORMS)
    norm_offset: float = 0.0  # is added to all norm weights
    qk_norm: str = ""  # "head" or "row": what q_norm and k_norm span
    fused: bool = False  # one matrix for q|k|v, one for gate|up
    norm_eps: tuple[str, float] = ("rms_norm_eps", 1e-6)  # the norms' epsilon: its name, and what it is without one
    encoder: bool = False  # a BERT: `hf_bert` has its tensors and keys
    experts: str = ""  # where a layer keeps them; see `EXPERT_NAMES`


EXPERT_NAMES = {  # matrices of one expert in the checkpoint: gate, up, down
    "block_sparse_moe": ("w1", "w3", "w2"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}


# ---- keys that must be worked out ------------------------------------------------------------------------------------


def window_keys(c: HFConfig) -> list[Key]:
    """The sliding window and, where it is not the family's usual one, the pattern of layers that have it."""
    period, raw = c.family.window_period, c.raw
    window = raw.get("sliding_window")
    if period is None or window is None or raw.get("use_sliding_window") is False:
        return []
    if type(window) is not int or window < 1:
        raise ConvertError(
            "must be a positive whole number or null", path=c.path, field="sliding_window", value=window, rule="P5"
        )
    usual = [not period or i % period < period - 1 for i in range(c.n_layers)]
    layers = _window_layers(c, usual)
    if not any(layers):
        return []
    keys: list[Key] = [("attention.sliding_window", window, "u32")]
    return keys if layers == usual else [*keys, ("attention.sliding_window_pattern", layers, None)]


def _window_layers(c: HFConfig, usual: list[bool]) -> list[bool]:
    kinds = c.raw.get("layer_types")
    if kinds is not None:
        return [kind == "sliding_attention" for kind in _per_layer(c, "layer_types", kinds, _LAYER_TYPES)]
    period = c.raw.get("sliding_window_pattern", c.raw.get("_sliding_window_pattern"))
    if c.family.window_period and type(period) is int and period > 0:
        return [(i + 1) % period != 0 for i in range(c.n_layers)]
    if c.family.arch in ("qwen2", "qwen3"):
        first = c.raw["max_window_layers"]
        return [i >= first for i in range(c.n_layers)]
    return usual


_LAYER_TYPES = ("sliding_attention", "full_attention")


def _per_layer(c: HFConfig, name: str, values: Any, allowed: tuple[Any, ...]) -> list[Any]:
    if not isinstance(values, list) or len(values) != c.n_layers:
        n = len(values) if isinstance(values, list) else values
        raise ConvertError("needs one entry per layer", path=c.path, field=name, value=n, limit=c.n_layers, rule="P9")
    for value in values:
        if value not in allowed or isinstance(value, bool):
            raise UnsupportedFeatureError(
                "this kind of layer is not supported", path=c.path, field=name, value=value,
                limit=", ".join(map(str, allowed)),
            )  # fmt: skip
    return values


def _number(c: HFConfig, name: str, low: float, high: float) -> float:
    """A finite number in (low, high]."""
    value = c.raw.get(name)
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not known or not low < value <= high:
        raise ConvertError(
            "a hyperparameter is out of range", path=c.path, field=name, value=value,
            limit=f"above {low:g}, at most {high:g}",
        )  # fmt: skip
    return float(value)


def _gemma_keys(c: HFConfig) -> list[Key]:
    """llama.cpp drops the attention scale and takes 1 / sqrt(head_dim)."""
    return [("attention.scale", _number(c, "query_pre_attn_scalar", 0.0, 1e6) ** -0.5, "f32")]


def _gemma2_keys(c: HFConfig) -> list[Key]:
    """A softcap of 0 says that there is none, a missing key would mean the usual one."""
    keys = _gemma_keys(c)
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        keys.append((name, 0.0 if c.raw.get(name) is None else _number(c, name, 0.0, 1e6), "f32"))
    return keys


def _gemma3_keys(c: HFConfig) -> list[Key]:
    if c.raw.get("attn_logit_softcapping") is not None or c.raw.get("use_bidirectional_attention"):
        name = "use_bidirectional_attention" if c.raw.get("use_bidirectional_attention") else "attn_logit_softcapping"
        raise UnsupportedFeatureError("this setting is not supported", path=c.path, field=name, value=c.raw[name])
    return [*_gemma_keys(c), ("rope.freq_base_swa", c.rope.local_theta, "f32")]


def _expert_keys(c: HFConfig) -> list[Key]:
    n, used = n_experts(c), _whole(c, "num_experts_per_tok", n_experts(c))
    keys: list[Key] = [("expert_count", n, "u32"), ("expert_used_count", used, "u32")]
    if c.family.arch == "qwen3moe":
        keys.append(("expert_feed_forward_length", expert_dim(c), "u32"))
    if c.raw.get("norm_topk_prob") is False:  # llama.cpp always normalises
        keys.append(("expert_weights_norm", False, "bool"))
    for name, usual in (("decoder_sparse_step", 1), ("mlp_only_layers", [])):
        if c.raw.get(name, usual) not in (usual, None):
            raise UnsupportedFeatureError(
                "layers of experts beside plain ones are not supported", path=c.path, field=name, value=c.raw[name],
                limit=usual,
            )  # fmt: skip
    return keys


def _whole(c: HFConfig, name: str, high: int) -> int:
    value = c.raw.get(name)
    if type(value) is not int or not 1 <= value <= high:
        raise ConvertError(
            "a hyperparameter is no whole number in its range", path=c.path, field=name, value=value,
            limit=f"1 to {high}", rule="P6",
        )  # fmt: skip
    return value


def n_experts(c: HFConfig) -> int:
    """Experts of a layer; the two names are those of Mixtral and of Qwen."""
    return _whole(c, "num_local_experts" if "num_local_experts" in c.raw else "num_experts", 1024)


def expert_dim(c: HFConfig) -> int:
    """Width of one expert."""
    return _whole(c, "moe_intermediate_size", 1 << 24) if c.family.arch == "qwen3moe" else c.ffn_dim


def _smollm3_keys(c: HFConfig) -> list[Key]:
    """Layers with positions (1) and without (0); llama.cpp knows only the usual pattern and has no key for another."""
    if c.raw.get("use_sliding_window") and c.raw.get("sliding_window") and c.raw.get("layer_types") is None:
        raise UnsupportedFeatureError("a window needs layer_types", path=c.path, field="use_sliding_window", value=True)
    every = c.raw.get("no_rope_layer_interval")
    layers = c.raw.get("no_rope_layers")
    if layers is None and type(every) is int and every > 0:
        layers = [int((i + 1) % every != 0) for i in range(c.n_layers)]
    if layers is None:
        return []
    _per_layer(c, "no_rope_layers", layers, (0, 1))
    usual = [int((i + 1) % 4 != 0) for i in range(c.n_layers)]
    return [] if layers == usual else [("rope.layers", [bool(i) for i in layers], None)]


# ---- the table -------------------------------------------------------------------------------------------------------

_GELU = ("gelu_pytorch_tanh",)
_GEMMA: dict[str, Any] = {
    "activations": _GELU, "activation_name": "hidden_activation", "norms": _GEMMA_NORMS, "norm_offset": 1.0,
}  # fmt: skip
_GEMMA_DEFAULTS = {
    "hidden_activation": "gelu_pytorch_tanh", "head_dim": 256, "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256, "sliding_window": 4096,
}  # fmt: skip

_BERT = Family("bert", activations=("gelu",), norm_eps=("layer_norm_eps", 1e-12), encoder=True)

# architectures[0] of config.json -> family. llama.cpp drops Mistral's sliding window; transformers applies it.
FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family("llama", interleaved=True),
    "MistralForCausalLM": Family("llama", interleaved=True, window_period=0, defaults={"sliding_window": 4096}),
    "MixtralForCausalLM": Family(
        "llama", interleaved=True, window_period=0, keys=_expert_keys, experts="block_sparse_moe",
        defaults={"rms_norm_eps": 1e-5, "rope_theta": 1e6, "num_experts_per_tok": 2},
    ),
    "Qwen2ForCausalLM": Family(
        "qwen2", qkv_bias=True, window_period=0,
        defaults={"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28},
    ),
    "Qwen3ForCausalLM": Family(
        "qwen3", qk_norm="head", window_period=0,
        defaults={"use_sliding_window": False, "sliding_window": 4096, "head_dim": 128, "max_window_layers": 28},
    ),
    "Qwen3MoeForCausalLM": Family(
        "qwen3moe", qk_norm="head", window_period=0, keys=_expert_keys, experts="mlp",
        defaults={"use_sliding_window": False, "sliding_window": 4096, "norm_topk_prob": False},
    ),
    "Gemma2ForCausalLM": Family(
        "gemma2", keys=_gemma2_keys, window_period=2, **_GEMMA,
        defaults={**_GEMMA_DEFAULTS, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ),
    "Gemma3ForCausalLM": Family(
        "gemma3", {"final_logit_softcapping": ("final_logit_softcapping", "f32")}, keys=_gemma3_keys, window_period=6,
        local_rope=True, qk_norm="head", **_GEMMA, defaults={**_GEMMA_DEFAULTS, "rope_theta": 1e6},
    ),
    "Phi3ForCausalLM": Family(
        "phi3", fused=True, long_rope=True, window_period=0,
        defaults={"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096},
    ),
    "Olmo2ForCausalLM": Family("olmo2", norms=_POST_NORMS, qk_norm="row", defaults={"rms_norm_eps": 1e-5}),
    "GraniteForCausalLM": Family(
        "granite",
        {
            "embedding_multiplier": ("embedding_scale", "f32"), "residual_multiplier": ("residual_scale", "f32"),
            "attention_multiplier": ("attention.scale", "f32"), "logits_scaling": ("logit_scale", "f32"),
        },
        interleaved=True,
        defaults={"attention_multiplier": 1.0},
    ),
    "SmolLM3ForCausalLM": Family(
        "smollm3", interleaved=True, keys=_smollm3_keys, window_period=0,
        defaults={"use_sliding_window": False, "tie_word_embeddings": True, "rope_theta": 2e6},
    ),
    "BertModel": _BERT,
    "BertForMaskedLM": _BERT,  # its head is left out
}  # fmt: skip
