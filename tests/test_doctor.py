"""`edgellm doctor`: facts, what is made of them, and how a sick file or machine looks."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import tiny_llama_gguf

import edgellm
from edgellm import clib, doctor
from edgellm.cli import execute
from edgellm.doctor import install, library, machine, passes
from edgellm.doctor.text import HARD_TEXTS, template_facts, tokenizer_facts
from edgellm.gguf import open_gguf
from edgellm.pack import pack
from edgellm.tokenizers import Tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def facts():
    return doctor.examine()


@pytest.fixture(scope="module")
def builtin():
    from edgellm.builtin import builtin_model

    return builtin_model()


@pytest.fixture
def page(facts):
    """The page and checks of facts that were changed: page(memory={...}) puts values into facts["memory"]."""

    def page(**changes):
        now = copy.deepcopy(facts)
        for name, change in changes.items():
            now[name] = now[name] | change if isinstance(change, dict) else change
        checks = doctor.judge(now)
        now["checks"] = [check.to_dict() for check in checks]
        return doctor.as_text(now, 1000), doctor.exit_code(now)

    return page


# ---- the machine -----------------------------------------------------------------------------------


def test_facts_are_json_and_hold_together(facts):
    assert json.loads(json.dumps(facts)) == facts and facts["schema"] == doctor.SCHEMA
    assert facts["ok"] and doctor.exit_code(facts) == 0
    areas = [check["area"] for check in facts["checks"]]
    assert areas[0] == "cpu" and {"kernels", "threads", "memory", "packages", "folders"} <= set(areas)
    for check in facts["checks"]:
        assert check["text"] and (check["state"] == "ok" or check["advice"]), check


def test_the_schema_is_as_it_was_promised(facts):
    """A field may be added; what scripts read stays."""
    assert {"schema", "ok", "edgellm", "python", "system", "cpu", "native", "threads", "memory", "huge_pages", "limits",
            "packages", "caches", "environment", "backends", "backend", "checks"} <= set(facts)  # fmt: skip
    assert set(facts["checks"][0]) == {"area", "state", "text", "advice", "exit_code"}
    assert {"n", "reason", "affinity", "physical", "fast"} <= set(facts["threads"])


@pytest.mark.skipif(not clib.available(), reason="there is no compiled library")
def test_why_a_level_is_not_used(monkeypatch):
    levels, needs = clib.levels(), library.level_needs()
    usable, announced = library.cpu_features()
    assert set(usable) <= set(announced)
    assert all((set(needs[n]) <= set(usable)) == (state == "usable") for n, state in levels.items() if needs[n])
    ruled_out = machine.native()["ruled_out"]
    assert {n for n, state in levels.items() if state != "usable"} <= set(ruled_out)
    top = clib.level_names().index(clib.isa())
    lacking = {name: "usable" if i <= top else "not on this machine" for i, name in enumerate(levels)}
    monkeypatch.setattr(library, "cpu_features", lambda: ([], sorted({f for need in needs.values() for f in need})))
    reasons = machine._ruled_out(lacking)
    assert all("does not save" in reasons[n] for n in levels if needs[n])
    monkeypatch.setattr(library, "cpu_features", lambda: ([], []))
    assert all("the CPU has no" in reason for n, reason in machine._ruled_out(lacking).items() if needs[n])


@pytest.mark.skipif(not clib.available() or clib.isa() == "portable", reason="there is one level only")
def test_a_level_that_is_held_back_is_told():
    code = "from edgellm import doctor; f = doctor.examine(); print(doctor.as_text(f, 1000))"
    root = Path(edgellm.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120,
                          env={**os.environ, "EDGELLM_ISA": "portable"})  # fmt: skip
    assert "EDGELLM_ISA=portable holds faster kernels back" in done.stdout and "unset EDGELLM_ISA" in done.stdout
    wrong = subprocess.run([sys.executable, "-m", "edgellm", "doctor"], cwd=root, capture_output=True, text=True,
                           timeout=120, env={**os.environ, "EDGELLM_ISA": "mmx"})  # fmt: skip
    assert wrong.returncode == 2 and "FAIL kernels" in wrong.stdout and "choose one of" in wrong.stdout


def test_what_a_sick_machine_looks_like(page):
    memory = {"available": 1 << 20, "limit": 1 << 30}
    text, code = page(memory=memory, huge_pages="never", limits={"address_space": 1 << 30})
    assert code == 0 and text.count("warn") == 3 and "madvise >" in text and "ulimit" in text
    assert "container limit 1.0 GiB" in text and "3 things could be better" in text
    text, code = page(cpu={"announced": ["avx2", "amx"], "usable": ["avx2"]})
    assert "the CPU has amx, but this system does not save their registers" in text
    text, code = page(packages={"numpy": None, "rich": None})
    assert code == 1 and "missing: numpy" in text and "FAIL" in text and "pip install numpy" in text
    assert "rich (pip install 'edgellm[cli]')" in text and "1 thing is wrong" in text
    text, code = page(packages={"prompt_toolkit": None, "rich": None, "llguidance": None})
    assert code == 0 and "prompt_toolkit, rich (pip install 'edgellm[cli]'), llguidance (pip" in text
    text, _ = page(native={"available": False, "reason": "not built"}, backend="numba",
                   caches={"numba": {"path": "/x", "bytes": None, "writable": False}})  # fmt: skip
    assert "no compiled library: not built" in text and "NUMBA_CACHE_DIR" in text
    text, code = page(native={"available": False, "reason": "not built"}, backend="reference")
    assert code == 0 and "pip install 'edgellm[numba]'" in text
    text, _ = page(cpu={"quota": 0.5})
    assert "give the container a whole CPU" in text


def test_a_terminal_gets_colours_and_folded_lines(facts):
    plain, painted = doctor.as_text(facts, 80), doctor.as_text(facts, 80, colour=True)
    assert re.sub(r"\x1b\[[0-9;]*m", "", painted) == plain and "\x1b[32mok" in painted
    assert all(len(line) <= 80 or len(line.split()[-1]) > 20 for line in plain.splitlines()[1:]), "but for long paths"


def test_names_cannot_write_to_the_terminal(facts):
    evil = facts | {"checks": [{"area": "file", "state": "ok", "text": "a\x1b[2Jb\nc", "advice": "", "exit_code": 0}]}
    assert "\x1b" not in doctor.as_text(evil) and "a\\x1b[2Jb" in doctor.as_text(evil)


def test_secrets_stay_here(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("EDGELLM_DEBUG", "1")
    found = doctor.examine()["environment"]
    assert found["HF_TOKEN"] == "(set)" and found["EDGELLM_DEBUG"] == "1"


def test_folders(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "f").write_bytes(bytes(1000))
    (tmp_path / "a" / "g").write_bytes(bytes(24))
    assert install.size_of(tmp_path / "a") == 1024 and install.size_of(tmp_path / "a" / "g") == 24
    assert install.size_of(tmp_path / "none") is None and install.can_write(tmp_path / "none" / "deep")


def test_every_package_is_in_pyproject():
    text = (Path(edgellm.__file__).parent.parent / "pyproject.toml").read_text()
    core = re.search(r"^dependencies = \[(.*?)\]", text, re.S | re.M)[1]
    assert {re.match(r"[\w-]+", name)[0] for name in re.findall(r'"(.+?)"', core)} == {
        name for name, extra in install.PACKAGES.items() if not extra
    }
    for name, extra in install.PACKAGES.items():
        assert not extra or re.search(rf'^{extra} = \[.*"{name}', text, re.M), name


# ---- a model ---------------------------------------------------------------------------------------


def run_doctor(capsys, *args):
    code = execute(["doctor", *map(str, args)])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out


def test_the_builtin_model_is_well(builtin):
    facts = doctor.examine(builtin)
    model = facts["model"]
    assert facts["ok"] and model["tokenizer"]["changed"] == [] and model["tokenizer"]["obeyed"] == []
    assert model["template"]["safe"] and model["template"]["append_only"] and model["template"]["turns"]
    runs = {run["backend"]: run for run in model["runs"]}
    assert runs["reference"].get("nmse", 0) <= passes.ROUNDED and "error" not in runs["native"]
    for run in runs.values():
        assert "skipped" in run or run["seconds"] >= 0


def test_backends_that_disagree_are_a_fault(builtin, monkeypatch, capsys):
    real = passes._logits

    def wrong(name, *args):
        logits, seconds = real(name, *args)
        return (logits[::-1] if name == "reference" else logits), seconds

    monkeypatch.setattr(passes, "_logits", wrong)
    monkeypatch.setattr(passes, "MAX_REFERENCE_BYTES", 1 << 40)
    code, out = run_doctor(capsys, builtin)
    assert code == 1 and "FAIL" in out and "reference: its result differs" in " ".join(out.split())


def test_a_model_that_is_too_large_for_the_reference(builtin, monkeypatch):
    monkeypatch.setattr(passes, "MAX_REFERENCE_BYTES", 1000)
    runs = doctor.examine(builtin)["model"]["runs"]
    assert "as floats the weights take" in runs[-1]["skipped"]


def test_no_run_reads_no_weights(builtin, capsys, monkeypatch):
    monkeypatch.setattr(passes, "run_backends", None)
    code, out = run_doctor(capsys, builtin, "--no-run")
    assert code == 0 and "can run" in out and "run     " not in out


def test_a_file_that_is_cut(builtin, tmp_path, capsys):
    file = tmp_path / "cut.gguf"
    file.write_bytes(Path(builtin).read_bytes()[:100_000])
    code, out = run_doctor(capsys, file)
    assert code == 3 and "FAIL file" in out and "T11" in out and "threads" in out, "the machine is shown all the same"
    code, out = run_doctor(capsys, file, "--json")
    facts = json.loads(out)
    assert code == 3 and not facts["ok"] and facts["model"]["header"]["exit_code"] == 3


def test_a_missing_file_is_one_line(capsys, tmp_path):
    assert execute(["doctor", str(tmp_path / "none.gguf")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_packed_file_that_rots(builtin, tmp_path, capsys):
    packed = tmp_path / "packed.gguf"
    pack(builtin, packed)
    code, out = run_doctor(capsys, packed)
    assert code == 0 and "every tensor is as it was packed" in out
    data = bytearray(packed.read_bytes())
    with open_gguf(packed) as file:
        data[max(tensor.offset for tensor in file.tensors.values()) + 5] ^= 1
    packed.write_bytes(data)
    code, out = run_doctor(capsys, packed)
    assert code == 3 and "FAIL checksums" in out
    assert "FAIL checksums" not in run_doctor(capsys, packed, "--no-run")[1]


def test_an_architecture_that_is_not_there(tmp_path, capsys):
    file = tiny_llama_gguf(tmp_path / "odd.gguf")
    data = file.read_bytes()
    at = data.index(b"general.architecture") + 32
    file.write_bytes(data[:at] + b"gemma" + data[at + 5 :])
    code, out = run_doctor(capsys, file)
    assert code == 3 and "FAIL model" in out and "tokenizer" in out and "fit  " not in out


def test_what_does_not_fit(builtin, capsys, monkeypatch):
    from edgellm import machine as edgellm_machine

    monkeypatch.setattr(edgellm_machine, "memory", lambda: edgellm_machine.Memory(1 << 30, 1 << 20, None))
    code, out = run_doctor(capsys, builtin)
    assert code == 4 and "FAIL fit" in out and "-> try " in out


# ---- tokenizers and templates ----------------------------------------------------------------------


def test_hard_texts_come_back_from_real_tokenizers(shared_data):
    for file in sorted((shared_data / "vocab").glob("*.gguf")):
        found = tokenizer_facts(Tokenizer.from_file(file))
        assert found["changed"] == [] and found["obeyed"] == [], file.name
        assert found["texts"] == len(HARD_TEXTS)


def test_a_poor_vocabulary_is_told(tmp_path, capsys):
    """The tests' own model has no pieces for most characters, and gives other ones back."""
    code, out = run_doctor(capsys, tiny_llama_gguf(tmp_path / "tiny.gguf"), "--no-run")
    tokenizer = tokenizer_facts(Tokenizer.from_file(tmp_path / "tiny.gguf"))
    assert bool(tokenizer["changed"]) == ("come back changed" in " ".join(out.split())) and code == 0


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, {"keeps_message": True, "system": True, "append_only": True, "safe": True, "turns": True}),
        ("{% for m in messages %}{{ m.role }}: {{ m.content | trim | upper }}\n{% endfor %}", {"keeps_message": False}),
        ("{{ messages[-1].content }}", {"keeps_message": True, "system": False, "append_only": False}),
        ("{{ raise_exception('no') }}", {"error": ...}),
        ("{% for %}", {"error": ...}),
    ],
)
def test_templates(builtin, template, expected):
    found = template_facts(template, Tokenizer.from_file(builtin), "x.gguf")
    for name, value in expected.items():
        assert name in found and (value is ... or found[name] == value), found


def test_a_template_that_fails_is_a_fault(tmp_path, capsys):
    file = tiny_llama_gguf(tmp_path / "t.gguf", **{"tokenizer.chat_template": "{% for %}"})
    code, out = run_doctor(capsys, file, "--no-run")
    assert code != 0 and "FAIL template" in out and "--chat-template-file" in out
