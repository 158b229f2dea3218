"""Every example is short and runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import tiny_llama_gguf

ROOT = Path(__file__).resolve().parent.parent
ALL = sorted((ROOT / "examples").glob("*.py"))
WINDOW = [e for e in ALL if e.stem.startswith("qt_")]  # longer; tests/test_qt_chat.py runs it
EXAMPLES = [e for e in ALL if e not in WINDOW]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("examples") / "chat.gguf"
    return tiny_llama_gguf(path, **{"tokenizer.chat_template": CHATML})


def run(script: Path, *args: object) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, str(script), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=env, timeout=60, check=False)


def test_examples_are_short():
    assert len(EXAMPLES) >= 5
    for example in EXAMPLES:
        assert len(example.read_text(encoding="utf-8").splitlines()) < 60, example
    for example in WINDOW:
        assert len(example.read_text(encoding="utf-8").splitlines()) < 180, example


@pytest.mark.parametrize("example", [e for e in EXAMPLES if e.stem != "convert"], ids=lambda e: e.stem)
def test_example(example, model):
    done = run(example, model)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() and "Traceback" not in done.stderr


def test_convert_example(tmp_path, shared_data):
    example = ROOT / "examples" / "convert.py"
    out = tmp_path / "out.gguf"
    done = run(example, shared_data / "hf-tiny" / "llama", out, "f32")
    assert done.returncode == 0, done.stderr
    assert out.is_file() and done.stdout.strip()
    done = run(example, tmp_path / "nothing", tmp_path / "x.gguf")
    assert done.returncode == 1 and "Traceback" not in done.stderr and not (tmp_path / "x.gguf").exists()


def test_readme_program_runs(model):
    """The Python in README is the truth, too."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    program = text.split("```python\n", 1)[1].split("```", 1)[0]
    assert 'edgellm.load("model.gguf")' in program
    done = subprocess.run(
        [sys.executable, "-c", program.replace('"model.gguf"', repr(str(model)))],
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.strip()
