"""Facts about the machine: CPU, kernels, threads, limits."""

from __future__ import annotations

import os
from typing import Any

from edgellm import clib, machine
from edgellm.doctor import library
from edgellm.errors import EdgeLLMError

# Intel SDM vol. 1, ch. 13: bit of XCR0 -> registers that the system saves
_SAVED = {1: "XMM", 2: "YMM", 5: "opmask", 6: "ZMM 0-15", 7: "ZMM 16-31", 17: "tile configuration", 18: "tile data"}


def cpu() -> dict[str, Any]:
    """`usable` and `announced` features and `saved` registers are None where there is no compiled library to ask."""
    facts: dict[str, Any] = {
        "name": machine.cpu_name(),
        "flags": machine.cpu_flags(),
        "logical": os.cpu_count(),
        "allowed": len(machine.allowed_cpus()),
        "quota": machine.cgroup_cpus(),
        "usable": None,
        "announced": None,
        "saved": None,
    }
    if _available():
        facts["usable"], facts["announced"] = library.cpu_features()
        state = library.saved_state()
        facts["saved"] = None if state is None else [name for bit, name in _SAVED.items() if state >> bit & 1]
    return facts


def _available() -> bool:
    try:
        return clib.available()
    except EdgeLLMError:
        return False


def native() -> dict[str, Any]:
    """The compiled library: its levels, why some are not used, and the level that runs each weight type."""
    from edgellm.blocks import ALL

    try:
        if not clib.available():
            return {"available": False, "reason": "there was no C compiler when edgellm was installed"}
    except EdgeLLMError as error:
        return {"available": False, "reason": str(error), "error": str(error), "exit_code": error.exit_code}
    kernels = {}
    for block in ALL:
        panels = clib.kernel_level(block, True) if block.has_panel else None
        prompts = clib.prefill_level(block, block.has_panel)
        kernels[block.name] = {"rows": clib.kernel_level(block, False), "panels": panels, "prompts": prompts}
    levels = clib.levels()
    return {
        "available": True,
        "path": clib.library_path(),
        "compiler": library.compiler(),
        "isa": clib.isa(),
        "cap": os.environ.get("EDGELLM_ISA") or None,
        "levels": levels,
        "ruled_out": _ruled_out(levels),
        "kernels": kernels,
    }


def _ruled_out(levels: dict[str, str]) -> dict[str, str]:
    """Each level that is not used, and why."""
    usable, announced = map(set, library.cpu_features())
    names, needs, in_use = list(levels), library.level_needs(), clib.isa()
    out = {}
    for name, state in levels.items():
        need = set(needs[name])
        if state == "failed its self-test":
            out[name] = state
        elif state != "usable" and not need:
            out[name] = "not in this build: the compiler did not know these instructions, or it is for other CPUs"
        elif need - announced:
            out[name] = f"the CPU has no {', '.join(sorted(need - announced))}"
        elif need - usable:
            out[name] = f"the system does not save the registers of {', '.join(sorted(need - usable))}"
        elif names.index(name) > names.index(in_use):
            out[name] = "EDGELLM_ISA rules it out"
    return out


def threads() -> dict[str, Any]:
    """The threads that a pass takes, and why."""
    choice = machine.choose_threads()
    allowed = machine.allowed_cpus()
    return {
        "n": choice.n,
        "reason": choice.reason,
        "affinity": sorted(allowed),
        "physical": machine.physical_cores(allowed),
        "fast": len(machine.fast_cpus(allowed)),
    }


def limits() -> dict[str, int | None]:
    """Limits of this process in bytes; None: no limit, or a system that does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return {"mlock": None, "address_space": None}

    def soft(name: str) -> int | None:
        number = getattr(resource, name, None)
        limit = resource.RLIM_INFINITY if number is None else resource.getrlimit(number)[0]
        return None if limit == resource.RLIM_INFINITY or limit >= 1 << 60 else limit

    return {"mlock": soft("RLIMIT_MEMLOCK"), "address_space": soft("RLIMIT_AS")}
