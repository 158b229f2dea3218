"""A conversation of two turns. The second one works only on what is new: the first is still in the cache.

`python examples/chat.py [MODEL.gguf]`
"""

import sys

import edgellm

path = sys.argv[1] if len(sys.argv) > 1 else None

with edgellm.load(path) as model:
    messages = [{"role": "system", "content": "You are a friendly helper."}]
    try:
        for question in ("Hello! Who are you?", "What is 2 plus 3?"):
            messages.append({"role": "user", "content": question})
            answer = model.chat(messages, max_tokens=60, temperature=0)
            messages.append(answer.message)
            print(f"> {question}\n{answer.text}\n")
            context = answer.context
            print(f"[{context.used} of {context.n_ctx} tokens, {context.reused} reused]", file=sys.stderr)
    except edgellm.TemplateError as error:  # a file that is no chat model
        sys.exit(f"{error}")
