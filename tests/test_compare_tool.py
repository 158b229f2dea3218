"""`tools/compare_peers.py` and what it stands on: choices, ratios, goals, the table, the peers' build options."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from helpers import tiny_llama_gguf

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import compare_peers as compare
import peer_builds
from compare_goals import Goal, goal_of, kind_of
from compare_peers import Measured
from compare_runs import Field, Row, RunError, Session, Setting, edgellm_setting, value_of

LLAMA = [Setting("llama.cpp", name, ("x",), flash) for name in ("cpu", "amx") for flash in (0, 1)]
IK = [Setting("ik_llama.cpp", "ik", ("x",), flash) for flash in (0, 1)]
TG, PASS = Row("tg", "tg 64", 64), Row("v4", "pass 4 8", 0)


def test_the_fastest_of_each_family_is_picked():
    rates = dict(zip([*LLAMA, *IK], [3.0, 5.0, None, 4.0, 7.0, 6.0], strict=True))
    assert compare.pick(rates, TG) == {"llama.cpp": LLAMA[1], "ik_llama.cpp": IK[0]}
    assert compare.pick(rates, PASS) == {"llama.cpp": LLAMA[0], "ik_llama.cpp": IK[1]}, "of passes the shortest"
    assert compare.pick(dict.fromkeys(LLAMA), TG) == {}


def test_passes_are_compared_within_one_program():
    one, four = Row("v1", "pass 1 8", 0), PASS
    found = {one: dict.fromkeys(LLAMA, 2.0), four: dict.fromkeys(LLAMA, 9.0), TG: dict.fromkeys(LLAMA, 1.0)}
    found[one][LLAMA[1]], found[four][LLAMA[2]], found[TG][LLAMA[3]] = 1.0, 5.0, 7.0
    assert {row.key: c["llama.cpp"] for row, c in compare.choices(found).items()} == {
        "v1": LLAMA[1], "v4": LLAMA[1], "tg": LLAMA[3],
    }  # fmt: skip


def test_ratios_are_taken_round_by_round():
    m = Measured(TG, ours=[10.0, 12.0, 30.0], peers={"llama.cpp": [5.0, 4.0, 30.0]})
    assert m.ratios() == [2.0, 3.0, 1.0]
    assert Measured(PASS, ours=[2.0], peers={"llama.cpp": [3.0]}).ratios() == [1.5], "seconds: less is better"
    line = compare.rate_line(m, "Q4_0", False)
    assert (line.ours, line.peer, line.value, line.rounds) == ("12.0", "5.0", 2.0, "2.00, 3.00, 1.00")
    assert line.cells()[-2:] == [">= 1.35 (1.5)", "yes"]


def test_costs_of_passes():
    v1 = Measured(Row("v1", "pass 1 8", 0), [1.0, 2.0, 4.0], {"llama.cpp": [1.0, 1.0, 1.0]})
    v4 = Measured(PASS, [1.1, 2.6, 4.8], {"llama.cpp": [2.0, 2.2, 2.1]}, {"llama.cpp": "cpu -fa 1"})
    line = compare.v_line({"v1": v1, "v4": v4}, 4, "Q4_0", True)
    assert line.value == pytest.approx(1.2) and line.peer == "2.10" and line.rounds == "1.10, 1.30, 1.20"
    assert line.cells()[-2:] == ["<= 1.12 (1.08)", "**no**"]


def test_shares_of_own_rates():
    rows = {"tg": 20.0, "tg deep f16": 17.0, "tg busy": 9.0, "tg busy one": 10.0}
    measured = [Measured(Row(key, "tg 64", 64), [value] * 3) for key, value in rows.items()]
    lines = {line.title: line for line in compare.lines_of(measured, "Q4_0", False)}
    deep = next(line for title, line in lines.items() if "depth" in title)
    busy = next(line for title, line in lines.items() if "of one thread" in title)
    assert deep.value == pytest.approx(0.85) and deep.cells()[-1] == "yes"
    assert busy.value == pytest.approx(0.9) and busy.cells()[-1] == "**no**", "slower than one thread of its own"
    assert not any("cache)" in title and "q8_0" in title for title in lines), "nothing is made up for rows that failed"


def test_the_table():
    m = Measured(TG, [12.0], {"llama.cpp": [6.0]}, {"llama.cpp": "cpu -fa 1"})
    without = compare.table(compare.lines_of([m], "Q8_0", False)).splitlines()
    assert "ik_llama.cpp" not in without[0] and "| tg64 | 12.0 | 6.0 | cpu -fa 1 | 2.00 | 2.00 |" in without[2]
    m.peers["ik_llama.cpp"] = [8.0]
    both = compare.table(compare.lines_of([m], "Q8_0", False)).splitlines()
    assert "ik_llama.cpp" in both[0] and "| 8.0 |" in both[2]
    assert len({line.count("|") for line in both}) == 1
    empty = compare.table(compare.lines_of([Measured(TG)], "Q8_0", False)).splitlines()[2]
    assert empty.startswith("| tg64 | - | - |") and empty.endswith("|  |"), "a row without values meets nothing"


def test_rows_and_states():
    rows = compare.rows_for("Q4_0", 2, 4096, compare.GROUPS, None)
    titles = [row.title for row in rows]
    assert titles[:2] == ["pp512", "tg64"] and "tg64 @ d4096, q8_0 cache" in titles
    assert "tg64, 2 threads beside 1 busy" in titles and "tg64, 1 thread beside 1 busy" in titles
    assert not any(row.capped for row in rows) and len(rows) == len(set(rows))
    assert [len(group) for group in compare.states(rows)] == [6, 2, 1, 1, 1]
    capped = [row for row in compare.rows_for("Q4_0", 2, 4096, compare.GROUPS, "avx512vnni") if row.capped]
    assert len(capped) == 1 and compare.candidates(capped[0], LLAMA) == LLAMA[:2], "against the build without AMX"
    small = compare.rows_for("15m", 2, 4096, compare.GROUPS, None)
    assert [row.title for row in small][:2] == ["pp128", "tg256"] and not any(row.depth or row.busy for row in small)
    assert compare.rows_for("Q4_0", 2, 4096, ["share"], None) == []
    assert compare.candidates(next(r for r in rows if r.only == "-"), LLAMA) == []


def test_goals():
    assert goal_of("pp", "Q4_0", True) == Goal(4, 6) and goal_of("pp", "Q4_0", False) == Goal(2.5, 4)
    assert goal_of("tg", "15m", False) == goal_of("tg", "15m", True) == Goal(1.5, 2)
    assert goal_of("tg", "Q6_K", False) is None and goal_of("pp", "Q8_0", True) is None
    assert Goal(1.5).met(1.5) and not Goal(1.5).met(1.49)
    assert Goal(1.5, at_most=True).met(1.5) and not Goal(1.5, at_most=True).met(1.51)
    assert [kind_of(*x) for x in [(15e6, 2), (174e6, 7), (1.2e9, 15), (1.2e9, None), (1e9, 99)]] == [
        "15m", "100m", "Q4_K_M", "other", "other",
    ]  # fmt: skip


def test_shares_of_the_machine():
    results = [
        {"test": "pp512", "gb_per_s": 1.0, "avg_ts": 500.0, "read_share": None, "int8_share": 0.4, "bf16_share": 0.8},
        {"test": "tg64", "gb_per_s": 20.0, "avg_ts": 25.0, "read_share": 0.9, "int8_share": None, "bf16_share": None},
    ]
    lines = compare.share_lines(results, "Q4_0", False)
    assert [line.title for line in lines][-1] == "tg64: share of the read bandwidth"
    assert [line.cells()[-1] for line in lines] == ["", "", "yes"]
    assert compare.share_lines([], "Q4_0", False) == []


def test_build_options():
    zen = {"avx", "avx2", "fma", "f16c", "bmi2", "avx512f", "avx512_vnni"}
    assert peer_builds.options(zen, amx=True) == peer_builds.options(zen, amx=False), "no AMX, nothing to switch on"
    assert peer_builds.options(zen, amx=False)[0] == "GGML_NATIVE=OFF" and not peer_builds.has_amx(zen)
    rapids = zen | {"amx_tile", "amx_int8", "amx_bf16"}
    assert peer_builds.has_amx(rapids)
    assert set(peer_builds.options(rapids, amx=True)) - set(peer_builds.options(rapids, amx=False)) == {
        "GGML_AMX_TILE=ON", "GGML_AMX_INT8=ON", "GGML_AMX_BF16=ON",
    }  # fmt: skip
    assert peer_builds.options(set(), amx=False) == ("GGML_NATIVE=ON",)


def test_the_tile_fix_goes_in_once(tmp_path):
    path = tmp_path / "ggml" / "src" / "ggml-cpu" / "amx" / "mmq.cpp"
    path.parent.mkdir(parents=True)
    path.write_text(f"before\n{peer_builds.TILE_LOAD}\nafter\n")
    peer_builds.fix_tiles(tmp_path)
    peer_builds.fix_tiles(tmp_path)
    text = path.read_text()
    assert text.count("memory") == 1 and text.index("memory") < text.index("_tile_loadconfig")
    path.write_text("something else")
    with pytest.raises(SystemExit):
        peer_builds.fix_tiles(tmp_path)


# ---- processes: edgellm's own driver, and a program that misbehaves -----------------------------------------


def test_a_real_process_answers(tmp_path):
    model = str(tiny_llama_gguf(tmp_path / "m.gguf", n_ctx=256))
    session = Session(edgellm_setting(), model, 1, 200, "f32")
    try:
        assert session.seconds("depth 64") == 0.0
        for command in ("pp 32", "tg 3", "pass 4 2"):
            assert session.seconds(command) > 0
        with pytest.raises(RunError, match="KeyError"):
            session.seconds("dance 3")
        with pytest.raises(RunError, match="error"):
            session.seconds("pp 100000")
        assert session.seconds("tg 3") > 0, "a refusal ends nothing"
    finally:
        session.close()
    assert session.process.returncode == 0
    notes: list[str] = []
    playing = Field([edgellm_setting()], "nowhere.gguf", [TG], notes.append)
    assert playing.value(TG, edgellm_setting()) is None and "nowhere.gguf" in notes[0]


FAKE = """
import sys
print("ready", flush=True)
for line in sys.stdin:
    if line.startswith("pp"):
        sys.exit("it burns")
    print(0.5, flush=True)
"""


def test_a_peer_that_dies_is_left_out():
    setting = Setting("llama.cpp", "cpu", (sys.executable, "-c", FAKE))
    notes: list[str] = []
    playing = Field([setting], "m", [TG], notes.append)
    assert playing.value(TG, setting) == 128.0, "64 tokens in half a second"
    assert playing.value(Row("pp", "pp 512", 512), setting) is None and "it burns" in notes[0]
    assert playing.value(TG, setting) is None
    playing.close()


def test_values():
    class Clock:
        def measure(self, command):
            return 2.0

    assert value_of(TG, Clock()) == 32.0
    assert value_of(PASS, Clock()) == 0.25, "eight passes in one command"
