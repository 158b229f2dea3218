"""`edgellm.openai`: OpenAI's interface in this process: shapes, streams, what is refused."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from helpers import tiny_llama_gguf
from test_generate import scripted

import edgellm
from edgellm.sampling.logprobs import LogprobRecorder, log_softmax

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HELLO = [{"role": "user", "content": "hello"}]
PLAIN = {"max_tokens": 6, "temperature": 0, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tiny_llama_gguf(tmp_path_factory.mktemp("openai") / "chat.gguf", **{"tokenizer.chat_template": CHATML})
    with edgellm.load(path, backend="reference") as model:
        yield model


@pytest.fixture(scope="module")
def client(model):
    return edgellm.openai(model)


def test_a_chat_completion(client, model):
    answer = client.chat.completions.create(model="gpt-4o", messages=HELLO, **PLAIN)
    expected = model.chat(HELLO, max_tokens=6, temperature=0, ignore_eos=True)
    assert answer.choices[0].message.content == answer["choices"][0]["message"]["content"] == expected.text
    assert answer.choices[0].message.role == "assistant" and answer.choices[0].message.tool_calls is None
    assert (answer.object, answer.model, answer.id[:9]) == ("chat.completion", model.name, "chatcmpl-")
    assert answer.choices[0].finish_reason == "length" and answer.choices[0].logprobs is None
    use = answer.usage
    assert (use.prompt_tokens, use.completion_tokens) == (len(model.chat_ids(HELLO)), 6)
    assert use.total_tokens == use.prompt_tokens + 6
    assert type(answer.model_dump()["choices"][0]) is dict
    assert json.loads(answer.model_dump_json()) == answer.model_dump() == answer
    with pytest.raises(AttributeError, match="choices"):
        _ = answer.choice


def test_chunks(client):
    whole = client.chat.completions.create(messages=HELLO, **PLAIN).choices[0].message.content
    chunks = list(client.chat.completions.create(messages=HELLO, stream=True, **PLAIN))
    assert {c.object for c in chunks} == {"chat.completion.chunk"} and len({c.id for c in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant" and "role" not in chunks[1].choices[0].delta
    assert "".join(c.choices[0].delta.get("content", "") for c in chunks) == whole
    assert [c.choices[0].finish_reason for c in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert "usage" not in chunks[0]


def test_usage_at_the_end_of_a_stream(client):
    whole = client.chat.completions.create(messages=HELLO, **PLAIN)
    told = client.chat.completions.create(messages=HELLO, stream=True, stream_options={"include_usage": True}, **PLAIN)
    *chunks, last = told
    assert all(c.usage is None for c in chunks)
    assert last.choices == [] and last.usage.total_tokens == whole.usage.total_tokens


def test_several_choices_each_with_its_seed(client, model):
    options = {"max_tokens": 8, "temperature": 1.5, "seed": 11}
    answer = client.chat.completions.create(messages=HELLO, n=3, **options)
    assert [c.index for c in answer.choices] == [0, 1, 2]
    expected = [model.chat(HELLO, **{**options, "seed": 11 + i}) for i in range(3)]
    assert [c.message.content for c in answer.choices] == [e.text for e in expected]
    assert answer.usage.completion_tokens == sum(e.usage.completion_tokens for e in expected)
    assert answer.usage.prompt_tokens == expected[0].usage.prompt_tokens
    texts = {0: "", 1: "", 2: ""}
    for chunk in client.chat.completions.create(messages=HELLO, n=3, stream=True, **options):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.get("content", "")
    assert list(texts.values()) == [e.text for e in expected]


def test_closing_a_stream_cancels(client, model):
    seen = []
    options = {"max_tokens": 200, "extra_body": {"ignore_eos": True, "on_token": seen.append}}
    with client.chat.completions.create(messages=HELLO, stream=True, **options) as stream:
        next(stream)
    assert list(stream) == []
    model.generate("x", max_tokens=1)  # comes after it
    assert len(seen) < 200


def test_guesses_are_an_option_of_the_extra_body(client):
    """And they change no answer."""

    def tell(kind):
        extra = {"ignore_eos": True, "speculate": kind}
        answer = client.chat.completions.create(messages=HELLO, max_tokens=6, temperature=0, extra_body=extra)
        return answer.choices[0].message.content

    assert tell("suffix") == tell("off")
    with pytest.raises(edgellm.InvalidArgumentError, match="speculate is 'never'"):
        tell("never")


def test_messages_as_openai_has_them(client, model):
    parts = [
        {"role": "developer", "content": "be short"},
        {"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}], "name": None},
    ]
    plain = [{"role": "system", "content": "be short"}, *HELLO]
    answer = client.chat.completions.create(messages=parts, **PLAIN)
    assert answer.choices[0].message.content == model.chat(plain, max_tokens=6, temperature=0, ignore_eos=True).text
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    with pytest.raises(edgellm.InvalidArgumentError, match="image_url"):
        client.chat.completions.create(messages=image)


@pytest.mark.parametrize(
    "options, word",
    [
        ({"modalities": ["audio"]}, "modalities"), ({"n": 0}, "n is 0"), ({"n": True}, "n is"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, "max_completion_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"), ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": -1}, "logprobs"), ({"temperature": -1}, "temperature"),
        ({"extra_body": {"temperatur": 1}}, "temperatur"), ({"extra_body": {"stream": True}}, "extra_body"),
        ({"messages": "hello"}, "messages"), ({"messages": ["hello"]}, "message 0"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_known_is_refused(client, options, word):
    for stream in (False, True):
        if stream and "stream_options" in options:
            continue
        with pytest.raises(edgellm.InvalidArgumentError, match=word):
            client.chat.completions.create(stream=stream, **{"messages": HELLO, **options})


def test_errors_of_a_stream_come_at_once(client):
    with pytest.raises(edgellm.ContextOverflowError):
        client.chat.completions.create(messages=[{"role": "user", "content": "hello " * 500}], stream=True)


def test_logprobs_are_those_of_the_model(client, model):
    answer = client.chat.completions.create(messages=HELLO, logprobs=True, top_logprobs=3, **PLAIN)
    entries = answer.choices[0].logprobs.content
    ids = list(model.chat(HELLO, max_tokens=6, temperature=0, ignore_eos=True).token_ids)
    prompt = model.chat_ids(HELLO)
    rows = model.logits([*prompt, *ids[:-1]], first=len(prompt) - 1)
    assert len(entries) == len(ids) == len(rows)
    for entry, token, row in zip(entries, ids, rows, strict=True):
        expected = log_softmax(row)
        assert entry.logprob == pytest.approx(expected[token], abs=1e-5)
        assert entry.bytes == list(model.tokenizer.token_bytes(token))
        best = np.sort(expected)[::-1][:3]
        assert [top.logprob for top in entry.top_logprobs] == pytest.approx(best.tolist(), abs=1e-5)
    *_, last = client.chat.completions.create(messages=HELLO, logprobs=True, stream=True, **PLAIN)
    assert [e.logprob for e in last.choices[0].logprobs.content] == [e.logprob for e in entries]


def test_log_softmax_is_one():
    rows = np.array([1000.0, 0.0, -1000.0, 999.0], np.float32)
    assert np.exp(log_softmax(rows)).sum() == pytest.approx(1.0)


@pytest.mark.parametrize("n", [-1, 1001, True, "3"])
def test_how_many_logprobs(n):
    with pytest.raises(edgellm.InvalidArgumentError):
        LogprobRecorder(n)


def test_text_completions(client, model):
    expected = model.generate("hello", max_tokens=6, temperature=0, ignore_eos=True)
    answer = client.completions.create(prompt="hello", logprobs=2, **PLAIN)
    choice = answer.choices[0]
    assert (answer.object, choice.text, choice.finish_reason) == ("text_completion", expected.text, "length")
    assert len(choice.logprobs.tokens) == len(choice.logprobs.token_logprobs) == 6
    assert all(len(top) <= 2 for top in choice.logprobs.top_logprobs)
    many = client.completions.create(prompt=["hello", "hello"], echo=True, n=2, **PLAIN)
    assert [c.text for c in many.choices] == ["hello" + expected.text] * 4
    assert many.usage.prompt_tokens == 2 * expected.usage.prompt_tokens
    ids = model.tokenize("hello", add_special=True)
    assert client.completions.create(prompt=ids, **PLAIN).choices[0].text == expected.text
    assert client.completions.create(prompt=[ids], **PLAIN).choices[0].text == expected.text
    pieces = list(client.completions.create(prompt="hello", stream=True, echo=True, **PLAIN))
    assert "".join(c.choices[0].text for c in pieces) == "hello" + expected.text
    for wrong in (None, 3, [], [1.5]):
        with pytest.raises(edgellm.InvalidArgumentError, match="prompt"):
            client.completions.create(prompt=wrong)


def test_sixteen_tokens_where_nothing_is_said(client):
    answer = client.completions.create(prompt="hello", extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 16


class Embedder:
    """In place of a model: the vectors that it would give."""

    def __init__(self, model) -> None:
        self.name, self.tokenizer, self.seen = model.name, model.tokenizer, []

    def embed(self, ids):
        self.seen += ids
        return np.arange(2 * len(ids), dtype=np.float32).reshape(len(ids), 2)


def test_embeddings(model):
    embedder = Embedder(model)
    client = edgellm.openai(embedder)
    answer = client.embeddings.create(input=["hello", "world"], model="any")
    assert [row.embedding for row in answer.data] == [[0.0, 1.0], [2.0, 3.0]]
    assert [row.index for row in answer.data] == [0, 1] and answer.object == "list"
    assert embedder.seen == [model.tokenize(text, add_special=True) for text in ("hello", "world")]
    assert answer.usage.prompt_tokens == sum(map(len, embedder.seen))
    packed = client.embeddings.create(input="hello", encoding_format="base64").data[0].embedding
    assert np.frombuffer(base64.b64decode(packed), "<f4").tolist() == [0.0, 1.0]
    for wrong in ({"input": 3}, {"input": "x", "encoding_format": "int8"}, {"input": "x", "dimensions": 3}):
        with pytest.raises(edgellm.InvalidArgumentError):
            client.embeddings.create(**wrong)


def test_embeddings_of_a_model(client, model):
    answer = client.embeddings.create(input=["hello", "world"])
    expected = model.embed(["hello", "world"])
    assert np.allclose([row.embedding for row in answer.data], expected, atol=1e-6)


def test_a_token_that_is_banned_never_comes(client, model):
    first = client.completions.create(prompt="hello", logprobs=0, **{**PLAIN, "max_tokens": 1})
    (token,) = model.generate("hello", temperature=0, max_tokens=1, ignore_eos=True).token_ids
    other = client.completions.create(
        prompt="hello", logprobs=0, logit_bias={str(token): -100}, **{**PLAIN, "max_tokens": 1}
    )
    tokens = [answer.choices[0].logprobs.tokens for answer in (first, other)]
    assert tokens[0] != tokens[1]


TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>'
TOOLS = (
    '{% if tools %}<|im_start|>system\n{{ tools | tojson }} <tool_call>{"name": ...}</tool_call><|im_end|>\n{% endif %}'
    + CHATML
)


@pytest.fixture
def calling(tmp_path):
    """A model that says hello and then calls a tool."""
    path = tiny_llama_gguf(tmp_path / "tools.gguf", n_ctx=1200, **{"tokenizer.chat_template": TOOLS})
    with edgellm.load(path, backend="reference") as model:
        scripted(model, f"hello {CALL}")
        yield edgellm.openai(model).chat.completions


def test_tool_calls(calling):
    choice = calling.create(messages=HELLO, tools=[TOOL], tool_choice="auto", temperature=0).choices[0]
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, choice.message.content.strip()) == ("tool_calls", "hello")
    assert (call.type, call.function.name, json.loads(call.function.arguments)) == (
        "function", "weather", {"city": "Paris"},
    )  # fmt: skip


def test_tool_calls_in_chunks(calling):
    deltas = [c.choices[0].delta for c in calling.create(messages=HELLO, tools=[TOOL], temperature=0, stream=True)]
    assert "".join(d.get("content") or "" for d in deltas).strip() == "hello"
    (call,) = [call for delta in deltas for call in delta.get("tool_calls") or []]
    assert (call.index, call.function.name, json.loads(call.function.arguments)) == (0, "weather", {"city": "Paris"})


def test_models(client, model):
    listed = client.models.list()
    assert [entry.id for entry in listed.data] == [model.name]
    assert client.models.retrieve(model.name).object == "model"
    with pytest.raises(edgellm.InvalidArgumentError, match="gpt"):
        client.models.retrieve("gpt-4o")


def test_the_package_of_that_name_is_not_needed(client):
    import sys

    assert "openai" not in sys.modules
