"""Renders of real templates against transformers: SHA-256 sums that `tools/template_parity.py --write` made."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from unittest import mock

import pytest
from template_chats import CHATS, NOW, TOKENS

from edgellm.errors import EdgeLLMError, InvalidArgumentError, TemplateError
from edgellm.template import ChatTemplate, sandbox

SUMS = json.loads((Path(__file__).parent / "template_sums.json").read_text(encoding="utf-8"))["sums"]


def outcome(template: ChatTemplate, chat: str) -> str:
    try:
        text = str(template.render(**CHATS[chat]))
    except EdgeLLMError:
        return "fails"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def test_renders_are_those_of_transformers(shared_data: Path) -> None:
    paths = sorted((shared_data / "templates").glob("*.jinja"))
    assert [path.name for path in paths] == list(SUMS)
    with mock.patch.object(sandbox, "datetime") as clock:
        clock.now.return_value = NOW
        for path in paths:
            template = ChatTemplate(path.read_text(encoding="utf-8"), **TOKENS)
            assert {chat: outcome(template, chat) for chat in CHATS} == SUMS[path.name], path.name


def test_sums_say_something() -> None:
    assert len(SUMS) >= 60 and len(CHATS) >= 8
    sums = [s for made in SUMS.values() for s in made.values()]
    assert all(list(made) == list(CHATS) for made in SUMS.values())
    assert sum(s != "fails" for s in sums) > 1000 and len(set(sums)) > 600


# ---- ending inside the last message ----------------------------------------------------------------------------------

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content|trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OPEN = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "One, two, "}]


def test_a_message_that_is_continued() -> None:
    made = ChatTemplate(CHATML).render(OPEN, continue_final_message=True)
    assert str(made) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nOne, two,"
    kept = ChatTemplate(CHATML.replace("|trim", "")).render(OPEN, continue_final_message=True)
    assert str(kept).endswith("assistant\nOne, two, ")
    assert kept.parts[-1] == ("One, two, ", False)
    assert OPEN[1]["content"] == "One, two, "


def test_reasoning_that_is_continued() -> None:
    template = ChatTemplate("{{ messages[-1].reasoning_content }}</think>{{ messages[-1].content }}")
    chat = [{"role": "assistant", "thinking": "let me", "content": ""}]
    assert str(template.render(chat, continue_final_message="thinking")) == "let me"


@pytest.mark.parametrize(
    "chat, field, kind",
    [
        ([], True, InvalidArgumentError),
        ([{"role": "user"}], True, InvalidArgumentError),
        ([{"role": "user", "content": 5}], True, InvalidArgumentError),
        ([{"role": "user", "content": [{"type": "image"}]}], True, InvalidArgumentError),
        ([{"role": "user", "content": "a", "other": "b"}], "other", TemplateError),
    ],
)
def test_what_cannot_be_continued(chat: list[dict], field: bool | str, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        ChatTemplate(CHATML).render(chat, continue_final_message=field)


def test_a_template_that_drops_the_message_cannot_be_continued() -> None:
    with pytest.raises(TemplateError, match="leaves out"):
        ChatTemplate("{{ messages[-1].content[:1] }}").render(OPEN, continue_final_message=True)
    with pytest.raises(InvalidArgumentError, match="exclude"):
        ChatTemplate(CHATML).render(OPEN, add_generation_prompt=True, continue_final_message=True)


@pytest.mark.parametrize("messages", [None, "text", {"role": "user"}, 5])
def test_messages_must_be_a_list(messages: object) -> None:
    with pytest.raises(InvalidArgumentError, match="must be a list"):
        ChatTemplate(CHATML).render(messages)  # type: ignore[arg-type]
