"""The mixes that people know by name (`Q4_K_M`, `Q3_K_L`, ...): a base type, and which tensors get more or fewer bits.

The rules are those of llama.cpp (llama_tensor_get_type in llama-quant.cpp), so that a file of one name means the same
wherever it was made. In short: the output head gets Q6_K; attn_v and ffn_down, whose errors hurt most, get more bits in
some or all layers; where a row is no multiple of a type's block, a type of blocks of 32 takes its place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..blocks import (
    BF16,
    BY_NAME,
    F16,
    F32,
    IQ4_NL,
    IQ4_XS,
    MXFP4,
    Q2_K,
    Q3_K,
    Q4_0,
    Q4_1,
    Q4_K,
    Q5_0,
    Q5_1,
    Q5_K,
    Q6_K,
    Q8_0,
    TQ1_0,
    TQ2_0,
    BlockType,
)
from ..errors import InvalidArgumentError, one_line

HEAD, EMBEDDING = "output.weight", "token_embd.weight"
QUANTIZATION_VERSION = 2  # general.quantization_version: ggml's block formats since 2023-05


@dataclass(frozen=True)
class Mix:
    """`base`: the type of most tensors; `file_type`: general.file_type (llama.cpp's llama_ftype)."""

    name: str
    base: BlockType
    file_type: int


MIXES: dict[str, Mix] = {
    m.name: m
    for m in (
        Mix("F32", F32, 0), Mix("F16", F16, 1), Mix("BF16", BF16, 32), Mix("Q8_0", Q8_0, 7), Mix("Q6_K", Q6_K, 18),
        Mix("Q5_K_M", Q5_K, 17), Mix("Q5_K_S", Q5_K, 16), Mix("Q5_1", Q5_1, 9), Mix("Q5_0", Q5_0, 8),
        Mix("Q4_K_M", Q4_K, 15), Mix("Q4_K_S", Q4_K, 14), Mix("Q4_1", Q4_1, 3), Mix("Q4_0", Q4_0, 2),
        Mix("IQ4_NL", IQ4_NL, 25), Mix("IQ4_XS", IQ4_XS, 30), Mix("Q3_K_L", Q3_K, 13), Mix("Q3_K_M", Q3_K, 12),
        Mix("Q3_K_S", Q3_K, 11), Mix("Q2_K", Q2_K, 10), Mix("Q2_K_S", Q2_K, 21), Mix("TQ2_0", TQ2_0, 37),
        Mix("TQ1_0", TQ1_0, 36), Mix("MXFP4_MOE", MXFP4, 38),
    )
}  # fmt: skip
ALIASES = {"Q5_K": "Q5_K_M", "Q4_K": "Q4_K_M", "Q3_K": "Q3_K_M", "MXFP4": "MXFP4_MOE"}

# what a type becomes where rows are no multiple of its block of 256
SMALLER_BLOCKS = {
    TQ1_0: Q4_0, TQ2_0: Q4_0, Q2_K: Q4_0, Q3_K: Q4_0, IQ4_XS: IQ4_NL, Q4_K: Q5_0, Q5_K: Q5_1, Q6_K: Q8_0,
}  # fmt: skip


def find_mix(name: str) -> Mix:
    """The mix of that name in any case; InvalidArgumentError lists the names."""
    key = name.upper() if isinstance(name, str) else ""
    found = MIXES.get(ALIASES.get(key, key))
    if found is None:
        raise InvalidArgumentError(f"unknown type '{one_line(name)}'; choose one of {', '.join(MIXES)}")
    return found


def stays_f32(name: str, shape: Sequence[int]) -> bool:
    """Small tensors whose precision costs nothing: vectors, norms, biases, routers of experts, learned positions."""
    ends, starts = ("_norm.weight", ".bias", "_gate_inp.weight"), ("rope_f", "position_embd.", "token_types.")
    return len(shape) < 2 or name.endswith(ends) or name.startswith(starts)


@dataclass(frozen=True)
class Facts:
    """What the rules look at. `layers`: the layers that have a tensor of each role (attn_v, ffn_down), ascending."""

    arch: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    n_experts: int
    tied: bool
    has_imatrix: bool
    layers: Mapping[str, Sequence[int]]

    @property
    def gqa(self) -> int:
        """Query heads that share a KV head."""
        return self.n_heads // max(self.n_kv_heads, 1)


def layer_of(name: str) -> int | None:
    """12 for "blk.12.attn_v.weight", None for tensors outside of layers."""
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else None


def layers_with(names: Sequence[str]) -> dict[str, list[int]]:
    """`Facts.layers` of these tensor names."""
    roles = {"attn_v": ("attn_v.weight", "attn_qkv.weight", "attn_kv_b.weight"), "ffn_down": ("ffn_down",)}
    return {
        role: sorted({layer for n in names if any(p in n for p in parts) and (layer := layer_of(n)) is not None})
        for role, parts in roles.items()
    }


def mixed_type(mix: Mix, name: str, shape: Sequence[int], facts: Facts) -> BlockType:
    """The type that the mix gives a matrix, before its row length is looked at. `shape`: rows first."""
    if not is_blocked(mix.base):
        return mix.base
    if name == HEAD or (facts.tied and name == EMBEDDING):
        if mix.base is Q8_0 or mix.base is MXFP4 or facts.arch == "falcon" or shape[-1] % mix.base.block_size:
            return Q8_0
        return Q6_K
    if mix.base is MXFP4:
        return MXFP4 if len(shape) > 2 else Q8_0
    if name == EMBEDDING:
        return Q4_K if mix.base in (TQ1_0, TQ2_0) else mix.base
    for part, rule in _RULES:
        if part in name:
            return rule(mix, name, facts) or mix.base
    return mix.base


def fitting_type(kind: BlockType, k: int) -> BlockType:
    """`kind`, or what takes its place where rows of `k` weights are no multiple of its block; at last F16."""
    if k % kind.block_size:
        kind = SMALLER_BLOCKS.get(kind, F16)
    return F16 if k % kind.block_size else kind


def is_blocked(kind: BlockType) -> bool:
    return kind.block_size > 1


# ---- the rules: each returns a type, or None for the base type -------------------------------------------------------


def _place(role: str, name: str, facts: Facts) -> tuple[int, int]:
    """(which of the tensors of this role it is, how many there are)"""
    layer, layers = layer_of(name) or 0, facts.layers.get(role, ())
    if role == "ffn_down":
        return (layer if facts.n_experts > 1 or layer not in layers else layers.index(layer)), facts.n_layers
    return (layers.index(layer) if layer in layers else 0), len(layers)


def _more_bits(i: int, n: int) -> bool:
    """The first and last eighth of the layers, and every third one between."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def _attn_v(mix: Mix, name: str, facts: Facts) -> BlockType | None:
    i, n = _place("attn_v", name, facts)
    kind = {"Q3_K_M": Q5_K if i < 2 else Q4_K, "Q3_K_L": Q5_K}.get(mix.name)
    if mix.name == "Q2_K":
        kind = Q4_K if facts.gqa >= 4 else Q3_K
    elif mix.name == "Q2_K_S":
        kind = Q4_K if facts.gqa >= 4 else None
    elif mix.name in ("IQ4_NL", "IQ4_XS"):
        kind = Q5_K if facts.gqa >= 4 else None
    elif mix.name in ("Q4_K_M", "Q5_K_M"):
        kind = Q6_K if _more_bits(i, n) else None
    elif mix.name == "Q4_K_S":
        kind = Q5_K if i < 4 else None
    kind = kind or mix.base
    if _is_70b(facts) and kind in (Q3_K, Q4_K):
        kind = Q5_K
    return Q8_0 if facts.n_experts == 8 else kind


def _is_70b(facts: Facts) -> bool:
    """80 layers with shared KV heads: attn_v is an eighth of attn_q, so more bits cost little."""
    return facts.arch in ("llama", "qwen2") and facts.n_layers == 80 and facts.n_heads != facts.n_kv_heads


def _attn_k(mix: Mix, name: str, facts: Facts) -> BlockType | None:
    return Q8_0 if facts.n_experts == 8 else None


def _ffn_down(mix: Mix, name: str, facts: Facts) -> BlockType | None:
    i, n = _place("ffn_down", name, facts)
    falcon, early, more = facts.arch == "falcon", i < n // 8, _more_bits(i, n)
    if mix.name == "Q2_K":
        return Q3_K
    if mix.name == "Q2_K_S":
        return Q4_K if early else None
    if mix.name == "Q3_K_M":
        return Q5_K if i < n // 16 else Q4_K if not falcon or more else Q3_K
    if mix.name == "Q3_K_L":
        return Q4_K if falcon else Q5_K
    if mix.name == "Q4_K_M":
        if falcon:
            return Q6_K if i < n // 16 else Q5_K if more else Q4_K
        return Q6_K if more else None
    if mix.name in ("IQ4_NL", "IQ4_XS"):
        return Q5_K if early and not facts.has_imatrix else None
    if mix.name == "Q5_K_M":
        return Q6_K if more else None
    if mix.name == "Q4_K_S":
        return Q5_K if early and not falcon else None
    if mix.name in ("Q4_0", "Q5_0") and facts.has_imatrix and early:
        return Q4_1 if mix.name == "Q4_0" else Q5_1
    return None


def _attn_output(mix: Mix, name: str, facts: Facts) -> BlockType | None:
    if facts.arch == "falcon":
        return Q4_K if mix.name == "Q3_K_L" else None
    if facts.n_experts == 8:
        few = ("Q2_K", "Q3_K_S", "Q3_K_M", "IQ4_NL", "IQ4_XS", "Q4_K_S", "Q4_K_M")
        return Q5_K if mix.name in few else None
    return {"Q2_K": Q3_K, "Q3_K_M": Q4_K, "Q3_K_L": Q5_K}.get(mix.name)


def _attn_qkv(mix: Mix, name: str, facts: Facts) -> BlockType | None:
    return {"Q3_K_M": Q4_K, "Q3_K_L": Q4_K, "Q4_K_M": Q5_K, "Q5_K_M": Q6_K}.get(mix.name)


_RULES = (
    ("attn_v.weight", _attn_v), ("attn_k.weight", _attn_k), ("ffn_down", _ffn_down),
    ("attn_output.weight", _attn_output), ("attn_qkv.weight", _attn_qkv),
)  # fmt: skip


# ---- what a person asks for instead ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Overrides:
    """`tensor_types`: (pattern, type), the first whose pattern is found in a name wins; `output`, `embedding`: the type
    of output.weight and of token_embd.weight; `pure`: the base type everywhere else."""

    tensor_types: tuple[tuple[re.Pattern[str], BlockType], ...] = ()
    output: BlockType | None = None
    embedding: BlockType | None = None
    pure: bool = False

    def type_of(self, name: str, tied: bool) -> BlockType | None:
        for pattern, kind in self.tensor_types:
            if pattern.search(name):
                return kind
        if name == HEAD or (tied and name == EMBEDDING and self.embedding is None):
            return self.output
        return self.embedding if name == EMBEDDING else None


def find_block(name: str, what: str) -> BlockType:
    """A block type by name in any case; InvalidArgumentError lists the names."""
    kind = BY_NAME.get(name.upper()) if isinstance(name, str) else None
    if kind is None:
        raise InvalidArgumentError(f"unknown {what} '{one_line(name)}'; choose one of {', '.join(BY_NAME)}")
    return kind


def parse_overrides(
    tensor_types: Sequence[str | tuple[str, str]] = (),
    output: str | None = None,
    embedding: str | None = None,
    pure: bool = False,
) -> Overrides:
    """Overrides from text; `tensor_types` are "REGEX=TYPE" or pairs. Raises InvalidArgumentError."""
    found = []
    for item in tensor_types:
        pattern, _, kind = item.rpartition("=") if isinstance(item, str) else (item[0], "=", item[1])
        if not pattern:
            raise InvalidArgumentError(f"tensor type '{one_line(str(item))}' is not of the form REGEX=TYPE")
        try:
            found.append((re.compile(pattern), find_block(kind, "tensor type")))
        except re.error as e:
            raise InvalidArgumentError(f"tensor type '{one_line(pattern)}' is no regular expression: {e}") from None
    return Overrides(
        tuple(found),
        find_block(output, "output tensor type") if output else None,
        find_block(embedding, "token embedding type") if embedding else None,
        pure,
    )
