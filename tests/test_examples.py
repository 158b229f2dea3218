"""Every example is short and runs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from helpers import tiny_llama_gguf

ROOT = Path(__file__).resolve().parent.parent
ALL = sorted((ROOT / "examples").glob("*.py"))
WINDOW = [e for e in ALL if e.stem.startswith(("qt_", "tk_"))]  # longer; tests/test_qt_chat.py, test_tk_chat.py
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


OWN_TESTS = ("convert", "asyncio_service", "json_extract", "tools")


@pytest.mark.parametrize("example", [e for e in EXAMPLES if e.stem not in OWN_TESTS], ids=lambda e: e.stem)
def test_example(example, model):
    done = run(example, model)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() and "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["convert", "tools"])
def test_examples_that_need_arguments_say_so(name):
    done = run(ROOT / "examples" / f"{name}.py")
    assert done.returncode == 1 and f"examples/{name}.py" in done.stderr and "Traceback" not in done.stderr


def test_convert_example(tmp_path, shared_data):
    example = ROOT / "examples" / "convert.py"
    out = tmp_path / "out.gguf"
    done = run(example, shared_data / "hf-tiny" / "llama", out, "f32")
    assert done.returncode == 0, done.stderr
    assert out.is_file() and done.stdout.strip()
    done = run(example, tmp_path / "nothing", tmp_path / "x.gguf")
    assert done.returncode == 1 and "Traceback" not in done.stderr and not (tmp_path / "x.gguf").exists()


def test_json_extract_with_the_builtin_model():
    done = run(ROOT / "examples" / "json_extract.py")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert set(facts) == {"order", "customer", "items", "currency"}
    assert 1 <= len(facts["items"]) <= 3 and facts["currency"] in ("EUR", "USD", "GBP")


def test_json_extract_tells_of_an_answer_that_was_cut(model):
    done = run(ROOT / "examples" / "json_extract.py", model)  # its context window is too small
    assert done.returncode == 1 and "not whole" in done.stderr and "Traceback" not in done.stderr


@pytest.fixture
def service():
    """The asyncio service in a process of its own, on a free port: (host, port)."""
    script = str(ROOT / "examples" / "asyncio_service.py")
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, script, "", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )
    address = urlsplit(process.stdout.readline())
    yield address.hostname, address.port
    process.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "") or os.name != "posix"


async def ask(address: tuple[str, int], target: str, n_bytes: int = -1) -> str:
    """What comes back for `GET target`, all of it or `n_bytes`; then the connection is closed."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(f"GET {target} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
    got = await asyncio.wait_for(reader.read(n_bytes), timeout=60)
    writer.close()
    return got.decode()


def events(response: str) -> list[dict[str, str]]:
    return [json.loads(line[6:]) for line in response.splitlines() if line.startswith("data: ")]


def test_the_service_answers_many_and_forgets_who_hangs_up(service):
    question = f"/?q={quote('What is the capital of France?')}"

    async def clients() -> list[str]:
        left = [ask(service, "/?q=Tell+me+a+story", 40) for _ in range(5)]
        stayed = [ask(service, question) for _ in range(10)]
        return (await asyncio.gather(*left, *stayed))[5:]

    for response in asyncio.run(clients()):
        *pieces, end = events(response)
        assert response.startswith("HTTP/1.1 200 OK\r\n") and end == {"finish_reason": "stop"}
        assert "Paris" in "".join(piece["text"] for piece in pieces)
    for target in ("/", "/?p=1", "no"):
        assert asyncio.run(ask(service, target)).startswith("HTTP/1.1 400 ")
    too_long = events(asyncio.run(ask(service, "/?q=" + "word+" * 2000)))
    assert "context" in too_long[-1]["error"]


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


def test_tools_example(tmp_path):
    shows = "{% if tools %}<tool_call>{{ tools | tojson }}{% endif %}" + CHATML
    path = tiny_llama_gguf(tmp_path / "tools.gguf", n_ctx=1000, **{"tokenizer.chat_template": shows})
    done = run(ROOT / "examples" / "tools.py", path, "How is the weather in Paris?")
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
