"""The conversation: its memory, its commands, the line editor's rules, and a real terminal."""

from __future__ import annotations

import io
import os
import select
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from helpers import tiny_llama_gguf

import edgellm
from edgellm.chat import history, reader, terminal
from edgellm.chat.commands import COMMANDS, Leave
from edgellm.chat.repl import Repl
from edgellm.cli.common import progress_bar

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    return {
        "chat": tiny_llama_gguf(folder / "chat.gguf", **{"tokenizer.chat_template": CHATML}),
        "plain": tiny_llama_gguf(folder / "plain.gguf"),
    }


@pytest.fixture
def model(paths):
    with edgellm.load(paths["chat"], backend="reference") as model:
        yield model


@pytest.fixture
def talk(monkeypatch, capsys):
    """Send lines to a conversation as if through a pipe: (stdout, stderr, the Repl)."""

    def talk(model, *lines, system=None, **settings):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        repl = Repl(model.session(system, **{"max_tokens": 4, "temperature": 0} | settings), progress_bar)
        repl.loop()
        out, err = capsys.readouterr()
        return out, err, repl

    return talk


# ---- reading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "complete", "message"),
    [
        ("hello", True, "hello"),
        ("", True, ""),
        ('"""', False, None),
        ('"""one\ntwo', False, None),
        ('"""one\ntwo"""', True, "one\ntwo"),
        ('"""\none\n"""', True, "one"),
        ('""""""', True, ""),
        ("one \\", False, None),
        ("one \\\ntwo", True, "one \ntwo"),
        ('say """ twice', True, 'say """ twice'),
    ],
)
def test_messages_of_several_lines(text, complete, message):
    assert reader.is_complete(text) is complete
    if complete:
        assert reader.message_of(text) == message


def test_control_characters_do_not_reach_the_terminal():
    assert terminal.terminal_safe("a\x1b[2Jb\tc\nd\re\x9b") == "a\\x1b[2Jb\tc\nd\\x0de\\x9b"


def test_history_is_private(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    if sys.platform != "linux":
        pytest.skip("the folder is another one on this system")
    file = history.history_file()
    assert file == tmp_path / "edgellm" / "history" and file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o400)
    if os.geteuid() != 0:
        assert history.history_file() is None
    monkeypatch.setenv("XDG_DATA_HOME", str(file))
    assert history.history_file() is None, "a file in the way is no reason to fail"


# ---- the conversation ------------------------------------------------------------------------------


def test_turns_are_remembered(model, talk):
    out, err, repl = talk(model, "hello", "the world", "/stats")
    messages = repl.session.messages
    assert [m["role"] for m in messages] == ["user", "assistant"] * 2
    assert messages[1]["content"].strip() in out
    assert repl.last.context.reused > 0 and "t/s" in err


def test_clear_regen_undo_and_bye(model, talk):
    _, err, repl = talk(model, "hello", "/clear", "/regen", "/undo", "/bye", "never said")
    assert repl.session.messages == [] and "no answer yet" in err and "nothing to take back" in err
    out, _, repl = talk(model, "hello", "/regen", "/exit")
    first, second = out.splitlines()[:2]
    assert len(repl.session.messages) == 2 and first == second
    _, err, repl = talk(model, "hello", "the world", "/undo")
    assert [m["content"] for m in repl.session.messages[::2]] == ["hello"] and "2 messages left" in err


def test_regen_with_other_settings_once(model, talk):
    _, err, repl = talk(model, "hello", "/regen n=2 seed=7 temp=0.5", "/regen", "/regen colour=red", "/regen warm")
    assert "no setting 'colour'" in err and "'warm' is not of the form name=value" in err
    options = repl.session.options
    assert (options.max_tokens, options.sampling.temperature, options.sampling.seed) == (4, 0.0, None)
    assert len(repl.last.token_ids) == 4 and len(repl.session.messages) == 2
    _, _, repl = talk(model, "hello", "/regen n=2 seed=7 temp=0.5")
    assert len(repl.last.token_ids) == 2 and repl.last.seed == 7


def test_an_answer_that_cannot_be_made_again_stays(model, talk, monkeypatch):
    _, _, repl = talk(model, "hello", "the world")
    before, used = repl.session.messages, repl.session.context.used
    monkeypatch.setattr(type(repl.session), "send", lambda self, *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        repl.handle("/regen")
    monkeypatch.undo()
    assert repl.session.messages == before and repl.session.context.used == used
    repl.handle("/undo")
    assert repl.session.messages == before[:2]


def test_tokens(model, talk):
    _, err, _ = talk(model, "/tokens hello world", "hello", "/tokens", system="be kind")
    ids = model.tokenize("hello world")
    assert f"{len(ids)} tokens: {ids[0]} " in err
    lines = {line.split()[0]: line.split()[1] for line in err.splitlines() if line.startswith("  ")}
    assert lines["system"] == str(len(model.tokenize("be kind"))) and lines["user"] == str(len(model.tokenize("hello")))
    assert "context" in err.splitlines()[-1]


def test_spellings_of_ollama_and_llama_cpp(model, talk):
    _, err, repl = talk(
        model, "/set parameter num_predict 3", "/set verbose", "/set parameter num_ctx 8192", "/set temp=0.25",
        "/system be brief", "/system", "/show parameters", "/set --top-k 9", "/sho", "/set seed 18446744073709551615",
    )  # fmt: skip
    assert repl.session.options.max_tokens == 3 and repl.stats and repl.session.system == "be brief"
    assert repl.session.options.sampling.temperature == 0.25 and repl.session.options.sampling.top_k == 9
    assert repl.session.options.sampling.seed == 2**64 - 1
    assert "edgellm chat -c" in err and "\nbe brief\n" in err and "but /show" in err
    assert talk(model, "/set quiet", "/system x", "/system none", "/set stop é\\n")[2].session.system is None


def test_the_form_of_answers(model, talk, tmp_path, monkeypatch):
    file = tmp_path / "schema.json"
    file.write_text('{"type": "object", "properties": {"a": {"type": "integer"}}}')
    (tmp_path / "bad.json").write_text("{")
    asked = []
    real = type(model.session()).send

    def send(self, message, **options):
        asked.append(options.pop("response_format", None))
        return real(self, message, **options)

    monkeypatch.setattr("edgellm.session.Session.send", send)
    _, err, _ = talk(model, "hello", "/set format json", "hello", f"/set format '{file}'", "/show params", "/regen n=2",
                     f"/set format {tmp_path}/bad.json", f"/set format {tmp_path}/none.json", "/set noformat",
                     "hello")  # fmt: skip
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert asked == [None, {"type": "json_object"}, schema, None]
    assert "answers are JSON objects" in err and "'integer'" in err and err.count("error: ") == 2


def test_answers_really_are_json(model, talk):
    pytest.importorskip("llguidance")
    out, _, _ = talk(model, "/set format json", "hello", max_tokens=60, temperature=1.0, seed=3)
    assert out.startswith("{")


def test_a_pasted_text_is_no_command(model, talk):
    _, _, repl = talk(model, '"""/bye', 'and more"""', '"""/system one', 'two"""')
    assert repl.session.messages[0]["content"] == "/bye\nand more" and repl.session.system == "one\ntwo"


def test_settings(model, talk):
    _, err, repl = talk(
        model, "/set temp 0.5", "/set parameter top_k 7", "/set n 2", "/set stop \\n", "/set system be kind",
        "/set top_p 9", "/set colour red", "/set temprature 1", "/set seed 4",
        "/show params", "/show system", "/set system", "/show wrong",
        "/set top_k inf", "/set n nan",
    )  # fmt: skip
    options = repl.session.options
    assert (options.max_tokens, options.sampling.temperature, options.sampling.top_k) == (2, 0.5, 7)
    assert options.sampling.stop == ("\n",) and options.sampling.seed == 4
    assert "top_p must be" in err and "no setting 'colour'" in err and "be kind" in err and "/show wrong" in err
    assert "not 'inf'" in err and "not 'nan'" in err
    assert "no setting 'temprature'; did you mean temperature?" in err
    assert "no setting 'colour'; settings are max_tokens, temperature" in err
    assert repl.session.system is None


def test_system_message_goes_to_the_model(model, talk):
    _, _, repl = talk(model, "hello", system="be kind")
    assert repl.last.usage.prompt_tokens == len(
        model.chat_ids([{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}])
    )


def test_read_a_file(model, talk, tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("once upon")
    _, err, repl = talk(model, f"/read {file}", "a time", f"/read {tmp_path / 'none'}", "/read")
    assert repl.session.messages[0]["content"] == "once upon\n\na time"
    assert "9 characters" in err and "cannot be read" in err and "/read FILE" in err


def test_read_several_files(model, talk, tmp_path, monkeypatch):
    for name in ("b.txt", "a.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "data.bin").write_bytes(b"\xff\xfe")
    monkeypatch.setattr("edgellm.chat.files.MAX_BYTES", 10)
    (tmp_path / "long.md").write_text("x" * 11)
    _, err, repl = talk(
        model, f"/read {tmp_path}/*.txt", "go", f"/glob '{tmp_path}/a*'", f"/read {tmp_path}/*.none",
        f"/read {tmp_path}/data.bin", f"/read {tmp_path}", f"/read {tmp_path}/long.md", "go",
    )  # fmt: skip
    assert repl.session.messages[0]["content"] == "a.txt\n\nb.txt\n\ngo"
    assert repl.session.messages[2]["content"] == "a.txt\n\ngo" and "no file has such a name" in err
    assert "not UTF-8" in err and "no ordinary file" in err and "it has 11 B" in err


def test_read_what_the_window_cannot_hold(model, talk, tmp_path):
    file = tmp_path / "long.txt"
    file.write_text("hello " * 400)
    _, err, _ = talk(model, f"/read {file}")
    assert "more than the context window of 256 holds" in err


def test_show_and_help(model, talk):
    _, err, _ = talk(model, "/help", "/show", "/show template", "/show context", "/nothing")
    for name, command in COMMANDS.items():
        assert not command.text or name in err
    assert "reference" in err and "im_start" in err and "of 256 tokens" in err and "no command /nothing" in err


def test_words_with_a_slash_are_no_commands(model, talk):
    _, _, repl = talk(model, "/usr/bin is a folder", "1/2")
    assert [m["content"] for m in repl.session.messages[::2]] == ["/usr/bin is a folder", "1/2"]


def test_a_conversation_that_no_longer_fits(paths, talk):
    with edgellm.load(paths["chat"], backend="reference", n_ctx=64) as model:
        _, err, repl = talk(model, "hello", "the " * 60, "hello")
    assert "no longer fits" in err and "/clear" in err
    assert [m["content"] for m in repl.session.messages[::2]] == ["hello", "hello"], "what did not fit is not kept"


def test_a_message_that_is_too_long_alone(paths, talk, tmp_path):
    """Under `drop-turns` no other conversation would help."""
    file = tmp_path / "long.txt"
    file.write_text("the " * 200)
    with edgellm.load(paths["chat"], backend="reference", n_ctx=64) as model:
        _, err, repl = talk(model, "hello", f"/read {file}", "sum up", "hello", overflow="drop-turns")
    assert "this message is too long" in err and "nor what /read gave" in err.replace("\n", " ") and "/clear" not in err
    assert [m["content"] for m in repl.session.messages[::2]] == ["hello", "hello"]


def test_what_leaves_the_window_is_told(paths, talk):
    with edgellm.load(paths["chat"], backend="reference", n_ctx=96) as model:
        lines = [f"hello {i}" for i in range(8)]
        _, err, repl = talk(model, *lines, "/show context", "/stats", overflow="drop-turns")
        dropped = repl.session.context.dropped
        assert dropped > 0 and len(repl.session.messages) == 16
        note = f"{dropped} tokens in {repl.session.dropped_messages} messages left it (drop-turns)"
        assert note in err.split("/96")[-3] + err and f"{dropped} dropped (drop-turns)" in err


def test_save_and_load(model, talk, tmp_path):
    file = tmp_path / "a.edgesession"
    _, err, _ = talk(model, "hello", f"/save {file}", "/save", "/load", f"/load {tmp_path / 'none'}", "/clear",
                     f"/load {file}", "the world")  # fmt: skip
    assert "2 messages" in err and "/save FILE" in err and "/load FILE" in err and "no such file" in err
    assert "user: hello" in err
    file.write_bytes(file.read_bytes()[:-1])
    _, err, repl = talk(model, "hello", f"/load {file}")
    assert "D3" in err and len(repl.session.messages) == 2, "the conversation goes on"


def test_without_a_template_texts_are_continued(paths, talk):
    with edgellm.load(paths["plain"], backend="reference") as model:
        out, err, repl = talk(model, "hello", "once upon", "/set system x")
        messages = repl.session.messages
    assert [m["content"] for m in messages[::2]] == ["hello", "\nonce upon"] and "no system message" in err


def test_a_fault_of_ours_does_not_end_the_conversation(model, talk, monkeypatch):
    monkeypatch.setattr("edgellm.chat.show.stats_line", lambda result: 1 / 0)
    _, err, repl = talk(model, "hello", "/stats", "the world")
    assert "internal error" in err and "ZeroDivisionError" in err and len(repl.session.messages) == 4


def test_interruption_keeps_what_was_said(model, monkeypatch, capsys):
    repl = Repl(model.session(temperature=0, max_tokens=50), progress_bar, use_history=False)
    real = sys.stdout.write
    seen = []

    def press_ctrl_c(text):
        seen.append(text)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(text)

    monkeypatch.setattr(sys.stdout, "write", press_ctrl_c)
    repl.handle("hello")
    monkeypatch.undo()
    assert repl.last.finish_reason == "cancelled" and len(repl.last.token_ids) < 50
    assert repl.session.messages[-1] == {"role": "assistant", "content": repl.last.text}
    assert "[stopped]" in capsys.readouterr().err
    with pytest.raises(Leave):
        repl.handle("/bye")


# ---- the command


@pytest.fixture
def command(paths, monkeypatch, capsys):
    """`edgellm chat` with lines as its input: (exit code, stderr)."""
    from edgellm.cli import main

    def command(*args, lines=()):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        with pytest.raises(SystemExit) as caught:
            raise SystemExit(main(["chat", str(paths["chat"]), "--backend", "reference", "-n", "4", *args]))
        return caught.value.code or 0, capsys.readouterr().err

    return command


def test_a_conversation_in_a_file(command, paths, tmp_path):
    file = tmp_path / "a.edgesession"
    args = ["--session", str(file), "-c", "128", "--temp", "0"]
    assert command(*args, "-sys", "be kind", lines=["hello"])[0] == 0
    code, err = command(*args, lines=["the world"])
    assert code == 0 and "user: hello" in err
    code, err = command(*args, "--seed", "3")
    assert code == 0 and "4 messages" in err
    with edgellm.load(paths["chat"], backend="reference", n_ctx=128) as model:
        session = edgellm.Session.load(model, file)
        assert len(session.messages) == 4 and session.system == "be kind" and session.options.sampling.seed == 3
        assert session.overflow.kind == "drop-turns", "the default where there is a template"
    code, err = command(*args, "--overflow", "sink")
    assert code == 2 and "drop-turns" in err
    code, err = command("--session", str(paths["plain"]))
    assert code == 3 and "no session file" in err


def test_bad_policies(command):
    for policy in ("never", "sink:-1", "sink:4:2", "shift:x", "sink:1:2:3"):
        code, err = command("--overflow", policy)
        assert code == 2 and ("overflow" in err or "window of 2" in err)
    assert command("--overflow", "sink:4:60", lines=["hello"])[0] == 0


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGHUP")
def test_a_closed_terminal_loses_nothing(paths, tmp_path):
    file = tmp_path / "a.edgesession"
    args = [sys.executable, "-m", "edgellm", "chat", str(paths["chat"]), "--backend", "reference", "-n", "3"]
    with subprocess.Popen([*args, "--session", str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdin.write(b"hello\n")
        child.stdin.flush()
        child.stdout.readline()
        child.send_signal(signal.SIGHUP)
        assert child.wait(30) == 128 + signal.SIGHUP
    with edgellm.load(paths["chat"], backend="reference") as model:
        assert len(edgellm.Session.load(model, file).messages) == 2


# ---- a real terminal -------------------------------------------------------------------------------

SLOW = """
import sys, time
from edgellm.errors import Cancelled
import edgellm.cli.chat, edgellm.model
real = edgellm.model.Model.__init__

class Slow:
    name, has_prefill, any_width = "slow", False, False
    def __init__(self, inner): self.inner = inner
    def close(self): self.inner.close()
    def forward(self, tokens, position, outputs, seq, cancel, hidden=False):
        for _ in range(2000 if len(tokens) > 100 else 0):  # a long prompt takes 20 s, as on a slow machine
            if cancel[0]: raise Cancelled()
            time.sleep(0.01)
        return self.inner.forward(tokens, position, outputs, seq, cancel)

def init(self, loaded, *args, **options):
    loaded.engine.backend = Slow(loaded.engine.backend)
    real(self, loaded, *args, **options)

edgellm.model.Model.__init__ = init
from edgellm.cli import main
main(sys.argv[1:])
"""


class Terminal:
    """A child process on a pseudo-terminal."""

    def __init__(self, args: list[str], env: dict[str, str]) -> None:
        import pty

        self.seen = ""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update(env)
            os.execv(sys.executable, [sys.executable, *args])

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def until(self, text: str, seconds: float = 30) -> str:
        end = time.monotonic() + seconds
        while text not in self.seen:
            ready, _, _ = select.select([self.fd], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"no {text!r} in {self.seen[-800:]!r}"
            try:
                self.seen += os.read(self.fd, 65536).decode(errors="replace")
            except OSError:
                raise AssertionError(f"the program ended before {text!r}: {self.seen[-800:]!r}") from None
        before, _, self.seen = self.seen.partition(text)
        return before

    def end(self) -> int:
        try:
            while os.read(self.fd, 65536):
                pass
        except OSError:
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def screen(paths, tmp_path):
    """`edgellm chat` on a pseudo-terminal, with a model that reads long prompts slowly; notes.txt is such a prompt."""
    script = tmp_path / "slow.py"
    script.write_text(textwrap.dedent(SLOW))
    (tmp_path / "notes.txt").write_text("the " * 150)
    env = {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "XDG_DATA_HOME": str(tmp_path), "COLUMNS": "120"}
    env["PYTHONPATH"] = os.pathsep.join([os.getcwd(), *sys.path])
    args = [str(script), "chat", str(paths["chat"]), "--temp", "0", "-n", "4", "--stats", "--backend", "reference"]
    screen = Terminal(args, env)
    screen.until("Ctrl-D leaves")
    screen.until(">>>")
    return screen


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_in_a_real_terminal(screen, tmp_path):
    screen.type("hello\r")
    screen.until("4 tokens")
    screen.until(">>>")
    screen.type('"""one\rtwo"""\r')
    screen.until("4 tokens")
    screen.until(">>>")
    screen.type("\x03")
    screen.until("Ctrl-C again, Ctrl-D or /bye leaves")
    screen.until(">>>")
    screen.type(f"/read {tmp_path}/notes.txt\r")
    screen.until("next message")
    screen.until(">>>")
    screen.type("go\r")
    screen.until("go")
    time.sleep(1.2)
    start = time.monotonic()
    screen.type("\x03")
    screen.until("[stopped before the answer began]")
    assert time.monotonic() - start < 1
    screen.until(">>>")
    screen.type("\x1b[200~/bye\rhello\x1b[201~\r")
    screen.until("4 tokens")
    screen.until(">>>")
    screen.type("half a line\x03\x03")
    screen.until("Ctrl-C again, Ctrl-D or /bye leaves")
    screen.until(">>>")
    screen.type("\x03")
    assert screen.end() == 0
    history = (tmp_path / "edgellm" / "history").read_text()
    assert "+hello" in history and "half a line" not in history and "+two" in history


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_ctrl_c_stops_and_ctrl_c_leaves(screen, tmp_path):
    screen.type(f"/read {tmp_path}/notes.txt\r")
    screen.until("next message")
    screen.until(">>>")
    screen.type("go\r")
    screen.until("go")
    time.sleep(1.2)
    screen.type("\x03")
    screen.until("[stopped before the answer began]")
    screen.until(">>>")
    screen.type("\x03")
    assert screen.end() == 0
