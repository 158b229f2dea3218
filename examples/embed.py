"""Semantic search: which of a few sentences are nearest in meaning to a question.

`python examples/embed.py [MODEL.gguf] [QUESTION]`

An encoder made for this finds most: convert one with `edgellm convert all-MiniLM-L6-v2/ -o minilm.gguf`.
"""

import sys

import edgellm

SENTENCES = [
    "The cat sleeps on the warm stove.",
    "Interest rates went up again in autumn.",
    "A dog barked at the postman.",
    "Our savings account pays two percent.",
    "The ship left the harbour at dawn.",
    "Kittens like to play with wool.",
]

path = sys.argv[1] if len(sys.argv) > 1 else None
question = sys.argv[2] if len(sys.argv) > 2 else "Tell me something about cats."

with edgellm.load(path) as model:
    known = model.embed(SENTENCES)  # float32 (6, dim), each row of length 1
    asked = model.embed(question)  # float32 (dim,)

    nearness = known @ asked  # cosines: 1 is the same direction
    for i in nearness.argsort()[::-1]:
        print(f"{nearness[i]:6.3f}  {SENTENCES[i]}")
