"""A program to be frozen (docs/packaging.md): streams an answer, goes on with it, cancels the next.

`pyinstaller examples/frozen_app.py`, then `dist/frozen_app/frozen_app [MODEL.gguf]`, on a machine without Python too.
"""

import multiprocessing
import sys
import threading

import edgellm


def main(path: str | None) -> None:
    with edgellm.load(path) as model:
        print(f"[{model.backend} {model.isa}, {model.threads} threads]", file=sys.stderr)
        with model.session(max_tokens=40, temperature=0) as talk:
            for event in talk.send("What is the capital of France?", stream=True):
                print(event.text, end="", flush=True)
            print()
            print(talk.send("And what is 2 plus 3?").text)

            button = threading.Event()  # of a window, say; here the first word of the answer presses it
            try:
                talk.send("Tell me a story.", cancel=button, max_tokens=None, on_token=lambda event: button.set())
            except edgellm.Cancelled:
                print(f"[cancelled; the conversation still has {len(talk.messages)} messages]", file=sys.stderr)


if __name__ == "__main__":
    multiprocessing.freeze_support()  # frozen programs that start processes need it as their first line
    try:
        main(sys.argv[1] if len(sys.argv) > 1 else None)
    except edgellm.EdgeLLMError as error:
        sys.exit(f"{error}")
