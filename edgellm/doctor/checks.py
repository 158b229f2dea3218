"""From facts to checks: what is well, what is not, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from edgellm.doctor.install import PACKAGES

State = Literal["ok", "warn", "fail"]
LOW_MEMORY = 1 << 30  # bytes; few useful models run in less
REPORT = "please report it with `edgellm doctor --json`"


@dataclass(frozen=True)
class Check:
    """One line of the page. `warn`: edgellm works, but not as well as it could; `fail`: something is wrong.

    `advice` says what to do, for warnings and faults. `exit_code` is that of `edgellm doctor`, for faults.
    """

    area: str
    state: State
    text: str
    advice: str = ""
    exit_code: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def judge(facts: dict[str, Any]) -> list[Check]:
    """The checks of what `examine` found, in the order of the page."""
    checks = [*_cpu(facts), *_native(facts["native"], facts["backend"]), _threads(facts), *_memory(facts)]
    checks += [*_packages(facts["packages"]), *_caches(facts)]
    if "model" in facts:
        from edgellm.doctor.model_checks import judge_model

        checks += judge_model(facts["model"])
    return checks


def exit_code(facts: dict[str, Any]) -> int:
    """0 when nothing failed, else the code of the first fault."""
    return next((check["exit_code"] for check in facts["checks"] if check["state"] == "fail"), 0)


def fault(area: str, text: str, advice: str = "", exit_code: int = 1) -> Check:
    """Something is wrong."""
    return Check(area, "fail", text, advice, exit_code)


def _cpu(facts: dict[str, Any]) -> Iterator[Check]:
    cpu = facts["cpu"]
    yield Check("cpu", "ok", f"{cpu['name']}: {' '.join(cpu['flags'] or cpu['usable'] or ['features unknown'])}")
    lost = sorted(set(cpu["announced"] or ()) - set(cpu["usable"] or ()))
    if lost:
        yield Check(
            "cpu", "warn", f"the CPU has {', '.join(lost)}, but this system does not save their registers",
            "boot a newer kernel, or allow these instructions in the settings of the virtual machine",
        )  # fmt: skip


def _native(native: dict[str, Any], backend: str) -> Iterator[Check]:
    if "error" in native:
        yield fault("kernels", native["error"], "so no model can be loaded; unset that variable", native["exit_code"])
        return
    if not native["available"]:
        yield Check(
            "kernels", "warn", f"no compiled library: {native['reason']}",
            "install a wheel for this system, or a C compiler, and then edgellm again; models run slower until then",
        )  # fmt: skip
        if backend == "reference":
            yield Check("kernels", "warn", "nothing but the slow reference is there", "pip install 'edgellm[numba]'")
        return
    reasons = "; ".join(f"{name}: {reason}" for name, reason in native["ruled_out"].items())
    more = f" ({reasons})" if reasons else ""
    yield Check("kernels", "ok", f"{native['isa']} in use, built by {native['compiler']}{more}")
    failed = [name for name, state in native["levels"].items() if state == "failed its self-test"]
    for name in failed:
        yield fault(
            "kernels",
            f"{name} is not used: the CPU announces it, but its self-test gave wrong bits or an illegal instruction",
            f"the levels below do its work, so answers are right; {REPORT}",
        )
    if native["cap"] and "EDGELLM_ISA rules it out" in native["ruled_out"].values():
        yield Check("kernels", "warn", f"EDGELLM_ISA={native['cap']} holds faster kernels back", "unset EDGELLM_ISA")
    n = sum(state == "usable" for state in native["levels"].values())
    if not failed:
        text = f"all {n} levels give the same bits" if n > 1 else "there is only the portable level"
        yield Check("self-tests", "ok", text)


def _threads(facts: dict[str, Any]) -> Check:
    threads, cpu = facts["threads"], facts["cpu"]
    text = f"{threads['n']} ({threads['reason']}; the machine has {cpu['logical']})"
    if cpu["quota"] is not None and cpu["quota"] < 1:
        return Check("threads", "warn", text, "give the container a whole CPU: with less, work stops again and again")
    return Check("threads", "ok", text)


def _memory(facts: dict[str, Any]) -> Iterator[Check]:
    memory, limits = facts["memory"], facts["limits"]
    limit = f", container limit {gib(memory['limit'])}" if memory["limit"] else ""
    lock = "no limit" if limits["mlock"] is None else gib(limits["mlock"])
    text = f"{gib(memory['available'])} free of {gib(memory['total'])}{limit}; locked memory: {lock}"
    if memory["available"] < LOW_MEMORY:
        yield Check("memory", "warn", text, "close other programs, or raise the container's limit")
    else:
        yield Check("memory", "ok", text)
    if limits["address_space"] is not None:
        yield Check(
            "memory", "warn", f"the address space is limited to {gib(limits['address_space'])}",
            "`ulimit -v unlimited`: mapped files count too, so large models will not load",
        )  # fmt: skip
    pages = facts["huge_pages"]
    if pages == "never":
        yield Check(
            "huge pages", "warn", "2 MB pages are off, so decoding is slower than it could be",
            "as root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        )  # fmt: skip
    elif pages != "unknown":
        yield Check("huge pages", "ok", pages)


def _packages(packages: dict[str, str | None]) -> Iterator[Check]:
    there = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    missing = [name for name, version in packages.items() if version is None]
    needed = [name for name in missing if not PACKAGES[name]]
    if needed:
        yield fault("packages", f"missing: {', '.join(needed)}", f"pip install {' '.join(needed)}")
    optional: dict[str, list[str]] = {}  # extra -> what it would bring
    for name in missing:
        if PACKAGES[name]:
            optional.setdefault(PACKAGES[name], []).append(name)
    wishes = [f"{', '.join(names)} (pip install 'edgellm[{extra}]')" for extra, names in optional.items()]
    more = f"; not installed, needed for some things only: {', '.join(wishes)}" if wishes else ""
    yield Check("packages", "ok", there + more)


def _caches(facts: dict[str, Any]) -> Iterator[Check]:
    caches = facts["caches"]
    there = {name: cache for name, cache in caches.items() if cache["bytes"] is not None}
    parts = [f"{name} {cache['path']} ({gib(cache['bytes'])})" for name, cache in there.items()]
    yield Check("folders", "ok", ", ".join(parts) or "nothing is kept yet")
    if facts["backend"] == "numba" and not caches["numba"]["writable"]:
        yield Check(
            "folders", "warn", "compiled kernels cannot be kept, so every start takes some seconds longer",
            "set NUMBA_CACHE_DIR to a folder that can be written",
        )  # fmt: skip
    if not caches["history"]["writable"]:
        yield Check(
            "folders", "warn", f"the chat's history cannot be kept in {caches['history']['path']}",
            "make that folder one that you can write to, or set XDG_DATA_HOME",
        )  # fmt: skip


def gib(n: int) -> str:
    """Bytes in words, in the binary units that memory is counted in."""
    return f"{n / 2**30:.1f} GiB" if n >= 2**30 else f"{n / 2**20:.1f} MiB" if n >= 1 << 16 else f"{n / 1024:.1f} KiB"
