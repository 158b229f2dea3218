"""Answers under asyncio: the loop never waits, a cancelled task takes its answer back, errors arrive typed."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import tiny_llama_gguf

import edgellm

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HELLO = [{"role": "user", "content": "hello"}]
OPTIONS = {"max_tokens": 12, "ignore_eos": True, "seed": 5}
LONG = {"max_tokens": 200, "ignore_eos": True, "seed": 5}
PATIENCE = 60  # seconds until a test that waits for ever fails


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tiny_llama_gguf(tmp_path_factory.mktemp("async") / "chat.gguf", **{"tokenizer.chat_template": CHATML})
    with edgellm.load(path, backend="reference") as model:
        yield model


def run(coroutine):
    async def limited():
        return await asyncio.wait_for(coroutine, PATIENCE)

    return asyncio.run(limited())


class Gate:
    """Stops the worker thread in the first chunk of a prompt until it is opened."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()

    def __call__(self, progress) -> None:
        self.reached.set()
        assert self.open.wait(PATIENCE)


@pytest.mark.parametrize("way", ["agenerate", "achat", "asend"])
def test_the_same_answer_as_without_a_loop(model, way):
    async def ask():
        start = {
            "agenerate": lambda: model.agenerate("hello", **OPTIONS),
            "achat": lambda: model.achat(HELLO, **OPTIONS),
            "asend": lambda: model.session().asend("hello", **OPTIONS),
        }[way]
        whole = await start()
        stream = start()
        events = [event async for event in stream]
        assert (await stream).text == "".join(event.text for event in events)
        assert await stream.result() is await stream
        return whole, await stream

    expected = model.generate("hello", **OPTIONS) if way == "agenerate" else model.chat(HELLO, **OPTIONS)
    for result in run(ask()):
        assert (result.text, result.token_ids) == (expected.text, expected.token_ids)


def test_the_loop_runs_while_the_model_works(model):
    """The worker waits for what only the loop can do: were the loop to wait for the worker, nobody would go on."""

    async def main():
        gate = Gate()
        stream = model.achat(HELLO, on_prefill=gate, **OPTIONS)
        waiting = asyncio.ensure_future(stream.result())
        while not gate.reached.is_set():
            await asyncio.sleep(0.001)
        gate.open.set()
        return await waiting

    assert run(main()).usage.completion_tokens == 12


def test_many_at_once_each_its_own(model):
    async def main():
        return await asyncio.gather(*(model.achat(HELLO, **{**OPTIONS, "seed": i}) for i in range(8)))

    expected = [model.chat(HELLO, **{**OPTIONS, "seed": i}).text for i in range(8)]
    assert [result.text for result in run(main())] == expected


def test_loops_in_several_threads(model):
    async def main(seed):
        texts = []
        for _ in range(3):
            stream = model.agenerate("hello", **{**OPTIONS, "seed": seed})
            texts.append("".join([event.text async for event in stream]))
        return texts

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda seed: run(main(seed)), range(4)))
    assert found == [[model.generate("hello", **{**OPTIONS, "seed": i}).text] * 3 for i in range(4)]


def test_a_cancelled_task_takes_the_question_back(model):
    async def main(session):
        gate = Gate()
        task = asyncio.ensure_future(session.asend("and now?", on_prefill=gate, **LONG).result())
        while not gate.reached.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.open.set()
        before = list(session.messages)
        return before, await session.asend("and then?", **OPTIONS)

    with model.session() as session, model.session() as fresh:
        for one in (session, fresh):
            one.send("hello", **OPTIONS)
        said = list(session.messages)
        before, result = run(main(session))
        assert before == said
        assert result.token_ids == fresh.send("and then?", **OPTIONS).token_ids


def test_wait_for_cancels(model):
    async def main():
        stream = model.achat(HELLO, on_token=lambda event: time.sleep(0.05), **LONG)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(stream.result(), 0.2)
        with pytest.raises(edgellm.Cancelled):
            await stream.result()

    run(main())


def test_leaving_the_loop_cancels(model):
    async def main():
        seen = []
        async for event in model.achat(HELLO, on_token=seen.append, **LONG):
            assert event
            break
        gc.collect()
        result = await model.achat(HELLO, **OPTIONS)  # comes after it
        return len(seen), result

    n, result = run(main())
    assert n < 200 and result.text == model.chat(HELLO, **OPTIONS).text


def test_stop_keeps_and_cancel_drops(model):
    async def main():
        stream = model.achat(HELLO, **LONG)
        async for _ in stream:
            stream.stop()
        result = await stream
        assert result.finish_reason == "cancelled" and result.text
        stream = model.achat(HELLO, **LONG)
        async for _ in stream:
            stream.cancel()
        with pytest.raises(edgellm.Cancelled):
            await stream

    run(main())


def test_closing_waits_for_the_model(model):
    async def main():
        async with model.achat(HELLO, **LONG) as stream:
            await stream.__anext__()
        with pytest.raises(edgellm.Cancelled):
            await stream
        await stream.aclose()  # again does nothing
        done = model.achat(HELLO, **OPTIONS)
        await done
        await done.aclose()
        return await done  # what has ended stays

    assert run(main()).usage.completion_tokens == 12


def test_errors_arrive_typed(model):
    async def main():
        with pytest.raises(edgellm.InvalidArgumentError, match="temperatur"):
            model.achat(HELLO, temperatur=1)
        with pytest.raises(edgellm.ContextOverflowError):
            await model.agenerate("hello " * 500)
        with pytest.raises(edgellm.InvalidArgumentError, match="message 0"):
            await model.achat([{"role": "user"}])
        with pytest.raises(edgellm.ContextOverflowError):
            async for _ in model.agenerate("hello " * 500):
                pass

        def fails(event):
            raise LookupError("mine")

        with pytest.raises(LookupError, match="mine"):
            await model.achat(HELLO, on_token=fails, **OPTIONS)

    run(main())


def test_one_stream_one_loop(model):
    stream = model.achat(HELLO, **OPTIONS)  # no loop is needed to begin

    async def main():
        return await stream

    assert run(main()).text
    with pytest.raises(edgellm.InvalidArgumentError, match="event loop"):
        run(main())


def test_a_loop_that_is_closed_in_the_middle(model):
    """Its answer is dropped, and the model goes on."""
    gate, kept = Gate(), []

    async def main():
        stream = model.achat(HELLO, on_prefill=gate, **LONG)
        kept.append(stream)
        asyncio.ensure_future(stream.result()).add_done_callback(lambda f: f.cancelled() or f.exception())
        while not gate.reached.is_set():
            await asyncio.sleep(0.001)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    loop.close()
    gate.open.set()
    assert model.chat(HELLO, **OPTIONS).text
    assert isinstance(kept[0]._job.error, edgellm.Cancelled)


def test_callbacks_on_the_loop(model):
    async def main():
        threads, loop = [], asyncio.get_running_loop()
        result = await model.achat(
            HELLO,
            on_token=lambda e: threads.append(threading.get_ident()),
            dispatch=loop.call_soon_threadsafe,
            **OPTIONS,
        )
        await asyncio.sleep(0)
        assert threads and set(threads) == {threading.get_ident()}
        return result

    assert run(main()).text


def test_a_model_closed_in_the_middle(tmp_path):
    path = tiny_llama_gguf(tmp_path / "chat.gguf", **{"tokenizer.chat_template": CHATML})

    async def main():
        model = edgellm.load(path, backend="reference")
        running, queued = model.achat(HELLO, **LONG), model.achat(HELLO, **LONG)
        await running.__anext__()
        await asyncio.to_thread(model.close)
        for waited in (running, queued):
            with pytest.raises(edgellm.ModelClosedError):
                await waited
        with pytest.raises(edgellm.ModelClosedError):
            model.achat(HELLO)

    run(main())
