"""Paths that are no regular files, in every place of a folder, and names in the inputs that want to be paths."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from convert_inputs import hf_folder
from torch_inputs import write_torch

from edgellm.convert import convert
from edgellm.errors import ModelFormatError
from edgellm.gguf import open_gguf


def as_folder(path: Path) -> None:
    path.mkdir()


def as_pipe(path: Path) -> None:
    os.mkfifo(path)


def as_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def as_socket(path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as s:
        here = os.getcwd()
        os.chdir(path.parent)  # the name of a socket may be 107 bytes long
        try:
            s.bind(path.name)
        finally:
            os.chdir(here)


def as_loop(path: Path) -> None:
    path.symlink_to(path.name)


def as_empty(path: Path) -> None:
    path.touch()


def without_permission(path: Path) -> None:
    path.write_bytes(b"x")
    path.chmod(0)


def forbid(name: str) -> Callable[..., int]:
    """os.open that answers like a system where `name` may not be read."""
    real = os.open

    def open_(path: Any, *args: Any, **kwargs: Any) -> int:
        if str(path).endswith(name):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *args, **kwargs)

    return open_


KINDS: dict[Callable[[Path], None], str] = {
    as_folder: "F1", as_pipe: "F1", as_device: "F1", as_socket: "F1", without_permission: "F2", as_loop: "F3",
    as_empty: "F4",
}  # fmt: skip
FILES = ["model.safetensors", "pytorch_model.bin", "tokenizer.model", "config.json", "tokenizer_config.json",
         "model.safetensors.index.json", "chat_template.jinja", "model.gguf"]  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("make", KINDS, ids=lambda f: f.__name__)
def test_what_is_no_regular_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], name: str
) -> None:
    hf_folder(tmp_path / "m")
    if name == "pytorch_model.bin":
        (tmp_path / "m" / "model.safetensors").unlink()
    path = tmp_path / "m" / name
    path.unlink(missing_ok=True)
    make(path)
    if make is without_permission and os.geteuid() == 0:  # root may read everything
        monkeypatch.setattr("edgellm.gguf.source.os.open", forbid(name))
    start = time.monotonic()
    with pytest.raises(ModelFormatError) as caught:
        if name == "model.gguf":
            open_gguf(path)
        else:
            convert(tmp_path / "m", tmp_path / "out.gguf")
    assert time.monotonic() - start < 5  # a pipe or a device would never end
    outside = make in (as_device, as_loop) and name.startswith(("model.safe", "pytorch"))  # a link, refused before
    assert caught.value.rule in ((KINDS[make], "S9") if outside else (KINDS[make],)) and name in str(caught.value)
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_names_in_metadata_are_never_paths(tmp_path: Path, kind: str) -> None:
    """F6: only the output that was asked for appears, whatever names the inputs hold."""
    evil = "../../escaped"
    tensors = hf_folder(tmp_path / "in" / "m", _name_or_path=evil, files={
        "tokenizer_config.json": {"chat_template": [{"name": "default", "template": "x"}], "name_or_path": evil}})
    if kind == "bin":
        (tmp_path / "in" / "m" / "model.safetensors").unlink()
        write_torch(tmp_path / "in" / "m" / "pytorch_model.bin", tensors, top="escaped")
    convert(tmp_path / "in" / "m", tmp_path / "in" / "o.gguf")
    with open_gguf(tmp_path / "in" / "o.gguf") as file:
        assert "/" not in file.get("general.name", str)
    found = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if "escaped" in p.name)
    assert found == [] and sorted(os.listdir(tmp_path / "in")) == ["m", "o.gguf"]
    assert os.listdir(tmp_path) == ["in"]
