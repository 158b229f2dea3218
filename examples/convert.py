"""From a checkpoint to a small GGUF file, and a first sentence from it.

`python examples/convert.py HF_FOLDER OUT.gguf [TYPE]`
"""

import sys

import edgellm
from edgellm.convert import convert

if len(sys.argv) < 3:
    sys.exit(__doc__)
source, out = sys.argv[1:3]
outtype = sys.argv[3] if len(sys.argv) > 3 else "q8_0"


def progress(now: edgellm.Progress) -> None:
    print(f"\r{now.stage}: {100 * now.done // max(now.total, 1)} %", end="", file=sys.stderr)


try:
    report = convert(source, out, outtype, progress=progress)
except edgellm.EdgeLLMError as error:  # one clear line; no half-written file stays
    sys.exit(f"\n{error}")
print(f"\n{report.path}: {report.bits_per_weight:.2f} bits per weight", file=sys.stderr)

with edgellm.load(out) as model:
    print(model.generate("Once", max_tokens=20, temperature=0).text)
