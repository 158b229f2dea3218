"""What the conversation looks like in a terminal: code blocks painted in place, the line editor's keys."""

from __future__ import annotations

import re
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.chat import paint
from edgellm.chat.commands import COMMANDS, completions
from edgellm.chat.paint import CodePainter, coloured, may_colour, rows_of
from edgellm.chat.terminal import counted, terminal_safe

CODE = 'def f(x):\n    """twice\n    it"""\n    return 2 * x\n'


class Screen:
    """A terminal of `columns` x `rows` that knows newlines, cursor up and colours. `lines` is all that it showed."""

    def __init__(self, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        self.lines: list[list[tuple[str, str]]] = [[]]  # of (character, colour)
        self.row = self.column = 0
        self.colour = ""

    def write(self, text: str) -> None:
        for part in re.findall(r"\x1b\[[0-9;]*[A-Za-z]|.", text, re.S):
            if part.startswith("\x1b") and len(part) > 1:
                self._escape(part)
            elif part == "\n":
                self._down()
            else:
                self._put(part)

    def _escape(self, part: str) -> None:
        if part.endswith("m"):
            self.colour = "" if part == "\x1b[39;49;00m" else part
            return
        assert part.endswith("A"), f"{part!r} moves the cursor elsewhere"
        top = max(0, len(self.lines) - self.rows)
        self.row, self.column = self.row - int(part[2:-1]), self.column
        assert self.row >= top, "above the top of the screen"

    def _down(self) -> None:
        self.row, self.column = self.row + 1, 0
        if self.row == len(self.lines):
            self.lines.append([])

    def _put(self, c: str) -> None:
        if c == "\t":
            for _ in range(min(8 - self.column % 8, self.columns - 1 - self.column)):
                self._put(" ")
            return
        if self.column == self.columns:
            self._down()
        line = self.lines[self.row]
        line += [(" ", "")] * (self.column + 1 - len(line))
        line[self.column] = (c, self.colour)
        self.column += 1

    def text(self) -> str:
        return "\n".join("".join(c for c, _ in line) for line in self.lines)

    def colours(self) -> int:
        return sum(bool(colour) for line in self.lines for _, colour in line)


def shown(text: str, columns: int = 80, rows: int = 24, piece: int = 3) -> tuple[Screen, Screen]:
    """The screen after a painter has had `text` in pieces, and one that shows it plain."""
    painted, plain = Screen(columns, rows), Screen(columns, rows)
    painter = CodePainter(painted.write, lambda: (columns, rows))
    for i in range(0, len(text), piece):
        painter.feed(text[i : i + piece])
    plain.write(text)
    return painted, plain


@pytest.mark.parametrize("fence", ["```", "~~~~", "  ```"])
@pytest.mark.parametrize("piece", [1, 5, 10_000])
def test_a_block_is_painted_where_it_stands(fence, piece):
    painted, plain = shown(f"See:\n{fence}python\n{CODE}{fence}\nThat is all.\n", piece=piece)
    assert painted.text() == plain.text() and painted.row == plain.row
    assert painted.colours() > 20 and all(not colour for _, colour in painted.lines[0] + painted.lines[-2])


def test_the_end_of_an_answer_ends_its_last_block():
    painted, plain = shown(f"```python\n{CODE}```\n")
    assert painted.text() == plain.text() and painted.colours() > 20


@pytest.mark.parametrize(
    "text",
    [
        f"```\n{CODE}```\n",  # no language
        f"```nonsense\n{CODE}```\n",
        f"```python\n{CODE}",  # no end
        f"```python\n{CODE}~~~\n``\n",
        "```python\n```\n",
        "`python` and ``code``\n",
    ],
)
def test_what_is_not_painted(text):
    painted, plain = shown(text)
    assert painted.text() == plain.text() and painted.colours() == 0


def test_of_a_block_longer_than_the_screen_the_end_is_painted():
    painted, plain = shown("```python\n" + "x = 1\n" * 50 + "```\n", rows=10)
    assert painted.text() == plain.text()
    colour = [any(c for _, c in line) for line in painted.lines]
    assert colour == [False] * 43 + [True] * 8 + [False] * 2


def test_lines_that_wrap_are_counted():
    painted, plain = shown("```python\n" + "x = 1 + 2\n" * 3 + "```\n", columns=7)
    assert painted.text() == plain.text() and painted.colours() > 0
    painted, plain = shown("```python\na = 1\nb = 22\n```\n", columns=6)
    assert painted.text() == plain.text()
    assert painted.colours() == 0, "terminals differ in where the cursor is after a full row"
    painted, plain = shown("```python\na = '日本語日本語'\n```\n", columns=16)
    assert painted.colours() == 0, "nor do they agree about such widths"
    assert [rows_of(line, 80) for line in ("日本", "", "x" * 81, "\tx" * 9 + "x" * 9)] == [1, 1, 2, None]


def test_a_window_that_changed_its_size_is_left_alone():
    written: list[str] = []
    size = [(80, 24)]
    painter = CodePainter(written.append, lambda: size[0])
    painter.feed("```python\nx = 1\n")
    size[0] = (60, 24)
    painter.feed("```\n")
    assert "\x1b" not in "".join(written)
    painter.feed("```python\nx = 1\n")
    painter.forget()
    painter.feed("```\n```python\nx = 1\n```\n")
    assert "".join(written).count("\x1b[2A") == 1, "only the block after the one that was interrupted"


def test_too_much_is_not_painted(monkeypatch):
    monkeypatch.setattr(paint, "MAX_CHARS", 30)
    painted, plain = shown("```python\n" + "x = 1\n" * 6 + "```\n```python\ny = 1\n```\n")
    assert painted.text() == plain.text() and [any(c for _, c in line) for line in painted.lines].index(True) == 9


def test_colours_hold_no_escape_of_the_model():
    code = terminal_safe("print('\x1b[2J\x1b]0;evil\x07')")
    (line,) = coloured(code, "python") or [""]
    assert re.sub(r"\x1b\[[0-9;]*m", "", line) == code and "\\x1b[2J" in code and line != code


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from(["```python\n", "```\n", "~~~c\n", "x = 'a\tb' # ", "\n", "é", "# " * 9, "3", "`", " "]),
             max_size=30),
    st.integers(3, 40), st.integers(2, 12), st.integers(1, 7),
)  # fmt: skip
def test_painting_never_changes_the_text(parts, columns, rows, piece):
    text = "".join(parts)
    painted, plain = shown(text, columns, rows, piece)
    assert painted.text() == plain.text() and (painted.row, painted.column) == (plain.row, plain.column)


def test_where_colours_are_allowed(monkeypatch):
    class Stream:
        tty = True

        def isatty(self):
            return self.tty

    stream = Stream()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert may_colour(stream)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not may_colour(stream)
    monkeypatch.delenv("NO_COLOR")
    stream.tty = False
    assert not may_colour(stream)


# ---- completion ------------------------------------------------------------------------------------


def test_completions():
    assert completions("/se") == (["/set"], 3) and set(COMMANDS) == set(completions("/")[0])
    assert completions("/set te") == (["temperature"], 2) and completions("/set parameter te") == (["temperature"], 2)
    assert completions("/set stats o")[0] == ["on", "off"] and completions("/set temperature 1")[0] == []
    assert completions("/show pa") == (["params"], 2)
    assert completions("/regen top_k=3 te") == (["temperature="], 2)
    assert completions("/read no") == ("path", 2) and completions("/save ") == ("path", 0)
    assert completions("/bye x") == ([], 1) and completions("/nothing x") == ([], 1)


def test_numbers_of_things():
    assert [counted(n, "token") for n in (0, 1, 1234)] == ["0 tokens", "1 token", "1,234 tokens"]


# ---- the line editor -------------------------------------------------------------------------------


@pytest.fixture
def keys(tmp_path, monkeypatch):
    """What the line editor makes of keys: messages; `^C` for KeyboardInterrupt, `^D` for the end."""
    pytest.importorskip("prompt_toolkit")
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    from edgellm.chat.editor import LineEditor

    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))

    def keys(*texts, keep=False, meanwhile=None):
        found = []
        with create_pipe_input() as pipe:
            editor = LineEditor(keep, completions, lambda: "status", input=pipe, output=DummyOutput())
            if meanwhile is not None:
                threading.Thread(target=meanwhile, args=(editor, pipe), daemon=True).start()
            for text in texts:
                pipe.send_text(text)
                try:
                    found.append(editor())
                except KeyboardInterrupt:
                    found.append("^C")
                except EOFError:
                    found.append("^D")
        return found

    return keys


def test_keys(keys):
    assert keys("hello\r", "\x03", "\x04") == ["hello", "^C", "^D"]
    assert keys("half a line\x03whole\r") == ["whole"], "Ctrl-C empties the line first"
    assert keys("one\x1b\rtwo\r") == ["one\ntwo"], "Alt-Enter"
    assert keys('"""one\rtwo\r"""\r') == ["one\ntwo"] and keys("one \\\rtwo\r") == ["one \ntwo"]


def test_pasted_lines_are_one_message(keys):
    assert keys("\x1b[200~one\rtwo\nthree\x1b[201~\r") == ["one\ntwo\nthree"]
    assert keys("\x1b[200~/bye\nnot a command\x1b[201~ ok\r") == ["/bye\nnot a command ok"]


def test_tab(keys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes of mine.txt").write_text("x")

    (tmp_path / "folder").mkdir()
    assert keys("/rea\t\r", "/set tempe\t\r", "words\t\r") == ["/read", "/set temperature", "words"]
    assert keys("/read not\t\r", "/read fo\t\r") == ["/read notes of mine.txt", "/read folder/"]
    assert keys("/set top\t\r", "/set \t\r") == ["/set top_", "/set"], "as far as it is certain"


def test_history_is_kept_and_searched(keys):
    keys("first message\r", "second\r", keep=True)

    def when_it_is_loaded(text):
        def wait(editor, pipe):
            while len(editor._session.default_buffer._working_lines) < 3:
                time.sleep(0.01)
            pipe.send_text(text)

        return wait

    assert keys("hidden\r") == ["hidden"], "not kept"
    assert keys("", keep=True, meanwhile=when_it_is_loaded("\x1b[A\x1b[A\r")) == ["first message"]
    found = keys("", "\x03", keep=True, meanwhile=when_it_is_loaded("\x12secon\r\x05 again\r"))
    assert found == ["second again", "^C"], "Enter ends the search only"


@pytest.mark.skipif(sys.platform == "win32", reason="the editor is a shell script")
def test_the_editor_of_the_person(keys, tmp_path, monkeypatch):
    """Ctrl-G: the text goes to $VISUAL, comes back, and is sent when Enter is pressed."""
    script = tmp_path / "editor.sh"
    script.write_text('#!/bin/sh\nprintf "%s and more" "$(cat "$1")" > "$1.new" && mv "$1.new" "$1"\n')
    script.chmod(0o700)
    monkeypatch.setenv("VISUAL", str(script))

    def enter_when_it_is_back(editor, pipe):
        while "and more" not in editor._session.default_buffer.text:
            time.sleep(0.01)
        pipe.send_text("\r")

    assert keys("some\x07", meanwhile=enter_when_it_is_back) == ["some and more"]
