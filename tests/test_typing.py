"""What a user's type checker says: right programs pass `mypy --strict`, wrong calls are errors where they stand."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import edgellm

ROOT = Path(__file__).resolve().parent.parent
ERROR = re.compile(r"^tests/(\w+)\.py:(\d+): error: (.*)$")


@pytest.fixture(scope="module")
def found() -> list[tuple[str, int, str]]:
    """(file, line, message) of mypy's errors in the package and both programs."""
    pytest.importorskip("mypy", reason="needs mypy (pip install 'edgellm[dev]')")
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "edgellm", "tests/typing_user.py"]
    done = subprocess.run(
        [*command, "tests/typing_wrong.py"], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert not done.stderr, done.stderr
    lines = [line.replace("\\", "/") for line in done.stdout.splitlines() if ": note:" not in line]
    errors = [ERROR.match(line) for line in lines]
    others = [line for line, error in zip(lines, errors, strict=True) if error is None]
    assert not others, "\n".join(others)
    return [(error[1], int(error[2]), error[3]) for error in errors if error is not None]


def test_right_programs_pass(found: list[tuple[str, int, str]]) -> None:
    assert [error for error in found if error[0] == "typing_user"] == []


def test_wrong_calls_are_found_where_they_stand(found: list[tuple[str, int, str]]) -> None:
    text = (ROOT / "tests" / "typing_wrong.py").read_text(encoding="utf-8").splitlines()
    wanted = {i: line.partition("# error: ")[2] for i, line in enumerate(text, 1) if "# error: " in line}
    errors: dict[int, list[str]] = {}
    for name, line, message in found:
        if name == "typing_wrong":
            errors.setdefault(line, []).append(message)
    assert set(errors) == set(wanted)
    missed = {line: errors[line] for line, words in wanted.items() if not any(words in e for e in errors[line])}
    assert not missed


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "edgellm" / "py.typed").is_file()


def test_type_checkers_see_every_public_name_where_it_lives() -> None:
    tree = ast.parse((ROOT / "edgellm" / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == edgellm._HOMES
