"""What pruning tells: a report for people and programs, and the keys in the file's metadata."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..gguf import GGUFWriter
from .losses import Quality
from .wish import PruneWish

PREFIX = "edgellm.prune."
NOT_MEASURED = "not measured: that takes the compiled library, and memory for both files at once"


@dataclass(frozen=True)
class TensorReport:
    """One pruned tensor: its type in the output, its weights, and those that are exactly 0 there."""

    name: str
    type: str
    n_weights: int
    n_zeros: int


@dataclass(frozen=True)
class PruneReport:
    """What was written. Sizes are bytes of whole files.

    `zeros`: share of zeros among the weights of `tensors`, those that were pruned. Perplexities (`ppl_before`,
    `ppl_after`, their errors) are of the `held_out` last windows of `n_ctx` tokens, which `chunks`, the windows that
    weights were chosen by, do not hold; None: there was no text. `faster`: whether edgellm runs the file faster than
    the one that it was made from; `speed` says it in words, and `rate_before` and `rate_after` are decoded tokens per
    second, measured in turns (None: not measured). `notes`: remarks that a person should read.

    Pattern layers: `removed` are the numbers of the layers that went, `influence` the block influence of each one that
    was there, `zeros` the share of the layers' weights that went, and `tensors` is empty.
    """

    path: str
    pattern: str
    method: str
    sparsity: float
    zeros: float
    n_ctx: int
    chunks: int
    held_out: int
    ppl_before: float | None
    ppl_before_error: float | None
    ppl_after: float | None
    ppl_after_error: float | None
    bytes_before: int
    bytes_after: int
    faster: bool
    speed: str
    rate_before: float | None
    rate_after: float | None
    types: dict[str, int]
    notes: tuple[str, ...]
    seconds: float
    tensors: tuple[TensorReport, ...]
    removed: tuple[int, ...] = ()
    influence: tuple[float, ...] = ()


def metadata(wish: PruneWish, dataset: str, n_ctx: int, chunks: int, held_out: int) -> list[tuple[str, Any, str]]:
    """(key, value, kind); those of `measured` are 0 until the data are written."""
    keys: list[tuple[str, Any, str]] = [
        ("pattern", wish.pattern, "str"), ("method", wish.method, "str"), ("sparsity", wish.sparsity, "f32"),
        ("chunks", chunks, "u32"), ("held_out", held_out, "u32"), ("chunk_size", n_ctx, "u32"), ("zeros", 0.0, "f32"),
    ]  # fmt: skip
    if wish.method == "wanda" and wish.pattern == "unstructured":
        keys.append(("group", wish.group, "str"))
    if dataset:
        keys.append(("dataset", dataset, "str"))
    if held_out:
        keys += [("perplexity_before", 0.0, "f32"), ("perplexity_after", 0.0, "f32")]
    return [(PREFIX + key, value, kind) for key, value, kind in keys]


def measured(writer: GGUFWriter, before: Quality | None, after: Quality | None, zeros: float) -> None:
    """Put what only the data tell in the place of the zeros of `metadata`."""
    writer.replace(PREFIX + "zeros", zeros, "f32")
    if before is not None and after is not None:
        writer.replace(PREFIX + "perplexity_before", before.ppl, "f32")
        writer.replace(PREFIX + "perplexity_after", after.ppl, "f32")
