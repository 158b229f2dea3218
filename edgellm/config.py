"""The hyperparameters of a model, read from GGUF metadata and checked before anything is sized by them.

Keys are those that llama.cpp writes ("llama.block_count", "llama.attention.head_count", ...; see
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). Rule codes (P1, P2, ...) stand in the errors.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .errors import ModelFormatError, UnsupportedFeatureError

if TYPE_CHECKING:
    from .gguf import GGUFFile

MAX_LAYERS = 1024
MAX_EXPERTS = 1024
MAX_WIDTH = 1 << 24  # columns of a layer; with 64-bit sizes nothing that follows can wrap
MAX_CTX = (1 << 31) - 1
ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")

# Keys that change the result: (type, value that changes nothing). A family says which of them its plan obeys; any other
# is refused by name unless it has the neutral value.
_NEUTRAL: dict[str, tuple[Any, Any]] = {
    "expert_count": (int, 0),
    "expert_shared_count": (int, 0),
    "expert_weights_scale": (float, 1.0),
    "expert_gating_func": (int, 1),  # 1: softmax
    "embedding_scale": (float, 1.0),
    "residual_scale": (float, 1.0),
    "logit_scale": (float, 1.0),
    "attention.clamp_kqv": (float, 0.0),
    "attention.max_alibi_bias": (float, 0.0),
    "attention.causal": (bool, True),
    "attn_logit_softcapping": (float, 0.0),
    "final_logit_softcapping": (float, 0.0),
    "rope.scaling.yarn_log_multiplier": (float, 0.0),
    "rope.scaling.yarn_ext_factor": (float, 1.0),
}
WINDOW = "attention.sliding_window"
LAYER_NORM = "attention.layer_norm_epsilon"  # the norm of families with layer norm, in place of the RMS norm
POOLINGS = {1: "mean", 2: "cls", 3: "last", 4: "rank"}  # pooling_type: how a text's tokens become one embedding
LONGROPE = "longrope"  # a rope.scaling.type that a family may obey


@dataclass(frozen=True)
class RopeScaling:
    """How positions are stretched beyond the trained context.

    `kind` is "none", "linear", "yarn" or "longrope" (llama3's and longrope's divisors are tensors). `factor` is the
    stretch, `original_ctx` the context before it, `attn_factor` multiplies the rotation's magnitude, `yarn_attn_factor`
    replaces yarn's own magnitude (None: 0.1 ln(factor) + 1).
    """

    kind: str = "none"
    factor: float = 1.0
    original_ctx: int = 0
    attn_factor: float = 1.0
    yarn_attn_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and constants of one model, all checked. `attention_scale` multiplies q . k before the softmax.

    `window` is the sliding window (0: none), `window_layers` the layers that have it: one flag per layer, or a period n
    (all but the last of every n layers; 0: all), or None where the file leaves it to the family. `rope_layers` are the
    layers with positions, None as before. `rope_theta_local` is that of layers with a window, where they differ.
    `pooling` is what the file says of embeddings: one of POOLINGS, or None.
    Softcaps are None where the file does not say, 0 for none. `expert_dim` is the width of one expert.
    """

    arch: str
    name: str
    n_layers: int
    dim: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    rotary_dims: int
    ffn_dim: int
    n_vocab: int
    n_ctx_train: int
    norm_eps: float
    rope_theta: float
    attention_scale: float
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)
    rope_theta_local: float = 10000.0
    window: int = 0
    window_layers: tuple[bool, ...] | int | None = None
    rope_layers: tuple[bool, ...] | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    n_experts: int = 0
    n_experts_used: int = 0
    expert_dim: int = 0
    expert_norm: bool = True
    pooling: str | None = None

    @classmethod
    def from_gguf(cls, file: GGUFFile, uses: Collection[str] = ()) -> ModelConfig:
        """Reads and checks the metadata of a text model.

        `uses` are the keys below the family's name that change the result and that its plan obeys.

        Raises MissingKeyError, WrongKeyTypeError, ModelFormatError (a value out of its range), UnsupportedFeatureError
        (a scaling, window or expert setting that edgellm does not do). Whether the family itself is known is the
        question of `edgellm.models`.
        """
        return _Reader(file, uses).config()


class _Reader:
    """Reads keys below `general.architecture` and says precisely which one is wrong."""

    def __init__(self, file: GGUFFile, uses: Collection[str]) -> None:
        self.file, self.uses = file, frozenset(uses)
        self.arch = file.get("general.architecture", str)

    def fail(self, rule: str, message: str, key: str, value: Any, limit: Any = None) -> None:
        raise ModelFormatError(
            message, path=self.file.path, field=f"{self.arch}.{key}", value=value, limit=limit, rule=rule
        )

    def number(self, rule: str, key: str, low: int, high: int, default: int | None = None) -> int:
        """An integer in [low, high]; without a default the key must be there."""
        name = f"{self.arch}.{key}"
        value: int = self.file.get(name, int) if default is None else self.file.get(name, int, default)
        if not low <= value <= high:
            self.fail(rule, "a hyperparameter is out of range", key, value, f"{low} to {high}")
        return value

    def real(self, rule: str, key: str, default: float | None, low: float = 0.0, high: float = 1e30) -> float:
        """A finite float in (low, high]; None as default: the key must be there."""
        name = f"{self.arch}.{key}"
        value: float = self.file.get(name, float) if default is None else self.file.get(name, float, default)
        if not (math.isfinite(value) and low < value <= high):
            self.fail(rule, "a hyperparameter is out of range", key, value, f"above {low:g}, at most {high:g}")
        return value

    def per_layer(self, rule: str, key: str, n_layers: int, high: int, default: int | None = None) -> int:
        """A number given once, or once per layer: then all must be equal (P9: as many as there are layers)."""
        name, kinds = f"{self.arch}.{key}", (int, list[int])
        value = self.file.get(name, kinds) if default is None else self.file.get(name, kinds, default)
        if not isinstance(value, int):
            values = [int(v) for v in value]
            if len(values) != n_layers:
                self.fail("P9", "a per-layer array has the wrong length", key, len(values), n_layers)
            if len(set(values)) > 1:
                self.refuse("layers of different shape are not supported yet", key, sorted(set(values)))
            value = values[0]
        if not 1 <= value <= high:
            self.fail(rule, "a hyperparameter is out of range", key, value, f"1 to {high}")
        return value

    def refuse(self, message: str, key: str, value: Any, limit: Any = None) -> None:
        raise UnsupportedFeatureError(
            message, path=self.file.path, field=f"{self.arch}.{key}", value=value, limit=limit
        )

    def config(self) -> ModelConfig:
        n_layers = self.number("P1", "block_count", 1, MAX_LAYERS)
        dim = self.number("P2", "embedding_length", 1, MAX_WIDTH)
        n_heads = self.per_layer("P2", "attention.head_count", n_layers, dim)
        n_kv_heads = self.per_layer("P2", "attention.head_count_kv", n_layers, n_heads, default=n_heads)
        if n_heads % n_kv_heads:
            self.fail("P2", "heads do not share the KV heads evenly", "attention.head_count_kv", n_kv_heads, n_heads)
        head_dim = self._head_dim(dim, n_heads)
        n_ctx_train = self.number("P8", "context_length", 1, MAX_CTX)
        ffn_dim = self.per_layer("P2", "feed_forward_length", n_layers, MAX_WIDTH)
        self._refuse_unknown(n_ctx_train)
        return ModelConfig(
            arch=self.arch,
            name=self.file.get("general.name", str, self.arch),
            n_layers=n_layers,
            dim=dim,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            rotary_dims=self._rotary_dims(head_dim),
            ffn_dim=ffn_dim,
            n_vocab=self._n_vocab(),
            n_ctx_train=n_ctx_train,
            norm_eps=self.real("P3", self._norm_key(), None, 0.0, 0.5),
            rope_theta=self.real("P4", "rope.freq_base", 10000.0, 1.0, 1e15),
            attention_scale=self._attention_scale(head_dim),
            rope_scaling=self._rope_scaling(n_ctx_train),
            rope_theta_local=self.real("P4", "rope.freq_base_swa", 10000.0, 1.0, 1e15),
            window=self.number("P5", WINDOW, 0, MAX_CTX, 0),
            window_layers=self._window_layers(n_layers),
            rope_layers=self.flags("rope.layers", n_layers),
            attention_softcap=self._softcap("attn_logit_softcapping"),
            logit_softcap=self._softcap("final_logit_softcapping"),
            embedding_scale=self._multiplier("embedding_scale"),
            residual_scale=self._multiplier("residual_scale"),
            logit_scale=self._multiplier("logit_scale"),
            pooling=self._pooling(),
            **self._experts(ffn_dim),
        )

    def flags(self, key: str, n_layers: int) -> tuple[bool, ...] | None:
        """One flag per layer, None without the key (P9: as many as there are layers)."""
        name = f"{self.arch}.{key}"
        value = self.file.get(name, list[bool], None)
        if value is None:
            return None
        if len(value) != n_layers:
            self.fail("P9", "a per-layer array has the wrong length", key, len(value), n_layers)
        return tuple(bool(v) for v in value)

    def _window_layers(self, n_layers: int) -> tuple[bool, ...] | int | None:
        key = f"{WINDOW}_pattern"
        if isinstance(self.file.metadata.get(f"{self.arch}.{key}"), int):
            return self.number("P5", key, 0, MAX_LAYERS)
        return self.flags(key, n_layers)

    def _softcap(self, key: str) -> float | None:
        value = self.file.get(f"{self.arch}.{key}", float, None)
        return value if value is None or value == 0.0 else self.real("P7", key, None, 0.0, 1e6)

    def _multiplier(self, key: str) -> float:
        """1 without the key; llama.cpp takes 0 for 1."""
        value = self.file.get(f"{self.arch}.{key}", float, 1.0)
        return 1.0 if value == 0.0 else self.real("P7", key, 1.0, 0.0, 1e6)

    def _norm_key(self) -> str:
        return LAYER_NORM if LAYER_NORM in self.uses else "attention.layer_norm_rms_epsilon"

    def _pooling(self) -> str | None:
        return POOLINGS.get(self.number("P11", "pooling_type", -1, 4, -1))

    def _experts(self, ffn_dim: int) -> dict[str, Any]:
        n = self.number("P6", "expert_count", 0, MAX_EXPERTS, 0)
        if not n:
            return {}
        return {
            "n_experts": n,
            "n_experts_used": self.number("P6", "expert_used_count", 1, n),
            "expert_dim": self.number("P2", "expert_feed_forward_length", 1, MAX_WIDTH, ffn_dim),
            "expert_norm": self.file.get(f"{self.arch}.expert_weights_norm", bool, True),
        }

    def _head_dim(self, dim: int, n_heads: int) -> int:
        if f"{self.arch}.attention.key_length" not in self.file.metadata and dim % n_heads:
            self.fail("P2", "the width is no multiple of the heads", "attention.head_count", n_heads, f"divides {dim}")
        head_dim = self.number("P2", "attention.key_length", 1, 1 << 16, dim // n_heads)
        if head_dim % 2:
            self.fail("P2", "the head size is odd", "attention.key_length", head_dim, "an even number")
        value_dim = self.number("P2", "attention.value_length", 1, 1 << 16, head_dim)
        if value_dim != head_dim:
            message = "keys and values of different length are not supported"
            self.refuse(message, "attention.value_length", value_dim, head_dim)
        return head_dim

    def _rotary_dims(self, head_dim: int) -> int:
        rotary = self.number("P2", "rope.dimension_count", 1, head_dim, head_dim)
        if rotary % 2:
            self.fail("P2", "the number of rotated dimensions is odd", "rope.dimension_count", rotary, "an even number")
        return rotary

    def _attention_scale(self, head_dim: int) -> float:
        usual = 1.0 / math.sqrt(head_dim)
        if self.file.get(f"{self.arch}.attention.scale", float, 0.0) == 0.0:  # llama.cpp writes 0 for "as usual"
            return usual
        return self.real("P4", "attention.scale", usual)

    def _n_vocab(self) -> int:
        """Pieces of the vocabulary; a file without one says `vocab_size`, or the embedding table tells."""
        tokens, metadata = "tokenizer.ggml.tokens", self.file.metadata
        if tokens in metadata:
            metadata.check_type(tokens, list[str])
            if n := metadata.length(tokens):
                return n
        table = self.file.tensors.get("token_embd.weight")
        return self.number("V6", "vocab_size", 1, MAX_CTX, table.shape[0] if table is not None else None)

    def _rope_scaling(self, n_ctx_train: int) -> RopeScaling:
        kind = self.file.get(f"{self.arch}.rope.scaling.type", str, "")
        factor = self.real("P4", "rope.scaling.factor", 1.0, 0.0, 1e6)
        if not kind:  # files before 2023-10 have one key only
            factor = self.real("P4", "rope.scale_linear", factor, 0.0, 1e6)
            kind = "linear" if factor != 1.0 else "none"
        known = [k for k in ROPE_SCALINGS if k != LONGROPE or k in self.uses]
        if kind not in known:
            self.refuse("this RoPE scaling is not supported", "rope.scaling.type", kind, ", ".join(known))
        own = "rope.scaling.yarn_attn_factor"
        fast = self.real("P4", "rope.scaling.yarn_beta_fast", 32.0)
        slow = self.real("P4", "rope.scaling.yarn_beta_slow", 1.0)
        if fast < slow:
            self.fail("P4", "yarn's beta_fast is below its beta_slow", "rope.scaling.yarn_beta_fast", fast, slow)
        return RopeScaling(
            kind=kind,
            factor=factor if kind != "none" else 1.0,
            original_ctx=self.number("P4", "rope.scaling.original_context_length", 1, MAX_CTX, n_ctx_train),
            attn_factor=self.real("P4", "rope.scaling.attn_factor", 1.0, 0.0, 1e3),
            yarn_attn_factor=self.real("P4", own, None) if f"{self.arch}.{own}" in self.file.metadata else None,
            beta_fast=fast,
            beta_slow=slow,
        )

    def _refuse_unknown(self, n_ctx_train: int) -> None:
        for key, (kind, neutral) in _NEUTRAL.items():
            value = self.file.get(f"{self.arch}.{key}", kind, neutral)
            if value != neutral and key not in self.uses:
                self.refuse("this setting is not supported for this family", key, value, f"{neutral}")
        window = self.number("P5", WINDOW, 0, MAX_CTX, 0)
        if 0 < window < n_ctx_train and WINDOW not in self.uses:
            self.refuse("sliding-window attention is not supported for this family", WINDOW, window)
