"""The loops that measure the machine: they run, with several threads too, and give figures; how large is not tested."""

from __future__ import annotations

import json
import math

import pytest

from edgellm import cli, clib, machine, probe
from edgellm.errors import BackendError, NotEnoughMemoryError

pytestmark = pytest.mark.skipif(not clib.available(), reason="the compiled library was not built")
MS = 1e-3


@pytest.mark.parametrize("threads", [1, 2])
def test_every_peak_that_can_run(threads):
    found = probe.peaks(threads, MS, repeats=1)
    assert all(math.isfinite(p.madds_per_s) and p.madds_per_s > 0 and p.n_threads == threads for p in found)
    assert {p.kind for p in found} <= set(probe.KINDS) and len({p.name for p in found}) == len(found)
    if clib.isa() != "portable":
        assert probe.best_peak(found, "int8") is not None, "what kernels use can be measured"
    for kind in probe.KINDS:
        best = probe.best_peak(found, kind)
        assert best is None or best.madds_per_s == max(p.madds_per_s for p in found if p.kind == kind)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("pages", ["4 KB", "2 MB"])
def test_reading(threads, pages):
    size = threads * clib.read_unit()
    with probe.pages_of(pages, size) as address:
        for streams in probe.STREAMS:
            for ahead, level in ((0, 0), (512, 1), (8192, 2)):
                assert clib.measure_read(address, size, threads, streams, ahead, level, MS) > 0
        best = probe.read_rate(address, size, pages, True, threads, MS, repeats=1)
    assert best.bytes_per_s > 0 and best.streams in probe.STREAMS and best.ahead in probe.AHEAD and best.level in (1, 2)


@pytest.mark.parametrize(
    "wrong", [{"streams": 3}, {"streams": 0}, {"level": 3}, {"level": -1}, {"ahead": -1}, {"n_threads": 0},
              {"n_threads": 10**4}, {"n_bytes": 4096}, {"seconds": 60.0}, {"address": 0}, {"address": 72}],
)  # fmt: skip
def test_wrong_arguments_are_refused(wrong):
    size = clib.read_unit()
    with probe.pages_of("4 KB", size) as address:
        good = {"address": address, "n_bytes": size, "n_threads": 1, "streams": 1, "ahead": 0, "level": 0}
        good["seconds"] = MS
        assert clib.measure_read(**good) > 0
        with pytest.raises(BackendError):
            clib.measure_read(**(good | wrong))


@pytest.mark.parametrize("peak", [-1, 10**6])
def test_no_such_peak(peak):
    with pytest.raises(BackendError):
        clib.measure_peak(peak, 1, MS)


def test_peaks_that_cannot_run_are_refused():
    ffi, lib = clib.library()
    rate, usable = ffi.new("double *"), {number for number, _, _ in clib.peaks()}
    for i in set(range(lib.el_n_peaks())) - usable:
        assert lib.el_measure_peak(i, 1, 1000, rate) == clib.EL_E_UNSUPPORTED


def test_buffer_is_larger_than_the_cache_and_fits(monkeypatch):
    memory = machine.Memory(1 << 40, 1 << 38, None)
    monkeypatch.setattr(machine, "memory", lambda: memory)
    monkeypatch.setattr(machine, "l3_bytes", lambda: 480 << 20)
    assert probe.buffer_size(2) == 4 * 480 << 20
    monkeypatch.setattr(machine, "l3_bytes", lambda: None)
    assert probe.buffer_size(2) == 512 << 20
    memory = machine.Memory(1 << 30, 1 << 30, None)
    assert probe.buffer_size(2) == 256 << 20
    memory = machine.Memory(1 << 20, 1 << 20, None)
    with pytest.raises(NotEnoughMemoryError):
        probe.buffer_size(2)


def test_the_whole_machine_as_table_and_json(monkeypatch, capsys):
    real, size = probe.measure_machine, 2 * clib.read_unit()
    monkeypatch.setattr(probe, "measure_machine", lambda threads, report: real(threads, MS, 1, report, size))
    assert cli.execute(["bench", "--machine", "-t", "1,2", "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert err == "" and found["buffer_bytes"] == size and found["cpu"]
    kinds = len(probe.page_kinds())
    assert [r["n_threads"] for r in found["reads"]] == [1, 1, 2, 2] * kinds
    assert cli.execute(["bench", "--machine", "-t", "1,2"]) == 0
    out = capsys.readouterr().out
    assert "2 threads" in out and "software prefetch" in out and all(p["name"] in out for p in found["peaks"])


def test_limits_in_a_process_of_their_own(monkeypatch):
    real = probe.subprocess.run

    def quick(command, **options):
        code = command[2].replace("print_limits(", "print_limits = lambda n: print('{\"read\": 2.5}'); p.print_limits(")
        return real([*command[:2], code], **options)

    monkeypatch.setattr(probe.subprocess, "run", quick)
    assert probe.limits_apart(1) == probe.Limits(2.5, None, None)
    monkeypatch.setattr(clib, "available", lambda: False)
    assert probe.limits_apart(1) == probe.Limits()


def test_limits():
    found = probe.limits(1, MS, clib.read_unit())
    assert found.read and found.read > 0 and (found.int8 is None or found.int8 > 0)


@pytest.mark.parametrize(
    "words", [["--machine", "model.gguf"], ["--machine", "-o", "csv"], ["m.gguf", "-ctk", "f16", "-ctv", "q9"]]
)
def test_usage(words, capsys):
    assert cli.execute(["bench", *words]) == 2
    assert capsys.readouterr().err


def test_l3(tmp_path):
    for i, (level, size) in enumerate((("1", "48K"), ("2", "2048K"), ("3", "32768K"))):
        index = tmp_path / "cpu0" / "cache" / f"index{i}"
        index.mkdir(parents=True)
        (index / "level").write_text(level + "\n")
        (index / "size").write_text(size + "\n")
    assert machine.l3_bytes(tmp_path) == 32 << 20
    assert machine.l3_bytes(tmp_path / "nothing") is None
