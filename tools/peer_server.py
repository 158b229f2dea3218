"""llama.cpp's server as a process that answers one prompt at a time and says how long its decoding took."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

START_SECONDS = 120.0
ANSWER_SECONDS = 600.0


class ServerError(Exception):
    """The server did not start, ended or refused a request."""


@dataclass(frozen=True)
class Answer:
    """Ids of an answer, an end token included, and seconds of decoding those behind the first."""

    ids: tuple[int, ...]
    seconds: float
    drafted: int = 0
    accepted: int = 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class PeerServer:
    """A running server with one slot. `options`: further words of its command line. Raises ServerError."""

    def __init__(self, program: Path, model: Path, threads: int, n_ctx: int, options: Sequence[str] = ()) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (close() closes it)
        self._port = free_port()
        n = str(threads)
        command = [str(program), "-m", str(model), "-t", n, "-tb", n, "-c", str(n_ctx), "-np", "1", *options]
        command += ["--host", "127.0.0.1", "--port", str(self._port), "--cache-ram", "0", "--ctx-checkpoints", "0"]
        self._process = subprocess.Popen([*command, "--no-webui"], stdout=self._log, stderr=subprocess.STDOUT)
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> PeerServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._log.close()

    def answer(self, ids: Sequence[int], max_tokens: int) -> Answer:
        """The most probable token each time, up to an end token or `max_tokens`."""
        facts = self._asked(
            "POST", "/completion",
            {"prompt": list(ids), "n_predict": max_tokens, "temperature": 0.0, "samplers": ["top_k"], "top_k": 1,
             "cache_prompt": True, "return_tokens": True},
        )  # fmt: skip
        times = facts["timings"]
        counts = (int(times.get("draft_n", 0)), int(times.get("draft_n_accepted", 0)))
        return Answer(tuple(facts["tokens"]), times["predicted_ms"] / 1e3, *counts)

    def _wait(self) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            try:
                self._asked("GET", "/health")
                return
            except ServerError:
                if self._process.poll() is not None:
                    raise
                time.sleep(0.05)
        raise ServerError(f"llama-server was not ready after {START_SECONDS:.0f} s; its last words:\n{self._tail()}")

    def _asked(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=ANSWER_SECONDS)
        try:
            connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read()
        except OSError as error:
            raise ServerError(f"llama-server does not answer ({error}); its last words:\n{self._tail()}") from error
        finally:
            connection.close()
        if response.status != 200:
            raise ServerError(f"llama-server refused {path}: {response.status} {text[:300]!r}")
        facts: dict[str, Any] = json.loads(text)
        return facts

    def _tail(self) -> str:
        self._log.seek(0)
        return "\n".join(self._log.read().decode(errors="replace").splitlines()[-8:])
