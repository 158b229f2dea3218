"""`config.json` of a Hugging Face folder -> checked hyperparameters and the GGUF keys for them.

Two forms are about: the old one (`rope_theta`, `rope_scaling`) and that of transformers 5 (`rope_parameters`). Keys are
those of llama.cpp's converter (conversion/base.py; ggml docs/gguf.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import ConvertError, UnsupportedArchitectureError, UnsupportedFeatureError, one_line
from . import hf_bert
from .hf_families import FAMILIES, Family, Key, window_keys


@dataclass(frozen=True)
class Rope:
    """Rotary embedding: `kind` is default, linear, llama3, yarn or longrope; `params` the numbers that come with it.

    `local_theta` is that of layers with a window, in families that have two.
    """

    theta: float
    kind: str
    params: dict[str, Any]
    local_theta: float = 10000.0


@dataclass(frozen=True)
class HFConfig:
    """Checked hyperparameters. `raw` is the whole config.json, `path` its file."""

    architecture: str
    family: Family
    n_layers: int
    dim: int
    ffn_dim: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    rotary_dims: int
    n_vocab: int
    n_ctx: int
    norm_eps: float
    rope: Rope
    tied: bool
    attention_bias: bool
    mlp_bias: bool
    raw: dict[str, Any]
    path: str
    notes: tuple[str, ...]


class _Reader:
    """Typed access to config.json; errors name file, field, value and limit."""

    def __init__(self, raw: dict[str, Any], path: str) -> None:
        self.raw, self.path = raw, path

    def fail(self, message: str, field: str, value: Any = None, limit: Any = None) -> Any:
        raise ConvertError(message, path=self.path, field=field, value=value, limit=limit)

    def integer(self, name: str, low: int, high: int, default: int | None = None) -> int:
        value = self.raw.get(name)
        value = default if value is None else value
        if value is None:
            self.fail("a field that is needed is missing", name)
        if type(value) is not int or not low <= value <= high:
            self.fail("a hyperparameter is no whole number in its range", name, value, f"{low} to {high}")
        return value

    def real(self, table: dict[str, Any], name: str, low: float, high: float, default: float | None = None) -> float:
        """A finite number in (low, high]."""
        value = table.get(name)
        value = default if value is None else value
        if value is None:
            self.fail("a field that is needed is missing", name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            self.fail("a hyperparameter is no number", name, value)
        if not low < value <= high:
            self.fail("a hyperparameter is out of range", name, value, f"above {low:g}, at most {high:g}")
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.raw.get(name)
        value = default if value is None else value
        if not isinstance(value, bool):
            self.fail("must be true or false", name, value)
        return value

    def family(self) -> tuple[str, Family]:
        names = self.raw.get("architectures")
        if not isinstance(names, list) or not names or not isinstance(names[0], str):
            self.fail("config.json does not name its architecture", "architectures", names)
        if names[0] not in FAMILIES:
            raise UnsupportedArchitectureError(names[0], FAMILIES, path=self.path)
        return names[0], FAMILIES[names[0]]

    def rope(self, family: Family) -> Rope:
        new, old = self.raw.get("rope_parameters"), self.raw.get("rope_scaling")
        for name, table in (("rope_parameters", new), ("rope_scaling", old)):
            if table is not None and not isinstance(table, dict):
                self.fail("must be an object or null", name, table)
        if not family.local_rope:
            return self._rope(dict(old or {}) | dict(new or {}), family)
        near, far = (new or {}).get("sliding_attention"), (new or {}).get("full_attention")
        for name, table in (("sliding_attention", near), ("full_attention", far)):
            if table is not None and not isinstance(table, dict):
                self.fail("must be an object or null", f"rope_parameters.{name}", table)
        old_near = self.raw.get("rope_local_base_freq")
        local = self._rope({"rope_theta": old_near or 10000.0, **(near or {})}, family)
        if local.kind != "default":
            self.refuse_rope(local.kind, "default in layers with a window")
        return replace(self._rope(dict(old or {}) | dict(far or {}), family), local_theta=local.theta)

    def _rope(self, params: dict[str, Any], family: Family) -> Rope:
        theta = self.real({"rope_theta": self.raw.get("rope_theta"), **params}, "rope_theta", 1.0, 1e15, 10000.0)
        kind = params.get("rope_type", params.get("type")) or "default"
        known = [name for name in _ROPES if name != "longrope" or family.long_rope]
        if family.long_rope and kind in ("su", "yarn"):  # names of before 2024-09 for the same thing
            kind = "longrope"
        if not isinstance(kind, str) or kind not in known:
            self.refuse_rope(kind, ", ".join(known))
        return Rope(theta, kind, params)

    def refuse_rope(self, kind: Any, known: str) -> None:
        raise UnsupportedFeatureError(
            "this RoPE scaling is not supported", path=self.path, field="rope_type", value=kind, limit=known
        )

    def rotary_dims(self, family: Family, head_dim: int, rope: Rope) -> int:
        """Dimensions of a head that are rotated: all of them, except where the family allows a share."""
        share = self.raw.get("partial_rotary_factor", rope.params.get("partial_rotary_factor"))
        if share in (None, 1, 1.0):
            return head_dim
        if not family.long_rope:
            raise UnsupportedFeatureError(
                "heads that are rotated only in part are not supported", path=self.path, field="partial_rotary_factor",
                value=share, limit=1.0,
            )  # fmt: skip
        n = int(head_dim * self.real({"partial_rotary_factor": share}, "partial_rotary_factor", 0.0, 1.0))
        if n < 2 or n % 2:
            self.fail("the number of rotated dimensions is odd", "partial_rotary_factor", share, "an even number")
        return n


def read_config(raw: dict[str, Any], path: str) -> HFConfig:
    """Check config.json. Raises UnsupportedArchitectureError, UnsupportedFeatureError or ConvertError."""
    r = _Reader(raw, path)
    architecture, family = r.family()
    r.raw = raw = family.defaults | raw
    if raw.get("quantization_config"):
        method = raw["quantization_config"]
        method = method.get("quant_method") if isinstance(method, dict) else method
        raise UnsupportedFeatureError(
            "this checkpoint is quantised already; convert the original one", path=path,
            field="quantization_config", value=method,
        )  # fmt: skip
    dim, n_heads = r.integer("hidden_size", 1, 1 << 24), r.integer("num_attention_heads", 1, 1 << 16)
    n_kv_heads = r.integer("num_key_value_heads", 1, n_heads, n_heads)
    if n_heads % n_kv_heads:
        r.fail("heads do not share the KV heads evenly", "num_key_value_heads", n_kv_heads, f"divides {n_heads}")
    if raw.get("head_dim") is None and dim % n_heads:
        r.fail("the width is no multiple of the heads", "num_attention_heads", n_heads, f"divides {dim}")
    head_dim = r.integer("head_dim", 2, 1 << 16, dim // n_heads)
    if head_dim % 2:
        r.fail("the head size is odd", "head_dim", head_dim, "an even number")
    rope = r.rope(family)
    _refuse_other_activations(r, family)
    return HFConfig(
        architecture=architecture,
        family=family,
        n_layers=r.integer("num_hidden_layers", 1, 1024),
        dim=dim,
        ffn_dim=r.integer("intermediate_size", 1, 1 << 24),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        rotary_dims=r.rotary_dims(family, head_dim, rope),
        n_vocab=r.integer("vocab_size", 1, 1 << 28),
        n_ctx=r.integer("max_position_embeddings", 1, (1 << 31) - 1),
        norm_eps=r.real(raw, family.norm_eps[0], 0.0, 0.5, family.norm_eps[1]),
        rope=rope,
        tied=r.flag("tie_word_embeddings"),
        attention_bias=r.flag("attention_bias"),
        mlp_bias=r.flag("mlp_bias"),
        raw=raw,
        path=path,
        notes=_notes(raw),
    )


def _refuse_other_activations(r: _Reader, family: Family) -> None:
    name = family.activation_name
    act = r.raw.get(name, family.activations[0])
    if act not in family.activations:
        raise UnsupportedFeatureError(
            "this activation is not supported", path=r.path, field=name, value=act, limit=", ".join(family.activations)
        )


def _notes(raw: dict[str, Any]) -> tuple[str, ...]:
    if "auto_map" in raw:
        return ("config.json names Python code of its own (auto_map); it was not run",)
    return ()


# ---- GGUF keys -------------------------------------------------------------------------------------------------------


def model_keys(c: HFConfig) -> list[Key]:
    """The keys below the family's name, in the order of llama.cpp's converter."""
    a = c.family.arch
    keys: list[Key] = [
        (f"{a}.block_count", c.n_layers, "u32"),
        (f"{a}.context_length", c.n_ctx, "u32"),
        (f"{a}.embedding_length", c.dim, "u32"),
        (f"{a}.feed_forward_length", c.ffn_dim, "u32"),
        (f"{a}.attention.head_count", c.n_heads, "u32"),
    ]
    if c.family.encoder:
        keys += [(f"{a}.{key}", value, kind) for key, value, kind in hf_bert.keys(c)]
        return [*keys, (f"{a}.vocab_size", c.n_vocab, "u32")]
    keys += [
        (f"{a}.attention.head_count_kv", c.n_kv_heads, "u32"),
        (f"{a}.rope.freq_base", c.rope.theta, "f32"),
        (f"{a}.attention.layer_norm_rms_epsilon", c.norm_eps, "f32"),
        (f"{a}.attention.key_length", c.head_dim, "u32"),
        (f"{a}.attention.value_length", c.head_dim, "u32"),
        (f"{a}.vocab_size", c.n_vocab, "u32"),
        (f"{a}.rope.dimension_count", c.rotary_dims, "u32"),
    ]
    for name, (key, kind) in c.family.optional_keys.items():
        value = c.raw.get(name)
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise ConvertError("must be a positive number or null", path=c.path, field=name, value=value)
            keys.append((f"{a}.{key}", value, kind))
    more = [*window_keys(c), *(c.family.keys(c) if c.family.keys else [])]
    more += [(f"rope.scaling.{key}", value, kind) for key, value, kind in _ROPES[c.rope.kind](c)]
    return keys + [(f"{a}.{key}", value, kind) for key, value, kind in more]


def _plain_rope(c: HFConfig) -> list[Key]:
    return []


def _linear_rope(c: HFConfig) -> list[Key]:
    return [("type", "linear", "str"), ("factor", _rope_number(c, "factor", None), "f32")]


def _yarn_rope(c: HFConfig) -> list[Key]:
    """YaRN. transformers' `attention_factor` replaces the usual 0.1 ln(factor) + 1; GGUF's multiplies it."""
    factor = _rope_number(c, "factor", None)
    usual = _magnitude(factor, 1.0)
    keys: list[Key] = [
        ("type", "yarn", "str"),
        ("factor", factor, "f32"),
        ("original_context_length", _original_ctx(c), "u32"),
    ]
    wanted = usual
    if c.rope.params.get("attention_factor") is not None:
        wanted = _rope_number(c, "attention_factor", None)
    elif c.rope.params.get("mscale") and c.rope.params.get("mscale_all_dim"):
        wanted = _magnitude(factor, _rope_number(c, "mscale", None)) / _magnitude(
            factor, _rope_number(c, "mscale_all_dim", None)
        )
    if not math.isclose(wanted, usual, rel_tol=1e-7):
        keys.append(("attn_factor", wanted / usual, "f32"))
    if c.rope.params.get("truncate") is False:
        raise UnsupportedFeatureError(
            "yarn without truncation is not supported", path=c.path, field="truncate", value=False
        )
    for name in ("beta_fast", "beta_slow"):
        if c.rope.params.get(name) is not None:
            keys.append((f"yarn_{name}", _rope_number(c, name, None), "f32"))
    return keys


def _long_rope(c: HFConfig) -> list[Key]:
    """LongRoPE's magnitude as transformers works it out: sqrt(1 + ln(stretch) / ln(original context))."""
    original = _original_ctx(c)
    stretch = c.n_ctx / original
    magnitude = math.sqrt(1.0 + math.log(stretch) / math.log(original)) if stretch > 1.0 else 1.0
    if c.rope.params.get("attention_factor") is not None:
        magnitude = _rope_number(c, "attention_factor", None)
    return [
        ("type", "longrope", "str"),
        ("original_context_length", original, "u32"),
        ("attn_factor", magnitude, "f32"),
    ]


def _magnitude(factor: float, scale: float) -> float:
    """YaRN's attention temperature (Peng et al. 2023, section 3.4)."""
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1.0 else 1.0


_ROPES: dict[str, Callable[[HFConfig], list[Key]]] = {
    "default": _plain_rope,
    "linear": _linear_rope,
    "llama3": _plain_rope,  # goes into the tensor rope_freqs.weight
    "yarn": _yarn_rope,
    "longrope": _long_rope,  # goes into the tensors rope_factors_long.weight and rope_factors_short.weight
}


def _rope_number(c: HFConfig, name: str, default: float | None) -> float:
    return _Reader(c.raw, c.path).real(c.rope.params, name, 0.0, 1e9, default)


def _original_ctx(c: HFConfig) -> int:
    value = c.rope.params.get("original_max_position_embeddings")
    value = c.raw.get("original_max_position_embeddings", c.n_ctx) if value is None else value
    if type(value) is not int or value < 1:
        raise ConvertError(
            "must be a positive whole number",
            path=c.path,
            field="original_max_position_embeddings",
            value=one_line(value),
        )
    return value


def rope_divisors(c: HFConfig) -> np.ndarray | None:
    """Llama 3's scaling as the vector `rope_freqs.weight`: float64 (rotary_dims / 2,); None for the other kinds."""
    if c.rope.kind != "llama3":
        return None
    from ..rope import llama3_divisors

    low, high = _rope_number(c, "low_freq_factor", 1.0), _rope_number(c, "high_freq_factor", 4.0)
    if not low < high:
        raise ConvertError(
            "must be above low_freq_factor", path=c.path, field="high_freq_factor", value=high, limit=low
        )
    return llama3_divisors(
        c.rotary_dims,
        c.rope.theta,
        factor=_rope_number(c, "factor", 8.0),
        low_freq_factor=low,
        high_freq_factor=high,
        original_ctx=_original_ctx(c),
    )


def long_rope_divisors(c: HFConfig) -> dict[str, np.ndarray]:
    """LongRoPE's two sets of divisors by tensor name: float64 (rotary_dims / 2,) each; none for the other kinds."""
    if c.rope.kind != "longrope":
        return {}
    out: dict[str, np.ndarray] = {}
    for name in ("long_factor", "short_factor"):
        values = c.rope.params.get(name)
        good = isinstance(values, list) and len(values) == c.rotary_dims // 2
        for value in values if good else []:
            good = good and type(value) in (int, float) and math.isfinite(value) and value > 0
        if not good:
            raise ConvertError(
                "must be a list of positive numbers, one for each pair of a head", path=c.path, field=name,
                value=len(values) if isinstance(values, list) else values, limit=c.rotary_dims // 2, rule="P4",
            )  # fmt: skip
        out[f"rope_factors_{name.removesuffix('_factor')}.weight"] = np.array(values, dtype=np.float64)
    return out
