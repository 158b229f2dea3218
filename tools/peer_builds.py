#!/usr/bin/env python3
"""Builds the other programs that edgellm is measured against, into a cache folder, once.

    python tools/peer_builds.py [--cache FOLDER] [--ik]      (tools/compare_peers.py does it by itself)

Sources come from the package index (`pip download --no-binary`): llama.cpp inside llama-cpp-python, ik_llama.cpp
inside ik-llama-cpp-python. Of llama.cpp there are up to two builds, because neither is the faster one everywhere: `cpu`
with all that this CPU has but AMX, and `amx` with AMX too. GCC 12.2 leaves out the stores to llama.cpp's AMX tile
configuration (ggml-org/llama.cpp pull request 26954), so the `amx` source gets one line that keeps them.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
LLAMA, IK = "llama-cpp-python==0.3.36", "ik-llama-cpp-python==0.1.5"
# Linux's name of a CPU flag -> llama.cpp's CMake options.
CPU_OPTIONS = {
    "avx": ["GGML_AVX"], "avx2": ["GGML_AVX2"], "fma": ["GGML_FMA"], "f16c": ["GGML_F16C"], "bmi2": ["GGML_BMI2"],
    "avx512f": ["GGML_AVX512"], "avx512_vnni": ["GGML_AVX512_VNNI"], "avx512vbmi": ["GGML_AVX512_VBMI"],
    "avx512_bf16": ["GGML_AVX512_BF16"],
}  # fmt: skip
AMX_OPTIONS = {"amx_tile": "GGML_AMX_TILE", "amx_int8": "GGML_AMX_INT8", "amx_bf16": "GGML_AMX_BF16"}
TILE_LOAD = "    _tile_loadconfig(&tc);"
TILE_FIX = '    __asm__ volatile("" :: "r"(&tc) : "memory");\n' + TILE_LOAD


@dataclass(frozen=True)
class Build:
    """A peer that is ready to run: `driver` is tools/peer_driver.c linked to it."""

    name: str
    driver: Path
    options: tuple[str, ...]


def cpu_flags() -> set[str]:
    """All flags of /proc/cpuinfo; empty where there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return set()
    return {f for line in text.splitlines() if line.partition(":")[0].strip() == "flags" for f in line.split()[2:]}


def options(flags: Iterable[str], amx: bool) -> tuple[str, ...]:
    """CMake options of a llama.cpp build for a CPU with these flags."""
    have = set(flags)
    if not have & set(CPU_OPTIONS):  # not x86, or an unknown system: the build looks at the machine itself
        return ("GGML_NATIVE=ON",)
    chosen = [name for flag, names in CPU_OPTIONS.items() if flag in have for name in names]
    chosen += [name for flag, name in AMX_OPTIONS.items() if amx and flag in have]
    return ("GGML_NATIVE=OFF", *(f"{name}=ON" for name in chosen))


def has_amx(flags: Iterable[str]) -> bool:
    return {"amx_tile", "amx_int8"} <= set(flags)


def fix_tiles(source: Path) -> None:
    """Puts the barrier before llama.cpp's tile configuration is loaded; once."""
    path = source / "ggml" / "src" / "ggml-cpu" / "amx" / "mmq.cpp"
    text = path.read_text(encoding="utf-8")
    if TILE_FIX in text:
        return
    if text.count(TILE_LOAD) != 1:
        raise SystemExit(f"{path}: the line {TILE_LOAD.strip()} is not there once; look at this version by hand")
    path.write_text(text.replace(TILE_LOAD, TILE_FIX), encoding="utf-8")


def default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "edgellm" / "peers"


def run(command: list[str], log: Path, cwd: Path | None = None) -> None:
    """A command at low priority, its output in `log`."""
    nice = ["nice", "-n", "5"] if shutil.which("nice") else []
    with open(log, "ab") as out:
        if subprocess.run([*nice, *command], stdout=out, stderr=subprocess.STDOUT, cwd=cwd).returncode:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise SystemExit(f"{' '.join(command)}: failed; the end of {log}:\n{tail}")


def fetch(package: str, cache: Path) -> Path:
    """The unpacked vendor source inside a source package; downloaded when it is not in the cache."""
    folder = cache / package.replace("==", "-")
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        name = package.split("==")[0]
        options = ["--no-deps", "--no-binary", name, "-d", str(folder)]
        run([sys.executable, "-m", "pip", "download", *options, package], folder / "download.log")
        with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
            if hasattr(tarfile, "data_filter"):
                archive.extractall(folder, filter="data")
            else:
                archive.extractall(folder)  # Python before 3.10.12
        (folder / "complete").touch()
    return next(p for p in folder.glob("*/vendor/*") if (p / "include" / "llama.h").exists())


def build(name: str, package: str, cmake_options: tuple[str, ...], cache: Path, jobs: int = 0) -> Build:
    """Source, library and driver of one peer; what is already there is used again."""
    version = platform.machine() + hashlib.sha256(f"{package} {cmake_options}".encode()).hexdigest()[:8]
    folder = cache / f"{name}-{version}"
    driver, log = folder / "peer_driver", folder / "build.log"
    text = (TOOLS / "peer_driver.c").read_bytes()
    stamp = folder / "driver.sha256"
    if not (folder / "complete").exists():
        print(f"building {name} ({package}): some minutes; {log}", file=sys.stderr)
        source = fetch(package, cache)
        if name == "amx":
            fix_tiles(source)
        folder.mkdir(parents=True, exist_ok=True)
        shared = ["CMAKE_BUILD_TYPE=Release", "BUILD_SHARED_LIBS=ON", "GGML_CCACHE=OFF", "LLAMA_CURL=OFF"]
        shared += [f"LLAMA_BUILD_{part}=OFF" for part in ("COMMON", "TESTS", "TOOLS", "EXAMPLES", "SERVER", "APP")]
        flags = [f"-D{option}" for option in (*shared, *cmake_options)]
        run(["cmake", "-S", str(source), "-B", str(folder / "build"), *flags], log)
        jobs = str(jobs or os.cpu_count() or 1)
        run(["cmake", "--build", str(folder / "build"), "--target", "llama", "-j", jobs], log)
        (folder / "complete").touch()
    digest = hashlib.sha256(text).hexdigest()
    if not driver.exists() or not stamp.exists() or stamp.read_text() != digest:
        compile_driver(fetch(package, cache), library_folders(folder / "build"), driver, log, name == "ik")
        stamp.write_text(digest)
    return Build(name, driver, cmake_options)


def server(name: str, cache: Path, jobs: int = 0) -> Path:
    """llama.cpp's server out of the build `name` ("cpu" or "amx"), built beside its library where it is not there."""
    made = build(name, LLAMA, options(cpu_flags(), amx=name == "amx"), cache, jobs)
    folder = made.driver.parent / "build"
    program, log = folder / "bin" / "llama-server", made.driver.parent / "server.log"
    if not (made.driver.parent / "server-complete").exists():
        print(f"building llama.cpp's server ({LLAMA}): some 15 minutes; {log}", file=sys.stderr)
        wanted = [f"-DLLAMA_BUILD_{part}=ON" for part in ("COMMON", "TOOLS", "SERVER")]
        unwanted = [f"-DLLAMA_{part}=OFF" for part in ("BUILD_UI", "USE_PREBUILT_UI", "OPENSSL")]  # nothing is fetched
        run(["cmake", "-S", str(fetch(LLAMA, cache)), "-B", str(folder), *wanted, *unwanted], log)
        run(["cmake", "--build", str(folder), "--target", "llama-server", "-j", str(jobs or os.cpu_count() or 1)], log)
        (made.driver.parent / "server-complete").touch()
    return program


def library_folders(top: Path) -> list[Path]:
    """Folders of the shared libraries that a build made."""
    return sorted({p.parent for pattern in ("*.so", "*.dylib") for p in top.rglob(pattern)})


def compile_driver(source: Path, libraries: list[Path], driver: Path, log: Path, ik: bool = False) -> None:
    command = [os.environ.get("CC", "cc"), "-std=gnu11", "-O2", str(TOOLS / "peer_driver.c"), "-o", str(driver)]
    command += [f"-I{source / p}" for p in ("include", "ggml/include")]
    command += ["-DIK"] if ik else []
    for folder in libraries:
        command += [f"-L{folder}", f"-Wl,-rpath,{folder}", f"-Wl,-rpath-link,{folder}"]
    run([*command, "-lllama", "-lggml", *([] if ik else ["-lggml-base"])], log)


def installed(python: str, cache: Path) -> Build:
    """The llama.cpp inside an environment with llama-cpp-python, as it was built there (for development)."""
    code = "import importlib.util as u, pathlib; print(pathlib.Path(u.find_spec('llama_cpp').origin).parent / 'lib')"
    lib = Path(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip())
    cache.mkdir(parents=True, exist_ok=True)
    driver = cache / f"installed-{hashlib.sha256(str(lib).encode()).hexdigest()[:8]}"
    compile_driver(fetch(LLAMA, cache), [lib], driver, cache / "installed.log")
    return Build("installed", driver, ())


def all_builds(cache: Path, ik: bool, jobs: int = 0) -> tuple[list[Build], list[str]]:
    """Every peer that this machine can run, and notes about those it cannot."""
    cache.mkdir(parents=True, exist_ok=True)
    flags, notes = cpu_flags(), []
    builds = [build("cpu", LLAMA, options(flags, amx=False), cache, jobs)]
    if has_amx(flags):
        builds.append(build("amx", LLAMA, options(flags, amx=True), cache, jobs))
    else:
        notes.append("llama.cpp's AMX build is left out: this CPU has no AMX.")
    if ik:
        ik_options = ("GGML_NATIVE=ON", "GGML_IQK_FA_ALL_QUANTS=OFF", "GGML_NCCL=OFF")
        builds.append(build("ik", IK, ik_options, cache, jobs))
    else:
        notes.append("ik_llama.cpp was not asked for (--ik builds it; some 20 minutes on two cores).")
    return builds, notes


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--cache", type=Path, default=default_cache())
    ap.add_argument("--ik", action="store_true", help="ik_llama.cpp too")
    ap.add_argument("--jobs", type=int, default=0, help="compilers at once [default: one per CPU]")
    a = ap.parse_args()
    builds, notes = all_builds(a.cache, a.ik, a.jobs)
    for b in builds:
        print(f"{b.name}: {b.driver} ({' '.join(b.options)})")
    for note in notes:
        print(note)


if __name__ == "__main__":
    main()
