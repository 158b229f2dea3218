"""GGUF files with zero tiles in random places: what sparse panels are measured and tested with. Nothing is decoded."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from edgellm.gguf import GGUFFile, GGUFWriter, TensorInfo, open_gguf  # noqa: E402
from edgellm.quants.panels_sparse import tiles_per_group, zero_blocks  # noqa: E402

ROWS = 16
_STRETCH = 8 << 20  # bytes of rows that are held at once
EMBEDDING, HEAD = "token_embd.weight", "output.weight"


def write_with_zeros(src: str | Path, out: str | Path, share: float, head: bool = False, seed: int = 0) -> None:
    """Write `src` as `out` with that share of the tiles of its layers' matrices set to 0, drawn with `seed`.

    `head`: those of the output head too; where the embedding serves as the head, a head of its own is added.
    """
    rng = np.random.default_rng(seed)
    with open_gguf(src) as file, GGUFWriter(out, None, file.alignment) as writer:
        for key in file.metadata:
            writer.add_raw(key, file.metadata.raw(key))
        tensors = [(t.name, t) for t in file.tensors.values()]
        if head and HEAD not in file.tensors:
            tensors.append((HEAD, file.tensors[EMBEDDING]))
        for name, t in tensors:
            writer.add_tensor_info(name, t.shape, t.type)
        for name, t in tensors:
            wanted = t.type.has_panel and len(t.shape) > 1 and (name.startswith("blk.") or (head and name == HEAD))
            writer.write_tensor(name, _zeroed(file, t, share, rng) if wanted else file.data(t.name))


def _zeroed(file: GGUFFile, t: TensorInfo, share: float, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """The blocks of a tensor, stretch by stretch, with zero tiles."""
    k, block = t.shape[-1], np.frombuffer(zero_blocks(t.type)[0], np.uint8)
    per_tile, n_tiles = max(64, t.type.block_size) // t.type.block_size, tiles_per_group(k, t.type)
    data = file.data(t.name).reshape(-1, k // t.type.block_size, t.type.type_size)
    step = max(1, _STRETCH // (ROWS * t.type.row_bytes(k))) * ROWS
    for first in range(0, len(data), step):
        part = data[first : first + step].copy()
        zero = rng.random((-(-len(part) // ROWS), n_tiles)) < share
        part[zero.repeat(ROWS, axis=0)[: len(part)].repeat(per_tile, axis=1)[:, : part.shape[1]]] = block
        yield part.reshape(-1)
