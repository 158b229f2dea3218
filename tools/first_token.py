"""The time from `edgellm.load()` of a file to the first token, in fresh processes; the file is in the page cache.

    python tools/first_token.py packed.gguf -r 12        # `edgellm pack IN.gguf packed.gguf` writes such a file

Importing edgellm and numpy is told apart: a program has that behind it when it loads a model.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_RUN = """
import sys, time
start = time.perf_counter()
import edgellm
from edgellm import load
begin = time.perf_counter()
model = load(sys.argv[1], n_ctx=2048)
loaded = time.perf_counter()
for event in model.generate("Once upon a time", max_tokens=1, stream=True, temperature=0):
    break
print(begin - start, loaded - begin, time.perf_counter() - begin)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("-r", "--repetitions", type=int, default=12)
    options = parser.parse_args()
    Path(options.model).read_bytes()  # into the page cache
    rows = []
    for _ in range(options.repetitions):
        command = [sys.executable, "-c", _RUN, options.model]
        run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        rows.append([float(word) for word in run.stdout.split()])
    for name, column in zip(("import", "load", "load to first token"), zip(*rows, strict=True), strict=True):
        print(f"{name:<20} median {statistics.median(column):.3f} s, {min(column):.3f} to {max(column):.3f}")


if __name__ == "__main__":
    main()
