"""Runs tests on a build of the library whose tile instructions are plain C (tests/native/tiles_emulated.h).

    python tests/emulated_tiles.py tests/prefill_cases.py      builds the library where it is missing, then runs pytest

The level is called "amx" in it and works on every machine, so that what only passes through prefill kernels show can be
tested.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FLAGS = "-DEL_TILES_EMULATED -Wno-psabi -O1 -Inative/kernels -Itests/native"


def build() -> Path:
    """The extension module, compiled again when a source is newer. Raises CalledProcessError."""
    folder = ROOT / "build" / "emulated"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sources = [*(ROOT / "native").rglob("*.[ch]"), *(ROOT / "tests" / "native").glob("*.h")]
        newest = max(path.stat().st_mtime for path in sources)
        built = list(folder.rglob("_native*.so"))
        if not built or built[0].stat().st_mtime < newest:
            command = [sys.executable, "setup.py", "--quiet", "build_ext", "--force", "--build-lib", str(folder)]
            command += ["--build-temp", str(ROOT / "build" / "emulated-temp")]
            env = os.environ | {"EDGELLM_CFLAGS": FLAGS, "EDGELLM_REQUIRE_NATIVE": "1"}
            subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True, text=True)
            built = list(folder.rglob("_native*.so"))
    return built[0]


def use(path: Path) -> None:
    """Makes `path` the library of `edgellm` in this process."""
    spec = importlib.util.spec_from_file_location("edgellm._native", path)
    assert spec is not None and spec.loader is not None
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


if __name__ == "__main__":
    import pytest

    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    use(build())
    sys.exit(pytest.main(["-rs", "-p", "no:cacheprovider", "-p", "no:xdist", *sys.argv[1:]]))
