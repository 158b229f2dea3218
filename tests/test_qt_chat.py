"""The chat window of examples/: it loads, streams, stops and closes while its event loop goes on."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
# Without PySide6, or without the libraries of the system that it needs, there is no window to test.
pytest.importorskip(
    "PySide6.QtWidgets", reason="PySide6 does not load: pip install 'edgellm[examples]'", exc_type=ImportError
)
from PySide6.QtCore import QEvent, QEventLoop, QTimer  # noqa: E402
from PySide6.QtGui import QColor, QPalette  # noqa: E402
from PySide6.QtWidgets import QApplication  # noqa: E402

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
STORY = "Tell me a story."


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the window did not get there"
        QApplication.processEvents(QEventLoop.ProcessEventsFlag.AllEvents, 20)


def say(window, text: str) -> None:
    window.entry.setText(text)
    window.button.click()
    assert window.stream is not None and window.button.text() == "Stop"


def slow_down(window, seconds: float) -> None:
    """Each token takes so much longer: the built-in model is done before a window has drawn anything."""
    send = window.session.send

    def slower(*args, dispatch, **options):
        return send(*args, dispatch=lambda work: (time.sleep(seconds), dispatch(work)), **options)

    window.session.send = slower


@pytest.fixture(scope="module")
def app():
    return QApplication.instance() or QApplication(["test"])


@pytest.fixture
def open_window(app, monkeypatch):
    """A function path -> Window; all of them are closed at the end."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import qt_chat

    windows, before = [], set(threading.enumerate())  # other tests may have models that they share

    def make(path: str | None = None, loaded: bool = True):
        window = qt_chat.Window(path)
        windows.append(window)
        window.show()
        if loaded:
            until(lambda: window.entry.isEnabled())
        return window

    yield make
    for window in windows:
        window.close()
        assert not window.loader.is_alive()
        window.deleteLater()  # now: the collector might do it on a thread of the model, which Qt does not survive
    app.sendPostedEvents(None, QEvent.Type.DeferredDelete)
    # a load that was cancelled may still be at the tokenizer
    until(lambda: not [t for t in threading.enumerate() if t.name.startswith("edgellm") and t not in before])


def test_a_conversation(open_window):
    window = open_window()
    slow_down(window, 0.005)
    ticks: list[float] = []
    timer = QTimer(interval=1, timeout=lambda: ticks.append(time.perf_counter()))
    timer.start()
    events: list[float] = []
    take, window.take = window.take, lambda event: (events.append(time.perf_counter()), take(event))
    say(window, "What is the capital of France?")
    until(lambda: window.stream is None)
    say(window, STORY)
    until(lambda: window.stream is None)
    asked, answer, asked_again, story = window.messages.texts
    assert (asked, asked_again) == ("What is the capital of France?", STORY)
    assert "Paris" in answer and len(story) > 20
    assert [m["content"].strip() for m in window.session.messages] == [asked, answer.strip(), STORY, story.strip()]
    assert "tokens per second, context" in window.statusBar().currentMessage()
    assert window.entry.isEnabled() and window.button.text() == "Send"
    # the loop turned between the first and the last word, as it does when nothing blocks it
    assert sum(events[0] < tick < events[-1] for tick in ticks) >= 3


def test_stop_keeps_what_was_said(open_window):
    window = open_window()
    slow_down(window, 0.02)
    take = window.take

    def stop_at_first(event):
        take(event)
        if window.stream is not None:
            window.button.click()  # it says Stop

    window.take = stop_at_first
    say(window, STORY)
    until(lambda: window.stream is None)
    question, answer = window.session.messages
    assert "cancelled" in window.statusBar().currentMessage()
    assert window.messages.texts[1].strip() == answer["content"].strip() != ""
    window.take = take
    say(window, "What is the capital of France?")
    until(lambda: window.stream is None)
    assert "Paris" in window.messages.texts[-1]


def test_a_file_that_is_no_model(open_window, tmp_path):
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"nothing")
    window = open_window(str(bad), loaded=False)
    until(lambda: bool(window.messages.texts))
    assert "bad.gguf" in window.messages.texts[0]
    assert not window.entry.isEnabled() and not window.button.isEnabled()


def test_an_error_is_a_message_and_the_window_goes_on(open_window):
    window = open_window()
    say(window, "word " * 2000)  # does not fit into 512 tokens
    until(lambda: window.stream is None)
    assert "context" in window.messages.texts[-1]
    say(window, "What is the capital of France?")
    until(lambda: window.stream is None)
    assert "Paris" in window.messages.texts[-1]


def test_closing_while_it_answers_and_while_it_loads(open_window):
    answering = open_window()
    slow_down(answering, 0.02)
    say(answering, STORY)
    until(lambda: bool(answering.said or answering.stream is None))
    assert answering.close() and answering.model.closed
    loading = open_window(loaded=False)
    assert loading.close() and (loading.model is None or loading.model.closed)


def test_long_answers_are_drawn_in_pieces(open_window):
    """Only the last piece is laid out again, so its size must not grow with the text."""
    window = open_window()
    lines = "\n".join(f"line {i} of a long answer" for i in range(400))
    words = "word " * 3000
    for text in (lines, words):
        window.messages.add("assistant")
        for i in range(0, len(text), 100):
            window.messages.append(text[i : i + 100])
        assert window.messages.texts[-1] == text
        pieces = [label.text() for label in window.messages._bubbles[-1][1]._pieces]
        assert max(map(len, pieces)) <= 2000 + 100 and len(pieces) > 5
        assert ("\n" if text is lines else " ").join(pieces) == text


@pytest.mark.parametrize("colour", ["#202020", "#f0f0f0"])
def test_colours_are_those_of_the_desktop(open_window, app, colour):
    desktop = app.palette()
    palette = QPalette(desktop)
    palette.setColor(QPalette.ColorRole.Window, QColor(colour))
    app.setPalette(palette)
    try:
        window = open_window()
        window.messages.add("assistant", "some text")
        picture = window.messages._bubbles[-1][1].grab().toImage()
        assert picture.pixelColor(picture.width() // 2, 4).name() == colour
    finally:
        app.setPalette(desktop)
