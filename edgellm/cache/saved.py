"""A sequence outside the pool: everything that it is but the bytes of its pages, and the way back into a pool."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np

from ..errors import EdgeLLMError
from .overflow import Overflow
from .pages import PAGE_TOKENS
from .pool import NO_PAGE, PagePool
from .sequence import UNKNOWN, Sequence
from .sizes import n_blocks


class SavedSequenceError(EdgeLLMError):
    """The parts of a saved sequence contradict each other. `field`, `value` and `limit` say where."""

    def __init__(self, field: str, value: object, limit: object) -> None:
        self.field, self.value, self.limit = field, value, limit
        super().__init__(f"the parts of a saved sequence contradict each other: {field} is {value}, not {limit}")


@dataclass(frozen=True)
class SavedSequence:
    """A sequence without its pages.

    `exact`: as in Sequence. `first`: what `span.first` was. `ids`: those of the head where `first_id` > 0, then those
    of positions [first_id, length). `turns`: positions where turns begin. `places`: int64 (n_pages, 2), the layer
    and the block of each page, ascending.
    """

    overflow: Overflow
    n_ctx: int
    length: int
    exact: int
    first: int
    first_id: int
    ids: list[int]
    turns: list[int]
    places: np.ndarray


def save(seq: Sequence) -> tuple[SavedSequence, list[np.ndarray]]:
    """What `seq` is, and its pages in the order of `places`: uint8 (page_bytes,) each, views of the pool.

    Pages of a pass that runs are left out.
    """
    end = n_blocks(seq.length)
    places, pages = [], []
    arena = seq.pool._open()
    blocks = np.concatenate([np.arange(min(seq.head_blocks, end)), np.arange(_oldest(seq), end)])
    table = seq.table[:, [seq.column(block) for block in blocks.tolist()]]  # (n_layers, blocks)
    for layer, i in np.argwhere(table != NO_PAGE).tolist():
        places.append((layer, int(blocks[i])))
        pages.append(arena[table[layer, i]])
    head = seq._head_ids if seq._first_id else []
    saved = SavedSequence(
        seq.overflow, seq.n_ctx, seq.length, seq.exact, seq._settled.first, seq._first_id,
        [*head, *seq._ids], [*seq.turns], np.array(places, dtype=np.int64).reshape(-1, 2),
    )  # fmt: skip
    return saved, pages


def _oldest(seq: Sequence) -> int:
    """The first block behind the head that any layer may hold."""
    return max(seq.head_blocks, min(group.oldest for group in seq._layers))


def restore(pool: PagePool, saved: SavedSequence) -> tuple[Sequence, list[int]]:
    """A sequence of `pool`, and its pages in the order of `places`, to be filled by the caller.

    Every part is checked against the others first: what is restored may come from a file that nobody checked. Raises
    SavedSequenceError, InvalidArgumentError (a policy that does not go with `n_ctx`), NotEnoughMemoryError.
    """
    seq = Sequence(pool, saved.n_ctx, saved.overflow)
    _check_span(seq, saved)
    oldest = [_check_layers(seq, saved, group.layers, group.window) for group in seq._layers]
    _check_ids(seq, saved, oldest[0])
    pages = pool.allocate(len(saved.places))
    layers, blocks = saved.places[:, 0], saved.places[:, 1]
    head = seq.head_blocks
    seq.table[layers, np.where(blocks < head, blocks, head + (blocks - head) % seq.ring)] = pages
    seq.length, seq.exact, seq._blocks = saved.length, saved.exact, n_blocks(saved.length)
    seq.span = seq._settled = replace(seq.span, first=saved.first)
    n_head = seq.span.keep if saved.first_id else 0
    seq._head_ids, seq._ids, seq._first_id = saved.ids[:n_head], saved.ids[n_head:], saved.first_id
    seq.turns = [*saved.turns]
    for group, first in zip(seq._layers, oldest, strict=True):
        group.oldest = first
    return seq, pages


def _check_span(seq: Sequence, saved: SavedSequence) -> None:
    if not 0 <= saved.length <= seq.limit:
        raise SavedSequenceError("length", saved.length, f"0 to {seq.limit}")
    if not 0 <= saved.exact <= saved.length:
        raise SavedSequenceError("exact", saved.exact, f"0 to {saved.length}")
    span = seq.span
    by_hand = saved.overflow.kind in ("shift", "drop-turns")
    if saved.first and not (by_hand and span.keep <= saved.first <= saved.length):
        raise SavedSequenceError("first", saved.first, f"0, or {span.keep} to {saved.length} where turns are dropped")
    seen = saved.length - replace(span, first=saved.first).shift(max(0, saved.length - 1))
    if seen > saved.n_ctx:
        raise SavedSequenceError("length", saved.length, f"up to {saved.n_ctx} tokens that are seen, not {seen}")
    if any(not a < b for a, b in itertools.pairwise([-1, *saved.turns, saved.length + 1])):
        raise SavedSequenceError("turns", saved.turns, f"ascending, up to {saved.length}")


def _check_layers(seq: Sequence, saved: SavedSequence, layers: np.ndarray, window: int) -> int:
    """The first block behind the head that these layers hold; all of them must hold what a next token sees."""
    end, head = n_blocks(saved.length), seq.head_blocks
    start = replace(seq.span, first=saved.first).start(saved.length)
    seen = max(start, saved.length - window + 1) if window else start
    latest = max(head, min(seen, saved.length) // PAGE_TOKENS)
    first = latest
    for i, layer in enumerate(layers.tolist()):
        blocks = saved.places[saved.places[:, 0] == layer, 1]
        tail = blocks[blocks >= head]
        if i == 0:
            first = int(tail[0]) if len(tail) else max(head, end)
        fits = first <= latest and end - first <= seq.ring  # looked at first: a length may be anything
        if not fits or not np.array_equal(blocks, [*range(min(head, end)), *range(first, end)]):
            raise SavedSequenceError(f"pages of layer {layer}", f"{len(blocks)} blocks", "all that the next token sees")
    return first


def _check_ids(seq: Sequence, saved: SavedSequence, oldest: int) -> None:
    keep = seq.span.keep
    if not 0 <= saved.first_id <= max(0, oldest * PAGE_TOKENS - 1) or (saved.first_id and saved.first_id < keep):
        raise SavedSequenceError("first_id", saved.first_id, f"0, or {keep} to {oldest * PAGE_TOKENS - 1}")
    want = saved.length - saved.first_id + (keep if saved.first_id else 0)
    if len(saved.ids) != want or UNKNOWN in saved.ids:
        raise SavedSequenceError("ids", f"{len(saved.ids)} tokens", want)
    layers = len(seq.table)
    n = len(saved.places)
    if n and not (saved.places[:, 0].min() >= 0 and saved.places[:, 0].max() < layers):
        raise SavedSequenceError("places", int(saved.places[:, 0].max()), f"layers 0 to {layers - 1}")
