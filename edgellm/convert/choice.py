"""Which tensor gets which type, and which importance: what `edgellm convert` and `edgellm quantize` share."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from ..blocks import F16, F32, BlockType
from ..errors import InvalidArgumentError
from ..imatrix import Imatrix, read_imatrix
from .mixes import (
    HEAD,
    Facts,
    Mix,
    Overrides,
    find_mix,
    fitting_type,
    layers_with,
    mixed_type,
    parse_overrides,
    stays_f32,
)

# the keys that the rules look at, behind "ARCH."
NUMBERS = ("block_count", "attention.head_count", "attention.head_count_kv", "expert_count")


@dataclass(frozen=True)
class Wish:
    """What a person asked for: a mix, types for some tensors, an importance matrix."""

    mix: Mix
    overrides: Overrides
    imatrix: Imatrix | None = None


@dataclass(frozen=True)
class Choice:
    """For one tensor: its type, and importance float64 (matrices, k) of matrices that follow each other, or None."""

    type: BlockType
    importance: np.ndarray | None = None


def parse_wish(
    type: str,
    imatrix: str | os.PathLike[str] | Imatrix | None = None,
    tensor_types: Sequence[str | tuple[str, str]] = (),
    output_tensor_type: str | None = None,
    token_embedding_type: str | None = None,
    pure: bool = False,
) -> Wish:
    """The options of both commands, checked. Raises InvalidArgumentError, and what `read_imatrix` raises."""
    mix = find_mix(type)
    overrides = parse_overrides(tensor_types, output_tensor_type, token_embedding_type, pure)
    return Wish(mix, overrides, imatrix if imatrix is None or isinstance(imatrix, Imatrix) else read_imatrix(imatrix))


def choose(
    wish: Wish, shapes: Mapping[str, tuple[int, ...]], arch: str, numbers: Mapping[str, int]
) -> tuple[dict[str, Choice], list[tuple[str, str]]]:
    """The choice for every tensor (name -> shape, rows first), and remarks (name, text).

    Tensors that stay as they are (`stays_f32`) have F32. `numbers`: those of `NUMBERS` that the model has.
    Raises InvalidArgumentError when the importance matrix fits none of the tensors.
    """
    facts = _facts(shapes, arch, numbers, wish.imatrix is not None)
    out: dict[str, Choice] = {}
    notes: list[tuple[str, str]] = []
    for name, shape in shapes.items():
        if stays_f32(name, shape):
            out[name] = Choice(F32)
            continue
        wanted = wish.overrides.type_of(name, facts.tied)
        if wanted is None:
            wanted = wish.mix.base if wish.overrides.pure else mixed_type(wish.mix, name, shape, facts)
        kind = fitting_type(wanted, shape[-1])
        notes += [(name, _why(wanted, kind, shape[-1]))] if kind is not wanted else []
        out[name] = Choice(kind, _importance(wish.imatrix, name, shape, notes) if kind.block_size > 1 else None)
    if wish.imatrix is not None and wish.mix.base.block_size > 1 and all(c.importance is None for c in out.values()):
        raise InvalidArgumentError("the importance matrix has none of this model's tensors; it is for another model")
    return out, notes


def _facts(shapes: Mapping[str, tuple[int, ...]], arch: str, numbers: Mapping[str, int], weighted: bool) -> Facts:
    heads = numbers.get("attention.head_count", 0)
    return Facts(
        arch=arch,
        n_layers=numbers.get("block_count", 0),
        n_heads=heads,
        n_kv_heads=numbers.get("attention.head_count_kv", 0) or heads,
        n_experts=numbers.get("expert_count", 0),
        tied=HEAD not in shapes,
        has_imatrix=weighted,
        layers=layers_with(list(shapes)),
    )


def _why(wanted: BlockType, kind: BlockType, k: int) -> str:
    what = "stays F16" if kind is F16 else f"becomes {kind.name}"
    return f"{what}, a row of {k} weights is no multiple of the {wanted.name} block of {wanted.block_size}"


def _importance(
    imatrix: Imatrix | None, name: str, shape: tuple[int, ...], notes: list[tuple[str, str]]
) -> np.ndarray | None:
    if imatrix is None:
        return None
    found = imatrix.importance(name, prod(shape[:-2]), shape[-1])
    if found is None:
        notes.append((name, "has no entry in the importance matrix, all its columns count the same"))
    return found


def imatrix_keys(imatrix: Imatrix | None) -> list[tuple[str, object, str | None]]:
    """The metadata that tells of an importance matrix, as llama.cpp writes it."""
    keys: list[tuple[str, object, str | None]] = []
    if imatrix is None:
        return keys
    if imatrix.datasets:
        keys.append(("quantize.imatrix.dataset", imatrix.datasets[0], "str"))
    keys.append(("quantize.imatrix.entries_count", len(imatrix.entries), "u32"))
    keys.append(("quantize.imatrix.chunks_count", imatrix.n_chunks, "u32"))
    return keys
