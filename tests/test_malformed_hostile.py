"""Paths that are no models, files made to be slow or large, and thousands of mutants of good files."""

from __future__ import annotations

import os
import socket
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf_bytes import ARRAY, BOOL, STRING, U32, Raw, array, entry, tensor, text
from helpers import tiny_llama_gguf

from edgellm import errors
from edgellm.errors import EdgeLLMError, ModelFormatError
from edgellm.gguf import open_gguf

GOOD = bytes(Raw())


def write(folder: Path, data: bytes) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(data)
    return path


# ---- paths -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_paths_that_are_no_regular_files(tmp_path: Path) -> None:
    fifo, sock, loop = tmp_path / "fifo", tmp_path / "socket", tmp_path / "loop"
    os.mkfifo(fifo)
    loop.symlink_to(loop)
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(sock))
        cases = [(tmp_path, "F1", "folder"), (fifo, "F1", "pipe"), (Path("/dev/zero"), "F1", "device"),
                 (sock, "F1", "socket"), (loop, "F3", "link")]  # fmt: skip
        for path, rule, word in cases:
            with pytest.raises(ModelFormatError, match=word) as caught:
                open_gguf(path)
            assert caught.value.rule == rule and caught.value.exit_code == 3


def test_missing_and_empty_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (tmp_path / "no.gguf", write(tmp_path, GOOD) / "below-a-file"):
        with pytest.raises(errors.ModelFileNotFoundError) as missing:
            open_gguf(path)
        assert missing.value.exit_code == 2 and isinstance(missing.value, FileNotFoundError)
    with pytest.raises(errors.InvalidArgumentError):
        open_gguf("a\0b")
    with pytest.raises(ModelFormatError) as caught:
        open_gguf(write(tmp_path, b""))
    assert caught.value.rule == "F4"

    def denied(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(ModelFormatError, match="permission") as caught:
        open_gguf(write(tmp_path, GOOD))
    assert caught.value.rule == "F2"


def test_descriptors_are_not_leaked(tmp_path: Path) -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc/self/fd")
    before = len(os.listdir("/proc/self/fd"))
    for n in range(0, len(GOOD) - 100, 40):
        with pytest.raises(ModelFormatError):
            open_gguf(write(tmp_path, GOOD[:n]))
    assert len(os.listdir("/proc/self/fd")) == before


# ---- hostile sizes ---------------------------------------------------------------------------------------------------


def many_empty_strings() -> bytes:
    return bytes(Raw(entries=[entry("x", ARRAY, array(STRING, (1 << 21), bytes(8 << 21)))], tensors=[], data=b""))


def many_keys() -> bytes:
    n = 1 << 16
    keys = b"".join(struct.pack("<Q5sIB", 5, b"%05x" % i, 0, 1) for i in range(n))
    return struct.pack("<4sIQQ", b"GGUF", 3, 0, n) + keys


def two_letter_strings() -> bytes:
    return bytes(Raw(entries=[entry("x", ARRAY, array(STRING, 1 << 19, text("ab") * (1 << 19)))], tensors=[], data=b""))


def many_tensors() -> bytes:
    """65,536 tensors of one weight each, with names as long as they may be."""
    n = 1 << 16
    infos = [tensor("n" * 57 + f"{i:06d}", [1], 0, 8 * i) for i in range(n)]
    alignment = entry("general.alignment", U32, struct.pack("<I", 8))
    return bytes(Raw(entries=[alignment], tensors=infos, alignment=8, data=bytes(8 * n)))


def wide_texts() -> bytes:
    """Each string becomes four times as long in memory, because one of its characters is wide."""
    value = "\U0001f642".encode() + b"x" * 60000
    entries = [entry(f"k{i}", STRING, text(value)) for i in range(400)]
    return bytes(Raw(entries=entries, tensors=[], data=b""))


def wide_keys() -> bytes:
    key = "\U0001f642" + "x" * 65000
    entries = [entry(key + f"{i:04d}", BOOL, b"\1") for i in range(250)]
    return bytes(Raw(entries=entries, tensors=[], data=b""))


@pytest.mark.parametrize("make", [many_empty_strings, many_keys, many_tensors, two_letter_strings])
def test_valid_files_made_to_be_slow_open_in_a_second(make: Callable[[], bytes], tmp_path: Path) -> None:
    path = write(tmp_path, make())
    start = time.process_time()
    open_gguf(path, strict=True).close()
    assert time.process_time() - start < 1


@pytest.mark.parametrize("make", [many_keys, two_letter_strings, wide_texts, wide_keys])
def test_valid_files_made_to_be_large_stay_small(make: Callable[[], bytes], tmp_path: Path) -> None:
    """Short strings take many times their size as Python objects; a file must not cost twice its size + 64 MB."""
    path = write(tmp_path, make())
    tracemalloc.start()
    try:
        open_gguf(path).close()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * path.stat().st_size + (64 << 20)


def test_limits_that_hold_over_the_whole_file(tmp_path: Path) -> None:
    keys = [entry("k" * 65000 + f"{i:04d}", BOOL, b"\1") for i in range(260)]
    bools = [entry(f"b{i}", ARRAY, array(BOOL, 1 << 20, bytes(1 << 20))) for i in range(3)]
    for entries, rule in ((keys, "K1"), (bools, "K6")):
        with pytest.raises(ModelFormatError) as caught:
            open_gguf(write(tmp_path, bytes(Raw(entries=entries, tensors=[], data=b""))))
        assert caught.value.rule == rule
        good = bytes(Raw(entries=entries[:2], tensors=[], data=b""))
        open_gguf(write(tmp_path, good), strict=True).close()


def test_a_huge_sparse_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse.gguf"
    with open(path, "wb") as f:
        f.write(struct.pack("<4sIQQ", b"GGUF", 3, 1 << 16, 1 << 16))
        f.truncate(1 << 34)
    start = time.process_time()
    with pytest.raises(ModelFormatError):
        open_gguf(path)
    assert time.process_time() - start < 1


# ---- mutations -------------------------------------------------------------------------------------------------------

INTERESTING = [0, 1, 2, 3, 7, 31, 32, 33, 127, 255, 256, 65535, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32,
               1 << 40, (1 << 62), (1 << 63) - 1, 1 << 63, (1 << 64) - 1]  # fmt: skip


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """One to three changes: a flipped bit, a random byte, an interesting number, a cut, a doubled or moved piece."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        at, kind = int(rng.integers(0, max(1, len(out)))), int(rng.integers(0, 7))
        if not out:
            break
        if kind == 0:
            out[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            out[at] = int(rng.integers(0, 256))
        elif kind in (2, 3):
            size = (4, 8)[kind - 2]
            value = INTERESTING[int(rng.integers(0, len(INTERESTING)))] % (1 << 8 * size)
            out[at : at + size] = value.to_bytes(size, "little")
        elif kind == 4:
            del out[at:]
        elif kind == 5:
            n = int(rng.integers(1, 40))
            out[at:at] = out[at : at + n]
        else:
            del out[at : at + int(rng.integers(1, 20))]
    return bytes(out) or b"G"


def use_everything(path: Path) -> None:
    with open_gguf(path) as f:
        for key in f.metadata:
            f.metadata[key]
        for name, info in f.tensors.items():
            view = f.data(name)
            assert view.nbytes == info.n_bytes
            view.max()
        f.unbound()


@pytest.mark.parametrize("source", ["surgery", "model"])
def test_mutants_raise_nothing_but_our_errors(source: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(20)
    base = GOOD
    if source == "model":
        path = tiny_llama_gguf(tmp_path / "base.gguf", dim=32, n_heads=2, n_kv_heads=1, ffn=32, type="Q4_0")
        base = path.read_bytes()
    header, path = base[:1400], tmp_path / "mutant.gguf"
    refused = 0
    for _ in range(2500 if source == "surgery" else 600):
        path.write_bytes(mutate(header, rng) + base[1400:])
        try:
            use_everything(path)
        except EdgeLLMError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 1500
    assert refused > 100
