"""Pruning as its papers define it, slowly: what `edgellm.prune` is compared with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgellm.backends import create
from edgellm.cache import PagePool, Sequence
from edgellm.calibrate import chunks_of, collect
from edgellm.gguf import GGUFWriter, open_gguf
from edgellm.models import build_plan, read_config
from edgellm.ops import Op
from edgellm.quants import dequantize
from edgellm.tokenizers import Tokenizer
from edgellm.weights import Weights

Choose = Callable[[int, np.ndarray, np.ndarray], np.ndarray]


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


def inputs_of(path: Path, text: str, size: int, n: int) -> dict[str, np.ndarray]:
    """{tensor: its inputs float64 (n * size, k)} of the first n windows, in the reference backend; under "x.N" what
    goes into layer N, and under the number of layers what comes out of the last one."""
    found: dict[str, list[np.ndarray]] = {}
    with open_gguf(path) as file:
        plan = build_plan(read_config(file), file, size)
        runner = create("reference", plan, Weights(file, plan))
        pool = PagePool(plan.kv, "f32", 64)
        for tokens in list(chunks_of(Tokenizer.from_gguf(file), text, size))[:n]:
            with Sequence(pool, size) as seq:
                seq.ensure(size)
                runner.begin(tokens, 0, np.zeros(1, np.int32), seq)
                seen = set()
                for i, step in enumerate(plan.steps):
                    words = step.label.split(".")
                    layer = f"x.{words[1] if words[0] == 'blk' else plan.kv.n_layers}"
                    if layer not in seen and (words[0] == "blk" or step.op is Op.TAKE_ROWS):
                        seen.add(layer)
                        found.setdefault(layer, []).append(runner.read(plan.steps[0].outputs[0]))
                    if step.op is Op.LINEAR:
                        found.setdefault(step.weights[0], []).append(runner.read(step.inputs[0]))
                    runner.run_step(i)
        runner.close()
        pool.close()
    return {name: np.concatenate(parts).astype(np.float64) for name, parts in found.items()}


def sparsegpt(w: np.ndarray, gram: np.ndarray, choose: Choose) -> np.ndarray:
    """Frantar and Alistarh 2023 without their algorithm: for each column the inverse of what is left of the matrix.

    `choose(c, w, errors)` may say at column c which of the columns from c on go: bool (rows, some), or empty; `errors`
    (k,) are 1 / diagonal of those inverses. Returns w float64 (rows, k).
    """
    h = gram.copy()
    dead = np.diag(h) == 0
    h[dead, dead] = 1
    h += np.eye(len(h)) * 0.01 * np.diag(h).mean()
    w = w.astype(np.float64)
    w[:, dead] = 0
    inverses = [np.linalg.inv(h[c:, c:]) for c in range(len(h))]
    errors = np.array([1 / inverse[0, 0] for inverse in inverses])
    mask = np.zeros(w.shape, bool)
    for c, inverse in enumerate(inverses):
        chosen = choose(c, w, errors)
        mask[:, c : c + chosen.shape[1]] |= chosen
        for r in np.flatnonzero(mask[:, c]):
            w[r, c:] -= w[r, c] / inverse[0, 0] * inverse[0]
            w[r, c] = 0
    return w


def choose_unstructured(sparsity: float, block: int = 128) -> Choose:
    def choose(c: int, w: np.ndarray, errors: np.ndarray) -> np.ndarray:
        if c % block:
            return np.zeros((len(w), 0), bool)
        part = np.square(w[:, c : c + block]) * errors[c : c + block]
        return lowest(part.reshape(-1), int(part.size * sparsity)).reshape(part.shape)

    return choose


def choose_two_of_four(c: int, w: np.ndarray, errors: np.ndarray) -> np.ndarray:
    if c % 4:
        return np.zeros((len(w), 0), bool)
    return two_of_four(np.square(w[:, c : c + 4]) * errors[c : c + 4])


def choose_blocks(sparsity: float, tile: int) -> Choose:
    def choose(c: int, w: np.ndarray, errors: np.ndarray) -> np.ndarray:
        return blocks(np.abs(w) * np.sqrt(errors), sparsity, tile) if c == 0 else np.zeros((len(w), 0), bool)

    return choose


def sparsegpt_file(src: Path, out: Path, text: str, names: list[list[str]], sparsity: float, size: int, n: int) -> None:
    """Layer by layer, as `wanda_file`, for models whose tensors are one matrix each."""
    shutil.copy(src, out)
    for layer in names:
        seen, now, new = inputs_of(out, text, size, n), tensors_of(out), {}
        for name in layer:
            gram = seen[name].T @ seen[name] / len(seen[name])
            new[name] = sparsegpt(now[name], gram, choose_unstructured(sparsity)).astype(np.float32)
        with_tensors(out, out.with_suffix(".next"), new)
        out.with_suffix(".next").replace(out)


def heads_file(src: Path, out: Path, text: str, n_heads: int, n_gone: int, size: int, n: int) -> list[list[int]]:
    """Layer by layer: take each head away alone, see what the output misses, zero those that it misses least."""
    shutil.copy(src, out)
    gone: list[list[int]] = []
    n_layers = sum(name.endswith("attn_output.weight") for name in tensors_of(src))
    for layer in range(n_layers):
        seen, now, blk = inputs_of(out, text, size, n), tensors_of(out), f"blk.{layer}.attn"
        x, w = seen[f"{blk}_output.weight"], now[f"{blk}_output.weight"].astype(np.float64)
        head_dim = w.shape[1] // n_heads
        misses = []
        for h in range(n_heads):
            without = w.copy()
            without[:, h * head_dim : (h + 1) * head_dim] = 0
            misses.append(np.square(x @ w.T - x @ without.T).sum())
        gone.append(sorted(np.argsort(misses)[:n_gone].tolist()))
        for h in gone[-1]:
            now[f"{blk}_output.weight"][:, h * head_dim : (h + 1) * head_dim] = 0
            now[f"{blk}_q.weight"][h * head_dim : (h + 1) * head_dim] = 0
        n_kv = len(now[f"{blk}_k.weight"]) // head_dim
        for g in range(n_kv):
            if all(h in gone[-1] for h in range(g * n_heads // n_kv, (g + 1) * n_heads // n_kv)):
                for name in ("k", "v"):
                    now[f"{blk}_{name}.weight"][g * head_dim : (g + 1) * head_dim] = 0
        with_tensors(out, out.with_suffix(".next"), now)
        out.with_suffix(".next").replace(out)
    return gone
