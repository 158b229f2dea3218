"""What the compiled library says of the CPU and of itself. Raises BackendError where there is none."""

from __future__ import annotations

from edgellm import clib


def cpu_features() -> tuple[list[str], list[str]]:
    """Names of the CPU features that kernels may use, and of those that the CPU announces: the operating system must
    save the registers of a feature too."""
    _, lib = clib.library()
    return _feature_names(lib.el_cpu_features()), _feature_names(lib.el_cpu_announced())


def level_needs() -> dict[str, list[str]]:
    """Each compiled level and the CPU features that it needs; none: an empty level of another kind of CPU, or the
    portable one."""
    _, lib = clib.library()
    return {name: _feature_names(lib.el_level_needs(i)) for i, name in enumerate(clib.level_names())}


def _feature_names(bits: int) -> list[str]:
    ffi, lib = clib.library()
    names = (lib.el_cpu_feature_name(i) for i in range(32) if bits >> i & 1)
    return [ffi.string(name).decode() for name in names if name != ffi.NULL]


def saved_state() -> int | None:
    """XCR0, the bits of registers that the operating system saves on x86-64; None elsewhere."""
    state = clib.library()[1].el_cpu_saved_state()
    return None if state < 0 else state


def compiler() -> str:
    """What compiled the library, e.g. "GCC 14.2.0"."""
    ffi, lib = clib.library()
    name: bytes = ffi.string(lib.el_compiler())
    return name.decode()
