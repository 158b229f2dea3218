"""Random configurations of every family for `tools/parity.py`: small models with the shapes that break kernels.

Every family gets all five head sizes, seven query heads on one KV head, vocabularies of odd size, tied and untied
heads, and biases where transformers has them for that family. Weights are drawn by the process that runs transformers.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

HEAD_SIZES = (64, 80, 96, 112, 128)
HEADS = ((7, 1), (4, 2), (6, 3), (5, 5), (14, 2), (8, 1))  # query heads, KV heads
WIDTHS = (64, 100, 160, 192, 320, 448)
VOCABULARIES = (263, 301, 457, 509, 643)
N_GREEDY = 24

# Where llama.cpp is known to compute something else than transformers.
NO_WINDOW = "no sliding window"
SCALE = "attention scale from the head size"
NORMALISED = "chosen experts always share out 1"
PATTERN = "its own pattern of layers without positions"
SOFTCAPS = "NaN without softcaps"

# What llama.cpp does not read in some families; one model of three has it there.
WIDTH = "heads wider than the model"
BIAS = "biases"
UNTIED = "an output head of its own"
TIED = "a tied output head"


@dataclass(frozen=True)
class Family:
    """`model_type` is transformers' name, `architecture` its class, `special` draws what only this family has.

    `special(draw, i, config)` sets it and returns the reason why llama.cpp's answer will differ, or "". `unread` is
    what llama.cpp refuses in this family.
    """

    name: str
    model_type: str
    architecture: str
    special: Callable[[random.Random, int, dict[str, Any]], str]
    biases: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    tolerance: float = 1e-9  # NMSE


@dataclass(frozen=True)
class Case:
    """One model to compare. `config` goes to transformers, `ids` are the tokens, the first `n_prompt` are continued.

    `n_ctx` is the context window that both others are given (None: as trained; it matters to longrope only);
    `difference` says why llama.cpp's answer is known to differ, `unread` why llama.cpp refuses the file, else they are
    empty.
    """

    name: str
    family: str
    model_type: str
    config: dict[str, Any]
    ids: list[int]
    n_prompt: int
    seed: int
    n_ctx: int | None = None
    difference: str = ""
    unread: str = ""
    tolerance: float = 1e-9
    n_greedy: int = N_GREEDY
    shape: str = field(default="", compare=False)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


# ---- what only some families have ------------------------------------------------------------------------------------
# Each function changes `config` in place and returns the reason for a difference of llama.cpp.


def _stretched(draw: random.Random, i: int, config: dict[str, Any]) -> str:
    """Every third model has positions that are stretched: linear, then YaRN."""
    if i % 3 == 1:
        config["rope_parameters"] |= {"rope_type": "linear", "factor": draw.choice((2.0, 4.0))}
    elif i % 3 == 2:
        config["rope_parameters"] |= {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64,
            "beta_fast": 32.0, "beta_slow": 1.0, **({"attention_factor": 1.3} if i % 2 else {}),
        }  # fmt: skip
    return ""


def _llama3(draw: random.Random, i: int, config: dict[str, Any]) -> str:
    config["rope_parameters"] = {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": draw.choice((8.0, 32.0)), "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": draw.choice((32, 64, 128)),
    }  # fmt: skip
    return ""


def _window(draw: random.Random, i: int, config: dict[str, Any]) -> str:
    """A window in every second model, once wider than the context, where it has no effect."""
    if i % 10 == 6:
        config["sliding_window"] = 1000
        return ""
    config["sliding_window"] = draw.choice((9, 16, 33)) if i % 2 == 0 else None
    return NO_WINDOW if i % 2 == 0 else ""


def _any_window(draw: random.Random, config: dict[str, Any]) -> str:
    config |= {"use_sliding_window": True, "sliding_window": draw.choice((9, 16, 33))}
    return NO_WINDOW


def _named(*reasons: str) -> str:
    return ", ".join(filter(None, reasons))


def _qwen_window(draw: random.Random, i: int, config: dict[str, Any]) -> str:
    if i % 3 == 0:
        config["max_window_layers"] = 1
        return _any_window(draw, config)
    return _stretched(draw, i, config)


def _mixtral(draw: random.Random, i: int, config: dict[str, Any]) -> str:
    config |= {"num_local_experts": draw.choice((4, 5, 8)), "num_experts_per_tok": draw.choice((1, 2, 3))}
    return _window(draw, i, config)


def _qwen3moe(draw: random.Random, i: int, config: dict[str, Any]) -> str:
    config |= {
        "num_experts": draw.choice((5, 8, 12)), "num_experts_per_tok": draw.choice((2, 3, 4)),
        "moe_intermediate_size": draw.choice((48, 56, 96)), "norm_topk_prob": i % 2 == 1,
    }  # fmt: skip
    return _named("" if i % 2 else NORMALISED, _any_window(draw, config) if i % 4 == 3 else "")


def _gemma2(draw: random.Random, i: int, config: dict[str, Any]) -> str:
    config |= {
        "sliding_window": draw.choice((9, 16, 33)),
        "attn_logit_softcapping": draw.choice((2.0, 50.0)) if i % 4 else None,
        "final_logit_softcapping": draw.choice((3.0, 30.0)),
    }
    return _gemma_scale(draw, i, config, SOFTCAPS if i % 4 == 0 else "")


def _gemma3(draw: random.Random, i: int, config: dict[str, Any]) -> str:
    far = {"rope_type": "linear", "factor": 8.0} if i % 2 else {"rope_type": "default"}
    config |= {
        "sliding_window": draw.choice((9, 16, 33)), "num_hidden_layers": 7,
        "rope_parameters": {
            "full_attention": {"rope_theta": 1e6, **far},
            "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
        },
        "final_logit_softcapping": 5.0 if i % 4 == 1 else None,
    }  # fmt: skip
    return _gemma_scale(draw, i, config, "")


def _gemma_scale(draw: random.Random, i: int, config: dict[str, Any], known: str) -> str:
    config["query_pre_attn_scalar"] = config["head_dim"] if i % 2 else draw.choice((24, 200, 256))
    return _named(known, "" if i % 2 else SCALE)


def _phi3(draw: random.Random, i: int, config: dict[str, Any]) -> str:
    config["partial_rotary_factor"] = (1.0, 0.75, 0.5)[i % 3]
    return _window(draw, i, config)


def _longrope(draw: random.Random, i: int, config: dict[str, Any]) -> str:
    """Even models work beyond the original context (long factors), odd ones within it (short factors); the texts of
    models 2 and 3 end one token behind it and with its last one (`_case`)."""
    share = (1.0, 0.75)[i % 2]
    n = int(config["head_dim"] * share) // 2
    # 256: llama.cpp rounds its context up to that
    config |= {"original_max_position_embeddings": 256 if i % 2 else 32, "partial_rotary_factor": share}
    config["rope_parameters"] = {
        "rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": share,
        "short_factor": [round(1.0 + 0.5 * draw.random(), 4) for _ in range(n)],
        "long_factor": [round(1.0 + 30.0 * draw.random() * k / n, 4) for k in range(n)],
    }  # fmt: skip
    return _window(draw, i, config) if i % 4 == 0 else ""


def _granite(draw: random.Random, i: int, config: dict[str, Any]) -> str:
    config |= {
        "embedding_multiplier": draw.choice((1.0, 6.0, 12.0)), "residual_multiplier": draw.choice((0.22, 0.5, 1.0)),
        "attention_multiplier": draw.choice((0.05, 0.1, 0.2)), "logits_scaling": draw.choice((1.0, 4.0, 8.0)),
    }  # fmt: skip
    return _stretched(draw, i, config)


def _smollm3(draw: random.Random, i: int, config: dict[str, Any]) -> str:
    if i % 2:
        config |= {"num_hidden_layers": 4, "no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0]}
        return _any_window(draw, config) if i % 4 == 3 else ""
    config["no_rope_layers"] = [draw.choice((0, 1)) for _ in range(config["num_hidden_layers"] - 1)] + [0]
    return PATTERN


BOTH = ("attention_bias", "mlp_bias")
ONE = ("attention_bias",)
FAMILIES = (
    Family("llama", "llama", "LlamaForCausalLM", _stretched, BOTH),
    Family("llama3-rope", "llama", "LlamaForCausalLM", _llama3, BOTH),
    Family("mistral", "mistral", "MistralForCausalLM", _window),
    Family("mixtral", "mixtral", "MixtralForCausalLM", _mixtral),
    Family("qwen2", "qwen2", "Qwen2ForCausalLM", _qwen_window, unread=(WIDTH,)),
    Family("qwen3", "qwen3", "Qwen3ForCausalLM", _qwen_window, ONE, (BIAS,)),
    Family("qwen3moe", "qwen3_moe", "Qwen3MoeForCausalLM", _qwen3moe, ONE, (BIAS,)),
    Family("gemma2", "gemma2", "Gemma2ForCausalLM", _gemma2, unread=(UNTIED,), tolerance=1e-8),
    Family("gemma3", "gemma3_text", "Gemma3ForCausalLM", _gemma3, tolerance=1e-8),
    Family("phi3", "phi3", "Phi3ForCausalLM", _phi3, unread=(WIDTH,)),
    Family("phi3 longrope", "phi3", "Phi3ForCausalLM", _longrope),
    Family("olmo2", "olmo2", "Olmo2ForCausalLM", _stretched, ONE, (WIDTH, BIAS, TIED)),
    Family("granite", "granite", "GraniteForCausalLM", _granite, BOTH),
    Family("smollm3", "smollm3", "SmolLM3ForCausalLM", _smollm3, BOTH, (BIAS,)),
)


# ---- drawing ---------------------------------------------------------------------------------------------------------


def cases(family: Family, n: int, seed: int) -> list[Case]:
    """`n` configurations of a family; the same ones for the same seed, whatever other families are drawn."""
    draw = random.Random(f"{family.name} {seed}")
    sizes, heads = draw.sample(HEAD_SIZES, len(HEAD_SIZES)), [HEADS[0], *draw.sample(HEADS[1:], len(HEADS) - 1)]
    return [_case(draw, family, i, sizes[i % len(sizes)], heads[i % len(heads)], seed) for i in range(n)]


def _case(draw: random.Random, family: Family, i: int, head_dim: int, heads: tuple[int, int], seed: int) -> Case:
    config = _shape(draw, family, i % 3 == 2, head_dim, heads)
    difference = family.special(draw, i, config)
    n_ids, original = draw.randrange(70, 140), config.get("original_max_position_embeddings", 0)
    within = original if family.special is _longrope and i % 2 else None
    if family.special is _longrope and i % 10 in (2, 3):
        n_ids = original + (i % 10 == 2)
    return Case(
        name=f"{family.name.replace(' ', '-')}-{i}",
        family=family.name,
        model_type=family.model_type,
        config=config,
        ids=[draw.randrange(3, config["vocab_size"]) for _ in range(n_ids)],
        n_prompt=50,  # the answer goes over the end of a page of 64
        seed=draw.randrange(1 << 31),
        n_ctx=within,
        difference=difference,
        unread=_unread(family, config),
        tolerance=family.tolerance,
        shape=_in_words(family, config),
    )


def _shape(draw: random.Random, family: Family, odd: bool, head_dim: int, heads: tuple[int, int]) -> dict[str, Any]:
    """The fields that all families share; `odd` models may be what llama.cpp does not read."""
    # transformers checks longrope's factors against width / heads
    fill = family.special is _longrope or (WIDTH in family.unread and not odd)
    if fill and heads[0] * head_dim > 672:
        heads = (4, 2)
    tied = draw.random() < 0.5
    if not odd and (TIED in family.unread or UNTIED in family.unread):
        tied = UNTIED in family.unread
    biases = {bias: draw.random() < 0.5 and (odd or BIAS not in family.unread) for bias in family.biases}
    return {
        "vocab_size": draw.choice(VOCABULARIES),
        # transformers wants a multiple of the heads
        "hidden_size": heads[0] * head_dim if fill else draw.choice(WIDTHS) // heads[0] * heads[0],
        "intermediate_size": draw.choice((96, 172, 256)),
        "num_hidden_layers": draw.choice((2, 3)),
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": head_dim,
        "max_position_embeddings": 512,
        "rms_norm_eps": draw.choice((1e-5, 1e-6)),
        "tie_word_embeddings": tied,
        "rope_parameters": {"rope_type": "default", "rope_theta": draw.choice((1e4, 5e5, 1e6))},
        **biases,
    }


def _unread(family: Family, config: dict[str, Any]) -> str:
    there = {
        WIDTH: config["hidden_size"] != config["num_attention_heads"] * config["head_dim"],
        BIAS: any(config[bias] for bias in family.biases),
        UNTIED: not config["tie_word_embeddings"],
        TIED: config["tie_word_embeddings"],
    }
    return ", ".join(what for what in family.unread if there[what])


def _in_words(family: Family, config: dict[str, Any]) -> str:
    heads = f"{config['num_attention_heads']}:{config['num_key_value_heads']}"
    sizes = {"head": config["head_dim"], "heads": heads, "width": config["hidden_size"], "words": config["vocab_size"]}
    words = [f"{name} {value}" for name, value in sizes.items()]
    biases = [f"{bias.split('_')[0]} bias" for bias in family.biases if config[bias]]
    return ", ".join([*words, "tied" if config["tie_word_embeddings"] else "untied", *biases])
