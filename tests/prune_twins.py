"""Pruning as its papers define it, slowly: what `edgellm.prune` is compared with."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from edgellm.calibrate import collect
from edgellm.gguf import GGUFWriter, open_gguf
from edgellm.quants import dequantize


def tensors_of(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a file as float32."""
    with open_gguf(path) as file:
        return {name: dequantize(file.data(name), info.type, info.shape) for name, info in file.tensors.items()}


def with_tensors(src: Path, out: Path, new: dict[str, np.ndarray]) -> None:
    """The F32 file `src` with other values in some tensors."""
    with open_gguf(src) as file, GGUFWriter(out, file.get("general.architecture", str)) as w:
        for key, (value_type, item_type) in file.metadata.types.items():
            if key not in ("general.architecture", "general.alignment"):
                w.add(key, file.metadata[key], value_type if item_type is None else item_type)
        for name, info in file.tensors.items():
            w.add_tensor_info(name, info.shape, info.type)
        for name in file.tensors:
            w.write_tensor(name, new[name] if name in new else file.data(name))


def lowest(values: np.ndarray, n: int) -> np.ndarray:
    """The n lowest of (n_values,), of equals the first."""
    mask = np.zeros(values.size, bool)
    mask[np.argsort(values, kind="stable")[:n]] = True
    return mask


def wanda_rows(w: np.ndarray, mean_squares: np.ndarray, sparsity: float) -> np.ndarray:
    """Sun et al. 2023, algorithm 1, for weights (rows, k)."""
    return np.stack([lowest(np.abs(row) * np.sqrt(mean_squares), int(len(row) * sparsity)) for row in w])


def two_of_four(scores: np.ndarray) -> np.ndarray:
    mask = np.zeros(scores.shape, bool)
    for r in range(scores.shape[0]):
        for c in range(0, scores.shape[1], 4):
            mask[r, c : c + 4] = lowest(scores[r, c : c + 4], 2)
    return mask


def blocks(scores: np.ndarray, sparsity: float, tile: int) -> np.ndarray:
    """Block after block, lowest mean square first, while the share is not exceeded."""
    rows, k = scores.shape
    places = [(r, c) for r in range(0, rows, 16) for c in range(0, k, tile)]
    cut = {p: scores[p[0] : p[0] + 16, p[1] : p[1] + tile].astype(np.float64) for p in places}
    mask, left = np.zeros(scores.shape, bool), rows * k * sparsity
    for r, c in sorted(places, key=lambda p: np.square(cut[p]).sum() / cut[p].size):
        left -= cut[r, c].size
        if left < 0:
            break
        mask[r : r + 16, c : c + tile] = True
    return mask


def wanda_file(src: Path, out: Path, text: str, names: list[list[str]], sparsity: float, **how: int) -> None:
    """Layer by layer: measure the inputs in the file as it is, prune the layer's matrices, write the file again."""
    shutil.copy(src, out)
    for layer in names:
        seen = collect(out, text, backend="reference", **how)
        now, new = tensors_of(out), {}
        for name in layer:
            w = now[name].reshape(-1, *now[name].shape[-2:])
            means = seen.importance(name, len(w), w.shape[-1])
            for i, matrix in enumerate(w):
                matrix[wanda_rows(matrix, means[i], sparsity)] = 0
            new[name] = w.reshape(now[name].shape)
        with_tensors(out, out.with_suffix(".next"), new)
        out.with_suffix(".next").replace(out)
