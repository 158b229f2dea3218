"""Builds the compiled module `edgellm._native` (cffi, API mode, abi3).

setup.py names this file in `cffi_modules`, so `pip install .` compiles it; `make native` compiles it in
place for development; `python native/build.py --sources` prints the C files of this system.
"""
from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import cffi

ROOT = Path(__file__).resolve().parent.parent
NATIVE = ROOT / "native"


def os_layer() -> str:
    """The one file with this system's calls."""
    if sys.platform.startswith("linux"):
        return "os_linux.c"
    return "os_windows.c" if sys.platform == "win32" else "os_posix.c"


def sources(os_file: str | None = None) -> list[str]:
    """Every C file of the library, relative to the repository root (setuptools wants it so)."""
    wanted = os_file or os_layer()
    files = [p for p in sorted(NATIVE.glob("*.c")) if not p.name.startswith("os_") or p.name == wanted]
    files += sorted((NATIVE / "kernels").glob("*.c"))
    return [p.relative_to(ROOT).as_posix() for p in files]


def declarations() -> str:
    """The region of edgellm.h that cffi reads; `#define NAME number` lines become constants."""
    text = (NATIVE / "edgellm.h").read_text(encoding="utf-8")
    region = text.split("/* [cffi begin] */", 1)[1].split("/* [cffi end] */", 1)[0]
    return re.sub(r"/\*.*?\*/", "", region, flags=re.S)


def compile_args() -> list[str]:
    """One flag list for every file: ISA code is switched on inside the files. Without debug symbols, which Python's own
    flags ask for: they are six times the code (EDGELLM_CFLAGS=-g brings them back)."""
    if sys.platform == "win32":
        return ["/O2", "/std:c11", "/experimental:c11atomics", "/fp:precise"]
    args = ["-std=c11", "-O3", "-g0", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden", "-Wall", "-Wextra"]
    return args + os.environ.get("EDGELLM_CFLAGS", "").split()


def link_args() -> list[str]:
    if sys.platform == "win32":
        return ["synchronization.lib"]
    return ["-lm", "-pthread"] + os.environ.get("EDGELLM_LDFLAGS", "").split()


ffi = cffi.FFI()
ffi.cdef(declarations())
ffi.set_source(
    "edgellm._native",
    '#include "edgellm.h"',
    sources=sources(),
    include_dirs=["native"],
    depends=[p.relative_to(ROOT).as_posix() for p in sorted(NATIVE.rglob("*.h"))],
    extra_compile_args=compile_args(),
    extra_link_args=link_args(),
    py_limited_api=True,
    optional=os.environ.get("EDGELLM_REQUIRE_NATIVE") != "1",
)


def main() -> None:
    """`--sources [OS_FILE]`: the C files of this system, or of the one whose OS layer is named."""
    if len(sys.argv) > 1 and sys.argv[1] == "--sources":
        print(" ".join(sources(sys.argv[2] if len(sys.argv) > 2 else None)))
        return
    raise SystemExit("to compile: make native (or: python setup.py build_ext --inplace)")


if __name__ == "__main__":
    main()
