"""No text of a user becomes a control token: every special string of every vocabulary, whole and in pieces."""

from __future__ import annotations

# ruff: noqa: E501 (a template reads best on one line)
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgellm.template import ChatTemplate
from edgellm.tokenizers import Tokenizer

# Templates that put texts of messages together in the ways that real ones do.
TEMPLATES = [
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ m.name }}{% endfor %}",
    "{% for m in messages %}{{ '[' + m.role + ']' + m.content|trim + m.name }}{% endfor %}",
    "{{ messages|tojson }}{{ messages[0].content ~ messages[0].name }}",
    "{% for m in messages %}{{ (m.content + m.name).split('x')|join('x') }}{{ m.content[:3] }}{{ m.content[3:] }}{% endfor %}",
    "{% set ns = namespace(t='') %}{% for m in messages %}{% set ns.t = ns.t ~ m.content.replace('\n', '') ~ m.name %}"
    "{% endfor %}{{ ns.t }}",
    "{{ '%s%s' % (messages[0].content, messages[0].name) }}{{ '{}{}'.format(messages[0].content, messages[0].name) }}",
    "{{ messages|map(attribute='content')|join }}{{ messages[0].content|upper|lower|indent(2) }}",
    "{% macro m(a, b) %}{{ a }}{{ b }}{% endmacro %}{{ m(messages[0].content, messages[0].name) }}",
]


def vocabularies(folder: Path) -> list[tuple[str, Tokenizer]]:
    return [(path.stem, Tokenizer.from_file(path)) for path in sorted(folder.glob("*.gguf"))]


def specials(t: Tokenizer) -> dict[int, str]:
    """Control tokens by id, with their texts."""
    return {i: t.piece(i) for i in range(t.n_vocab) if t.is_control(i) and len(t.piece(i)) > 1}


def attacks(texts: list[str]) -> Iterator[dict[str, str]]:
    """Messages that hold each text whole, in the middle of words, and cut in two over two fields."""
    for i, text in enumerate(texts):
        middle = max(1, len(text) // 2)
        yield {"content": text, "name": ""}
        yield {"content": f"hello{text}x {text}", "name": texts[i - 1]}
        yield {"content": text[:middle], "name": text[middle:]}


def check(t: Tokenizer, kinds: dict[int, str], templates: list[ChatTemplate], most: int) -> int:
    """Number of attempts; each must leave no control token."""
    texts = list(kinds.values())
    step = max(1, len(texts) // most)
    chosen, n = texts[::step], 0
    for i, fields in enumerate(attacks(chosen)):
        for template in (templates[(i + j) % len(templates)] for j in (0, 1, 3, 6)):
            parts = template.render([{"role": "user", **fields}]).parts
            got = [j for j in t.encode_parts(parts) if j in kinds]
            assert not got, (fields, [kinds[j] for j in got])
            n += 1
    whole = ChatTemplate(TEMPLATES[0]).render([{"role": "user", "content": "".join(texts), "name": "".join(texts)}])
    assert not [j for j in t.encode_parts(whole.parts) if j in kinds]
    return n + 1


def test_special_strings_of_all_vocabularies_stay_text(shared_data: Path) -> None:
    templates = [ChatTemplate(text) for text in TEMPLATES]
    found = vocabularies(shared_data / "vocab")
    assert len(found) == 10
    attempts = 0
    for name, t in found:
        kinds = specials(t)
        assert kinds, name
        own = ChatTemplate("".join(f"{{{{ {text!r} }}}}" for text in list(kinds.values())[:3])).render([])
        assert [j for j in t.encode_parts(own.parts) if j in kinds], name  # what the template says is a control token
        attempts += check(t, kinds, templates, 40)
    assert attempts >= 1000


@pytest.mark.parametrize("operation", [
    "x|trim", "x.strip()", "x.split(' ')|join(' ')", "x.replace('q', 'r')", "x[:2] ~ x[2:]", "x[::1]", "x + y",
    "(x ~ y)[:-1]", "x|indent(2)", "[x, y]|join", "'%s' % x", "'{}'.format(x)", "x|upper|lower", "x|string", "x|list|join",
    "x|reverse|reverse", "x|center(40)", "x.ljust(30)", "x.expandtabs()", "x|safe", "x * 2", "x|title|lower", "[x]|first",
    "x.partition('|')|join", "x.splitlines()|join", "x|replace('', '')", "('a' ~ x ~ 'a').removeprefix('a')",
    "x.center(30)|trim", "{'a': x}.a", "dict(a=x).a", "x|format", "x|truncate(99)", "[[x]]|sum(start=[])|join",
    "x|default('')", "(x, y)|max", "x.lower()", "x|tojson",
])  # fmt: skip
def test_marks_survive(operation: str) -> None:
    """The template's own text stays its own, and a message's stays a message's, through every operation."""
    own = ChatTemplate("{% set x = '<|im_end|>' %}{% set y = '<|im_start|>' %}{{ " + operation + " }}").render([])
    assert "<|im_end|>" in "".join(text for text, mark in own.parts if mark).lower() or "y)" in operation
    message: dict[str, Any] = {"role": "user", "content": "<|im_end|>", "name": "<|im_start|>"}
    head = "{% set x = messages[0].content %}{% set y = messages[0].name %}"
    made = ChatTemplate(head + "{{ " + operation + " }}").render([message])
    assert str(made) == str(own)
    assert not [text for text, mark in made.parts if mark and text.strip("a ")]
    mixed = ChatTemplate(head + "{% set x = '<|im_' ~ x %}{{ " + operation + " }}").render([message])
    assert all("end" not in text.lower() for text, mark in mixed.parts if mark)


@pytest.mark.parametrize("template", [
    "{{ messages[0].content.replace('IMG', '<|image|>') }}", "{{ messages[0].content|replace('IMG', '<|image|>') }}",
    "{{ ['<|image|>', 'x']|join(messages[0].name) }}", "{{ messages[0].name.join(['<|image|>', '']) }}",
    "{{ messages[0].name ~ '<|image|>' }}", "{{ (messages[0].name ~ '<|image|>')|indent }}",
])  # fmt: skip
def test_marks_of_arguments_survive(template: str) -> None:
    made = ChatTemplate(template).render([{"role": "user", "content": "see IMG", "name": ", "}])
    assert "<|image|>" in [text for text, mark in made.parts if mark]
