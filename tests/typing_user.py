"""How a program uses edgellm, for type checkers: `mypy --strict` accepts it (tests/test_typing.py). Never run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import numpy as np

import edgellm


def loading() -> edgellm.Model:
    def progress(p: edgellm.Progress) -> bool:
        return p.done < p.total

    estimate: edgellm.MemoryEstimate = edgellm.estimate("model.gguf", n_ctx=4096)
    print(estimate.total)
    return edgellm.load("model.gguf", n_ctx=4096, threads="auto", kv_type=("q8_0", "q4_0"), progress=progress)


def answers(model: edgellm.Model) -> str:
    result: edgellm.Result = model.generate("Once", max_tokens=5, temperature=0.7, stop=["\n"], seed=None)
    result = model.generate([1, 2, 3], sampling=edgellm.Sampling(top_k=5), timeout=3, cancel=threading.Event())
    messages = [{"role": "user", "content": "hi"}]
    stream: edgellm.Stream = model.chat(messages, stream=True, overflow="sink", response_format={"type": "object"})
    for event in stream:
        text: str = event.text
        print(text, event.token)
    with stream:
        stream.stop()
    usage: edgellm.Usage = stream.result.usage
    reason: str = result.finish_reason
    for call in result.tool_calls:
        arguments: dict[str, object] = call.arguments
        print(call.name, arguments)
    return f"{usage.total_tokens} {reason} {result.stats.generation_tps:.1f} {result.context.used}"


def callbacks(model: edgellm.Model) -> None:
    def halve(ids: Sequence[int], logits: np.ndarray) -> None:
        logits *= 0.5

    def heard(event: edgellm.Event) -> bool:
        return "stop" not in event.text

    model.chat([], on_token=heard, on_prefill=print, dispatch=lambda call: call(), processors=[halve])
    model.chat([], stream=True, on_done=lambda end: print(end.text if isinstance(end, edgellm.Result) else end))


def sessions(model: edgellm.Model) -> None:
    with model.session("Be brief.", overflow=edgellm.Overflow("sink"), max_tokens=9, temperature=0.5) as chat:
        answer: edgellm.Result = chat.send("hi", top_p=0.9)
        other: edgellm.Session = chat.fork()
        question: dict[str, object] | None = other.undo()
        print(answer.message, question, chat.context.dropped)
        chat.save("a.edgesession")
    edgellm.Session.load(model, "a.edgesession").close()


async def loops(model: edgellm.Model) -> edgellm.Result:
    stream: edgellm.AsyncStream = model.achat([{"role": "user", "content": "hi"}], max_tokens=3)
    async for event in stream:
        print(event.text)
    both = await asyncio.gather(model.agenerate("x"), model.session().asend("y", timeout=1.5))
    print(both[0].text)
    return await stream


def tokens(model: edgellm.Model) -> np.ndarray:
    ids: list[int] = model.tokenize("text", special=True)
    print(model.detokenize(ids), model.apply_template([{"role": "user", "content": "hi"}]))
    return model.logits(ids, first=1)


def drop_in(model: edgellm.Model) -> None:
    client = edgellm.openai(model)
    print(client.chat.completions.create(messages=[{"role": "user", "content": "hi"}], n=2).choices[0].message.content)
    with client.chat.completions.create(messages=[], stream=True, max_completion_tokens=5) as chunks:
        for chunk in chunks:
            print(chunk.choices)


def failures() -> None:
    try:
        loading()
    except edgellm.NotEnoughMemoryError as error:
        print(error.need, error.suggestions)
    except edgellm.EdgeLLMError as error:
        print(error.exit_code)
