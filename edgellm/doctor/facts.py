"""`examine`: all facts, as plain types for JSON."""

from __future__ import annotations

import os
import platform
import struct
from typing import Any

from edgellm.progress import ProgressCallback

SCHEMA = 1  # of the JSON; a number higher where a field changes its meaning or goes


def examine(
    model: str | os.PathLike[str] | None = None, *, run: bool = True, progress: ProgressCallback | None = None
) -> dict[str, Any]:
    """Facts about the machine and the installation, the checks made of them, and `ok`: none of them failed.

    With `model` also what is found in that file; `run` False leaves out what reads its weights (checksums, a short run
    in each backend). Raises ModelFileNotFoundError; any other fault of a file is told among the facts.
    """
    import edgellm
    from edgellm.doctor.checks import judge
    from edgellm.doctor.install import backends, caches, packages
    from edgellm.doctor.machine import cpu, limits, native, threads
    from edgellm.machine import huge_pages, memory

    mem = memory()
    facts: dict[str, Any] = {
        "schema": SCHEMA,
        "edgellm": edgellm.__version__,
        "python": f"{platform.python_version()} ({8 * struct.calcsize('P')} bits)",
        "system": platform.platform(),
        "cpu": cpu(),
        "native": native(),
        "threads": threads(),
        "memory": {"total": mem.total, "available": mem.available, "limit": mem.limit},
        "huge_pages": huge_pages(),
        "limits": limits(),
        "packages": packages(),
        "caches": caches(),
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith(("EDGELLM_", "NUMBA_", "HF_"))},
    }
    facts["environment"] = {k: "(set)" if "TOKEN" in k else v for k, v in facts["environment"].items()}
    facts["backends"] = backends(facts["native"])
    facts["backend"] = next(name for name, state in facts["backends"].items() if state["available"])
    if model is not None:
        from edgellm.doctor.model import examine_model

        facts["model"] = examine_model(model, facts["backends"], run, progress)
    checks = judge(facts)
    facts["checks"] = [check.to_dict() for check in checks]
    facts["ok"] = not any(check.state == "fail" for check in checks)
    return facts
