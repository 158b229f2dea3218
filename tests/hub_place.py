"""An environment of its own for tests of `edgellm.hub`: a server that is the hub, and folders below a temporary one."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from gguf_bytes import Raw
from hub_server import HubServer

from edgellm.hub import transfer


def model_bytes(n: int = 0, seed: int = 1) -> bytes:
    """A sound GGUF file with `n` random bytes behind its last tensor, which only earn a warning."""
    return bytes(Raw()) + random.Random(seed).randbytes(n)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The server; the cache is `tmp_path / "cache"`, attempts follow each other quickly."""
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(transfer, "WAITS", (0.01, 0.01, 0.02))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "APPDATA", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server
