"""A conversation that is put away and taken up again: what was read once is not read twice, not even the next day.

`python examples/session.py [MODEL.gguf]`
"""

import os
import sys
import tempfile

import edgellm

path = sys.argv[1] if len(sys.argv) > 1 else None
file = os.path.join(tempfile.mkdtemp(), "talk.edgesession")

with edgellm.load(path) as model:
    # when the context window is full, whole oldest turns leave it; without a template there are no turns
    overflow = "drop-turns" if model.chat_template else "sink"
    with model.session(overflow=overflow, max_tokens=40, temperature=0) as talk:
        print(talk.send("Hello! Who are you?").text)
        other = talk.fork()  # a second way to go on, at the price of a few pages
        print(other.send("Tell me a story.").text)
        other.close()
        talk.save(file)

with edgellm.load(path) as model, edgellm.Session.load(model, file) as talk:
    answer = talk.send("What is 2 plus 3?", on_token=lambda event: print(event.text, end="", flush=True))
    print(f"\n[{answer.context.reused} tokens were in the file]", file=sys.stderr)
os.remove(file)
