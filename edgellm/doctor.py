"""What this machine and this installation are, and whether a file fits: the facts that a bug report needs."""

from __future__ import annotations

import os
import platform
from typing import Any

from edgellm.errors import EdgeLLMError

_PACKAGES = ("numpy", "numba", "cffi", "gguf", "sentencepiece", "click", "jinja2", "prompt_toolkit", "rich")


def examine(model: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Facts as plain types, ready for JSON; with `model` also what is found in that file.

    Raises the reader's errors for a file that is refused. Nothing is measured and nothing is sent anywhere.
    """
    import edgellm
    from edgellm import machine

    choice, memory = machine.choose_threads(), machine.memory()
    facts: dict[str, Any] = {
        "edgellm": edgellm.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": {
            "name": machine.cpu_name(),
            "flags": machine.cpu_flags(),
            "logical": os.cpu_count(),
            "allowed": len(machine.allowed_cpus()),
            "quota": machine.cgroup_cpus(),
        },
        "threads": {"n": choice.n, "reason": choice.reason},
        "memory": {"total": memory.total, "available": memory.available, "limit": memory.limit},
        "huge_pages": machine.huge_pages(),
        "native": _native(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith("EDGELLM_")},
    }
    facts["backend"] = "native" if facts["native"]["available"] else "numba"
    if model is not None:
        facts["model"] = _model(model)
    return facts


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _native() -> dict[str, Any]:
    """The compiled library: its levels, and the level that runs each weight type."""
    from edgellm import clib
    from edgellm.blocks import ALL

    try:
        if not clib.available():
            return {"available": False, "reason": "not built: there was no working C compiler at install time"}
    except EdgeLLMError as error:
        return {"available": False, "reason": str(error)}
    kernels = {}
    for block in ALL:
        rows, panels = clib.kernel_level(block, False), clib.kernel_level(block, True)
        kernels[block.name] = {"rows": rows, "panels": panels if block.has_panel else None}
    return {"available": True, "isa": clib.isa(), "levels": clib.levels(), "kernels": kernels}


def _model(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Whether the file can be read and run here, and what it will take."""
    from edgellm.gguf import open_gguf
    from edgellm.memory_estimate import estimate
    from edgellm.models import build_plan, read_config
    from edgellm.tokenizers import Tokenizer
    from edgellm.weights import Weights

    with open_gguf(path) as file:
        config = read_config(file)
        weights = Weights(file, build_plan(config, file))
        memory = estimate(path)
        memory.check()
        tokenizer = Tokenizer.from_gguf(file)
        return {
            "file": str(file.path),
            "file_bytes": file.n_bytes,
            "architecture": config.arch,
            "types": sorted({weights.type(name).name for name in weights.names}),
            "tokenizer": f"{tokenizer.kind}, {tokenizer.n_vocab} pieces",
            "tokenizer_check": _tokenizer_check(tokenizer),
            "chat_template": _template_check(file),
            "n_ctx_train": config.n_ctx_train,
            "n_ctx": memory.n_ctx,
            "weight_bytes": weights.n_bytes,
            "kv_bytes": memory.cache,
            "memory_needed": memory.total,
            "memory_available": memory.available,
            "warnings": list(file.warnings),
        }


def _tokenizer_check(tokenizer: Any) -> str:
    """Encode and decode a line with letters, digits and other scripts: it must come back as it was."""
    text = "Hello, world! 123 é 日本 🙂"
    try:
        back = tokenizer.decode(tokenizer.encode(text, add_special=False))
    except EdgeLLMError as error:
        return f"failed: {error}"
    return "ok" if back == text else f"a text came back changed: {back!r}"


def _template_check(file: Any) -> str:
    """Parse the chat template and render one message with it."""
    template = file.get("tokenizer.chat_template", str, None)
    if not template:
        return "none"
    from edgellm.template import ChatTemplate

    try:
        rendered = ChatTemplate(template, bos_token="", eos_token="").render(
            [{"role": "user", "content": "hello"}], add_generation_prompt=True
        )
    except EdgeLLMError as error:
        return f"failed: {error}"
    return "ok" if "hello" in str(rendered) else "it drops the message"


def as_text(facts: dict[str, Any]) -> str:
    """The facts as a page for people."""
    cpu, memory, native = facts["cpu"], facts["memory"], facts["native"]
    limit = f", container limit {_gib(memory['limit'])}" if memory["limit"] else ""
    lines = [
        f"edgellm     {facts['edgellm']} on Python {facts['python']}, {facts['system']}",
        f"cpu         {cpu['name']} ({cpu['allowed']} of {cpu['logical']} CPUs allowed)",
        f"            {' '.join(cpu['flags']) or 'flags unknown'}",
        f"threads     {facts['threads']['n']}  ({facts['threads']['reason']})",
        f"memory      {_gib(memory['available'])} free of {_gib(memory['total'])}{limit}; "
        f"huge pages: {facts['huge_pages']}",
        f"backend     {facts['backend']}",
    ]
    lines += _native_lines(native)
    lines.append("packages    " + ", ".join(f"{k} {v or 'MISSING'}" for k, v in facts["packages"].items()))
    if facts["environment"]:
        lines.append("environment " + ", ".join(f"{k}={v}" for k, v in facts["environment"].items()))
    if "model" in facts:
        lines += _model_lines(facts["model"])
    return "\n".join(lines)


def _native_lines(native: dict[str, Any]) -> list[str]:
    if not native["available"]:
        return [f"native      no: {native['reason']}; the Numba backend runs instead (slower)"]
    levels = ", ".join(f"{name}: {state}" for name, state in native["levels"].items())
    lines = [f"native      {native['isa']}  ({levels})"]
    for name in (name for name, state in native["levels"].items() if state == "failed its self-test"):
        lines.append(
            f"            warning: {name} is not used: this CPU announces it, but its self-test gave wrong bits or "
            "an illegal instruction; the levels below do its work. Please report it with this page."
        )
    lines.append("kernels     type   rows        panels")
    for name, kernel in native["kernels"].items():
        lines.append(f"            {name:<6} {kernel['rows'] or '-':<11} {kernel['panels'] or '-'}")
    return lines


def _model_lines(m: dict[str, Any]) -> list[str]:
    need = m["weight_bytes"] + m["kv_bytes"]
    short = f" (memory does not hold the trained {m['n_ctx_train']})" if m["n_ctx"] < m["n_ctx_train"] else ""
    checks = f"round trip {m['tokenizer_check']}; chat template: {m['chat_template']}"
    sizes = f"{_gib(m['weight_bytes'])} weights + {_gib(m['kv_bytes'])} cache when full = {_gib(need)}"
    lines = [
        f"model       {m['file']}: can run",
        f"            {m['architecture']}, {', '.join(m['types'])}",
        f"            tokenizer: {m['tokenizer']}, {checks}",
        f"            context {m['n_ctx']} tokens{short}",
        f"            memory: {sizes}, {_gib(m['memory_available'])} free",
    ]
    return lines + [f"            warning: {line}" for line in m["warnings"]]


def _gib(n: int) -> str:
    return f"{n / 2**30:.1f} GiB" if n >= 2**30 else f"{n / 2**20:.1f} MiB"
