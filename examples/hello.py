"""The smallest program: load a model, ask, print. `python examples/hello.py [MODEL.gguf]`"""

import sys

import edgellm

path = sys.argv[1] if len(sys.argv) > 1 else None  # None: the small built-in model

with edgellm.load(path) as model:
    result = model.generate("Once upon a time", max_tokens=40, seed=7)
    print(result.text)
    print(f"[{result.finish_reason}, {result.usage.completion_tokens} tokens, seed {result.seed}]", file=sys.stderr)
