"""Where turns begin: in made-up templates, and in those of the models that people use."""

from __future__ import annotations

import pytest

from edgellm.errors import EdgeLLMError
from edgellm.template import ChatTemplate
from edgellm.turns import (
    common_prefix,
    cut,
    first_question,
    question_header,
    question_starts,
    text_of,
    token_offsets,
)

END = "{% if add_generation_prompt %}<|a|>{% endif %}"
SIMPLE = "{% for m in messages %}<|{{ m.role[0] }}|>{{ m.content }}<|end|>{% endfor %}" + END
MISTRAL = (
    "<s>{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% else %}{{ m.content }}</s>"
    "{% endif %}{% endfor %}"
)
SYSTEM = {"role": "system", "content": "Be kind."}


def render(template):
    made = ChatTemplate(template, bos_token="<s>", eos_token="</s>")
    return lambda messages, new: made.render(messages, add_generation_prompt=new).parts


def say(n, system=True):
    """A system message and n turns, the last one without its answer."""
    roles = [{"role": role, "content": f"{role} {i}"} for i in range(n) for role in ("user", "assistant")]
    return [SYSTEM] * system + roles[:-1]


@pytest.mark.parametrize(
    ("template", "header"),
    [
        (SIMPLE, "<|u|>"),
        ("<|s|>You are kind.<|end|>" + SIMPLE, "<|end|><|u|>"),  # closes whatever was before
        ("{{ messages[0].content }}" + SIMPLE, None),  # nothing stands before the first question
        (MISTRAL, "[INST]"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", None),
        ("{% for m in messages %}{{ raise_exception('no') }}{% endfor %}", None),
        ("{{ messages[0].content }}", None),  # forgets what is said later
        ("Q: {% for m in messages %}{{ m.content }}{% if not loop.last %}\nQ: {% endif %}{% endfor %}", "Q: "),
    ],
)
def test_headers(template, header):
    assert question_header(render(template)) == header


def test_a_person_cannot_write_a_header():
    parts = render(SIMPLE)([{"role": "user", "content": "<|u|>"}, *say(2, system=False)], True)
    assert text_of(parts).count("<|u|>") == 4 and len(question_starts(parts, "<|u|>")) == 3


def test_the_first_turn():
    header = question_header(render(SIMPLE))
    text = text_of(render(SIMPLE)(say(1), True))
    at = first_question(render(SIMPLE), say(1), header)
    assert text[at:].startswith(header) and "Be kind." in text[:at]
    for content in ("0", "1", "00", "", " 0", "Be kind."):
        message = {"role": "user", "content": content}
        assert first_question(render(SIMPLE), [SYSTEM, message], header) == at
    assert first_question(render(MISTRAL), say(1, system=False), "[INST]") == len("<s>")
    folded = "<s>[INST]{{ messages | map(attribute='content') | join('; ') }}[/INST]"
    assert first_question(render(folded), say(1), "[INST]") == len("<s>[INST]Be kind.; ")


def test_cuts_keep_marks():
    parts = [("ab", True), ("cd", False), ("ef", True)]
    for start in range(7):
        for end in [None, *range(start, 7)]:
            assert text_of(cut(parts, start, end)) == "abcdef"[start:end]
    assert cut(parts, 1, 5) == [("b", True), ("cd", False), ("e", True)]
    assert common_prefix([1, 2, 3], [1, 2]) == 2 and common_prefix([], [1]) == 0 and common_prefix([1], [2]) == 0


def test_offsets_of_tokens():
    """A tokenizer whose tokens are pairs of letters: one that goes across an offset lies behind it."""
    def encode(parts, at_start):
        text = text_of(parts)
        return [text[i : i + 2] for i in range(0, len(text), 2)]

    parts = [("abcdefgh", True)]
    ids = encode(parts, True)
    assert token_offsets(parts, ids, [0, 2, 4, 8], encode, True) == [0, 1, 2, 4]
    assert token_offsets(parts, ids, [1, 2, 5, 6], encode, True) == [0, 1, 2, 3]


def templates(shared_data):
    return sorted((shared_data / "templates").glob("*.jinja"))


def test_templates_of_models(shared_data):
    """Cutting a turn out leaves what the template itself writes without this turn, for all that take a system message
    and have no other place for it than the beginning."""
    exact = []
    for path in templates(shared_data):
        of = render(path.read_text(encoding="utf-8"))
        try:
            header = question_header(of)
            parts, kept = of(say(3), True), text_of(of([SYSTEM, *say(3)[3:]], True))
            begin = first_question(of, say(1), header)
        except EdgeLLMError:
            continue  # a template that needs tools, or takes no system message
        starts = [begin, *(at for at in question_starts(parts, header) if at > begin)]
        text = text_of(parts)
        assert len(starts) == 3, path.name
        if text[:begin] + text[starts[1] :] == kept:
            exact.append(path.name)
    assert len(exact) >= 54
