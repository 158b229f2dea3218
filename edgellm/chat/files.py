"""The commands about files: /read, /save, /load."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import TYPE_CHECKING

from edgellm.chat.lines import where_we_were
from edgellm.chat.terminal import counted, say, size_text
from edgellm.errors import EdgeLLMError, InvalidArgumentError

if TYPE_CHECKING:
    from edgellm.chat.repl import Repl

MAX_BYTES = 64 << 20  # of a text file that is sent along; no context window holds more
MAX_COUNTED = 1 << 20  # characters of which the tokens are counted: a second's work at most


def path_in(rest: str) -> str:
    """The path that somebody typed: without quotes around it, with ~ for the home folder."""
    if len(rest) > 1 and rest[0] == rest[-1] and rest[0] in "'\"":
        rest = rest[1:-1]
    return os.path.expanduser(rest)


def read(repl: Repl, rest: str) -> None:
    """/read FILE or PATTERN: texts that go with the next message."""
    if not rest:
        raise InvalidArgumentError("/read FILE: give the path of a text file, or a pattern such as src/*.py")
    for path in _matching(path_in(rest)):
        text = text_of(path)
        repl.attached.append(text)
        say(f"{path}: {counted(len(text), 'character')}{_tokens(repl, text)}; they go with your next message")


def _matching(path: str) -> list[Path]:
    """The file, or the files of a pattern."""
    if os.path.exists(path) or not glob.has_magic(path):
        return [Path(path)]
    found = [Path(name) for name in sorted(glob.glob(path, recursive=True)) if os.path.isfile(name)]
    if not found:
        raise EdgeLLMError(f"{path}: no file has such a name")
    return found


def text_of(path: Path) -> str:
    """A UTF-8 text file. Raises EdgeLLMError."""
    try:
        if not path.is_file() and path.exists():
            raise EdgeLLMError(f"{path}: cannot be read: it is no ordinary file")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise EdgeLLMError(f"{path}: cannot be read: it has {size_text(size)}, at most {size_text(MAX_BYTES)} are")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", error)
        raise EdgeLLMError(f"{path}: cannot be read: {reason}") from None


def _tokens(repl: Repl, text: str) -> str:
    """How many tokens that is, and whether the window can hold them."""
    model = repl.session.model
    if len(text) > MAX_COUNTED:
        return ""
    n = len(model.tokenize(text))
    more = f", more than the context window of {model.n_ctx:,} holds" if n >= model.n_ctx else ""
    return f", {counted(n, 'token')}{more}"


def save(repl: Repl, rest: str) -> None:
    """/save FILE; without FILE the one of --session."""
    path = path_in(rest) if rest else repl.session_file
    if path is None:
        raise InvalidArgumentError("/save FILE: give the path of the file to write")
    repl.session.save(path)
    say(f"{path}: {counted(len(repl.session.messages), 'message')}, {size_text(os.path.getsize(path))}")


def load(repl: Repl, rest: str) -> None:
    """/load FILE: the conversation in it takes the place of this one."""
    from edgellm.session import Session

    if not rest:
        raise InvalidArgumentError("/load FILE: give the path of a file that /save wrote")
    before, repl.session = repl.session, Session.load(repl.session.model, path_in(rest))
    before.close()
    repl.last = None
    say(where_we_were(repl.session))
