"""Draws the pictures of docs/how-it-works.md: the way of a token, a panel, pages of the KV cache, a phase of work.

    python tools/draw_docs.py docs/pictures        # or `make pictures`; needs matplotlib (the `dev` extra)

Every picture is a list of boxes, arrows and words on a canvas of 100 x H units, y downwards.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

INK, PAPER, GRID = "#d8dee9", "#12161c", "#3b4452"  # as in stream_pictures.py
GREEN, AMBER, RED, BLUE, GREY = "#2f6f57", "#8a6a2f", "#7d3a41", "#2f5878", "#2b323c"


class Canvas:
    """Boxes, arrows and words; `height` units high where the width is 100."""

    def __init__(self, height: float) -> None:
        from matplotlib import pyplot

        self.figure, self.axes = pyplot.subplots(figsize=(8.2, 8.2 * height / 100), facecolor=PAPER)
        self.axes.set(xlim=(0, 100), ylim=(height, 0))
        self.axes.set_axis_off()
        self.figure.subplots_adjust(0, 0, 1, 1)

    def box(self, x: float, y: float, w: float, h: float, text: str = "", fill: str = GREY, **font: Any) -> None:
        from matplotlib.patches import FancyBboxPatch

        style = "round,pad=0,rounding_size=0.6"
        self.axes.add_patch(FancyBboxPatch((x, y), w, h, boxstyle=style, facecolor=fill, edgecolor=GRID, linewidth=0.8))
        if text:
            self.text(x + w / 2, y + h / 2, text, ha="center", va="center", **font)

    def text(self, x: float, y: float, text: str, size: float = 8.5, **more: Any) -> None:
        style = {"color": INK, "fontsize": size, "va": "center", "linespacing": 1.35, **more}
        self.axes.text(x, y, text, **style)

    def chain(self, y: float, steps: tuple[tuple[str, str, str], ...]) -> None:
        """Boxes from left to right, each (text, where it is in the code, colour), joined by arrows."""
        for i, (text, where, fill) in enumerate(steps):
            x = 13 + i * 21.5
            self.box(x, y, 17.5, 11, text, fill=fill)
            self.text(x + 8.75, y + 15, where, size=7.5, ha="center", color="#8d97a5")
            if i:
                self.arrow((x - 4, y + 5.5), (x, y + 5.5))

    def note(self, y: float, text: str) -> None:
        self.text(3, y, text, size=8, color="#8d97a5")

    def arrow(self, start: tuple[float, float], end: tuple[float, float], colour: str = INK, bend: float = 0.0) -> None:
        style = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.1, "connectionstyle": f"arc3,rad={bend}"}
        self.axes.annotate("", end, start, arrowprops=style)


def token() -> Canvas:
    """From a file to a token: who does what, and in which language."""
    c = Canvas(58)
    for y, h, label in ((3, 25, "Python,\nonce"), (31, 24, "for each\ntoken")):
        c.box(1, y, 98, h, fill="#181d25")
        c.text(2.5, y + 4, label, size=8, va="top", color="#8d97a5")
    once = (
        ("GGUF file", "mapped", GREY),
        ("header checks", "gguf/", BLUE),
        ("plan: a flat list\nof steps", "models/, plan.py", BLUE),
        ("weights in panels,\n2 MB pages", "backends/, native/pack.c", GREEN),
    )
    c.chain(8, once)
    each = (
        ("what is in the\ncache already", "cache/", BLUE),
        ("one C call:\nthe whole pass", "native/run.c", GREEN),
        ("sampler", "native/sampler.c", GREEN),
        ("text, whole\ncharacters", "tokenizers/", BLUE),
    )
    c.chain(35, each)
    c.arrow((60, 46.4), (40.5, 46.4), colour="#7fd1ae", bend=-0.28)
    c.arrow((78.5, 19.4), (45, 35))
    c.text(97, 53, "to your thread, through a queue", size=7.5, ha="right", color="#8d97a5")
    return c


def panel() -> Canvas:
    """How 16 rows of weights are interleaved."""
    c = Canvas(50)
    c.text(3, 4, "as blocks in the file: a row after the other")
    shades = (GREEN, BLUE, AMBER, RED)
    for row in range(4):
        for quad in range(8):
            c.box(3 + quad * 5, 8 + row * 5, 4.6, 4.2, f"r{row} k{4 * quad}" if quad < 2 else "", shades[row], size=6.5)
        c.text(44, 10.2 + row * 5, f"row {row} ..." if row else "row 0: k = 0 to 31 ...", size=8)
    c.text(44, 29.5, "... to row 15", size=8)
    c.text(3, 34, "as a panel: a 64-byte line is [16 rows][4 k], a lane is a row")
    for lane in range(16):
        c.box(3 + lane * 5, 37, 4.6, 5, f"r{lane}", shades[lane] if lane < 4 else GREY, size=7)
    c.text(84, 39.5, "k = 0 to 3", size=8)
    c.note(46, "one instruction multiplies it with 4 activations, broadcast: 16 sums, no shuffles")
    c.arrow((50, 31.5), (50, 36.6))
    return c


def pages() -> Canvas:
    """Pages of the KV cache: a table for each sequence, a ring behind sinks, pages that sequences share."""
    c = Canvas(52)
    names = ["sink", "1", "2", "3", "4", "5", "6"]
    fills = [GREEN, GREY, RED, BLUE, BLUE, BLUE, BLUE]
    c.text(3, 5, "a conversation under `sink`: a table of pages, 64 tokens each")
    for i, (name, fill) in enumerate(zip(names, fills, strict=True)):
        gone = name == "1"
        c.box(3 + i * 12.5, 9, 11.5, 8, "given back" if gone else f"page {name}" if i else "sinks", fill, size=8)
    c.text(3, 20.5, "always seen", size=7.5)
    c.text(28, 20.5, "oldest: masked token by token", size=7.5)
    c.text(53.5, 20.5, "the window of exactly W tokens", size=7.5)
    c.text(3, 28, "a fork and a chat with the same system message share pages; who writes to one copies it")
    c.text(3, 34.5, "A", size=9)
    c.text(3, 46.5, "B", size=9)
    for i in range(5):
        c.box(7 + i * 12.5, 31.5, 11.5, 6, "shared" if i < 3 else "A's own", GREEN if i < 3 else BLUE, size=8)
    for i in range(2):
        c.box(44.5 + i * 12.5, 43.5, 11.5, 6, "B's own", AMBER, size=8)
    c.arrow((7.5, 46.5), (44.3, 46.5))
    for i in range(3):
        c.arrow((12.7 + i * 12.5, 46.5), (12.7 + i * 12.5, 37.8), colour="#7fd1ae")
    c.text(71, 46.5, "counted references", size=8, color="#8d97a5")
    return c


def phase() -> Canvas:
    """How threads share a phase of work."""
    c = Canvas(42)
    c.text(3, 4.5, "one phase, say q|k|v of a layer: 16 chunks of rows, one counter that whoever wants work adds 1 to")
    for i in range(16):
        c.box(3 + i * 5.9, 8, 5.4, 5, str(i), (GREEN, BLUE)[i % 2 if i not in (5, 7, 9) else 0], size=8)
    rows = (("your call", GREEN, (0, 2, 4, 5, 6, 7, 8, 9, 10, 12, 14)), ("helper", BLUE, (1, 3, 11, 13, 15)))
    for y, (name, fill, chunks) in zip((19, 27), rows, strict=True):
        c.text(3, y + 2.5, name)
        for chunk in chunks:
            c.box(15 + chunk * 5, y, 4.7, 5, str(chunk), fill, size=8)
    c.box(35, 27, 34.5, 5, "the system put this thread aside", "#3a2226", size=8)
    c.note(37.5, "a phase ends when its chunks are done, not when all threads have come: who is late delays nobody")
    return c


PICTURES: dict[str, Callable[[], Canvas]] = {"token": token, "panel": panel, "pages": pages, "phase": phase}


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/pictures")
    folder.mkdir(parents=True, exist_ok=True)
    import matplotlib

    matplotlib.use("Agg")
    for name, draw in PICTURES.items():
        canvas = draw()
        path = folder / f"how-{name}.png"
        canvas.figure.savefig(path, dpi=130, facecolor=PAPER)
        print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
