"""Templates from strangers: each of the corpus ends in a TemplateError, soon, and without much memory."""

from __future__ import annotations

# ruff: noqa: E501 (a template reads best on one line)
import threading
import time
import tracemalloc

import pytest
from template_hostile import HOSTILE

from edgellm.errors import TemplateError
from edgellm.template import ChatTemplate
from edgellm.template.budget import Budget, current

MESSAGES = [{"role": "user", "content": "{0.__class__.__mro__}"}]
LIMIT_SECONDS, LIMIT_BYTES = 0.2, 64 * 2**20


def attempt(template: str) -> float:
    """Seconds of processor time that the refusal took; other processes do not count."""
    start = time.thread_time()
    with pytest.raises(TemplateError) as info:
        ChatTemplate(template, bos_token="<s>").render(MESSAGES)
    seconds = time.thread_time() - start
    assert "\n" not in str(info.value) and len(str(info.value)) < 1000
    return seconds


def test_the_corpus_is_large() -> None:
    assert len(HOSTILE) >= 50 and len(set(HOSTILE.values())) == len(HOSTILE)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_end_soon_and_small(name: str) -> None:
    ChatTemplate("{{ 'a'|upper }}").render([])  # what is imported once is not on the bill
    assert min(attempt(HOSTILE[name]) for _ in range(3)) < LIMIT_SECONDS
    tracemalloc.start()
    try:
        attempt(HOSTILE[name])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < LIMIT_BYTES


def test_every_thread_has_its_own_budget() -> None:
    good = ChatTemplate("{% for m in messages %}{% for i in range(99) %}{{ m.content|upper }}{% endfor %}{% endfor %}")
    bad = ChatTemplate("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")
    outcomes: list[str] = []

    def work(template: ChatTemplate) -> None:
        for _ in range(5):
            try:
                outcomes.append(str(template.render([{"role": "user", "content": "x"}])))
            except TemplateError as e:
                outcomes.append("steps" if "steps" in str(e) else str(e))

    threads = [threading.Thread(target=work, args=(t,)) for t in (good, bad, good, bad)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["X" * 99] * 10 + ["steps"] * 10
    assert current().used == (0, 0)


def test_a_budget_counts_what_is_used() -> None:
    budget = Budget(10, 100)
    budget.step(4)
    budget.text(60)
    assert budget.used == (4, 60)
    with pytest.raises(Exception, match="more than 100 characters"):
        budget.text(41)
    with pytest.raises(Exception, match="more than 10 steps"):
        budget.step(7)


def test_no_template_runs_without_a_budget() -> None:
    from edgellm.template.sandbox import compile_template

    template = compile_template("{{ 'a' }}")
    with pytest.raises(Exception, match="more than 0"):
        template.render()


@pytest.mark.parametrize(
    "template, want",
    [
        ("{{ 'abc'|center(9) }}|{{ 'a\tb'.expandtabs(4) }}|{{ '7'.zfill(3) }}", "   abc   |a   b|007"),
        ("{{ 'a\n\nb'|indent }}|{{ 'a\n\nb'|indent(2, true, true) }}", "a\n\n    b|  a\n  \n  b"),
        ("{{ [3, 1, 2]|sort|join(',') }} {{ [1, 2, 3]|sum }} {{ [[1], [2]]|sum(start=[]) }}", "1,2,3 6 [1, 2]"),
        ("{{ range(5)|batch(2, 'x')|list }} {{ range(4)|slice(2)|list }}", "[[0, 1], [2, 3], [4, 'x']] [[0, 1], [2, 3]]"),
        ("{{ 'hello wORLD-x'|title }} {{ 'a b'|wordcount }} {{ ' a '|trim }}", "Hello World-X 2 a"),
        ("{{ 1 < 2 < 3 }} {{ 1 < 2 > 3 }} {{ 'a' in 'cab' }} {{ 1 not in [1] }} {{ 3 > 1 > 2 }}",
         "True False True False False"),
        ("{{ '%(a)s-%(b)03d' % {'a': 'x', 'b': 5} }} {{ '%5.1f|%-4s|' % (1.25, 'ab') }}", "x-005   1.2|ab  |"),
        ("{{ '{:>5}|{a!r}'.format('x', a='y') }}", "    x|'y'"),
        ("{{ {'b': [1, {'c': 'd'}], 1: none}|tojson(indent=2) }}",
         '{\n  "b": [\n    1,\n    {\n      "c": "d"\n    }\n  ],\n  "1": null\n}'),
        ("{{ [1, 2]|map('string')|map('upper')|list }} {{ {'a': 1}|items|list }}", "['1', '2'] [('a', 1)]"),
        ("{{ messages|groupby('role')|map(attribute='grouper')|join }} {{ [1, 1, 2]|unique|list }}", "user [1, 2]"),
        ("{{ 'a<b'|e }} {{ '<i>'|safe + '<' }} {{ 5|round(2) }} {{ '12'|int + 1 }}", "a&lt;b <i>&lt; 5 13"),
        ("{{ dict(a=1).items()|list }} {{ dict.fromkeys(['a'], 2) }} {{ cycler(1, 2).next() }}", "[('a', 1)] {'a': 2} 1"),
        ("{{ [1, 2, 3][::-1] }} {{ 'abcd'[1:3] }} {{ (1, 2)[0] }} {{ 'x,y'.split(',') }}", "[3, 2, 1] bc 1 ['x', 'y']"),
        ("{% macro m(a, b=2) %}{{ a }}{{ b }}{{ varargs|join }}{% endmacro %}{{ m(1) }}{{ m(1, 3, *[4, 5]) }}", "121345"),
    ],
)  # fmt: skip
def test_what_is_priced_still_works(template: str, want: str) -> None:
    assert str(ChatTemplate(template).render([{"role": "user", "content": "x"}])) == want


def test_long_chats_are_not_refused() -> None:
    text = "{% set ns = namespace(out='') %}{% for m in messages %}{% set ns.out = ns.out ~ '<' ~ m.role ~ '>' ~ m.content|trim %}"
    text += "{% for n in messages %}{% if n.role == 'system' %}{% endif %}{% endfor %}{% endfor %}{{ ns.out }}"
    chat = [{"role": "user", "content": "some words " * 20}] * 300
    assert len(str(ChatTemplate(text).render(chat))) > 300 * 200
