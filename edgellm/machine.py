"""What the machine gives this process: cores it may use, memory it may take.

`os.cpu_count()` is the wrong answer inside a container (it ignores affinity and the cgroup quota), and two
hyper-threads of one core do not read memory faster than one. So the number of threads is worked out from what the
process may really use, and every answer carries its reason.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from .errors import InvalidArgumentError

_SYS_CPU = Path("/sys/devices/system/cpu")
_CGROUP = Path("/sys/fs/cgroup")
_NO_LIMIT = 1 << 60  # cgroup v1 writes a huge number where there is no limit


@dataclass(frozen=True)
class ThreadChoice:
    """How many threads to use, and why in words."""

    n: int
    reason: str


@dataclass(frozen=True)
class Memory:
    """Bytes of memory: in the machine, free for new use, and the limit of the container (None: no limit)."""

    total: int
    available: int
    limit: int | None


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _read_int(path: Path) -> int | None:
    text = _read(path)
    return int(text) if text is not None and text.lstrip("-").isdigit() else None


def _parse_cpu_list(text: str) -> set[int]:
    """CPU numbers of a kernel list such as `0-3,8`."""
    cpus: set[int] = set()
    for part in text.replace("\n", ",").split(","):
        first, _, last = part.strip().partition("-")
        if first.isdigit():
            cpus.update(range(int(first), int(last if last.isdigit() else first) + 1))
    return cpus


# ---- cores -----------------------------------------------------------------------------------------


def allowed_cpus() -> set[int]:
    """Logical CPUs this process may run on (its affinity mask; all of them where the system has no masks)."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    count = getattr(os, "process_cpu_count", os.cpu_count)()
    return set(range(count or 1))


def cgroup_folders(controller: str, root: Path = _CGROUP, self_file: Path = Path("/proc/self/cgroup")) -> list[Path]:
    """Folders, innermost first, whose limits bind this process for `controller` (cgroup v2, and v1 beside it).

    Each line of `/proc/self/cgroup` reads `id:controllers:path`; v2 has id 0 and no controller names. A limit may sit
    on any ancestor, so all of them are listed.
    """
    folders: list[Path] = []
    for line in (_read(self_file) or "").splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if names and controller not in names.split(","):
            continue
        base = root / controller if names else root
        relative = Path(path.lstrip("/"))
        folders += [base / p for p in [relative, *relative.parents]]
    return folders


def cgroup_cpus(root: Path = _CGROUP, self_file: Path = Path("/proc/self/cgroup")) -> float | None:
    """CPUs that the container's quota is worth, 1.5 for instance; None without a quota."""
    best: float | None = None
    for folder in cgroup_folders("cpu", root, self_file):
        quota, period = None, None
        words = (_read(folder / "cpu.max") or "").split()  # v2: "150000 100000" or "max 100000"
        if len(words) == 2 and words[0].isdigit():
            quota, period = int(words[0]), int(words[1])
        else:
            quota, period = _read_int(folder / "cpu.cfs_quota_us"), _read_int(folder / "cpu.cfs_period_us")
        if quota and period and quota > 0:
            best = min(best or _NO_LIMIT, quota / period)
    return best


def physical_cores(cpus: set[int], sys_cpu: Path = _SYS_CPU) -> int | None:
    """Number of real cores behind the logical `cpus`; None where the system does not say."""
    cores = set()
    for cpu in cpus:
        siblings = _read(sys_cpu / f"cpu{cpu}" / "topology" / "thread_siblings_list")
        if siblings is None:
            return None
        cores.add(min(_parse_cpu_list(siblings) or {cpu}))
    return len(cores)


def fast_cpus(cpus: set[int], devices: Path = Path("/sys/devices"), sys_cpu: Path = _SYS_CPU) -> set[int]:
    """The fast ones of `cpus` on machines with two kinds of cores; `cpus` itself on all others.

    Intel hybrid parts list their performance cores in `/sys/devices/cpu_core/cpus`; ARM gives each core a
    `cpu_capacity` of at most 1024, and cores below 60 % of the best one are counted as small.
    """
    listed = _read(devices / "cpu_core" / "cpus")
    if listed:
        return (cpus & _parse_cpu_list(listed)) or cpus
    capacity = {cpu: _read_int(sys_cpu / f"cpu{cpu}" / "cpu_capacity") for cpu in cpus}
    known = {cpu: value for cpu, value in capacity.items() if value}
    if len(known) < len(cpus):
        return cpus
    best = max(known.values())
    return {cpu for cpu, value in known.items() if value >= 0.6 * best} or cpus


def choose_threads() -> ThreadChoice:
    """Threads that a pass should use on this machine: one per fast physical core, within affinity and quota."""
    allowed = allowed_cpus()
    fast = fast_cpus(allowed)
    physical = physical_cores(fast)
    n = physical or len(fast)
    reason = f"{len(allowed)} CPUs allowed"
    if len(fast) < len(allowed):
        reason += f", {len(fast)} of them fast"
    if physical is not None and physical < len(fast):
        reason += f" on {physical} cores"
    quota = cgroup_cpus()
    if quota is not None and quota < n:
        n = max(1, int(quota))
        reason += f", container quota of {quota:g} CPUs"
    return ThreadChoice(max(1, n), reason)


def cpu_name() -> str:
    """The processor's own name, or its architecture where the system does not tell."""
    import platform

    for line in (_read(Path("/proc/cpuinfo")) or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "Hardware") and value.strip():
            return value.strip()
    return platform.processor() or platform.machine() or "unknown"


def cpu_flags() -> list[str]:
    """Instruction-set flags that matter to the kernels, as Linux reports them; empty elsewhere."""
    wanted = {
        "sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni",
        "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve",
    }  # fmt: skip
    for line in (_read(Path("/proc/cpuinfo")) or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return [flag for flag in value.split() if flag in wanted]
    return []


def resolve_threads(threads: int | str) -> ThreadChoice:
    """The threads that an option means: 1 to 1024, or "auto". Raises InvalidArgumentError."""
    if threads == "auto":
        return choose_threads()
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= 1024:
        raise InvalidArgumentError(f"threads is {threads!r}; choose 1 to 1024, or 'auto'")
    return ThreadChoice(threads, "asked for")


# ---- memory ----------------------------------------------------------------------------------------


def _meminfo() -> tuple[int, int] | None:
    """(total, available) bytes from Linux's /proc/meminfo."""
    values = {}
    for line in (_read(Path("/proc/meminfo")) or "").splitlines():
        key, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            values[key] = int(words[0]) * 1024
    if "MemTotal" not in values:
        return None
    return values["MemTotal"], values.get("MemAvailable", values.get("MemFree", 0))


def _windows_memory() -> tuple[int, int]:
    """(total, available) bytes from GlobalMemoryStatusEx; its structure is eight counters after two 32-bit fields."""
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = [("length", ctypes.c_uint32), ("load", ctypes.c_uint32), ("counters", ctypes.c_uint64 * 7)]

    status = Status(length=ctypes.sizeof(Status))
    ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))  # type: ignore[attr-defined]
    return int(status.counters[0]), int(status.counters[1])


def _cgroup_memory() -> tuple[int, int] | None:
    """(limit, free below it) bytes of the tightest memory cgroup; pages of files count as free, they can be dropped."""
    found: tuple[int, int] | None = None
    for folder in cgroup_folders("memory"):
        limit = _read_int(folder / "memory.max") or _read_int(folder / "memory.limit_in_bytes")
        used = _read_int(folder / "memory.current") or _read_int(folder / "memory.usage_in_bytes")
        if not limit or used is None or limit >= _NO_LIMIT:
            continue
        stat = dict(line.split(" ", 1) for line in (_read(folder / "memory.stat") or "").splitlines() if " " in line)
        prefix = "total_" if "total_inactive_file" in stat else ""  # v1 counts its child groups under total_*
        used -= sum(int(stat.get(f"{prefix}{key}", 0)) for key in ("inactive_file", "active_file"))
        free = max(0, limit - max(0, used))
        if found is None or free < found[1]:
            found = limit, free
    return found


def memory() -> Memory:
    """Memory of the machine and what is free of it for this process; unknown systems count half as free."""
    if sys.platform == "win32":
        total, available = _windows_memory()
    else:
        known = _meminfo()
        if known is None:
            total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            known = total, total // 2
        total, available = known
    group = _cgroup_memory() if sys.platform.startswith("linux") else None
    if group is None or group[0] >= total:
        return Memory(total, available if group is None else min(available, group[1]), None)
    return Memory(total, min(available, group[1]), group[0])


def lock_memory(address: int, n_bytes: int) -> bool:
    """Keep these bytes in memory, so that the system never moves them to disk. False where it does not allow that."""
    import ctypes

    start, n = ctypes.c_void_p(address), ctypes.c_size_t(n_bytes)
    if sys.platform == "win32":
        return bool(ctypes.windll.kernel32.VirtualLock(start, n))
    mlock = getattr(ctypes.CDLL(None), "mlock", None)
    return mlock is not None and mlock(start, n) == 0


def lock_limit() -> int | None:
    """Bytes that a process may lock (RLIMIT_MEMLOCK); None: any number, or the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    if not hasattr(resource, "RLIMIT_MEMLOCK"):
        return None
    soft = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def peak_rss() -> int:
    """High-water mark of this process's resident memory in bytes; 0 where the system does not say."""
    for line in (_read(Path("/proc/self/status")) or "").splitlines():
        words = line.split()
        if words[:1] == ["VmHWM:"] and len(words) > 1 and words[1].isdigit():
            return int(words[1]) * 1024
    try:  # elsewhere; on Linux this one begins with the mark of the process that started this one
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)  # macOS counts bytes, Linux KiB


def l3_bytes(sys_cpu: Path = _SYS_CPU) -> int | None:
    """Bytes of the last cache that CPUs share (level 3), None where the system does not tell."""
    for index in sorted((sys_cpu / "cpu0" / "cache").glob("index*")):
        size = _read(index / "size") or ""
        if _read_int(index / "level") == 3 and size[:-1].isdigit() and size[-1] in "KM":
            return int(size[:-1]) << (10 if size[-1] == "K" else 20)
    return None


def huge_pages() -> str:
    """How the kernel hands out 2 MB pages (`always`, `madvise`, `never`), or `unknown`."""
    text = _read(Path("/sys/kernel/mm/transparent_hugepage/enabled")) or ""
    start, end = text.find("["), text.find("]")
    return text[start + 1 : end] if 0 <= start < end else "unknown"
