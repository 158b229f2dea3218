"""examples/tk_chat.py: the window's logic with real models and threads; widgets are stand-ins, for want of a screen."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))


class Widget:
    """A Text, an Entry, a Button or a Progressbar: a text and options. Only the thread that made it may touch it."""

    def __init__(self, root=None, **options):
        self.options, self.said, self.thread = options, "", threading.current_thread()

    def configure(self, **options):
        assert threading.current_thread() is self.thread
        self.options |= options

    def insert(self, where, text):
        assert threading.current_thread() is self.thread and self.options["state"] == "normal"
        self.said += text

    def get(self):
        return self.said

    def delete(self, first, last):
        self.said = ""

    def pack(self, **options): ...
    def bind(self, event, call): ...
    def see(self, where): ...
    def focus(self): ...


class Root(Widget):
    """The window: `after` keeps the one call that is due, `turn` makes it."""

    due, gone = None, False

    def after(self, ms, call):
        self.due = call
        return "timer"

    def after_cancel(self, timer):
        self.due = None

    def destroy(self):
        self.gone = True

    def title(self, text): ...
    def protocol(self, name, call): ...

    def turn(self, until):
        """The main loop, until something is so."""
        end = time.monotonic() + 60
        while not until():
            assert time.monotonic() < end, "the window waits for ever"
            self.due()
            time.sleep(0.005)


@pytest.fixture
def tk_chat(monkeypatch):
    tkinter, ttk = ModuleType("tkinter"), ModuleType("tkinter.ttk")
    tkinter.Tk, tkinter.Text, tkinter.ttk = Root, Widget, ttk
    ttk.Entry = ttk.Button = ttk.Progressbar = Widget
    monkeypatch.setitem(sys.modules, "tkinter", tkinter)
    monkeypatch.setitem(sys.modules, "tkinter.ttk", ttk)
    monkeypatch.delitem(sys.modules, "tk_chat", raising=False)
    import tk_chat

    yield tk_chat
    del sys.modules["tk_chat"]


def ask(window, text):
    window.entry.configure(state="normal")
    window.entry.insert("end", text)
    window.send()


def test_asks_answers_and_closes_in_the_middle(tk_chat):
    root, before = Root(), threading.active_count()
    window = tk_chat.Window(root)
    root.turn(lambda: window.session is not None)
    ask(window, "What is the capital of Italy?")
    assert window.stream is not None and window.button.options["state"] == "normal"
    root.turn(lambda: window.stream is None)
    root.turn(lambda: not window.said)
    assert "> What is the capital of Italy?\nThe capital of Italy is Rome.\n[stop, " in window.text.said
    ask(window, "Tell me a long story.")
    window.close()
    assert root.gone and threading.active_count() == before


def test_stop_keeps_what_was_said(tk_chat):
    root = Root()
    window = tk_chat.Window(root)
    root.turn(lambda: window.session is not None)
    ask(window, "Tell me a story.")
    window.stop()
    root.turn(lambda: window.stream is None and not window.said)
    assert "[cancelled, " in window.text.said or "[stop, " in window.text.said  # if the story was shorter
    window.close()


def test_a_model_that_cannot_be_loaded(tk_chat):
    root = Root()
    window = tk_chat.Window(root, "nowhere.gguf")
    root.turn(lambda: window.text.said)
    assert "[nowhere.gguf: no such file" in window.text.said and window.entry.options["state"] == "disabled"
    window.close()
    assert root.gone
