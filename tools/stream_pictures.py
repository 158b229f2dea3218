"""Draws what tools/stream_forever.py measured: memory, time per token and perplexity against position.

    python tools/stream_pictures.py build/stream.npz docs/pictures
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from stream_run import Bins

INK, PAPER, GRID = "#d8dee9", "#12161c", "#3b4452"
COLOURS = {"sink": "#7fd1ae", "window": "#e5b567", "dense": "#e06c75"}
DASHES = {"sink": "-", "window": (0, (4, 3)), "dense": "-"}
LABELS = {"sink": "sinks and window", "window": "window alone", "dense": "everything kept"}


def draw(curves: dict[str, Bins], folder: Path, n_ctx_train: int) -> list[Path]:
    """Three pictures in `folder`; returns their paths. `n_ctx_train`: where the model's training ended."""
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[tuple[str, str, dict[str, np.ndarray]]] = [
        ("memory", "resident memory (MB)", {k: b.resident / 1e6 for k, b in curves.items()}),
        ("latency", "median time per token (µs)", {k: b.typical * 1e6 for k, b in curves.items()}),
        ("perplexity", "perplexity", {k: b.perplexity for k, b in curves.items()}),
    ]
    out = []
    for name, label, values in parts:
        out.append(folder / f"stream-{name}.png")
        _picture(out[-1], label, {k: (curves[k].position, v) for k, v in values.items()}, n_ctx_train)
    return out


def _picture(path: Path, label: str, lines: dict[str, tuple[np.ndarray, np.ndarray]], n_ctx_train: int) -> None:
    from matplotlib import pyplot

    style = {"figure.facecolor": PAPER, "axes.facecolor": PAPER, "savefig.facecolor": PAPER}
    style |= dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), INK)
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(figsize=(7.5, 3.8), dpi=110)
        for name, (x, y) in lines.items():
            axes.plot(x, y, color=COLOURS[name], label=LABELS[name], linestyle=DASHES[name], linewidth=1.3)
        axes.axvline(n_ctx_train, color=INK, linestyle=":", linewidth=1, label=f"trained to {n_ctx_train}")
        axes.set(xscale="log", xlabel="position (tokens)", ylabel=label)
        axes.xaxis.set_minor_formatter("")
        _scale(axes, np.concatenate([y for _, y in lines.values()]))
        axes.grid(color=GRID, linewidth=0.4)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, frameon=False, labelcolor=INK, fontsize=9)
        figure.tight_layout()
        figure.savefig(path)
        pyplot.close(figure)


def _scale(axes: Any, values: np.ndarray) -> None:
    """From zero, so that what is flat looks flat; logarithmic where one curve would press the others together."""
    values = values[np.isfinite(values)]
    if values.size and values.max() > 20 * np.median(values):
        axes.set_yscale("log")
    elif values.size:
        axes.set_ylim(0, 1.25 * values.max())


def save(curves: dict[str, Bins], path: Path, n_ctx_train: int) -> None:
    """Keeps the figures, so that pictures can be drawn again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {f"{name}.{field}": a for name, b in curves.items() for field, a in b.arrays().items()}
    np.savez_compressed(path, n_ctx_train=n_ctx_train, **arrays)


def load(path: Path) -> tuple[dict[str, Bins], int]:
    """What `save` kept."""
    with np.load(path) as file:
        fields: dict[str, dict[str, Any]] = {}
        for key in file.files:
            name, _, field = key.partition(".")
            if field:
                fields.setdefault(name, {})[field] = file[key]
        return {name: Bins(**values | {"size": int(values["size"])}) for name, values in fields.items()}, int(
            file["n_ctx_train"]
        )


if __name__ == "__main__":
    measured = load(Path(sys.argv[1]))
    for drawn in draw(measured[0], Path(sys.argv[2]), measured[1]):
        print(drawn)
