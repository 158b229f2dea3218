"""A converter that stops half-way leaves no output: errors, callbacks, Ctrl-C, signals, a cut source."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from convert_inputs import hf_folder

from edgellm.convert import convert
from edgellm.errors import Cancelled, ModelFileChanged, OutputError
from edgellm.results import Progress

pytestmark = pytest.mark.usefixtures("every_step")

SCRIPT = """
import os, signal, sys
from edgellm.convert import convert
import edgellm.progress
edgellm.progress.INTERVAL = 0
def progress(p):
    if p.done > p.total / 2:
        os.kill(os.getpid(), getattr(signal, sys.argv[3]))
convert(sys.argv[1], sys.argv[2], "f32", progress=progress)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    hf_folder(tmp_path / "model")
    (tmp_path / "out").mkdir()
    return tmp_path / "model"


def out_of(folder: Path) -> Path:
    return folder.parent / "out" / "o.gguf"


def test_progress_counts_bytes_up_to_the_end(folder: Path) -> None:
    calls: list[Progress] = []
    report = convert(folder, out_of(folder), "q8_0", progress=calls.append)
    done = [call.done for call in calls]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, calls[0].total)
    assert {(call.stage, call.unit) for call in calls} == {("converting", "bytes")}
    assert len(calls) == report.n_tensors + 1


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_callback_can_stop_it_at_any_time(folder: Path, share: float) -> None:
    with pytest.raises(Cancelled):
        convert(folder, out_of(folder), progress=lambda p: p.done < share * p.total)
    assert list(out_of(folder).parent.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, MemoryError])
def test_an_exception_leaves_nothing(folder: Path, error: type[BaseException]) -> None:
    def progress(p: Progress) -> None:
        if p.done > p.total / 2:
            raise error

    with pytest.raises(error):
        convert(folder, out_of(folder), progress=progress)
    assert list(out_of(folder).parent.iterdir()) == []


def test_an_old_output_stays_as_it_was(folder: Path) -> None:
    out_of(folder).write_bytes(b"old")
    with pytest.raises(Cancelled):
        convert(folder, out_of(folder), progress=lambda p: p.done < p.total / 2)
    assert [p.name for p in out_of(folder).parent.iterdir()] == ["o.gguf"]
    assert out_of(folder).read_bytes() == b"old"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_a_signal_leaves_no_output(folder: Path, name: str) -> None:
    command = [sys.executable, "-c", SCRIPT, str(folder), str(out_of(folder)), name]
    done = subprocess.run(command, capture_output=True, cwd=Path(__file__).parent.parent, timeout=60)
    assert done.returncode not in (0, 1) or name == "SIGINT"
    assert not out_of(folder).exists()
    if name == "SIGINT":
        assert done.returncode in (-signal.SIGINT, 1, 130)
        assert list(out_of(folder).parent.iterdir()) == []


def test_a_source_that_is_cut_meanwhile_is_noticed(folder: Path) -> None:
    def progress(p: Progress) -> None:
        if p.done > p.total / 4:
            os.truncate(folder / "model.safetensors", 5000)

    with pytest.raises(ModelFileChanged):
        convert(folder, out_of(folder), progress=progress)
    assert list(out_of(folder).parent.iterdir()) == []


def test_a_full_disk_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free, total = 1000, 10**9

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    with pytest.raises(OutputError) as caught:
        convert(folder, out_of(folder))
    assert caught.value.free == 1000
    assert caught.value.needed > 100_000
    assert list(out_of(folder).parent.iterdir()) == []
