#!/usr/bin/env python3
"""The chat window of examples/qt_chat.py, played by a program: how long its event loop stands still, and a picture.

    QT_QPA_PLATFORM=offscreen python tools/qt_window.py [MODEL.gguf] [--limit MS] [--picture FILE.png]

A timer of the window's own thread ticks every 5 ms while an answer is made; the largest time between two ticks is what
somebody would feel as a hitch. It is printed, and with `--limit` a larger one is an error (exit code 1). `--picture`
draws a conversation of a few turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import qt_chat  # noqa: E402
from PySide6.QtCore import QEventLoop, QTimer  # noqa: E402
from PySide6.QtWidgets import QApplication  # noqa: E402

TALK = ("Hello! Who are you?", "What is the capital of France?", "Tell me a story.")
TICK_MS = 5


def until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    """Runs the event loop until `condition()` holds. Raises TimeoutError."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("the window did not get there")
        QApplication.processEvents(QEventLoop.ProcessEventsFlag.AllEvents, 20)


def say(window: qt_chat.Window, text: str, seconds: float = 5.0) -> None:
    """Types and sends `text`, and runs the event loop until the answer is there; presses Stop after `seconds`."""
    window.entry.setText(text)
    window.button.click()
    QTimer.singleShot(int(1e3 * seconds), window.button, lambda stream=window.stream: stream.stop())
    until(lambda: window.stream is None)


def gaps(window: qt_chat.Window, n: int) -> list[float]:
    """Milliseconds between ticks of the window's timer during `n` answers."""
    ticks: list[float] = []
    found: list[float] = []
    timer = QTimer(interval=TICK_MS, timeout=lambda: ticks.append(time.perf_counter()))
    for i in range(n):
        ticks.clear()
        timer.start()
        say(window, TALK[i % len(TALK)])
        timer.stop()
        found += [1e3 * (b - a) for a, b in zip(ticks, ticks[1:], strict=False)]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a GGUF file; without one, the built-in model")
    parser.add_argument("--answers", type=int, default=20, help="answers during which gaps are measured")
    parser.add_argument("--limit", type=float, help="milliseconds; a larger gap is an error")
    parser.add_argument("--picture", type=Path, help="write a picture of a conversation, and measure nothing")
    args = parser.parse_args()
    app = QApplication(sys.argv[:1])
    window = qt_chat.Window(args.model)
    window.show()
    until(lambda: not window.loader.is_alive() and (window.session is not None or bool(window.messages.texts)))
    if window.session is None:
        print(window.messages.texts[0], file=sys.stderr)
        return 1
    if args.picture is not None:
        for text in TALK:
            say(window, text)
        window.entry.setText("And what is 2 plus 3?")
        app.processEvents()
        window.grab().save(str(args.picture))
    else:
        found = gaps(window, args.answers)
        print(
            f"event loop, {len(found)} ticks of {TICK_MS} ms while generating: largest gap {max(found):.1f} ms, "
            f"median {statistics.median(found):.1f} ms"
        )
    window.close()
    app.processEvents()
    return int(args.picture is None and args.limit is not None and max(found) > args.limit)


if __name__ == "__main__":
    sys.exit(main())
