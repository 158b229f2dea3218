"""What the model thinks comes next: the five likeliest tokens, and how well it predicts a text.

`python examples/logits.py [MODEL.gguf]`
"""

import sys

import numpy as np

import edgellm

path = sys.argv[1] if len(sys.argv) > 1 else None

with edgellm.load(path) as model:
    ids = model.tokenize("Once upon a time there was", add_special=True)
    logits = model.logits(ids)  # float32 (len(ids), n_vocab)

    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)

    for token in np.argsort(-p[-1])[:5]:
        print(f"{p[-1, token]:6.1%}  {model.tokenizer.piece(int(token))!r}")

    # row i predicts token i + 1
    surprise = -np.log(p[np.arange(len(ids) - 1), ids[1:]])
    print(f"perplexity of the prompt: {np.exp(surprise.mean()):.1f}")
