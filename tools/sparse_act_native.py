"""The C of the sparse-activation experiment (tools/sparse_act), compiled when it is needed, and K-major matrices.

`kernels()` is the layout and the products alone; `runtime()` is the whole native library once more with a pass that can
take them, put in the place of `edgellm._native` by `take_over()` before a model is loaded.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cffi
import numpy as np

from edgellm.blocks import BlockType
from edgellm.errors import InvalidArgumentError

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "tools" / "sparse_act"
BUILD = ROOT / "build" / "sparse_act"
KERNEL = ("kmajor.c", "kmajor_avx512.c")
TYPES = ("Q4_0", "Q8_0")


def kernels(folder: Path | None = None) -> Any:
    """The compiled module (ffi, lib) of kmajor.h."""
    return _compiled("sparse_act_kernels", [HERE / name for name in KERNEL], [HERE / "kmajor.h"], "", folder)


def runtime(folder: Path | None = None) -> Any:
    """The compiled module (ffi, lib) of edgellm.h, kmajor.h and pass.h; a minute or two the first time."""
    build = _load("native_build", ROOT / "native" / "build.py")
    sources = [name for name in build.sources() if name != "native/run.c"]  # pass.c includes it
    sources = [ROOT / name for name in sources] + [HERE / name for name in (*KERNEL, "pass.c")]
    return _compiled("sparse_act_runtime", sources, [HERE / "kmajor.h", HERE / "pass.h"], build.declarations(), folder)


def take_over() -> Any:
    """`runtime()`, which edgellm uses from now on as its native library; before anything has asked for that."""
    module = runtime()
    import edgellm

    sys.modules["edgellm._native"] = edgellm._native = module  # type: ignore[attr-defined]
    from edgellm import clib

    if clib.library()[1] is not module.lib:
        raise RuntimeError("the native library is in use already")
    return module


def _load(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _compiled(name: str, sources: Sequence[Path], headers: Sequence[Path], cdef: str, folder: Path | None) -> Any:
    """Compiles into a folder named by the digest of all that goes in; the next call only loads."""
    inputs = [*sources, *headers, *sorted((ROOT / "native").rglob("*.[ch]"))]
    digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in inputs)).hexdigest()[:16]
    target = (folder or BUILD) / f"{name}-{digest}"
    found = sorted(target.glob(f"{name}*.so"))
    if not found:
        print(f"compiling {len(sources)} C files into {target}", file=sys.stderr, flush=True)
        ffi = cffi.FFI()
        ffi.cdef(cdef + "".join(_declarations(path) for path in headers))
        ffi.set_source(
            name,
            "".join(f'#include "{path.name}"\n' for path in headers) + ('#include "edgellm.h"' if cdef else ""),
            sources=[str(path) for path in sources],
            include_dirs=[str(ROOT / "native"), str(HERE)],
            extra_compile_args=_load("native_build", ROOT / "native" / "build.py").compile_args(),
            extra_link_args=["-lm", "-pthread"],
        )
        found = [Path(ffi.compile(tmpdir=str(target)))]
    return _load(name, found[0])


def _declarations(header: Path) -> str:
    region = header.read_text(encoding="utf-8").split("/* [cffi begin] */", 1)[1].split("/* [cffi end] */", 1)[0]
    return re.sub(r"/\*.*?\*/", "", region, flags=re.S)


class KMajor:
    """A (rows, k) matrix of Q4_0 or Q8_0 stored by input channel: `struct` is its sa_matrix.

    `data`: uint8 rows of blocks, as in the file. Raises InvalidArgumentError for another type or shape.
    """

    def __init__(self, module: Any, data: np.ndarray, kind: BlockType, rows: int, k: int, block_rows: int) -> None:
        ffi, lib = module.ffi, module.lib
        size = lib.sa_bytes(kind.id, rows, k, block_rows) if kind.name in TYPES else -1
        data = np.ascontiguousarray(data).reshape(-1)
        if size < 0 or data.size != rows * kind.row_bytes(k):
            raise InvalidArgumentError(f"a {rows} x {k} matrix of {kind.name} cannot be stored by channel")
        room = np.zeros(size + (2 << 20), np.uint8)
        self.stored = room[-room.ctypes.data % (2 << 20) :][:size]  # where a large page may begin
        self.struct = ffi.new("sa_matrix *", (kind.id, block_rows, rows, k, ffi.cast("uint8_t *", 0)))
        if lib.sa_pack(ffi.from_buffer(data), self.struct, ffi.from_buffer(self.stored)):
            raise InvalidArgumentError(f"a {rows} x {k} matrix of {kind.name} cannot be stored by channel")
        self.struct.data = ffi.from_buffer("uint8_t[]", self.stored)
        self.n_blocks = -(-rows // block_rows)


class Lists:
    """Room for the live channels of inputs of up to `k`: `struct` is a sa_live without d and sum."""

    def __init__(self, module: Any, k: int) -> None:
        size = k + module.lib.SA_ROOM
        self._keep = [np.zeros(size, np.int32), np.zeros(size, np.int8), np.zeros(k // 32, np.int32)]
        kinds = ("int32_t[]", "int8_t[]", "int32_t[]")
        fields = [module.ffi.from_buffer(kind, a) for kind, a in zip(kinds, self._keep, strict=True)]
        self._keep += fields
        null = module.ffi.NULL
        self.struct = module.ffi.new("sa_live *", (k, *fields, null, null))


def quantise(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """int8 codes (k,), float32 scales and int32 sums (k / 32,) of x float32 (k,), as formats/arithmetic.md says."""
    groups = x.reshape(-1, 32)
    largest = np.abs(groups).max(axis=1)
    with np.errstate(divide="ignore"):
        inverse = np.where(largest == 0, np.float32(0), np.float32(127) / largest).astype(np.float32)
    q = np.rint(np.clip(groups * inverse[:, None], -127, 127)).astype(np.int8)
    return q.reshape(-1), (largest / np.float32(127)).astype(np.float32), q.sum(axis=1, dtype=np.int32)


def multiply(module: Any, w: KMajor, x: np.ndarray, threshold: float, fast: bool) -> tuple[np.ndarray, int]:
    """(float32 (rows,), live channels): the product with x float32 (k,), |x| < threshold counting as 0. One thread."""
    ffi, lib = module.ffi, module.lib
    kept = np.empty_like(x)
    lib.sa_keep(ffi.from_buffer("float[]", x), x.size, threshold, ffi.from_buffer("float[]", kept))
    q, d, total = quantise(kept)
    lists = Lists(module, x.size)
    lists.struct.d, lists.struct.sum = ffi.from_buffer("float[]", d), ffi.from_buffer("int32_t[]", total)
    n = lib.sa_list(ffi.from_buffer("int8_t[]", q), lists.struct, fast)
    y = np.empty((w.n_blocks, w.struct.block_rows), np.float32)
    for block in range(w.n_blocks):
        lib.sa_block(w.struct, lists.struct, block, ffi.from_buffer("float[]", y[block]), fast)
    return y.reshape(-1)[: w.struct.rows].copy(), n
