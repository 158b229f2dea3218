"""The Numba backend in processes of their own: threads that call at once, fork, starts at the same time."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from edgellm.machine import cpu_flags

# Two Python threads that generate at once, on one model and on two, then the same in a forked child. Numba's own thread
# layer would abort the process here.
_AT_ONCE = """
import os, sys, threading
import edgellm
from edgellm.backends import numba_

numba_._CHUNK_WORK = 64  # the model is worth no second thread; here any work is
greedy = edgellm.Sampling(temperature=0)

def ask(model, out):
    out.append(model.generate("One day", max_tokens=12, sampling=greedy).text)

def at_once(*models):
    texts = []
    threads = [threading.Thread(target=ask, args=(m, texts)) for m in models for _ in range(2)]
    for t in threads: t.start()
    for t in threads: t.join()
    return set(texts) if len(texts) == len(threads) else {"a thread failed"}

with edgellm.load(backend="numba", threads=3) as a, edgellm.load(backend="numba", threads=2) as b:
    first = []
    ask(a, first)
    assert at_once(a) == at_once(a, b) == set(first), "other text"
    if hasattr(os, "fork"):
        child = os.fork()
        if child == 0:
            os._exit(0 if at_once(a, b) == set(first) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "in the forked child"
print("done")
"""

_ONE_KERNEL = """
import numpy as np
from edgellm.backends.numba_kernels import vector

x, y = np.ones(3, np.float32), np.zeros(3, np.float32)
vector.add(x, x, y, 0, 3)
print(y.tolist())
"""


def start(code: str, **environment: str) -> subprocess.Popen:
    env = {**os.environ, "PYTHONWARNINGS": "ignore::DeprecationWarning", **environment}
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )


def test_threads_and_forks_at_once() -> None:
    done = start(_AT_ONCE)
    out, err = done.communicate(timeout=300)
    assert (done.returncode, out.strip()) == (0, "done"), err


def test_processes_that_start_at_once_share_a_cold_cache(tmp_path: Path) -> None:
    processes = [start(_ONE_KERNEL, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(3)]
    for process in processes:
        out, err = process.communicate(timeout=300)
        assert (process.returncode, out.strip(), err) == (0, "[2.0, 2.0, 2.0]", "")
    assert len(list(tmp_path.rglob("*.nbi"))) == 1
    assert not list(tmp_path.rglob("*.tmp.*"))


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs an environment without HOME")
def test_no_home_and_a_cache_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    nowhere = str(tmp_path / "file" / "cache")
    process = start(_ONE_KERNEL, NUMBA_CACHE_DIR=nowhere, HOME=nowhere, XDG_CACHE_HOME=nowhere)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out.strip(), err) == (0, "[2.0, 2.0, 2.0]", "")


_LINEAR = """
import sys
import numpy as np
from edgellm.backends.numba_kernels import linear, panel
from edgellm.blocks import BY_NAME
from numba.core.registry import cpu_target

print(*sorted(panel._features(cpu_target.target_context) & {"+avx2", "+avxvnni", "+avx512vnni"}), file=sys.stderr)
rng = np.random.default_rng(0)
rows, k, n = 20, 96, 5
q, d, s = np.zeros(n * k, np.int8), np.zeros(n * k // 32, np.float32), np.zeros(n * k // 32, np.int32)
linear.quantize_q8_32(rng.standard_normal(n * k, dtype=np.float32), 0, n, k, q, d, s)
none, cancel = np.empty(0, np.float32), np.zeros(1, np.int32)
for name in ("Q4_0", "Q8_0"):
    type = BY_NAME[name]
    blocks = np.zeros(rows * k // 32, type.dtype)
    blocks["d"], blocks["qs"] = rng.random(blocks.size), rng.integers(-128, 128, blocks["qs"].shape)
    y = np.zeros(n * rows, np.float32)
    linear.LINEAR[type.id](blocks.view(np.uint8), k, 0, rows, q, d, s, n, none, none, y, rows, cancel)
    print(name, y.tobytes().hex())
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="needs an x86-64 processor")
def test_instruction_sets_change_no_bit() -> None:
    """The kernels as they are compiled for this processor, for one with AVX2 only, and for the first x86-64 ones."""
    levels = {"": "", "haswell": "+avx2,+fma,+f16c", "x86-64": "+sse2"}
    if not {"avx2", "fma", "f16c"} <= set(cpu_flags()):
        del levels["haswell"]
    outs = []
    for name, features in levels.items():
        environment = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features} if name else {}
        out, err = start(_LINEAR, **environment).communicate(timeout=300)
        assert out.startswith("Q4_0"), err
        assert not name or err.strip() == ("+avx2" if name == "haswell" else "")
        outs.append(out)
    assert len(set(outs)) == 1
