"""Cores, quotas and memory, on machines made of files."""

from __future__ import annotations

import os

import pytest

from edgellm import machine


def write(folder, files: dict[str, str]):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_cpu_list():
    assert machine._parse_cpu_list("0-3,8") == {0, 1, 2, 3, 8}
    assert machine._parse_cpu_list("5") == {5}
    assert machine._parse_cpu_list("") == set()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "200000 100000", "cpu.max": "800000 100000"}, 2.0),
        ({"cpu/a/b/cpu.cfs_quota_us": "300000", "cpu/a/b/cpu.cfs_period_us": "100000"}, 3.0),
        ({"cpu/a/b/cpu.cfs_quota_us": "-1", "cpu/a/b/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_quota_of_the_tightest_cgroup(tmp_path, files, expected):
    root = write(tmp_path / "cgroup", files)
    own = write(tmp_path, {"self": "4:memory:/x\n3:cpu,cpuacct:/a/b\n0::/a/b\n"}) / "self"
    assert machine.cgroup_cpus(root, own) == expected


def test_hyper_threads_count_once(tmp_path):
    topology = {f"cpu{i}/topology/thread_siblings_list": f"{i % 2},{i % 2 + 2}" for i in range(4)}
    sys_cpu = write(tmp_path, topology)
    assert machine.physical_cores({0, 1, 2, 3}, sys_cpu) == 2
    assert machine.physical_cores({1, 3}, sys_cpu) == 1
    assert machine.physical_cores({9}, sys_cpu) is None


def test_only_fast_cores(tmp_path):
    intel = write(tmp_path / "intel", {"cpu_core/cpus": "0-3"})
    assert machine.fast_cpus({0, 1, 8, 9}, intel, tmp_path / "none") == {0, 1}
    assert machine.fast_cpus({8, 9}, intel, tmp_path / "none") == {8, 9}, "all slow: better than none"
    arm = write(tmp_path / "arm", {f"cpu{i}/cpu_capacity": str(1024 if i > 3 else 400) for i in range(8)})
    assert machine.fast_cpus(set(range(8)), tmp_path / "none", arm) == {4, 5, 6, 7}
    assert machine.fast_cpus({0, 1}, tmp_path / "none", tmp_path / "none") == {0, 1}


def test_threads_follow_affinity_and_quota(monkeypatch):
    monkeypatch.setattr(machine, "allowed_cpus", lambda: {0, 1, 2, 3, 4, 5, 6, 7})
    monkeypatch.setattr(machine, "fast_cpus", lambda cpus: cpus)
    monkeypatch.setattr(machine, "physical_cores", lambda cpus: 4)
    monkeypatch.setattr(machine, "cgroup_cpus", lambda: None)
    choice = machine.choose_threads()
    assert choice.n == 4 and "8 CPUs allowed" in choice.reason and "4 cores" in choice.reason
    monkeypatch.setattr(machine, "cgroup_cpus", lambda: 2.5)
    choice = machine.choose_threads()
    assert choice.n == 2 and "quota" in choice.reason
    monkeypatch.setattr(machine, "cgroup_cpus", lambda: 0.3)
    assert machine.choose_threads().n == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_real_affinity_is_seen():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert machine.choose_threads().n == 1
    finally:
        os.sched_setaffinity(0, before)


def test_memory_of_this_machine():
    memory = machine.memory()
    assert 0 < memory.available <= memory.total
    assert memory.limit is None or memory.limit < memory.total


def test_memory_limit_of_a_container(tmp_path, monkeypatch):
    folder = write(
        tmp_path,
        {
            "memory.max": "1000000",
            "memory.current": "700000",
            "memory.stat": "inactive_file 100000\nactive_file 50000\n",
        },
    )
    monkeypatch.setattr(machine, "cgroup_folders", lambda controller: [folder, tmp_path / "missing"])
    assert machine._cgroup_memory() == (1_000_000, 450_000)


def test_peak_memory_grows_with_use():
    before = machine.peak_rss()
    block = bytearray(os.urandom(1)) * (before + (64 << 20))
    assert machine.peak_rss() > before
    del block
