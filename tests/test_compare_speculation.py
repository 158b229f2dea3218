"""`tools/compare_speculation.py` without llama.cpp: a server that stands in for it, ratios, tables, pages."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import compare_speculation as compare
import peer_server
from peer_server import Answer, PeerServer, ServerError

from edgellm.builtin import builtin_model

# Answers as llama.cpp's server does: with the ids of the prompt, 1 ms a token, all guesses right where it guesses.
SERVER = f"""#!{sys.executable}
import http.server, json, sys

words = sys.argv[1:]
if "broken" in words:
    sys.exit("error: no such kind of guesses")

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.reply(200, {{"status": "ok"}})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        ids = asked["prompt"][: asked["n_predict"]]
        if not ids:
            return self.reply(400, {{"error": "empty prompt"}})
        times = {{"predicted_ms": float(len(ids) - 1), "predicted_n": len(ids)}}
        if any("spec" in word for word in words):
            times |= {{"draft_n": 4, "draft_n_accepted": 3}}
        self.reply(200, {{"tokens": ids, "timings": times}})

    def reply(self, status, facts):
        body = json.dumps(facts).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass

http.server.HTTPServer(("127.0.0.1", int(words[words.index("--port") + 1])), Handler).serve_forever()
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "llama-server"
    path.write_text(SERVER, encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def contestant(name: str, *prompts: tuple[tuple[int, ...], float]) -> compare.Contestant:
    return compare.Contestant(*name.split(), [[Answer(ids, seconds)] for ids, seconds in prompts])


# ---- the server --------------------------------------------------------------------------------------------


def test_a_server_answers_and_goes(program: Path):
    with PeerServer(program, Path("model.gguf"), 2, 512, ("--spec-type", "ngram-simple")) as server:
        assert server.answer([5, 6, 7], 2) == Answer((5, 6), 0.001, 4, 3)
        with pytest.raises(ServerError, match="400.*empty prompt"):
            server.answer([], 2)
        process = server._process
    assert process.poll() is not None


def test_a_server_that_does_not_start_says_why(program: Path):
    with pytest.raises(ServerError, match="no such kind of guesses"):
        PeerServer(program, Path("model.gguf"), 2, 512, ("broken",))


def test_a_server_that_is_never_ready_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    program = tmp_path / "sleeper"
    program.write_text(f"#!{sys.executable}\nimport time\nprint('loading', flush=True)\ntime.sleep(600)\n")
    program.chmod(0o755)
    monkeypatch.setattr(peer_server, "START_SECONDS", 0.5)
    with pytest.raises(ServerError, match="not ready"):
        PeerServer(program, Path("model.gguf"), 2, 512)


# ---- figures -----------------------------------------------------------------------------------------------


def test_a_ratio_compares_times_of_as_many_tokens():
    theirs = contestant("llama.cpp none", ((1, 2, 3), 2.0), ((1, 2, 3, 4, 5), 4.0))  # a second for each token
    same = contestant("edgellm none", ((1, 2, 3), 1.0), ((1, 2, 3, 4, 5), 2.0))
    longer = contestant("edgellm auto", ((1, 2, 3, 7, 8), 1.0), ((1, 2, 9), 0.5))  # a quarter of a second
    lines = compare.lines_of([theirs, same, longer], [0, 1])
    assert [line.rate for line in lines] == pytest.approx([1.0, 2.0, 4.0])
    assert [line.ratio.total for line in lines] == pytest.approx([1.0, 2.0, 4.0])
    assert [line.same for line in lines] == [2, 2, 0]


def test_of_several_rounds_the_middle_time_counts():
    one = compare.Contestant("edgellm", "none", [[Answer((1, 2), s) for s in (9.0, 1.0, 2.0)]])
    assert one.time_of(0) == 2.0


def test_answers_that_run_in_circles_or_say_nothing_are_left_out():
    good, circle, short = ((1, 2, 3, 4, 5, 6), 1.0), ((1,) * 20, 1.0), ((1,), 1.0)
    one, other = contestant("a none", good, good, good), contestant("b none", good, circle, short)
    assert compare.kept_prompts([one, other]) == [0] == compare.kept_prompts([other, one])


def test_the_short_table_has_the_default_and_the_fastest_of_the_n_gram_kinds():
    times = dict(zip(["none", *compare.NGRAMS], (4.0, 3.9, 3.0, 2.0, 3.5, 3.6, 3.7), strict=True))
    names = [compare.Contestant("llama.cpp", k, [[Answer((1, 2, 3, 4, 5), s)]]) for k, s in times.items()]
    ours = compare.Contestant("edgellm", "auto", [[Answer((1, 2, 3, 4, 5), 1.0)]])
    table = compare.short_table(compare.lines_of([names[0], ours, *names[1:]], [0]))
    assert table[2:] == [
        "| llama.cpp | none | 1 | 1.00 |",
        "| edgellm | auto | 4 | 4.00 |",
        "| llama.cpp | --spec-default (ngram-mod) | 1 | 1.03 |",
        "| llama.cpp | ngram-map-k (the fastest of 6 n-gram kinds) | 2 | 2.00 |",
    ]


# ---- the whole tool ----------------------------------------------------------------------------------------


def test_a_short_run_fills_both_pages(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "docs").mkdir()
    mark = "before\n<!-- compare_speculation: begin -->\n<!-- compare_speculation: end -->\nafter\n"
    for name in ("README.md", "docs/speculation.md"):
        (tmp_path / name).write_text(mark, encoding="utf-8")
    monkeypatch.setattr(compare, "ROOT", tmp_path)
    monkeypatch.setattr(compare.peer_builds, "server", lambda build, cache: program)
    path = builtin_model()
    short = ["--count", "2", "--rounds", "2", "--tokens", "12", "--draft", str(path), "--write", "--json"]
    monkeypatch.setattr(sys, "argv", ["compare_speculation.py", str(path), *short])
    assert compare.main() == 0
    facts = json.loads(capsys.readouterr().out)
    names = [(line["program"], line["guesses"]) for line in facts["classes"]["chat"]["lines"]]
    peers = [("llama.cpp", kind) for kind in (*compare.NGRAMS, path.name)]
    assert names == [("llama.cpp", "none"), ("edgellm", "none"), ("edgellm", "auto"), *peers]
    assert facts["classes"]["chat"]["lines"][3]["drafted"] == 8, "two prompts of the latest round"
    readme, page = ((tmp_path / name).read_text(encoding="utf-8") for name in ("README.md", "docs/speculation.md"))
    assert "| edgellm | auto |" in readme and "| edgellm | auto |" in page and readme.endswith("after\n")
    assert readme.startswith("before\n") and "#### " in page


def test_a_run_that_fails_leaves_the_pages(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(compare, "ROOT", tmp_path / "nowhere")
    monkeypatch.setattr(compare.peer_builds, "server", lambda build, cache: program)
    monkeypatch.setitem(compare.NGRAMS, "broken", ("broken",))
    path = builtin_model()
    monkeypatch.setattr(sys, "argv", ["compare_speculation.py", str(path), "--count", "1", "--tokens", "4", "--write"])
    assert compare.main() == 1
    assert "no such kind of guesses" in capsys.readouterr().err
