"""The commands: what goes to stdout, exit codes, one clear line for every mistake."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from helpers import tiny_llama_gguf
from tiny_families import tiny_family_gguf

from edgellm import cli
from edgellm.cli.common import kv_type_options

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FAST = ["--backend", "reference"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    return {
        "plain": str(tiny_llama_gguf(folder / "plain.gguf")),
        "chat": str(tiny_llama_gguf(folder / "chat.gguf", **{"tokenizer.chat_template": CHATML})),
    }


@pytest.fixture
def run(capsys):
    """Run a command in this process: (exit code, stdout, stderr)."""

    def run(*args):
        code = cli.execute([str(a) for a in args])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return run


@pytest.mark.parametrize(
    ("words", "kv_type"),
    [([], "auto"), (["-ctk", "q8_0"], "q8_0"), (["-ctv", "f16"], "auto:f16"),
     (["-ctv", "f16", "-ctk", "q8_0"], "q8_0:f16"), (["-ctk", "q8_0", "-ctv", "q8_0"], "q8_0")],
)  # fmt: skip
def test_types_of_k_and_v(words, kv_type):
    @click.command()
    @kv_type_options
    def command(kv_type):
        click.echo(kv_type)

    assert CliRunner().invoke(command, words).output == kv_type + "\n"


def process(*args, **options) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "edgellm", *map(str, args)]
    return subprocess.run(command, capture_output=True, timeout=60, check=False, **options)


# ---- run -------------------------------------------------------------------------------------------


def test_run_prints_only_the_text(run, models):
    code, out, err = run("run", models["plain"], "-p", "hello", "-n", 8, "--temp", 0, *FAST)
    assert (code, err) == (0, "")
    again = json.loads(run("run", models["plain"], "-p", "hello", "-n", 8, "--temp", 0, "--json", *FAST)[1])
    assert out == again["text"] + "\n"
    assert run("run", models["plain"], "-p", "hello", "-n", 8, "--temp", 0, "--no-stream", *FAST)[1] == out


def test_run_without_a_prompt(run, models, monkeypatch):
    """An empty pipe is no prompt, unless - asks for it."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    code, out, err = run("run", models["plain"], "-n", 2, *FAST)
    assert (code, out) == (2, "") and "there is no prompt" in err


def test_run_json(run, models):
    code, out, err = run("run", models["plain"], "-p", "hello", "-n", 8, "-s", 3, "--json", *FAST)
    answer = json.loads(out)
    assert (code, err) == (0, "")
    assert len(answer["token_ids"]) == 8 and answer["finish_reason"] == "length" and answer["seed"] == 3
    assert answer["usage"]["completion_tokens"] == 8
    assert answer["timings"]["generation_tps"] > 0 and answer["timings"]["backend"] == "reference"
    same = json.loads(run("run", models["plain"], "-p", "hello", "-n", 8, "-s", 3, "--json", *FAST)[1])
    assert same["token_ids"] == answer["token_ids"]


def test_prompt_from_everywhere(run, models, tmp_path, monkeypatch):
    file = tmp_path / "prompt.txt"
    file.write_text("once upon\n")
    tail = ["-n", 6, "--temp", 0, *FAST]
    expected = run("run", models["plain"], "-p", "once upon", *tail)[1]
    assert run("run", models["plain"], "once upon", *tail)[1] == expected
    assert run("run", models["plain"], "-f", file, *tail)[1] == expected
    for args in (["-"], [], ["-f", "-"]):
        monkeypatch.setattr(sys, "stdin", io.StringIO("once upon\n"))
        assert run("run", models["plain"], *args, *tail)[1] == expected


def test_run_uses_the_chat_template_where_there_is_one(run, models):
    tail = ["-n", 4, "--temp", 0, "--json", *FAST]
    chat = json.loads(run("run", models["chat"], "hello", *tail)[1])
    raw = json.loads(run("run", models["chat"], "hello", "--raw", *tail)[1])
    system = json.loads(run("run", models["chat"], "hello", "-sys", "be kind", *tail)[1])
    prompts = [a["usage"]["prompt_tokens"] for a in (raw, chat, system)]
    assert prompts == sorted(set(prompts)) and prompts[0] == 2


def test_a_template_from_a_file(run, models, tmp_path):
    file = tmp_path / "t.jinja"
    file.write_text("{{ messages[-1].content }}")
    tail = ["-n", 2, "--temp", 0, "--json", *FAST]
    answer = json.loads(run("run", models["plain"], "hello", "--chat-template-file", file, *tail)[1])
    assert answer["usage"]["prompt_tokens"] == 2


def test_stop_string(run, models):
    text = run("run", models["plain"], "-p", "hello", "-n", 20, "--temp", 0, *FAST)[1].rstrip("\n")
    stop = text[5:8]
    assert run("run", models["plain"], "-p", "hello", "-n", 20, "--temp", 0, "-r", stop, *FAST)[1] == (
        text[: text.index(stop)] + "\n"
    )


def test_verbose_goes_to_stderr(run, models):
    _, out, err = run("run", models["plain"], "-p", "hello", "-n", 2, "-v", *FAST)
    assert "t/s" in err and "t/s" not in out


def test_greedy_story(models, shared_data, tmp_path):
    """The text of llama2.c at temperature 0, byte for byte, through a pipe."""
    stories = shared_data / "stories260K"
    out = tmp_path / "s.gguf"
    tokenizer = stories / "tok512.bin"
    done = process("convert", stories / "stories260K.bin", "--tokenizer", tokenizer, "-o", out, "--outtype", "f32")
    assert (done.returncode, done.stdout) == (0, b""), done.stderr
    done = process("run", out, "-p", "", "-n", 200, "--temp", 0, *FAST)
    assert done.stdout == (stories / "greedy-200.txt").read_bytes()


# ---- show, tokenize, doctor, bench -----------------------------------------------------------------


def test_show(run, models):
    code, out, _ = run("show", models["chat"])
    assert code == 0 and "llama" in out and "general.architecture" in out
    facts = json.loads(run("show", models["chat"], "--json")[1])
    assert facts["summary"]["architecture"] == "llama" and facts["metadata"]["llama.block_count"] == 2
    assert run("show", models["chat"], "--template")[1] == CHATML + "\n"
    assert "blk.1.ffn_down.weight" in run("show", models["plain"], "--tensors")[1]
    assert "rmsnorm" in run("show", models["plain"], "--plan")[1]
    parts = json.loads(run("show", models["chat"], "--json", "--tensors", "--tokenizer", "--template", "--plan")[1])
    assert parts["tokenizer"]["kind"] == "llama" and parts["chat_template"] == CHATML
    assert parts["tensors"][0]["name"] == "token_embd.weight" and "attention" in parts["plan"]


def test_show_fit(run, models):
    code, out, _ = run("show", models["chat"], "--fit", "-c", 100)
    assert code == 0 and "100 tokens, " in out and "It fits; the longest context that fits: " in out
    told = json.loads(run("show", models["chat"], "--fit", "-c", 100, "-ctk", "q8_0", "-t", 3, "--json")[1])["fit"]
    parts = ("mapped", "panels", "cache", "scratch", "tokenizer", "runtime")
    assert told["total"] == sum(told[part] for part in parts) and told["fits"]
    assert (told["n_ctx"], told["kv_type"], told["threads"]) == (100, "q8_0", 3)
    code, out, _ = run("show", models["chat"], "--fit", "-c", 2**31 - 1)
    assert code == 0 and "It does not fit; try: n_ctx=" in out
    assert run("show", models["chat"], "--fit", "-c", 2**31)[0] == 2


def test_show_tells_what_the_length_of_the_context_decides(run, tmp_path):
    factors = {"rope_factors_long.weight": (8,), "rope_factors_short.weight": (8,)}
    keys = {"rope.scaling.original_context_length": 64, "attention.sliding_window": 1 << 18}
    out = run("show", tiny_family_gguf(tmp_path / "long.gguf", "phi3", whole=factors, **keys))[1]
    assert "short factors for n_ctx up to 64, long ones above" in out and "262144 tokens, the whole context" in out
    mistral = tiny_family_gguf(tmp_path / "mistral.gguf", "mistral")
    out = run("show", mistral)[1]
    assert "window         20 tokens\n" in out and "LongRoPE" not in out
    assert json.loads(run("show", mistral, "--json")[1])["summary"]["sliding_window"] == 20


def test_show_what_cannot_run(run, tmp_path):
    odd = tiny_llama_gguf(tmp_path / "odd.gguf", **{"general.name": "evil\x1b[2Jname\nline"})
    code, out, _ = run("show", odd)
    assert code == 0 and "\x1b" not in out and "evil\\x1b[2Jname\\nline" in out


def test_tokenize(run, models):
    ids = json.loads(run("tokenize", models["plain"], "hello world", "--json")[1])["token_ids"]
    assert run("tokenize", models["plain"], "hello world", "--ids")[1].split() == [str(i) for i in ids]
    assert run("tokenize", models["plain"], "hello world", "--ids", "--no-bos")[1].split() == [str(i) for i in ids[1:]]
    assert "▁hello" in run("tokenize", models["plain"], "hello world")[1]
    plain = run("tokenize", models["plain"], "<|im_end|>", "--ids")[1].split()
    special = run("tokenize", models["plain"], "<|im_end|>", "--special", "--ids")[1].split()
    assert len(special) == 2 < len(plain)


def test_doctor(run, models):
    code, out, _ = run("doctor")
    assert code == 0 and "threads" in out and "memory" in out
    facts = json.loads(run("doctor", models["chat"], "--json")[1])
    assert facts["threads"]["n"] >= 1 and facts["threads"]["reason"]
    assert facts["packages"]["numpy"] and facts["backend"] in ("native", "numba") and facts["schema"] == 1
    assert facts["model"]["template"]["safe"] and facts["model"]["config"]["architecture"] == "llama"
    assert "can run" in run("doctor", models["chat"])[1]


def test_bench_json(run, models):
    sizes = ["-p", 16, "-n", 4, "-d", "0,64", "-t", "1,2", "-r", 2]
    code, out, err = run("bench", models["plain"], *sizes, "-o", "json", "--no-shares", *FAST)
    results = json.loads(out)
    assert (code, err) == (0, "")
    assert [r["test"] for r in results] == ["pp16", "tg4", "pp16 @ d64", "tg4 @ d64"] * 2
    assert [r["n_threads"] for r in results] == [1] * 4 + [2] * 4
    for r in results:
        assert r["avg_ts"] > 0 and r["stddev_ts"] >= 0 and r["gb_per_s"] > 0 and len(r["samples_ts"]) == 2
        assert r["backend"] == "reference" and r["isa"] and r["model"] == models["plain"]
        assert (r["type_k"], r["type_v"]) == ("f32", "f32") and r["n_depth"] == (64 if "@" in r["test"] else 0)


def test_bench_of_page_types(run, models):
    """-ctk and -ctv reach the model and both forms of output; --json is -o json."""
    sizes = ["-p", 0, "-n", 2, "-d", 70, "-r", 1, "--no-shares", "-ctk", "q8_0", "-ctv", "f16"]
    (result,) = json.loads(run("bench", models["plain"], *sizes, "--json", *FAST)[1])
    assert (result["test"], result["type_k"], result["type_v"]) == ("tg2 @ d70", "q8_0", "f16")
    head, _, row = run("bench", models["plain"], *sizes, *FAST)[1].splitlines()
    cells = dict(zip(map(str.strip, head.split("|")), map(str.strip, row.split("|")), strict=True))
    assert (cells["test"], cells["type_k"], cells["type_v"]) == ("tg2 @ d70", "q8_0", "f16")


@pytest.mark.parametrize("depth", ["-1", "2147483648", "many", "1,,2"])
def test_bench_bad_depths(run, models, depth):
    code, _, err = run("bench", models["plain"], "-d", depth, *FAST)
    assert code == 2 and "-d" in err


@pytest.mark.parametrize(("flags", "tests"), [(["-p", 0, "-n", 2], ["tg2"]), (["-p", 8, "-n", 0], ["pp8"])])
def test_bench_leaves_out_what_is_0(run, models, flags, tests):
    lines = run("bench", models["plain"], *flags, "-r", 1, "-o", "jsonl", "--no-shares", *FAST)[1].splitlines()
    assert [json.loads(line)["test"] for line in lines] == tests


def test_bench_tables(run, models):
    table = run("bench", models["plain"], "-p", 8, "-n", 2, "-r", 1, *FAST)[1].splitlines()
    assert len(table) == 4 and "t/s" in table[0] and "pp8" in table[2] and "tg2" in table[3]
    rows = run("bench", models["plain"], "-p", 8, "-n", 2, "-r", 1, "-o", "csv", "--no-shares", *FAST)[1].splitlines()
    assert rows[0].startswith("test,") and len(rows) == 3


# ---- convert and quantize --------------------------------------------------------------------------


def test_quantize(run, models, tmp_path):
    out = tmp_path / "q8.gguf"
    code, printed, err = run("quantize", models["plain"], out, "q8_0")
    assert (code, printed) == (0, "") and "bits per weight" in err
    assert json.loads(run("show", out, "--json")[1])["summary"]["types"]["Q8_0"] > 0


def test_a_failed_conversion_leaves_nothing(run, tmp_path):
    source = tmp_path / "empty"
    source.mkdir()
    out = tmp_path / "out.gguf"
    code, printed, err = run("convert", source, "-o", out)
    assert code in (2, 3) and printed == "" and err.startswith("edgellm: error: ") and not out.exists()
    assert os.listdir(tmp_path) == ["empty"]


# ---- mistakes --------------------------------------------------------------------------------------

MISTAKES = [
    (["run", "nowhere.gguf", "-p", "x"], 2, "nowhere.gguf"),
    (["chat", "nowhere.gguf"], 2, "nowhere.gguf"),
    (["show", "nowhere.gguf"], 2, "nowhere.gguf"),
    (["bench", "nowhere.gguf"], 2, "nowhere.gguf"),
    (["doctor", "nowhere.gguf"], 2, "nowhere.gguf"),
    (["tokenize", "nowhere.gguf", "x"], 2, "nowhere.gguf"),
    (["convert", "nowhere", "-o", "x.gguf"], 2, "nowhere"),
    (["quantize", "nowhere.gguf", "x.gguf", "q8_0"], 2, "nowhere.gguf"),
    (["quantize", "PLAIN", "x.gguf", "q9_9"], 2, "q9_9"),
    (["run", "WRONG", "-p", "x"], 3, "wrong.gguf"),
    (["show", "WRONG"], 3, "wrong.gguf"),
    (["convert", "WRONG", "-o", "x.gguf"], 3, "wrong.gguf"),
    (["show", "FOLDER"], 3, ""),
    (["run", "FAMILY", "-p", "x"], 3, "gemma"),
    (["run", "PLAIN", "-p", "x", "--temp", "-1"], 2, "temperature"),
    (["run", "PLAIN", "-p", "x", "--temp", "warm"], 2, "--temp"),
    (["run", "PLAIN", "-p", "x", "--top-p", "7"], 2, "top_p"),
    (["run", "PLAIN", "-p", "x", "--samplers", "top_k;magic"], 2, "magic"),
    (["run", "PLAIN", "-p", "x", "--logit-bias", "5"], 2, "ID+NUMBER"),
    (["run", "PLAIN", "-p", "x", "-l", "99999+1", *FAST], 2, "outside the vocabulary"),
    (["run", "PLAIN", "-p", "x", "--mirostat", "1"], 2, "mirostat"),
    (["run", "PLAIN", "-p", "x", "-c", "0"], 2, "-c"),
    (["run", "PLAIN", "-p", "x", "-t", "none"], 2, "-t"),
    (["run", "PLAIN", "-p", "x", "--backend", "gpu"], 2, "--backend"),
    (["run", "PLAIN", "-p", "x", "--frobnicate"], 2, "--frobnicate"),
    (["run", "PLAIN", "-p", "x", "-f", "y"], 2, "once"),
    (["run", "PLAIN", "-f", "nowhere.txt"], 2, "nowhere.txt"),
    (["run", "PLAIN", "-p", "x", "-sys", "y"], 2, "template"),
    (["run", "PLAIN", "-p", "hello " * 500, *FAST], 1, "context"),
    (["run", "PLAIN", "-p", "x", "-c", "2000000000"], 4, "memory"),
    (["bench", "PLAIN", "-p", "0", "-n", "0"], 2, "nothing"),
    (["bench", "PLAIN", "-t", "0"], 2, "-t"),
    (["bench", "PLAIN", "-p", "many"], 2, "-p"),
    (["convert", "PLAIN", "-o", "x.gguf", "--outtype", "q3"], 2, "q3"),
    (["frobnicate"], 2, "frobnicate"),
    (["show", "PLAIN", "too", "many"], 2, ""),
]


@pytest.mark.parametrize(("args", "code", "part"), MISTAKES, ids=[" ".join(row[0])[:40] for row in MISTAKES])
def test_mistakes_are_one_clear_line(run, models, tmp_path, monkeypatch, args, code, part):
    monkeypatch.chdir(tmp_path)
    Path("wrong.gguf").write_text("no model at all, only text")
    Path("folder.gguf").mkdir()
    names = {"PLAIN": models["plain"], "WRONG": "wrong.gguf", "FOLDER": "folder.gguf", "FAMILY": "family.gguf"}
    if "FAMILY" in args:
        data = Path(models["plain"]).read_bytes()
        at = data.index(b"general.architecture") + 32
        assert data[at : at + 5] == b"llama"
        Path("family.gguf").write_bytes(data[:at] + b"gemma" + data[at + 5 :])
    found, out, err = run(*(names.get(a, a) for a in args))
    assert (found, out) == (code, ""), err
    lines = err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("edgellm: error: ") and part in lines[0]
    assert not list(tmp_path.glob("x.gguf*")), "nothing half-written stays"


def test_help_of_every_command(run):
    code, out, _ = run("--help")
    assert code == 0
    for name in cli.COMMANDS:
        assert name in out
        code, page, _ = run(name, "--help")
        assert code == 0 and page.startswith("Usage: edgellm")
    assert run("--version")[1].startswith("edgellm ")


def test_options_of_one_kind_stand_together(run):
    """Every option of `run` and `chat` is in the help once, under the heading of its kind."""
    for name, headings in (("run", ["Options", "Choosing tokens", "Form of the answer", "Loading and running"]),
                           ("chat", ["Options", "Choosing tokens", "Loading and running"])):  # fmt: skip
        page = run(name, "--help")[1]
        parts = re.split(r"^([A-Z][a-z ]+):\n", page, flags=re.M)
        assert parts[1::2] == headings
        sections = dict(zip(parts[1::2], parts[2::2], strict=True))
        assert "--top-k" in sections["Choosing tokens"] and "--threads" in sections["Loading and running"]
        command = cli.cli.get_command(None, name)
        for param in command.get_params(click.Context(command)):
            if param.param_type_name == "option":
                line = re.compile(rf"^  .*{param.opts[-1]}(?![\w-])", re.M)
                assert sum(bool(line.search(text)) for text in sections.values()) == 1, param


def test_help_is_there_however_it_is_asked_for(run):
    page = run("--help")[1]
    assert run() == (0, page, "") and run("help") == (0, page, "")
    assert run("help", "show") == run("show", "--help")


def test_a_command_misspelt_is_told_which_is_near(run):
    code, out, err = run("chta")
    assert (code, out) == (2, "") and "there is no command 'chta'; did you mean chat?" in err
    code, out, err = run("xyzzy")
    assert code == 2 and "chat, run, pull" in err


def test_errors_break_between_words_on_a_terminal(monkeypatch):
    line = "edgellm: error: " + " ".join(["words/that_stay-whole"] * 9)
    monkeypatch.setenv("COLUMNS", "50")
    assert cli._fitted(line) == line, "scripts get one line"
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    broken = cli._fitted(line)
    assert broken.split() == line.split() and max(map(len, broken.splitlines())) <= 50


def test_a_word_taken_for_the_model_is_told(run, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    code, _, err = run("run", "Hello")
    assert code == 2 and "no prompt for the model 'Hello'" in err and "-p 'Hello'" in err


def test_a_reader_that_goes_away_is_no_error(models):
    command = f'"{sys.executable}" -m edgellm run "{models["plain"]}" -p hello -n 200 --ignore-eos --backend reference'
    done = subprocess.run(f"{command} | head -c 1", shell=True, capture_output=True, timeout=60, check=False)
    assert done.stderr == b"" and len(done.stdout) == 1


def test_an_internal_error_is_one_line_too(run, models, monkeypatch):
    import edgellm.doctor

    def broken(model, **options):
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr(edgellm.doctor, "examine", broken)
    code, out, err = run("doctor")
    assert (code, out) == (1, "") and len(err.splitlines()) == 1 and "two lines" in err


def test_interrupted(run, monkeypatch, models):
    import edgellm

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(edgellm, "load", interrupted)
    assert run("run", models["plain"], "-p", "x")[0] == 130


def test_progress_without_rich(monkeypatch, capsys):
    import time

    import edgellm
    from edgellm.cli import common

    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with common.progress_bar(delay=0.01) as report:
        report(edgellm.Progress("loading", 1, 100))
        deadline = time.monotonic() + 10
        while (drawn := capsys.readouterr().err) == "" and time.monotonic() < deadline:
            time.sleep(0.01)
        report(edgellm.Progress("loading", 50, 100))
    drawn += capsys.readouterr().err
    assert [part.strip() for part in drawn.split("\r") if part.strip()] == ["loading 1 %", "loading 50 %"]
    assert drawn.endswith("\r")  # the line is empty again


def test_progress_bar(monkeypatch):
    """It appears only on a terminal, only after a while, also for a stage that says nothing, and goes at the end."""
    import time

    from edgellm.cli import common
    from edgellm.results import Progress

    drawn: list[str] = []

    class Bar:
        def add_task(self, stage, **values):
            drawn.append(stage)

        def update(self, task, **values):
            drawn.append(f"{values['completed']}")

        def start(self):
            drawn.append("start")

        def stop(self):
            drawn.append("stop")

    monkeypatch.setattr(common, "_make_bar", lambda stage: Bar())
    with common.progress_bar() as report:
        assert report is None, "stderr is no terminal here"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with common.progress_bar(delay=0.02) as report:
        report(Progress("load", 0, 0))
        time.sleep(0.2)
        report(Progress("load", 5, 10))
        report(Progress("load", 10, 10))
    assert drawn == ["load", "start", "5", "stop"]
    drawn.clear()
    with common.progress_bar(delay=30) as report:
        report(Progress("load", 0, 10))
        report(Progress("load", 10, 10))
    assert drawn == []
