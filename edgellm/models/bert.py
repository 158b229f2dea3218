"""BERT (Devlin et al. 2018): an encoder. Every token sees the whole text; there is no head, the result is embeddings.

Learned positions, norms behind the blocks, biases everywhere, a plain feed-forward block with exact GELU. All tokens
are of the first token type, as one text alone is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config import LAYER_NORM, ModelConfig
from ..errors import UnsupportedFeatureError
from ..plan import Plan
from ..weights import EMBEDDING
from .parts import Family, attend, builder, linear, qkv

if TYPE_CHECKING:
    from ..gguf import GGUFFile

TYPES, POSITIONS = "token_types.weight", "position_embd.weight"
TYPE_COUNT = "tokenizer.ggml.token_type_count"


def build(c: ModelConfig, file: GGUFFile, n_ctx: int) -> Plan:
    """The plan of a BERT. Raises UnsupportedFeatureError for one that does not look ahead (a decoder)."""
    if file.get(f"{c.arch}.attention.causal", bool, False):
        raise UnsupportedFeatureError(
            "a BERT whose tokens see only what is before them is not supported", path=file.path,
            field=f"{c.arch}.attention.causal", value=True, limit=False,
        )  # fmt: skip
    b = builder(c, file)
    n_types = file.get(TYPE_COUNT, int, 2)
    x = b.add_rows(b.embed(EMBEDDING, c.dim, out="e"), TYPES, n_types, row="first", out="x")
    x = b.add_rows(x, POSITIONS, c.n_ctx_train, row="position", out="e")
    x = b.layernorm(x, "token_embd_norm", c.norm_eps, out="x")
    for layer in range(c.n_layers):
        blk = f"blk.{layer}"
        a = attend(b, c, *qkv(b, c, x, blk), layer, None, causal=False)
        x = b.layernorm(b.add(x, a, label=f"{blk}.attn_residual"), f"{blk}.attn_output_norm", c.norm_eps)
        h = b.gelu(linear(b, x, f"{blk}.ffn_up", c.ffn_dim, "up"), label=f"{blk}.ffn_act")
        y = linear(b, h, f"{blk}.ffn_down", c.dim, "h")
        x = b.layernorm(b.add(x, y, label=f"{blk}.ffn_residual"), f"{blk}.layer_output_norm", c.norm_eps)
    b.hidden = b.take_rows(x)
    return b.build(None)


FAMILY = Family(build, frozenset({"attention.causal", LAYER_NORM}))
