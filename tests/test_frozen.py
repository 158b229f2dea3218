"""A program frozen by PyInstaller, as a folder and as one file, runs from an empty directory without Python."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgellm import clib

pytest.importorskip("PyInstaller", reason="PyInstaller is not installed: pip install pyinstaller")

ROOT = Path(__file__).resolve().parent.parent
HOOKS = ROOT / "edgellm" / "_pyinstaller"
SUFFIX = ".exe" if sys.platform == "win32" else ""
COMMANDS = ("cli", "chat", "__main__", "_pyinstaller")  # only in programs that import edgellm.cli
FOR_NUMBA = tuple(f"edgellm.backends.numba_{part}" for part in ("", "choice", "matrix", "kernels"))

# One analysis, three programs: the example as one file, and in a folder with a script that looks around inside. The
# client of the hub, which brings half of a development environment along, is left out as docs/packaging.md says.
SPEC = """
analysis = Analysis({scripts!r}, pathex=[{root!r}], hookspath=[{hooks!r}], excludes=["huggingface_hub"])
pyz = PYZ(analysis.pure)
def scripts(name):
    return [entry for entry in analysis.scripts if entry[0] == name or entry[0].startswith("pyi")]
EXE(pyz, scripts("frozen_app"), analysis.binaries, analysis.datas, name="one", console=True)
both = [EXE(pyz, scripts(name), exclude_binaries=True, name=name, console=True) for name in ("frozen_app", "look")]
COLLECT(*both, analysis.binaries, analysis.datas, name="folder")
"""
LOOK = """
import importlib.util, sys
import edgellm
for name in edgellm.__all__:
    getattr(edgellm, name)
for module in {wanted!r}:
    importlib.import_module(module)
def is_there(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of the package that it would be in
        return False
there = [name for name in {unwanted!r} if is_there(name)]
with edgellm.load() as model:
    print(model.backend, there, hasattr(sys, "frozen"))
"""


def modules() -> tuple[list[str], list[str]]:
    """The modules of edgellm that a frozen program has, and names that it should not have."""
    wanted, unwanted = [], ["click", "rich", "prompt_toolkit", "matplotlib", "gguf", "sentencepiece", "tkinter"]
    unwanted += ["huggingface_hub", "filelock"]
    for path in sorted((ROOT / "edgellm").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[1] in COMMANDS:
            continue
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        (unwanted if name.startswith(FOR_NUMBA) else wanted).append(name)
    return wanted, [*unwanted, "edgellm.cli", "numba", "llvmlite"]


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """The folder with the frozen programs: `one`, `folder/frozen_app`, `folder/look`."""
    if not clib.available():
        pytest.skip("without the compiled library Numba is frozen too, which takes minutes")
    work = tmp_path_factory.mktemp("freeze")
    wanted, unwanted = modules()
    (work / "look.py").write_text(LOOK.format(wanted=wanted, unwanted=unwanted), encoding="utf-8")
    scripts = [str(ROOT / "examples" / "frozen_app.py"), str(work / "look.py")]
    (work / "app.spec").write_text(SPEC.format(scripts=scripts, root=str(ROOT), hooks=str(HOOKS)), encoding="utf-8")
    command = [sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level", "WARN", "app.spec"]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=600, check=False)
    if "PythonLibraryNotFoundError" in done.stderr:
        pytest.skip("PyInstaller needs Python's shared library: apt install libpython3.11 (or as your version is)")
    assert done.returncode == 0, done.stderr
    return work / "dist"


def run(program: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """In `cwd`, with no way to Python or to a compiler; Windows does not start without SystemRoot."""
    env = {"PATH": "", "TMPDIR": str(cwd)} | {k: os.environ[k] for k in ("SystemRoot", "TEMP") if k in os.environ}
    command = [str(program) + SUFFIX]
    return subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, encoding="utf-8", timeout=120, check=False
    )


@pytest.mark.parametrize("program", ["one", "folder/frozen_app"])
def test_the_example_runs_anywhere(dist, tmp_path, program):
    done = run(dist / program, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
    assert "[native " in done.stderr and "[cancelled; the conversation still has 4 messages]" in done.stderr
    assert not list(tmp_path.iterdir()), "it left something behind"


def test_everything_that_is_looked_up_by_name_is_inside(dist, tmp_path):
    done = run(dist / "folder" / "look", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["native", "[]", "True"]


def test_the_hook_is_announced():
    """pip shows PyInstaller the folder by an entry point; here the file that says so."""
    from edgellm._pyinstaller import get_hook_dirs

    assert get_hook_dirs() == [str(HOOKS)] and (HOOKS / "hook-edgellm.py").is_file()
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '[project.entry-points.pyinstaller40]\nhook-dirs = "edgellm._pyinstaller:get_hook_dirs"' in text
