"""What tools gave, in a session: it goes on with the turn of its question, however the template writes it."""

from __future__ import annotations

import pytest
from helpers import tiny_llama_gguf

import edgellm

# Two ways in which templates write what a tool gave: as a part of its own, or as one of the user's.
OWN = "{% set names = {} %}"
HERMES = "{% set names = {'tool': 'user'} %}"
CHAT = (
    "{% for m in messages %}<|im_start|>{{ names.get(m.role, m.role) }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN = {"temperature": 0, "max_tokens": 4}


@pytest.fixture(scope="module", params=[OWN, HERMES], ids=["own", "hermes"])
def model(tmp_path_factory, request):
    template = {"tokenizer.chat_template": request.param + CHAT}
    path = tiny_llama_gguf(tmp_path_factory.mktemp("tools") / "chat.gguf", **template)
    with edgellm.load(path, backend="reference") as model:
        yield model


def gave(text: str) -> dict[str, str]:
    return {"role": "tool", "content": text, "tool_call_id": "a"}


def test_one_result_and_several_at_once(model):
    with model.session(**PLAIN) as chat:
        for question in ("hello", gave("world"), [gave("once"), gave("upon")], "time"):
            said = [*chat.messages, *([question] if isinstance(question, dict) else [])]
            said += question if isinstance(question, list) else []
            said += [{"role": "user", "content": question}] if isinstance(question, str) else []
            result = chat.send(question)
            assert result.token_ids == model.chat(said, **PLAIN).token_ids
            assert chat.messages == [*said, result.message]
        assert [m["role"] for m in chat.messages if m["role"] != "assistant"] == [
            "user",
            "tool",
            "tool",
            "tool",
            "user",
        ]
        chat.undo()
        assert chat.undo() == gave("once")
        assert [m["content"] for m in chat.messages[::2]] == ["hello", "world"]


@pytest.mark.parametrize("system", [None, "be brief"])
def test_turns_are_dropped_with_what_their_tools_gave(model, system):
    """What stays begins with a user's question, and the cache holds what the template writes of it."""
    with model.session(system, overflow="drop-turns", **PLAIN) as chat:
        opening = [{"role": "system", "content": system}] if system else []
        for i in range(30):
            chat.send(f"hello {i}")
            if i % 3:
                chat.send(gave(f"world {i}") if i % 2 else [gave("once"), gave(f"upon {i}")])
            first = chat.dropped_messages
            assert chat.messages[first]["role"] == "user"
            text = model.apply_template([*opening, *chat.messages[first:]], add_generation_prompt=False)
            assert text.startswith(chat._said.text)
            assert len(text) - len(chat._said.text) <= len("<|im_end|>\n")
            assert chat.context.used <= model.n_ctx
        assert chat.dropped_messages > 10


def test_what_a_tool_gave_is_never_left_alone(model):
    with model.session(overflow="drop-turns", **PLAIN) as chat:
        chat.send("hello")
        with pytest.raises(edgellm.ContextOverflowError):
            chat.send(gave("hello " * 300))
        assert len(chat.messages) == 2
        chat.send(gave("world"))


@pytest.mark.parametrize(
    "question", [[], [gave("a"), {"role": "user", "content": "b"}], [3], 3, [gave("a"), "b"]], ids=str
)
def test_what_is_no_question(model, question):
    with model.session() as chat, pytest.raises(edgellm.InvalidArgumentError):
        chat.send(question)


def test_saved_and_loaded(model, tmp_path):
    with model.session(**PLAIN) as chat:
        chat.send("hello")
        chat.send([gave("once"), gave("upon")])
        chat.save(tmp_path / "a.edgesession")
        with edgellm.Session.load(model, tmp_path / "a.edgesession") as again:
            assert again.messages == chat.messages
            assert again.send(gave("time")).token_ids == chat.send(gave("time")).token_ids
