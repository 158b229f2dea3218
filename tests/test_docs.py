"""The documentation holds: its Python runs, its links lead somewhere, no page is missing from the site."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import edgellm
from edgellm.builtin import builtin_model

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "formats").glob("*.md"))]
_BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
# On the site only: written by tools/site_hooks.py.
MADE = {"cli.md", "changelog.md"}
GUIDES = [ROOT / "README.md", ROOT / "docs/index.md", ROOT / "docs/apps.md", ROOT / "docs/models.md"]


# Each block for itself, with a model at hand as the text around it has one.
_RUN = """
import sys, edgellm
for block in open(sys.argv[1], encoding="utf-8").read().split("\\0"):
    with edgellm.load("model.gguf") as model:
        exec(compile(block, block, "exec"), {"edgellm": edgellm, "model": model, "__name__": "__main__"})
"""


@pytest.mark.parametrize("path", GUIDES, ids=lambda p: p.name)
def test_python_in_the_guides_runs(path, tmp_path):
    blocks = _BLOCK.findall(path.read_text("utf-8"))
    assert blocks
    shutil.copy(builtin_model(), tmp_path / "model.gguf")
    (tmp_path / "blocks").write_text("\0".join(blocks), encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "-c", _RUN, "blocks"], cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (0, ""), run.stderr


def test_the_window_of_the_guide():
    """A loop plays the toolkit: it loads, asks, asks again and closes while the answer comes."""
    (block,) = (b for b in _BLOCK.findall((ROOT / "docs/apps.md").read_text("utf-8")) if "def look():" in b)
    page: dict[str, Any] = {}
    exec(block, page)

    def turn(until: list[Any], count: int = 1) -> Any:
        end = time.monotonic() + 60
        while len(until) < count:
            assert time.monotonic() < end, "nothing comes"
            page["look"]()
        return until[-1]

    bars: list[Any] = []
    ready: list[Any] = []
    threading.Thread(target=page["load"], args=(None, bars.append, ready.append)).start()
    model, pieces, ends = turn(ready), [], []
    talk = model.session()
    page["ask"](talk, "What is the capital of Italy?", pieces.append, ends.append)
    assert turn(ends).text == "".join(pieces) == "The capital of Italy is Rome." and bars
    page["ask"](talk, "Tell me a story.", pieces.append, ends.append)
    model.close()
    assert isinstance(turn(ends, 2), edgellm.ModelClosedError | edgellm.Result)  # it may have been quicker
    missing: list[Any] = []
    page["load"]("nowhere.gguf", bars.append, missing.append)
    assert isinstance(turn(missing), edgellm.ModelFileNotFoundError)


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path):
    for target in _LINK.findall(path.read_text("utf-8")):
        if re.match(r"[a-z]+:", target) or (path.parent.name == "docs" and target in MADE):
            continue
        base = ROOT if target.startswith("formats/") and path.parent.name == "docs" else path.parent  # the site's own
        assert (base / target).exists(), f"{path.name}: {target} is not there"


def test_every_page_is_on_the_site():
    nav = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:")[2]
    named = set(re.findall(r": (\S+\.md)$", nav, re.M))
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} | MADE | {"formats/README.md"}
    assert named == pages


def test_every_public_name_is_on_the_api_page():
    """Errors are there with their module."""
    shown = set(re.findall(r"^::: edgellm\.(?:\w+\.)*(\w+)$", (ROOT / "docs/api.md").read_text("utf-8"), re.M))
    names = {name for name in edgellm.__all__ if not name.startswith("__")}
    errors = {name for name in names if edgellm._HOMES[name] == "edgellm.errors"}
    assert names - errors <= shown and "errors" in shown
