#!/usr/bin/env python3
"""Hold edgellm to transformers and llama.cpp on random models of every family, and print a Markdown table.

    python tools/parity.py --peer-python PATH [--llama-python PATH] [--models 10] [--family qwen3 ...] [--seed 1]

`--peer-python` is the Python of an environment with torch and transformers, `--llama-python` that of one with
llama-cpp-python; each runs in a process of its own and hands over files in a temporary folder. transformers draws the
weights and saves a checkpoint, `edgellm.convert` makes an F32 GGUF file of it, and every backend answers for the same
tokens with an F32 cache. Demanded of every model and backend: NMSE to transformers <= 1e-9 (families with GELU <=
1e-8), the same best token at every position, the same greedy text. Ends with 1 if anything is missed.

llama.cpp reads the same GGUF file. Where it computes something else than transformers, transformers is right: the table
says how far apart the two are and why, and edgellm is compared with llama.cpp only on the other models.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

TOOLS = Path(__file__).resolve().parent
sys.path[:0] = [str(TOOLS.parent), str(TOOLS)]

import parity_cases  # noqa: E402
from parity_scores import BACKENDS, Score, agreement, header, nmse, row  # noqa: E402


def say(text: str) -> None:
    print(f"parity: {text}", file=sys.stderr, flush=True)


# ---- the three programs ----------------------------------------------------------------------------------------------


def ask_transformers(python: str, folder: Path, n: int) -> None:
    """Checkpoints and answers for all cases. Ends the program if transformers fails: nothing can be compared then."""
    command = [python, str(TOOLS / "parity_torch.py"), str(folder)]
    done = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if (folder / f"{line.strip()}.torch.npz").exists():
                done += 1
                if done % 10 == 0 or done == n:
                    say(f"transformers: {done} of {n} models")
    if process.returncode:
        raise SystemExit(f"transformers failed (exit {process.returncode}):\n{''.join(lines[-20:])}")


def ask_edgellm(case: parity_cases.Case, folder: Path, score: Score, backends: list[str]) -> np.ndarray | None:
    """Convert the checkpoint, run every backend, fill in `score`; the logits of the first backend."""
    import edgellm
    from edgellm.convert import convert
    from edgellm.errors import EdgeLLMError

    peer, path, first = np.load(folder / f"{case.name}.torch.npz"), folder / f"{case.name}.gguf", None
    want, text = peer["logits"], peer["greedy"].tolist()
    try:
        convert(folder / case.name, path, outtype="f32")
        for name in backends:
            with edgellm.load(path, backend=name, kv_type="f32", threads=1, n_ctx=case.n_ctx) as model:
                assert model.backend == name
                got = model.logits(case.ids)
                prompt = case.ids[: case.n_prompt]
                answer = model.generate(prompt, max_tokens=case.n_greedy, temperature=0, ignore_eos=True)
            score.nmse[name], score.argmax[name] = nmse(got, want), agreement(got, want)
            score.greedy[name] = list(answer.token_ids) == text
            first = got if first is None else first
    except EdgeLLMError as error:
        score.error = f"{type(error).__name__}: {error}"
    return first


def ask_llama_cpp(python: str, folder: Path, names: list[str]) -> None:
    """Answers of llama.cpp; a file that ends its process is noted, and the rest goes to a new one."""
    while names:
        command = [python, str(TOOLS / "parity_llama.py"), str(folder), *names]
        done = subprocess.run(command, capture_output=True, text=True)
        begun = [line for line in done.stdout.split() if line in names]
        if done.returncode and not begun:
            raise SystemExit(f"llama.cpp failed (exit {done.returncode}):\n{done.stderr[-2000:]}")
        if done.returncode:
            note = folder / f"{begun[-1]}.llama.txt"
            note.write_text(f"it ends the process (exit {done.returncode})")
            say(f"llama.cpp ended its process on {begun[-1]}: {done.stderr.strip()[-300:]}")
        names = names[len(begun) :]


# ---- the comparison --------------------------------------------------------------------------------------------------


def supported(families: list[parity_cases.Family]) -> list[parity_cases.Family]:
    """Those that edgellm can convert and run; says which it leaves out."""
    from edgellm.convert.hf_families import FAMILIES as convertible
    from edgellm.models import FAMILIES as runnable

    out = []
    for family in families:
        known = convertible.get(family.architecture)
        if known is not None and known.arch in runnable:
            out.append(family)
        else:
            say(f"{family.name} left out: edgellm has no {family.architecture} yet")
    return out


def usable_backends() -> list[str]:
    from edgellm import clib

    return [b for b in BACKENDS if b != "native" or clib.available()]


def compare(cases: list[parity_cases.Case], args: argparse.Namespace, folder: Path) -> list[Score]:
    """Run all cases through the three programs."""
    (folder / "cases.json").write_text(json.dumps([case.to_json() for case in cases]))
    ask_transformers(args.peer_python, folder, len(cases))
    backends, scores, ours = usable_backends(), [], {}
    for i, case in enumerate(cases, 1):
        score = Score(case.name, case.family, case.tolerance, case.difference, case.unread, case.shape)
        logits = ask_edgellm(case, folder, score, backends)
        if logits is not None:
            ours[case.name] = logits
        scores.append(score)
        if i % 10 == 0 or i == len(cases):
            say(f"edgellm: {i} of {len(cases)} models")
    if args.llama_python:
        ask_llama_cpp(args.llama_python, folder, list(ours))
        for score in scores:
            _compare_with_llama_cpp(score, folder, ours.get(score.name))
    return scores


def _compare_with_llama_cpp(score: Score, folder: Path, ours: np.ndarray | None) -> None:
    note, path = folder / f"{score.name}.llama.txt", folder / f"{score.name}.llama.npz"
    if note.exists():
        score.peer_error = note.read_text().strip().splitlines()[0].replace(str(folder), "")[:80]
    elif path.exists() and ours is not None:
        theirs = np.load(path)["logits"]
        score.peer_nmse = nmse(ours, theirs)
        score.peer_to_torch = nmse(theirs, np.load(folder / f"{score.name}.torch.npz")["logits"])


def report(scores: list[Score], folder: Path, seconds: float) -> bool:
    """Print the table and everything that is not as it should be; whether all demands were met."""
    backends = usable_backends()
    print("\n".join(header(backends)))
    for family in dict.fromkeys(s.family for s in scores):
        print(row([s for s in scores if s.family == family], backends))
    versions = {}
    for name in ("torch.json", "llama.json"):
        if (folder / name).exists():
            versions |= json.loads((folder / name).read_text())
    what = ", ".join(f"{name} {version}" for name, version in versions.items())
    print(f"\n{len(scores)} random models; {what}.")
    say(f"took {seconds:.0f} s")
    bad = [(s, s.faults()) for s in scores if s.faults()]
    for score, faults in bad:
        print(f"WRONG {score.name} ({score.shape}): {'; '.join(faults)}")
    for score in scores:
        if score.surprise():
            print(f"look at {score.name} ({score.shape}): {score.surprise()}")
    print(summary(scores))
    return not bad


def summary(scores: list[Score]) -> str:
    """The result in one line."""
    good = [s for s in scores if not s.error]
    worst = max((max(s.nmse.values()) for s in good), default=float("inf"))
    same = sum(all(s.greedy.values()) for s in good)
    token = min((min(s.argmax.values()) for s in good), default=0.0)
    wrong = sum(bool(s.faults()) for s in scores)
    return (
        f"{len(scores)} random models: NMSE at most {worst:.1e}, the same best token at {token:.2%} of the positions, "
        f"{same} of {len(scores)} greedy texts equal" + (f"; {wrong} models WRONG" if wrong else "")
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", required=True, help="the Python of an environment with transformers and torch")
    parser.add_argument("--llama-python", help="the Python of an environment with llama-cpp-python")
    parser.add_argument("--models", type=int, default=10, help="models of each family (default 10)")
    parser.add_argument("--family", action="append", help="only this family (may be repeated)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="put the models and answers into this folder and leave them there")
    args = parser.parse_args()
    known = {family.name: family for family in parity_cases.FAMILIES}
    unknown = [name for name in args.family or () if name not in known]
    if unknown or args.models < 1:
        parser.error(f"no family {unknown[0]}; there are {', '.join(known)}" if unknown else "--models is at least 1")
    families = supported([known[name] for name in args.family or known])
    cases = [case for family in families for case in parity_cases.cases(family, args.models, args.seed)]
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="parity-") as name:
        folder = args.keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        scores = compare(cases, args, folder)
        return 0 if report(scores, folder, time.monotonic() - start) else 1


if __name__ == "__main__":
    sys.exit(main())
