"""Which tensor gets which type in `edgellm convert`; `mixes` has the richer rules of `edgellm quantize`.

The rules are llama.cpp's (llama-quant.cpp): norms, biases and RoPE divisors stay F32; the output head (`output.weight`,
or the embedding table where the head is tied to it) is worth more bits, so every block type but Q8_0 gives it Q6_K, or
Q8_0 where its rows are no multiple of Q6_K's 256 weights; a row that does not fit the blocks of its type stays F16.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..blocks import BF16, F16, F32, Q4_0, Q6_K, Q8_0, BlockType
from ..errors import InvalidArgumentError, one_line

OUTTYPES = (F32, F16, BF16, Q8_0, Q4_0)  # of the converter
_PLAIN = (F32, F16, BF16)
QUANTIZATION_VERSION = 2  # general.quantization_version: ggml's block formats since 2023-05

# general.file_type (llama.cpp's llama_ftype): the type that most tensors have
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}

HEAD, EMBEDDING = "output.weight", "token_embd.weight"


def find_type(name: str, allowed: Sequence[BlockType], what: str) -> BlockType:
    """The type of that name in any case; InvalidArgumentError names the ones that are allowed."""
    for kind in allowed:
        if isinstance(name, str) and kind.name == name.upper():
            return kind
    known = ", ".join(kind.name for kind in allowed)
    raise InvalidArgumentError(f"unknown {what} '{one_line(name)}'; choose one of {known}")


def stays_f32(name: str, shape: Sequence[int]) -> bool:
    """Small tensors whose precision costs nothing: vectors, norms, biases, routers of experts."""
    return len(shape) < 2 or name.endswith(("_norm.weight", ".bias", "_gate_inp.weight")) or name.startswith("rope_f")


def choose_type(name: str, shape: Sequence[int], wanted: BlockType, tied: bool) -> tuple[BlockType, str | None]:
    """The type of one tensor, and a line for the report where it is not the usual one.

    `shape`: rows first. `tied`: the file has no `output.weight`, so the embedding table is the head.
    """
    if stays_f32(name, shape):
        return F32, None
    if wanted in _PLAIN:
        return wanted, None
    k, kind = shape[-1], wanted
    if name == HEAD or (tied and name == EMBEDDING):
        kind = Q8_0 if wanted is Q8_0 or k % Q6_K.block_size else Q6_K
    if k % kind.block_size:
        return F16, f"stays F16, a row of {k} weights is no multiple of the {kind.name} block of {kind.block_size}"
    return kind, None
