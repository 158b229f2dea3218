"""Compiles kernels when they are first called, once per process, and keeps the machine code for the next one.

Numba keeps compiled code beside the source, else in the user's cache folder (`NUMBA_CACHE_DIR` overrides both). Where
none of them can be written the kernel is compiled for this process only: slower to start, never an error.
"""

from __future__ import annotations

import hashlib
import logging
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
ro_u8s = types.Array(types.uint8, 1, "C", readonly=True)


def _source_digest() -> str:
    """Changes with any file of this package. Numba itself only looks at the file in which a kernel stands."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


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

    def compile(self) -> Callable[..., Any]:
        """Compiles now, or loads from the cache, unless that was done before."""
        with _compiling:
            if self._compiled is None:
                start = time.perf_counter()
                self._compiled = self._build()
                _log.debug("numba kernel %s ready in %.2f s", self.name, time.perf_counter() - start)
        return self._compiled

    def _build(self) -> Callable[..., Any]:
        options: dict[str, Any] = {"nogil": True, "parallel": False, "error_model": "numpy"}
        self.function.__qualname__ = f"{self.name}-{_DIGEST}"  # names the cache file
        try:
            return numba.njit(self.signature, cache=True, **options)(self.function)
        except Exception as e:  # no folder can be written, disk full, a damaged cache file
            _log.debug("numba cache is not usable (%s); compiling %s for this process only", e, self.name)
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


_DIGEST = _source_digest()
