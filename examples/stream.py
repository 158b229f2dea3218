"""Text as it comes, and a stop button: here a timer plays the person who presses it.

`python examples/stream.py [MODEL.gguf]`
"""

import sys
import threading

import edgellm

path = sys.argv[1] if len(sys.argv) > 1 else None

with edgellm.load(path) as model:
    stream = model.generate("Once upon a time", max_tokens=200, stream=True)

    # stop() may be called from any thread, while the prompt is being read too. It keeps what was said;
    # cancel() would drop it.
    button = threading.Timer(0.5, stream.stop)
    button.start()

    for event in stream:
        print(event.text, end="", flush=True)
    print()
    button.cancel()

    result = stream.result
    print(f"[{result.finish_reason}: {result.stats.generation_tps:.0f} tokens per second]", file=sys.stderr)
