"""Where a model lies in memory: mapped, read in, locked; and what a build without GPUs answers."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_llama_gguf

import edgellm
from edgellm import clib, machine
from edgellm.gguf import open_gguf
from edgellm.pack import pack

BACKENDS = ["reference", *(["native"] if clib.available() else [])]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return tiny_llama_gguf(tmp_path_factory.mktemp("load") / "model.gguf", type="Q8_0")


def logits_of(model: edgellm.Model) -> np.ndarray:
    return model.logits(model.tokenize("hello world", add_special=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("packing", [True, False])
def test_a_model_that_was_read_in_needs_its_file_no_more(source, tmp_path, backend, packing):
    path = tmp_path / "copy.gguf"
    path.write_bytes(source.read_bytes())
    with edgellm.load(source, backend=backend, pack=packing) as mapped:
        expected = logits_of(mapped)
    seen = []
    with edgellm.load(path, backend=backend, pack=packing, mmap=False, progress=seen.append) as model:
        assert [p.stage for p in seen][0] == "reading" and seen[-1].stage in ("loading", "compiling")
        reading = [p for p in seen if p.stage == "reading"]
        assert (reading[0].done, reading[-1].done) == (0, path.stat().st_size)
        os.truncate(path, 10)
        path.unlink()
        assert np.array_equal(logits_of(model), expected)
        with model.session() as chat:
            chat.send("hello", max_tokens=3)
            chat.save(tmp_path / "a.edgesession")  # the file's identity is asked for now


@pytest.mark.skipif(not clib.available(), reason="packed files are for the compiled library")
def test_packed_files_are_read_in_too(source, tmp_path):
    pack(source, tmp_path / "packed.gguf")
    with edgellm.load(source) as model:
        expected = logits_of(model)
    with edgellm.load(tmp_path / "packed.gguf", mmap=False) as model:
        os.truncate(tmp_path / "packed.gguf", 10)
        assert np.array_equal(logits_of(model), expected)


def test_reading_in_stops_when_it_is_told_to(source):
    with pytest.raises(edgellm.Cancelled, match="reading"):
        edgellm.load(source, mmap=False, progress=lambda p: p.done == 0)
    edgellm.load(source).close()


def test_a_file_that_is_cut_while_it_is_read_in(source, tmp_path, monkeypatch):
    path = tmp_path / "copy.gguf"
    path.write_bytes(source.read_bytes())
    monkeypatch.setattr("edgellm.gguf.source._READ", 4096)
    with open_gguf(path) as file:
        cut = []

        def told(n: int) -> None:
            if not cut:
                cut.append(n)
                os.truncate(path, 5000)

        with pytest.raises(edgellm.ModelFileChanged):
            file.read_in(told)


def test_pages_that_are_given_back_stay_readable(source):
    with open_gguf(source) as mapped, open_gguf(source) as copy:
        copy.read_in(lambda n: None)
        name = next(iter(mapped.tensors))
        copy.advise_dont_need(0, copy.n_bytes)
        copy.populate(0, copy.n_bytes)
        assert np.array_equal(copy.data(name), mapped.data(name))
        assert [view.size for view in copy.maps()] == [source.stat().st_size]


def test_the_estimate_knows(source):
    mapped, copied = edgellm.estimate(source, n_ctx=64), edgellm.estimate(source, n_ctx=64, mmap=False)
    assert copied.mapped == 0
    assert copied.total - mapped.total == source.stat().st_size - mapped.mapped


@pytest.mark.parametrize("backend", BACKENDS)
def test_locked_weights(source, backend):
    """Locked where the system allows it, else refused with what is needed and what is allowed."""
    limit = machine.lock_limit()
    size = source.stat().st_size
    if limit is not None and limit < 4 * size and os.geteuid() != 0:
        with pytest.raises(edgellm.NotEnoughMemoryError, match="locking"):
            edgellm.load(source, backend=backend, mlock=True)
        return
    before = locked_bytes()
    with edgellm.load(source, backend=backend, mlock=True) as model:
        assert locked_bytes() - before >= size // 2
        assert model.generate("hello", max_tokens=2, ignore_eos=True).token_ids
    assert locked_bytes() == before


def locked_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmLck:"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_system_that_does_not_lock(source, backend, monkeypatch):
    monkeypatch.setattr(machine, "lock_memory", lambda address, n: False)
    monkeypatch.setattr(machine, "lock_limit", lambda: 65536)
    with pytest.raises(edgellm.NotEnoughMemoryError, match="mlock=False") as caught:
        edgellm.load(source, backend=backend, mlock=True)
    assert caught.value.need > caught.value.have == 65536
    edgellm.load(source, backend=backend).close()


def test_there_is_no_gpu_backend(source):
    for layers in (0, "auto"):
        edgellm.load(source, gpu_layers=layers).close()
    with pytest.raises(edgellm.BackendError, match="no GPU backend.*gpu_layers=0"):
        edgellm.load(source, gpu_layers=1)
    for wrong in (-1, "all", True, 1.5):
        with pytest.raises(edgellm.InvalidArgumentError, match="gpu_layers"):
            edgellm.load(source, gpu_layers=wrong)
