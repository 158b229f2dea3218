"""Compiles kernels when they are first called, once per process, and keeps the machine code for the next one.

Numba keeps compiled code in `NUMBA_CACHE_DIR`, else beside the source, else in the user's cache folder: the first of
them that can be written. Where none can, kernels are compiled for this process only: slower to start, one line in the
log, never an error. File names hold a digest of all that the code depends on, the processor too: several machines may
share a folder, and several processes may start at once.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import numba
from numba import types

_log = logging.getLogger("edgellm")
_compiling = threading.RLock()

# Argument types. "C" arrays of one dimension; weights and caches are addressed flat. `ro_*` also take read-only memory
# such as a mapped file.
INT = types.int64
F32 = types.float32
f32s, i8s, i16s, i32s, u16s = (t[::1] for t in (types.float32, types.int8, types.int16, types.int32, types.uint16))
i64s = types.int64[::1]
ro_u8s = types.Array(types.uint8, 1, "C", readonly=True)


_KERNELS = Path(__file__).parent
_SOURCES = (_KERNELS.parent.parent / "blocks.py", _KERNELS.parent.parent / "quants" / "unpack.py")  # their constants
_cache_failed = False  # a cache that could not be written once is not tried again
_told: set[str] = set()


@functools.cache
def _stamp() -> str:
    """Names the files of the cache. Numba itself only looks at the one file in which a kernel stands, and two processes
    that write its index at once could give one processor the code of another."""
    from numba.core.registry import cpu_target

    processor = cpu_target.target_context.codegen().magic_tuple()
    digest = hashlib.sha256(repr((numba.__version__, processor)).encode())
    for path in (*sorted(_KERNELS.glob("*.py")), *_SOURCES):
        if path.is_file():  # a frozen application has none; there Numba looks at the executable
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _has_folder() -> bool:
    """Without a home Numba would make a folder that is called `~`."""
    known = numba.config.CACHE_DIR or os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~") != "~"
    return bool(known) or os.access(_KERNELS, os.W_OK)


def _drop_cached(function: Callable[..., Any]) -> bool:
    """Removes the cache's list of this kernel, which may be damaged. False: there is none, that was not the fault."""
    try:
        from numba.core.caching import FunctionCache

        os.unlink(FunctionCache(function)._cache_file._index_path)
        return True
    except Exception:
        return False


def _tell_once(line: str) -> None:
    if line not in _told:
        _told.add(line)
        _log.warning(line)


class Kernel:
    """A function that is compiled for `signature` on its first call; call it as the function itself.

    `name` tells kernels apart that one factory made.
    """

    def __init__(self, function: Callable[..., Any], signature: Any, name: str | None = None) -> None:
        self.function, self.signature = function, signature
        self.name = name or function.__name__
        self._compiled: Callable[..., Any] | None = None

    def __call__(self, *args: Any) -> Any:
        return (self._compiled or self.compile())(*args)

    @property
    def ready(self) -> bool:
        return self._compiled is not None

    def compile(self) -> Callable[..., Any]:
        """Compiles now, or loads from the cache, unless that was done before."""
        with _compiling:
            if self._compiled is None:
                start = time.perf_counter()
                self._compiled = self._build()
                _log.debug("numba kernel %s ready in %.2f s", self.name, time.perf_counter() - start)
        return self._compiled

    def _build(self) -> Callable[..., Any]:
        global _cache_failed
        options: dict[str, Any] = {"nogil": True, "parallel": False, "error_model": "numpy"}
        self.function.__qualname__ = f"{self.name}-{_stamp()}"  # names the cache file
        for last in (False, True):
            if _cache_failed or not _has_folder():
                break
            try:
                return numba.njit(self.signature, cache=True, **options)(self.function)
            except Exception as e:  # no folder can be written, disk full, a damaged cache file
                _log.debug("numba cache of %s: %s", self.name, e)
                if last or not _drop_cached(self.function):
                    _cache_failed = isinstance(e, OSError)
                    break
        _tell_once(
            "compiled kernels cannot be kept, so every start takes some seconds longer; "
            "set NUMBA_CACHE_DIR to a folder that can be written"
        )
        return numba.njit(self.signature, cache=False, **options)(self.function)


def variant(template: FunctionType, **values: Any) -> FunctionType:
    """A copy of a kernel's source in which the global names `values` are these compile-time constants.

    (A closure would do, but Numba's cache does not recognise functions that it closes over.)
    """
    return FunctionType(template.__code__, {**template.__globals__, **values}, template.__name__)


def kernel(*args: Any) -> Callable[[Callable[..., Any]], Kernel]:
    """Decorator: a `Kernel` that takes arguments of these Numba types and returns nothing."""

    def wrap(function: Callable[..., Any]) -> Kernel:
        return Kernel(function, types.void(*args))

    return wrap

