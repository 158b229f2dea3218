"""What becomes of each tensor of the file: its new type, and whether pruning touches it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..blocks import BlockType
from ..convert.choice import NUMBERS, Choice, choose
from ..convert.mixes import QUANTIZATION_VERSION, layer_of, stays_f32
from ..convert.pipeline import Weight, join_notes, packed_rows
from ..errors import InvalidArgumentError
from ..gguf import GGUFFile, GGUFWriter, TensorInfo
from ..progress import Meter
from ..quantize import copied, rows_of
from ..speculate.skipping import PREFIX as DRAFT_PREFIX
from .heads import find_attention, n_gone
from .report import PREFIX
from .walk import LayerWalk
from .wish import PruneWish, check_zeros

_SILENT = Meter(None, "pruning", 0)


@dataclass(frozen=True)
class Job:
    """One tensor; `type` is that of the output. `pruned`: it is a matrix of a layer that loses weights."""

    info: TensorInfo
    type: BlockType
    pruned: bool


@dataclass(frozen=True)
class Jobs:
    """`outer`: tensors outside of layers, written first; `layers`: those of each layer. In the order of the file."""

    outer: tuple[Job, ...]
    layers: tuple[tuple[Job, ...], ...]
    notes: tuple[str, ...]

    @property
    def all(self) -> tuple[Job, ...]:
        return (*self.outer, *(job for layer in self.layers for job in layer))


def plan_jobs(file: GGUFFile, walk: LayerWalk, wish: PruneWish) -> Jobs:
    """Raises ConvertError where a type cannot hold the zeros, InvalidArgumentError where there is nothing to prune."""
    types, notes = _types(file, wish)
    targets = [_targets(file, walk, i, wish) for i in range(walk.n_layers)]
    outer: list[Job] = []
    layers: list[list[Job]] = [[] for _ in targets]
    for info in file.tensors.values():
        layer = layer_of(info.name)
        if layer is None or layer >= walk.n_layers:
            outer.append(Job(info, types[info.name], False))
            continue
        job = Job(info, types[info.name], info.name in targets[layer] and not stays_f32(info.name, info.shape))
        if job.pruned:
            check_zeros(job.type, wish.pattern, info.name, file.path)
        layers[layer].append(job)
    if wish.pattern != "layers" and not any(job.pruned for layer in layers for job in layer):
        raise InvalidArgumentError("this model has no matrices in its layers, there is nothing to prune")
    again = sorted({j.type.name for layer in layers for j in layer if j.pruned and j.info.type.block_size > 1})
    if again:
        notes.append(f"weights were quantised before and are again ({', '.join(again)}); the errors of both add up")
    return Jobs(tuple(outer), tuple(map(tuple, layers)), tuple(notes))


def _types(file: GGUFFile, wish: PruneWish) -> tuple[dict[str, BlockType], list[str]]:
    """The type of each tensor in the output, and remarks."""
    kept = {info.name: info.type for info in file.tensors.values()}
    if wish.type is None:
        return kept, []
    arch = file.get("general.architecture", str)
    numbers = {key: int(np.max(file.get(f"{arch}.{key}", (int, list[int]), 0), initial=0)) for key in NUMBERS}
    choices, notes = choose(wish.type, {info.name: info.shape for info in file.tensors.values()}, arch, numbers)
    chosen = {n: kept[n] if stays_f32(n, file.tensors[n].shape) else c.type for n, c in choices.items()}
    return chosen, join_notes(notes)


def _targets(file: GGUFFile, walk: LayerWalk, layer: int, wish: PruneWish) -> set[str]:
    """Names of the tensors of a layer that lose weights."""
    if wish.pattern == "layers":
        return set()
    if wish.pattern == "heads":
        attention = find_attention(walk.steps(layer), file.path)
        n_gone(attention.n_heads, wish.sparsity)
        return attention.tensors
    return set(walk.leaders(layer))


def describe(
    file: GGUFFile, writer: GGUFWriter, jobs: Jobs, wish: PruneWish, keys: Sequence[tuple[str, Any, str]],
    changed: Mapping[str, tuple[Any, str]] | None = None, names: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Everything that stands before the data: the source's metadata, `keys`, and all tensors.

    `changed`: {key: (value, kind)} in the place of the source's, or besides; `names`: what the tensors of layers are
    called in the output, which has no others.
    """
    replaced = {"general.architecture", "general.alignment", *(changed or {})}
    if wish.type is not None:
        replaced |= {"general.file_type", "general.quantization_version"}
    for key, (value_type, item_type) in file.metadata.types.items():
        if key not in replaced and not key.startswith((PREFIX, DRAFT_PREFIX)):
            writer.add(key, file.metadata[key], value_type if item_type is None else item_type)
    if wish.type is not None:
        writer.add("general.quantization_version", QUANTIZATION_VERSION, "u32")
        writer.add("general.file_type", wish.type.mix.file_type, "u32")
    for key, (value, kind) in (changed or {}).items():
        writer.add(key, value, kind)
    for key, value, kind in keys:
        writer.add(key, value, kind)
    for job in jobs.outer:
        writer.add_tensor_info(job.info.name, job.info.shape, job.type)
    for job in (job for layer in jobs.layers for job in layer):
        if names is None or job.info.name in names:
            writer.add_tensor_info(names[job.info.name] if names else job.info.name, job.info.shape, job.type)


def converted(file: GGUFFile, job: Job) -> Iterator[Any]:
    """The bytes of a tensor that loses no weights, stretch by stretch."""
    if job.type is job.info.type:
        return copied(file, job.info, _SILENT)
    weight = Weight(job.info.name, job.info.shape, rows_of(file, job.info), source=file.path)
    return packed_rows(weight, Choice(job.type), _SILENT)
