#!/usr/bin/env python3
"""edgellm beside llama.cpp (and ik_llama.cpp) on the same files: a table of ratios, goals and whether they were met.

    python tools/compare_peers.py MODEL.gguf ... [-t 2 -r 5] [--ik] [--json OUT.json]        (make compare MODELS="...")

It builds the peers by itself (tools/peer_builds.py): llama.cpp with everything this CPU has but AMX, and with AMX where
the CPU has it. A short round picks, row by row, the fastest of these builds with flash attention on or off. Then
edgellm and that peer are measured in turn, `-r` rounds; each program loads the model once per group of rows and waits,
without using the CPU, while another is measured. A ratio is taken per round; the table shows medians. Tokens per second
count the tokens of a prompt (pp, logits for the last one) or passes of one token (tg). Nothing else should run.
Markdown goes to stdout, progress to stderr, all figures to --json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TOOLS = Path(__file__).resolve().parent
sys.path[:0] = [str(TOOLS), str(TOOLS.parent)]

import peer_builds  # noqa: E402
from compare_goals import Goal, goal_of, kind_of  # noqa: E402
from compare_runs import Field, Row, Setting, edgellm_setting  # noqa: E402

GROUPS = ("plain", "verify", "noamx", "deep", "deep-q8", "busy", "share")


@dataclass
class Measured:
    """A row and its values, one per round: edgellm's, and each family's of peers."""

    row: Row
    ours: list[float] = field(default_factory=list)
    peers: dict[str, list[float]] = field(default_factory=dict)
    chosen: dict[str, str] = field(default_factory=dict)  # family -> the setting that was fastest

    def ratios(self, family: str = "llama.cpp") -> list[float]:
        """edgellm over the peer, round by round; of passes, whose values are seconds, the peer over edgellm."""
        pairs = zip(self.ours, self.peers.get(family, []), strict=False)
        return [mine / other if self.row.tokens else other / mine for mine, other in pairs]


@dataclass
class Line:
    """A line of the printed table; values are text already, `value` is what the goal is held against."""

    title: str
    ours: str
    peer: str = ""
    setting: str = ""
    value: float | None = None
    rounds: str = ""
    goal: Goal | None = None
    extra: str = ""  # ik_llama.cpp

    def cells(self) -> list[str]:
        met = "" if self.goal is None or self.value is None else "yes" if self.goal.met(self.value) else "**no**"
        value = "" if self.value is None else f"{self.value:.2f}"
        return [
            self.title, self.ours, self.peer, self.setting, self.extra, value, self.rounds,
            self.goal.text() if self.goal else "", met,
        ]  # fmt: skip


# ---- what is measured --------------------------------------------------------------------------------------


def rows_for(kind: str, threads: int, depth: int, groups: Iterable[str], cap: str | None) -> list[Row]:
    """The rows of a model, those of one state next to each other. `cap`: edgellm's best level without AMX."""
    small = kind in ("15m", "100m")
    n_pp, n_gen = (128, 256) if kind == "15m" else (512, 64)
    wanted = set(groups)
    plain = [Row("pp", f"pp {n_pp}", n_pp, threads=threads), Row("tg", f"tg {n_gen}", n_gen, threads=threads)]
    passes = [Row(f"v{k}", f"pass {k} 8", 0, threads=threads) for k in (1, 2, 4, 8)]
    rows = (plain if "plain" in wanted else []) + (passes if "verify" in wanted else [])
    if "noamx" in wanted and cap:
        rows.append(Row("pp no amx", f"pp {n_pp}", n_pp, threads=threads, only="cpu", capped=True))
    if small:
        return rows
    if "deep" in wanted:
        deep = {"depth": depth, "threads": threads}
        rows += [Row("tg deep f16", "tg 64", 64, **deep), Row("pp deep", "pp 512", 512, **deep)]
    if "deep-q8" in wanted:
        rows.append(Row("tg deep q8_0", "tg 64", 64, depth=depth, kv="q8_0", threads=threads))
    if "busy" in wanted:
        rows.append(Row("tg busy", "tg 64", 64, threads=threads, busy=1))
        rows.append(Row("tg busy one", "tg 64", 64, threads=1, busy=1, only="-"))
    return rows


def states(rows: list[Row]) -> list[list[Row]]:
    """Rows that can share their processes, in the order of the rows."""
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(row.state, []).append(row)
    return list(found.values())


def candidates(row: Row, peers: list[Setting]) -> list[Setting]:
    """Peer settings that a row may be compared with."""
    if row.only:
        return [p for p in peers if p.name == row.only]
    return peers


def pick(values: dict[Setting, float | None], row: Row) -> dict[str, Setting]:
    """The fastest setting of each family; a family without any value is left out."""
    best: dict[str, Setting] = {}
    for setting, value in values.items():
        if value is None:
            continue
        before = values.get(best[setting.family]) if setting.family in best else None
        if before is None or (value > before if row.tokens else value < before):
            best[setting.family] = setting
    return best


def choices(values: dict[Row, dict[Setting, float | None]]) -> dict[Row, dict[str, Setting]]:
    """The fastest setting of each family for every row. Passes take that of v(1): a ratio within one program."""
    chosen = {row: pick(found, row) for row, found in values.items()}
    one = next((row for row in values if row.key == "v1"), None)
    return {row: chosen[one] if one and not row.tokens else chosen[row] for row in values}


# ---- measuring ---------------------------------------------------------------------------------------------


class Comparison:
    """One model: the short round, then the rounds that count."""

    def __init__(self, model: str, a: argparse.Namespace, peers: list[Setting], cap: str | None) -> None:
        self.model, self.a, self.peers, self.cap = model, a, peers, cap
        self.notes: list[str] = []
        self.measured: list[Measured] = []

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
            print(f"  note: {text}", file=sys.stderr)

    def run(self, rows: list[Row]) -> None:
        for group in states(rows):
            names = ", ".join(row.title for row in group)
            print(f"{Path(self.model).name}: {names}", file=sys.stderr)
            self.rounds(group, self.short_round(group))

    def short_round(self, group: list[Row]) -> dict[Row, dict[str, Setting]]:
        """Which setting of each family is the fastest for each row: every one is asked once, one at a time."""
        from edgellm.bench import busy_processes

        asked = {s for row in group for s in candidates(row, self.peers)}
        values: dict[Row, dict[Setting, float | None]] = {row: {} for row in group}
        for setting in sorted(asked, key=str):
            playing = Field([setting], self.model, group, self.note)
            with busy_processes(group[0].busy):
                for row in group:
                    if setting in candidates(row, self.peers):
                        values[row][setting] = playing.value(row, setting)
            playing.close()
        return choices(values)

    def rounds(self, group: list[Row], chosen: dict[Row, dict[str, Setting]]) -> None:
        """Every round asks edgellm, then each chosen peer, row by row."""
        from edgellm.bench import busy_processes

        ours = edgellm_setting(self.cap if group[0].capped else None)
        needed = [ours, *dict.fromkeys(s for row in group for s in chosen[row].values())]
        playing = Field(needed, self.model, group, self.note)
        found = [Measured(row, chosen={f: str(s) for f, s in chosen[row].items()}) for row in group]
        try:
            for i in range(self.a.r):
                with busy_processes(group[0].busy):
                    for m in found:
                        self.one_round(playing, m, ours, chosen[m.row])
                print(f"  round {i + 1} of {self.a.r}: " + "; ".join(map(last_values, found)), file=sys.stderr)
        finally:
            playing.close()
        self.measured += found

    @staticmethod
    def one_round(playing: Field, m: Measured, ours: Setting, chosen: dict[str, Setting]) -> None:
        mine = playing.value(m.row, ours)
        others = {family: playing.value(m.row, setting) for family, setting in chosen.items()}
        if mine is None:
            return
        m.ours.append(mine)
        for family, value in others.items():
            if value is not None:
                m.peers.setdefault(family, []).append(value)


def last_values(m: Measured) -> str:
    values = [("edgellm", m.ours), *m.peers.items()]
    scale = 1 if m.row.tokens else 1e3
    return f"{m.row.title} " + " ".join(f"{name} {v[-1] * scale:.4g}" for name, v in values if v)


# ---- the table ---------------------------------------------------------------------------------------------


def median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def rate_text(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"


def lines_of(measured: list[Measured], kind: str, amx: bool) -> list[Line]:
    """Lines for all rows: rates with their ratios, costs of passes, and shares of edgellm's own rates."""
    by_key = {m.row.key: m for m in measured}
    lines = [rate_line(m, kind, amx) for m in measured if m.row.tokens and m.row.key != "tg busy one"]
    lines += [v_line(by_key, k, kind, amx) for k in (2, 4, 8) if f"v{k}" in by_key and "v1" in by_key]
    own = [("own deep f16", "tg deep f16", "tg", "own tg at depth, over that at depth 0 (f16 cache)"),
           ("own deep q8_0", "tg deep q8_0", "tg", "own tg at depth, over that at depth 0 (q8_0 cache)"),
           ("own busy", "tg busy", "tg busy one", "own tg beside a busy process, over that of one thread")]  # fmt: skip
    for key, upper, lower, title in own:
        high, low = (median(by_key[k].ours) if k in by_key else None for k in (upper, lower))
        if high is not None and low:
            text = f"{rate_text(high)} / {rate_text(low)}"
            lines.append(Line(title, text, value=high / low, goal=goal_of(key, kind, amx)))
    return lines


def rate_line(m: Measured, kind: str, amx: bool) -> Line:
    ratios = m.ratios()
    return Line(
        m.row.title, rate_text(median(m.ours)), rate_text(median(m.peers.get("llama.cpp", []))),
        m.chosen.get("llama.cpp", ""), median(ratios), ", ".join(f"{r:.2f}" for r in ratios),
        goal_of(m.row.key, kind, amx), rate_text(median(m.peers.get("ik_llama.cpp", []))),
    )  # fmt: skip


def v_line(by_key: dict[str, Measured], k: int, kind: str, amx: bool) -> Line:
    """What a pass of k tokens costs, relative to one of 1."""
    one, many = by_key["v1"], by_key[f"v{k}"]

    def costs(a: list[float], b: list[float]) -> list[float]:
        return [y / x for x, y in zip(a, b, strict=False)]

    def text(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    ours = costs(one.ours, many.ours)
    peer, ik = (median(costs(one.peers.get(f, []), many.peers.get(f, []))) for f in ("llama.cpp", "ik_llama.cpp"))
    setting = many.chosen.get("llama.cpp", "")
    rounds = ", ".join(f"{v:.2f}" for v in ours)
    cost = median(ours)
    return Line(f"v({k})", text(cost), text(peer), setting, cost, rounds, goal_of(f"v{k}", kind, amx), text(ik))


def share_lines(results: list[dict[str, Any]], kind: str, amx: bool) -> list[Line]:
    """Shares of the machine's limits, out of `edgellm bench`'s JSON."""
    lines = []
    names = (("read_share", "share tg", "read bandwidth"), ("int8_share", "share int8", "int8 peak"),
             ("bf16_share", "share bf16", "bf16 peak"))  # fmt: skip
    for r in results:
        for name, key, what in names:
            if r[name] is not None:
                rate = f"{r['gb_per_s']:.1f} GB/s" if name == "read_share" else rate_text(r["avg_ts"])
                line = Line(f"{r['test']}: share of the {what}", rate, value=r[name], goal=goal_of(key, kind, amx))
                lines.append(line)
    return lines


def table(lines: list[Line]) -> str:
    """Markdown; ik_llama.cpp's column only where it was measured."""
    heads = ["work", "edgellm", "llama.cpp", "its build", "ik_llama.cpp", "ratio or share", "rounds", "goal", "met"]
    rows = [line.cells() for line in lines]
    keep = [i for i in range(len(heads)) if i != 4 or any(line.extra not in ("", "-") for line in lines)]
    aligned = ["---" if heads[i] in ("work", "its build", "rounds", "goal", "met") else "---:" for i in keep]
    written = [[heads[i] for i in keep], aligned, *[[row[i] for i in keep] for row in rows]]
    return "\n".join("| " + " | ".join(row) + " |" for row in written)


# ---- the whole page ----------------------------------------------------------------------------------------


def machine_text(threads: int) -> tuple[str, dict[str, Any]]:
    """What this machine is, in a line and as facts."""
    from edgellm import clib, machine

    memory, l3 = machine.memory(), machine.l3_bytes()
    facts = {
        "cpu": machine.cpu_name(), "cpus": len(machine.allowed_cpus()), "flags": machine.cpu_flags(), "l3_bytes": l3,
        "memory_bytes": memory.total, "system": platform.platform(), "huge_pages": machine.huge_pages(),
        "isa": clib.isa() if clib.available() else "none", "threads": threads,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }  # fmt: skip
    text = f"{facts['cpu']}, {facts['cpus']} CPUs, L3 {(l3 or 0) >> 20} MiB, {memory.total >> 30} GiB of memory, "
    text += f"{facts['system']}, 2 MB pages: {facts['huge_pages']}; {threads} threads; edgellm's level: {facts['isa']}"
    if facts["load"] is not None and facts["load"] > 0.5:
        text += f"\n\n**The machine was busy when this began (load {facts['load']:.1f}): these figures are void.**"
    return text, facts


def level_without_amx() -> str | None:
    """edgellm's best usable level whose name has no AMX in it; None where the best one has none anyway."""
    from edgellm import clib

    if not clib.available() or "amx" not in clib.isa():
        return None
    return next((n for n, s in reversed(clib.levels().items()) if s == "usable" and "amx" not in n), None)


def describe(model: str) -> tuple[str, str]:
    """(one line about a model, its kind)."""
    from math import prod

    from edgellm.gguf import open_gguf

    with open_gguf(model) as file:
        n = sum(prod(t.shape) for t in file.tensors.values())
        kind = kind_of(n, file.get("general.file_type", int, None))
        name = f"{n / 1e9:.2f} B" if n >= 1e8 else f"{n / 1e6:.1f} M"
        return f"{Path(model).name}: {name} parameters, {file.n_bytes / 1e6:,.0f} MB", kind


def own_bench(model: str, a: argparse.Namespace) -> list[dict[str, Any]]:
    """`edgellm bench` on the same file, with its shares of the machine."""
    command = [sys.executable, "-m", "edgellm", "bench", model, "-p", "512", "-n", "64", "-t", str(a.t), "-r", "3"]
    done = subprocess.run([*command, "-o", "json"], capture_output=True, text=True, cwd=TOOLS.parent)
    return json.loads(done.stdout) if done.returncode == 0 else []


def find_peers(a: argparse.Namespace) -> tuple[list[Setting], list[str], dict[str, str]]:
    """Peer settings, notes, and how each peer was built."""
    if a.peer_python:
        builds = [peer_builds.installed(a.peer_python, a.cache)]
        notes = ["llama.cpp is the one that was installed beside, not built here."]
    else:
        builds, notes = peer_builds.all_builds(a.cache, a.ik)
    settings = []
    for b in builds:
        family = "ik_llama.cpp" if b.name == "ik" else "llama.cpp"
        settings += [Setting(family, b.name, (str(b.driver),), flash) for flash in (0, 1)]
    return settings, notes, {b.name: " ".join(b.options) for b in builds}


def arguments() -> argparse.Namespace:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("models", nargs="+", metavar="MODEL.gguf")
    ap.add_argument("-t", type=int, default=2, help="threads [2]")
    ap.add_argument("-r", type=int, default=5, help="rounds [5]")
    ap.add_argument("-d", type=int, default=4096, help="depth of the rows at depth [4096]")
    ap.add_argument("--rows", default=",".join(GROUPS), help=f"groups of rows [{','.join(GROUPS)}]")
    ap.add_argument("--cache", type=Path, default=peer_builds.default_cache(), help="folder of the peers' builds")
    ap.add_argument("--peer-python", help="use the llama.cpp of this environment with llama-cpp-python, build nothing")
    ap.add_argument("--ik", action="store_true", help="ik_llama.cpp too (building it takes long)")
    ap.add_argument("--json", type=Path, help="all figures, written here after each model")
    a = ap.parse_args()
    unknown = set(a.rows.split(",")) - set(GROUPS)
    if unknown:
        ap.error(f"--rows: there is no group {', '.join(sorted(unknown))}")
    missing = [m for m in a.models if not Path(m).is_file()]
    if missing:
        ap.error(f"there is no file {', '.join(missing)}")
    return a


def facts_of(m: Measured) -> dict[str, Any]:
    return {"row": m.row.title, "key": m.row.key, "unit": "t/s" if m.row.tokens else "s", "edgellm": m.ours,
            "peers": m.peers, "chosen": m.chosen, "ratios": m.ratios()}  # fmt: skip


def main() -> None:
    a = arguments()
    peers, notes, built = find_peers(a)
    cap, amx = level_without_amx(), peer_builds.has_amx(peer_builds.cpu_flags())
    text, facts = machine_text(a.t)
    page = {"machine": facts, "peers": built, "notes": notes, "command": sys.argv, "models": {}}
    print(f"{text}\n\nllama.cpp and ik_llama.cpp from {peer_builds.LLAMA} and {peer_builds.IK}:")
    print("".join(f"- {name}: {options or 'as installed'}\n" for name, options in built.items()), end="")
    print("".join(f"- {note}\n" for note in notes), end="")
    print(f"\nMedians of {a.r} alternating rounds; tokens per second; v(k): cost of a pass of k tokens over one of 1.")
    for model in a.models:
        about, kind = describe(model)
        comparison = Comparison(model, a, peers, cap)
        comparison.run(rows_for(kind, a.t, a.d, a.rows.split(","), cap))
        shares = own_bench(model, a) if "share" in a.rows.split(",") else []
        lines = lines_of(comparison.measured, kind, amx) + share_lines(shares, kind, amx)
        print(f"\n### {about}\n{table(lines)}", flush=True)
        for note in comparison.notes:
            print(f"\nNote: {note}", flush=True)
        page["models"][model] = {"kind": kind, "rows": [facts_of(m) for m in comparison.measured], "bench": shares,
                                 "table": [line.cells() for line in lines], "notes": comparison.notes}  # fmt: skip
        if a.json:
            a.json.parent.mkdir(parents=True, exist_ok=True)
            a.json.write_text(json.dumps(page, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
