"""Programs that are timed in turn: processes that load one model and answer with seconds (tools/compare_peers.py)."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
TIMEOUT = 900.0  # seconds for one answer
LEAST_SECONDS = 0.4  # a measurement repeats its command until this much time was measured
MOST_REPEATS = 25


class RunError(Exception):
    """A program refused a setting, failed or hung."""


@dataclass(frozen=True)
class Setting:
    """A program and how it is called: "edgellm", or a peer with its flash attention on or off."""

    family: str  # "edgellm", "llama.cpp", "ik_llama.cpp"
    name: str
    command: tuple[str, ...]
    flash: int = 1
    environment: dict[str, str] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        return self.name if self.family == "edgellm" else f"{self.name} -fa {self.flash}"


@dataclass(frozen=True)
class Row:
    """One line of the table: what is measured, and in which state."""

    key: str  # the goal's name
    command: str  # "pp 512", "tg 64", "pass 4 8"
    tokens: int  # of one command; 0: the row is a cost of passes
    depth: int = 0
    kv: str = "f16"
    threads: int = 2
    busy: int = 0
    only: str = ""  # name of the one peer that is asked; "-": none
    capped: bool = False  # edgellm without AMX

    @property
    def title(self) -> str:
        what, number = self.command.split()[:2]
        text = f"{what}{number}" if self.tokens else f"pass of {number}"
        text += f" @ d{self.depth}, {self.kv} cache" if self.depth else ""
        text += ", no AMX" if self.capped else ""
        text += f", {self.threads} thread" + ("s" if self.threads > 1 else "") if self.busy else ""
        return text + (f" beside {self.busy} busy" if self.busy else "")

    @property
    def state(self) -> tuple[int, str, int, int, bool]:
        """Rows of one state share their processes."""
        return self.depth, self.kv, self.threads, self.busy, self.capped


class Session:
    """One process with one model. Raises RunError for everything that goes wrong."""

    def __init__(self, setting: Setting, model: str, threads: int, n_ctx: int, kv: str) -> None:
        self.setting = setting
        command = [*setting.command, model, str(threads), str(n_ctx), str(setting.flash), kv]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | setting.environment,
        )  # fmt: skip
        self.errors: list[str] = []
        self.reader = threading.Thread(target=self._read_errors, daemon=True)
        self.reader.start()
        try:
            self._answer("ready")
        except RunError:
            self.close()
            raise

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.errors = [*self.errors[-20:], line.strip()]

    def _answer(self, wanted: str = "") -> str:
        assert self.process.stdout is not None
        timer = threading.Timer(TIMEOUT, self.process.kill)
        timer.start()
        line = self.process.stdout.readline().strip()
        timer.cancel()
        if not line:
            self.process.wait()
            self.reader.join(1)
            said = next((e for e in reversed(self.errors) if e), "it said nothing")
            raise RunError(f"{self.setting}: ended with {self.process.returncode}: {said}")
        if line.startswith("error") or (wanted and line != wanted):
            raise RunError(f"{self.setting}: {line}")
        return line

    def seconds(self, command: str) -> float:
        """Seconds that the program gives for one command."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(command + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise RunError(f"{self.setting}: {error}") from None
        return float(self._answer())

    def measure(self, command: str) -> float:
        """Mean seconds of a command, repeated until enough was measured."""
        total, n = 0.0, 0
        while n == 0 or (total < LEAST_SECONDS and n < MOST_REPEATS):
            total += self.seconds(command)
            n += 1
        return total / n

    def close(self) -> None:
        """Ends the process; the pipes are closed, so it stops by itself or is killed."""
        if self.process.stdin is not None:
            with suppress(OSError):
                self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


def value_of(row: Row, session: Session) -> float:
    """Tokens per second of a row; of passes their seconds."""
    if row.tokens:
        return row.tokens / session.measure(row.command)
    return session.measure(row.command) / int(row.command.split()[2])


def context_for(rows: Iterable[Row]) -> int:
    """A context that has room for every row."""
    return max(row.depth + (row.tokens or 8) for row in rows) + 64


class Field:
    """The programs of one state, started once and asked in turn; those that fail are left out with a note."""

    def __init__(
        self, settings: Iterable[Setting], model: str, rows: list[Row], note: Callable[[str], None]
    ) -> None:
        row = rows[0]
        self.note, self.sessions = note, {}
        for setting in settings:
            try:
                session = Session(setting, model, row.threads, context_for(rows), row.kv)
            except RunError as error:
                note(str(error))
                continue
            self.sessions[setting] = session
            try:
                session.seconds("tg 2")  # wakes threads, touches weights
                session.seconds(f"depth {row.depth}")
            except RunError as error:
                self._drop(setting, error)

    def value(self, row: Row, setting: Setting) -> float | None:
        """The row's value with a program; None when it is not there (any more)."""
        session = self.sessions.get(setting)
        if session is None:
            return None
        try:
            return value_of(row, session)
        except RunError as error:
            self._drop(setting, error)
            return None

    def _drop(self, setting: Setting, error: RunError) -> None:
        self.note(f"{error} (left out)")
        self.sessions.pop(setting).close()

    def close(self) -> None:
        for session in self.sessions.values():
            session.close()
        self.sessions = {}


def edgellm_setting(cap: str | None = None) -> Setting:
    """edgellm of this checkout; `cap` limits its instruction set."""
    command = (sys.executable, str(TOOLS / "bench_driver.py"))
    return Setting("edgellm", f"edgellm ({cap})" if cap else "edgellm", command, 1, {"EDGELLM_ISA": cap} if cap else {})
