"""The house rules that a test can hold: imports point down, heavy packages load late, files stay small."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "edgellm"

# Each name may import what stands on the lines above it, and parts of itself; never what stands on its own line.
FLOORS = [
    {"_native", "blocks", "errors"},
    {"machine", "results", "builtin", "clib", "folders", "ops", "parallel"},
    {"faults"},
    {"clock", "plan", "probe", "progress", "quants", "sampling", "strings", "template", "turns", "worker"},
    {"gguf"},
    {"cache", "callbacks", "config", "hub", "identity", "imatrix", "tokenizers", "weights"},
    {"grammar", "rope"},
    {"backends", "convert", "models", "toolcalls"},  # models never import backends, and the other way round
    {"speculate"},
    {"engine"},
    {"async_stream", "generate", "pack", "prompt", "quantize", "sessionfile", "stream", "transcript"},
    {"calls"},
    {"memory_estimate"},
    {"loader", "session_state"},
    {"embeddings"},
    {"session_store"},
    {"session"},
    {"calibrate", "model"},
    {"bench", "openai_shim", "perplexity", "prune", "skip_search"},
    {"edgellm"},  # the package's own __init__ offers all of the above
    {"chat", "doctor"},
    {"cli"},
    {"__main__", "_pyinstaller"},
]
FLOOR = {name: i for i, names in enumerate(FLOORS) for name in names}
HEAVY = {"numba", "llvmlite", "jinja2", "rich", "click", "prompt_toolkit", "sentencepiece", "cffi", "torch"}
HEAVY |= {"llguidance"}
# Modules that are only loaded for what the heavy package does, so they may import it at their top.
HEAVY_AT_TOP = ("backends/numba_", "backends/numba_kernels/", "cli/", "chat/", "template/", "__main__")
GENERATED = {"edgellm/blocks.py", "native/blocks.h"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """The part of the package that a file belongs to: "cache", "gguf", ...; "edgellm" for the package's __init__."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "edgellm" if first == "__init__" else first


def imports(path: Path, skip_functions: bool = False) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of all that is imported at run time, relative names made absolute."""
    package = ["edgellm", *path.relative_to(PACKAGE).parent.parts]
    yield from walk(ast.parse(path.read_text(encoding="utf-8")), package, skip_functions)


def walk(node: ast.AST, package: list[str], skip_functions: bool = False) -> Iterator[tuple[int, str]]:
    """The imports below a syntax node of a module in `package`."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
        return
    if skip_functions and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    if isinstance(node, ast.Import):
        yield from ((node.lineno, a.name) for a in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = package[: len(package) - node.level + 1] if node.level else []
        base = base + (node.module.split(".") if node.module else [])
        yield from ((node.lineno, ".".join([*base, a.name])) for a in node.names)
    for child in ast.iter_child_nodes(node):
        yield from walk(child, package, skip_functions)


def test_every_part_has_its_floor() -> None:
    assert {name_of(p) for p in MODULES} <= set(FLOOR)


def test_imports_point_down() -> None:
    wrong = []
    for path in MODULES:
        own = name_of(path)
        for line, dotted in imports(path):
            parts = [*dotted.split("."), ""]
            target = parts[1] if parts[1] in FLOOR else "edgellm"
            if parts[0] == "edgellm" and target != own and FLOOR[target] >= FLOOR[own]:
                wrong.append(f"{path}:{line}: {own} must not import {target}")
    assert not wrong, "\n".join(wrong)


def test_only_one_module_touches_the_compiled_library() -> None:
    users = {p.relative_to(PACKAGE).as_posix() for p in MODULES for _, n in imports(p) if n.endswith("._native")}
    assert users <= {"clib.py"}


def test_heavy_packages_are_imported_where_they_are_used() -> None:
    wrong = [
        f"{path}:{line}: import {dotted} inside the function that needs it"
        for path in MODULES
        if not path.relative_to(PACKAGE).as_posix().startswith(HEAVY_AT_TOP)
        for line, dotted in imports(path, skip_functions=True)
        if dotted.split(".")[0] in HEAVY
    ]
    assert not wrong, "\n".join(wrong)


def test_import_is_light_and_silent() -> None:
    code = (
        "import sys, threading, edgellm; "
        f"print(sorted({HEAVY!r} & set(sys.modules)), threading.active_count(), 'edgellm.model' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip().startswith("[] 1 ")


def test_loading_a_model_needs_no_heavy_package() -> None:
    """What every run needs (file, plan, cache, reference) must not pull in Numba or a terminal library."""
    code = (
        "import sys, edgellm.gguf, edgellm.models, edgellm.weights, edgellm.cache, edgellm.backends.reference; "
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def size_limits() -> list[tuple[Path, int]]:
    native = [p for pattern in ("*.c", "*.h") for p in (ROOT / "native").rglob(pattern)]
    found = [(p, 400) for p in MODULES] + [(p, 800) for p in native]
    return [(p, n) for p, n in found if p.relative_to(ROOT).as_posix() not in GENERATED]


def test_files_are_small() -> None:
    sizes = [(p, len(p.read_text(encoding="utf-8").splitlines()), limit) for p, limit in size_limits()]
    wrong = [f"{p}: {n} lines, the limit is {limit}" for p, n, limit in sizes if n >= limit]
    assert not wrong, "\n".join(wrong)


def test_functions_fit_a_screen() -> None:
    wrong = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > 60:
                    wrong.append(f"{path}:{node.lineno}: {node.name} has {length} lines")
    assert not wrong, "\n".join(wrong)


def test_the_walker_sees_imports() -> None:
    """Absolute, relative and late ones; those for type checkers do not count."""
    package = ["edgellm", "convert"]
    code = (
        "import numba\nfrom .. import cache\nfrom ..gguf.reader import open_gguf\nfrom edgellm.model import load\n"
        "if TYPE_CHECKING:\n    from .. import cli\ndef f():\n    from .hf import read\n"
    )
    names = [n for _, n in walk(ast.parse(code), package)]
    assert names[:2] == ["numba", "edgellm.cache"]
    assert names[2:] == ["edgellm.gguf.reader.open_gguf", "edgellm.model.load", "edgellm.convert.hf.read"]
    late = [n for _, n in walk(ast.parse(code), package, skip_functions=True)]
    assert late == names[:-1]


def test_one_file_per_model_family() -> None:
    from edgellm.models import FAMILIES

    files = {p.stem for p in (PACKAGE / "models").glob("*.py")} - {"__init__"}
    assert files - {"parts"} == {f.build.__module__.rsplit(".", 1)[1] for f in FAMILIES.values()}
