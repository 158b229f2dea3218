"""Wrong calls: `mypy --strict` refuses each line with the words behind `# error:` (tests/test_typing.py). Never run."""

from __future__ import annotations

import edgellm


def wrong(model: edgellm.Model, chat: edgellm.Session) -> None:
    model.generate("x", temperatur=0.5)  # error: No overload variant
    model.generate("x", max_tokens="five")  # error: No overload variant
    model.chat([], stop=3)  # error: No overload variant
    model.chat("hello")  # error: has incompatible type "str"
    chat.send("x", overflow="sink")  # error: No overload variant
    chat.send("x", on_token=3)  # error: No overload variant
    model.achat([], temperatur=1)  # error: Unexpected keyword argument "temperatur"
    model.session(max_token=3)  # error: Unexpected keyword argument "max_token"
    edgellm.load("m.gguf", nctx=3)  # error: Unexpected keyword argument "nctx"
    edgellm.Sampling(temp=1)  # error: Unexpected keyword argument "temp"
    print(model.generate("x").txt)  # error: has no attribute "txt"
    print(model.generate("x", stream=True).text)  # error: "Stream" has no attribute "text"
    edgellm.openai(model).chat.completions.create(message=[])  # error: Unexpected keyword argument "message"
    model.n_ctx = "many"  # error: Incompatible types in assignment
