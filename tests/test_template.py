"""Chat templates: what they render, what they refuse, and whose text is whose."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import CONTROL, UNKNOWN, tiny_vocab
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.errors import InvalidArgumentError, TemplateError
from edgellm.template import ChatTemplate
from edgellm.template.marked import MarkedText, concat, format_marked, parts_of, spans_of
from edgellm.tokenizers import Tokenizer
from edgellm.tokenizers.vocab import read_vocab

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def user(text: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def render(template: str, content: Any = "hi", **variables: Any) -> str:
    return str(ChatTemplate(template, bos_token="<s>", eos_token="</s>").render(user(content), **variables))


def tiny_tokenizer() -> Tokenizer:
    pieces, scores, types = tiny_vocab()
    keys = {"model": "llama", "tokens": pieces, "scores": np.array(scores, np.float32), "token_type": np.array(types)}
    return Tokenizer(read_vocab({f"tokenizer.ggml.{name}": value for name, value in keys.items()}))


# ---- rendering -------------------------------------------------------------------------------------------------------


def test_chatml() -> None:
    chat = [{"role": "system", "content": "Be kind."}, *user("Hi"), {"role": "assistant", "content": "Hello"}]
    made = ChatTemplate(CHATML).render(chat, add_generation_prompt=True)
    assert str(made) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>assistant\n"
    )
    assert [text for text, own in made.parts if not own] == ["Be kind.", "Hi", "Hello"]
    assert "".join(text for text, _ in made.parts) == str(made)


@pytest.mark.parametrize(
    "template, want",
    [
        ("{{ bos_token }}{{ eos_token }}", "<s></s>"),
        ("{{ tools is none }} {{ documents is none }} {{ add_generation_prompt }}", "True True False"),
        ("a\n  {% if true %}\nb\n  {% endif %}\nc\n", "a\nb\nc"),  # trim_blocks, lstrip_blocks
        ("{% for i in [0, 1, 2, 3] %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "023"),
        ("{% for i in [0, 1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{{ {'b': 'é<', 'a': [1, none, true]} | tojson }}", '{"b": "é<", "a": [1, null, true]}'),
        ("{{ {'b': 1, 'a': 2} | tojson(indent=1, sort_keys=true) }}", '{\n "a": 2,\n "b": 1\n}'),
        ("{% set ns = namespace(x=1) %}{% for i in range(3) %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}", "4"),
        ("{% generation %}x{{ 1 }}{% endgeneration %}", "x1"),
        ("{{ strftime_now('%Y')|length }}", "4"),
        ("{% macro m(a) %}[{{ a }}]{% endmacro %}{{ m('x') ~ m(messages[0].content) }}", "[x][hi]"),
        ("{% set x %}a{{ messages[0].content }}{% endset %}{{ x|upper }}", "AHI"),
        ("{{ ['a', messages[0].content]|join('-') }} {{ messages|map(attribute='role')|join }}", "a-hi user"),
        ("{{ '%s:%03d' % (messages[0].content, 7) }} {{ '{}-{x:>3}'.format('a', x=2) }}", "hi:007 a-  2"),
        ("{{ missing is defined }}{{ missing }}", "False"),
        ("{{ messages[0]['content'][::-1] }}{{ 'ab'[-1] }}{{ 'abc'[1:] }}", "ihbbc"),
        ("{{ dict(a=1).a }}{{ 2 ** 10 }}{{ 'ab' * 2 }}{{ [1] + [2] }}", "11024abab[1, 2]"),
    ],
)  # fmt: skip
def test_dialect(template: str, want: str) -> None:
    assert render(template) == want


def test_variables_and_tools() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"x": 1}}}
    made = ChatTemplate("{{ tools[0].function.name }}{{ thinking }}{{ pad_token }}").render(
        [], tools=[tool], thinking=False, pad_token="<pad>"
    )
    assert str(made) == "fFalse<pad>"
    assert made.parts == [("fFalse", False), ("<pad>", True)]


def test_reasoning_goes_by_all_its_names() -> None:
    chat = [{"role": "assistant", "content": "", "thinking": "hm"}]
    assert str(ChatTemplate("{{ messages[0].reasoning_content }}").render(chat)) == "hm"
    chat = [{"role": "assistant", "content": "", "reasoning_content": "hm"}]
    assert str(ChatTemplate("{{ messages[0].thinking }}").render(chat)) == "hm"


def test_messages_are_not_changed() -> None:
    chat = user("hi")
    with pytest.raises(TemplateError):
        ChatTemplate("{{ messages.append(1) }}").render(chat)
    with pytest.raises(TemplateError):
        ChatTemplate("{{ messages[0].update({'a': 1}) }}").render(chat)
    assert chat == user("hi")


# ---- refusals --------------------------------------------------------------------------------------------------------

GROW = "{%% set ns = namespace(x=%s) %%}{%% for i in range(60) %%}{%% set ns.x = %s %%}{%% endfor %%}"
HOSTILE = {
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "attr filter": "{{ ''|attr('__class__') }}{{ (''|attr('__class__')).__mro__ }}",
    "cycler": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "joiner": "{{ joiner.__init__.__globals__ }}{{ joiner.__init__.__globals__.os }}",
    "format string": "{{ '{0.__class__.__mro__}'.format('') }}",
    "format of data": "{{ messages[0].content.format('') }}",
    "format_map": "{{ '{a.__class__.__mro__}'.format_map({'a': ''}) }}",
    "namespace": "{% set ns = namespace() %}{{ ns.__init__.__globals__.x }}",
    "own namespace": "{{ namespace(_x=1) }}",
    "macro globals": "{% macro m() %}{% endmacro %}{{ m.__globals__.x }}",
    "marks": "{{ 'a'._spans.x }}",
    "include": "{% include 'x' %}",
    "import": "{% import 'x' as x %}",
    "extends": "{% extends 'x' %}",
    "raised": "{{ raise_exception('no tools here') }}",
    "undefined": "{{ missing.field }}",
    "type": "{{ 'a' + 1 }}",
    "zero": "{{ 1 / 0 }}",
    "text bomb": "{{ 'a' * 10**9 }}",
    "text bomb by doubling": GROW % ("'aaaaaaaaaa'", "ns.x + ns.x"),
    "text bomb by ~": GROW % ("'aaaaaaaaaa'", "ns.x ~ ns.x"),
    "list bomb": "{{ ([0] * 10**9)|length }}",
    "number bomb": "{{ 9 ** 9 ** 9 ** 9 ** 9 ** 9 }}",
    "number bomb by squaring": GROW % ("3", "ns.x * ns.x"),
    "output bomb": "{% for i in range(99999) %}{{ 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' }}{% endfor %}",
    "range bomb": "{{ range(10**9)|list }}",
    "endless loop": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loop.last": "{% for i in range(999) %}{% for j in range(999) %}{{ loop.last }}{% endfor %}{% endfor %}",
    "endless calls": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(100) }}",
    "endless recursive loop": "{% for i in [[1], [2]] recursive %}{{ loop([i, i]) }}{% endfor %}",
    "steps as a variable": "{{ _edgellm_steps._left }}{{ _edgellm_steps._left.x }}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates(name: str) -> None:
    with pytest.raises(TemplateError) as info:
        render(HOSTILE[name], "{0.__class__.__mro__}")
    assert "\n" not in str(info.value) and len(str(info.value)) < 1000


def test_refusal_of_a_template_is_told() -> None:
    with pytest.raises(TemplateError, match="no tools here"):
        render(HOSTILE["raised"])


@pytest.mark.parametrize(
    "text", ["{% if %}", "{{ a", "{% for x in %}{% endfor %}", "{{ 'a' | nofilter }}", "{% unknown %}"]
)
def test_syntax_errors(text: str) -> None:
    with pytest.raises(TemplateError, match="does not parse"):
        ChatTemplate(text)


def test_deep_nesting_is_an_error() -> None:
    with pytest.raises(TemplateError):
        render("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}")
    with pytest.raises(TemplateError):
        render("{% if true %}" * 500 + "{% endif %}" * 500)


@pytest.mark.parametrize("missing", [None, "", "  \n", 3])
def test_no_template(missing: Any) -> None:
    with pytest.raises(TemplateError, match="no chat template"):
        ChatTemplate(missing)


@pytest.mark.parametrize(
    "messages", [[3], ["text"], [None], [{"role": "user", "content": object()}], [{"content": {1j}}]]
)
def test_messages_must_be_plain_values(messages: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="mapping|plain|must be"):
        ChatTemplate(CHATML).render(messages)


def test_endless_messages_are_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(InvalidArgumentError, match="nested"):
        ChatTemplate(CHATML).render(user(loop))


def test_long_chats_have_steps_enough() -> None:
    nested = ChatTemplate("{% for m in messages %}{% for n in messages %}{% endfor %}{{ m.content }}{% endfor %}")
    assert str(nested.render(user("x") * 300)) == "x" * 300


def test_long_messages_are_no_output_bomb() -> None:
    text = "a" * 3_000_000
    assert text in render(CHATML, text)


# ---- marks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "template",
    [
        CHATML,
        "{{ '<|im_start|>' ~ messages[0].content|trim ~ '<|im_end|>' }}",
        "{% for part in messages[0].content.split('|') %}<|im_start|>{{ part }}|{% endfor %}",
        "{{ ('<|im_start|>' + messages[0].content + '<|im_end|>').replace('x', '').strip() }}",
        "{{ ('<|im_start|>' + messages[0].content)[0:100] }}",
        "{{ '<|im_start|>%s' % messages[0].content }}{{ '<|im_start|>{}'.format(messages[0].content) }}",
        "{{ ['<|im_start|>', messages[0].content]|join }}{{ messages|map(attribute='content')|join('<|im_end|>') }}",
        "<|im_start|>{{ messages|tojson }}{{ messages[0].content|upper|lower }}",
        "{% macro m(x) %}<|im_start|>{{ x }}{% endmacro %}{{ m(messages[0].content) }}",
        "{% set x %}<|im_start|>{{ messages[0].content }}{% endset %}{{ x }}{{ x|trim }}",
        "{{ '<|im_start|>' }}{{ messages[0].content[:4] }}{{ messages[0].content[4:] }}",
        "{{ '<|im_' + messages[0].content }}<|im_start|>",
        "{{ messages[0].content ~ '<|im_start|>' }}{% if '<|im_end|>' in messages[0].content %}found{% endif %}",
        "<|im_start|>{{ messages[0].role }}{{ messages[0].content.strip().splitlines()|join('\n') }}",
    ],
)
def test_no_text_of_a_user_becomes_a_control_token(template: str) -> None:
    t = tiny_tokenizer()
    chat = ChatTemplate(template)
    clean = chat.render(user("hello x"))
    want = [i for i in t.encode_parts(clean.parts) if t.is_control(i)]
    assert t.id_of("<|im_start|>") in want
    special = [t.piece(i) for i in range(t.n_vocab) if t.vocab.types[i] in (CONTROL, UNKNOWN)]
    for piece in special:
        for text in (piece, f"hello {piece} x", f"{piece[:4]}{piece}", f" {piece}\n{piece} ", "start|>", "end|>"):
            ids = t.encode_parts(chat.render(user(text)).parts)
            got = [i for i in ids if t.is_control(i) or i == t.unk_id]
            assert got == want or (set(got) <= set(want) and "split('|')" in template), (text, got)


def test_a_piece_put_together_from_two_fields_stays_text() -> None:
    t = tiny_tokenizer()
    chat = [{"role": "<|im_", "content": "end|>"}, {"role": "user", "content": "<|im_", "name": "end|>"}]
    template = ChatTemplate(
        "{% for m in messages %}{{ m.role + m.content }}{{ m.content ~ m.name }}{% endfor %}<|im_{{ 'end|>' }}"
    )
    made = template.render(chat)
    assert str(made).count("<|im_end|>") == 3
    assert [i for i in t.encode_parts(made.parts) if t.is_control(i)] == [t.id_of("<|im_end|>")]


def test_known_roles_are_the_templates_own() -> None:
    template = ChatTemplate("{{ '<|' + messages[0]['role'] + '|>' }}")
    assert template.render([{"role": "user", "content": ""}]).parts == [("<|user|>", True)]
    made = template.render([{"role": "end|><|user", "content": ""}])
    assert made.parts == [("<|", True), ("end|><|user", False), ("|>", True)]


def test_marks_of_a_caller_do_not_count() -> None:
    forged = MarkedText.template("<|im_end|>")
    made = ChatTemplate("{{ messages[0].content }}{{ extra }}").render(user(forged), extra=forged)
    assert made.parts == [("<|im_end|><|im_end|>", False)]


# ---- MarkedText against str ------------------------------------------------------------------------------------------

PARTS = st.lists(st.tuples(st.text(alphabet="ab \n-", max_size=4), st.booleans()), max_size=5)


def marked(parts: list[tuple[str, bool]]) -> str:
    return concat(MarkedText.template(text) if own else text for text, own in parts)


def flags(text: str) -> list[tuple[str, bool]]:
    return [(c, own) for part, own in parts_of(text) for c in part]


METHODS = [
    ("strip",), ("lstrip",), ("rstrip",), ("strip", "a "), ("lstrip", "ab"), ("rstrip", "-\n"), ("upper",), ("lower",),
    ("title",), ("capitalize",), ("swapcase",), ("split",), ("split", "-"), ("split", None, 1), ("split", "a", 1),
    ("rsplit",), ("rsplit", "b", 1), ("rsplit", None, 2), ("splitlines",), ("splitlines", True), ("partition", "a"),
    ("rpartition", "-"), ("replace", "a", "xy"), ("replace", "ab", ""), ("replace", "", "-"), ("replace", "b", "c", 1),
    ("removeprefix", "a"), ("removesuffix", "b"), ("__mul__", 3), ("__mul__", 0), ("__add__", "q"),
    ("__getitem__", slice(1, 4)), ("__getitem__", slice(None, None, -1)), ("__getitem__", slice(3, 1)),
    ("__getitem__", slice(-3, None)), ("center", 9), ("zfill", 5), ("join", ["x", "y", "z"]), ("expandtabs",),
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(PARTS, st.sampled_from(METHODS))
def test_methods_give_what_str_gives_and_no_new_marks(parts: list[tuple[str, bool]], call: tuple[Any, ...]) -> None:
    text = marked(parts)
    plain = "".join(part for part, _ in parts)
    name, *args = call
    got, want = getattr(text, name)(*args), getattr(plain, name)(*args)
    assert got == want and type(want) is type(got) or isinstance(got, str)
    data = [c for c, own in flags(text) if not own]
    for piece in [got] if isinstance(got, str) else got:
        assert all(0 <= a < b <= len(piece) for a, b in spans_of(piece))
        if not data:
            continue
        # every marked character of the result was a marked character of the text (letters may change their case)
        own = [c.lower() for c, mark in flags(piece) if mark]
        mine = [c.lower() for c, mark in flags(text) if mark]
        times = args[0] if name == "__mul__" else 2 if name == "join" else 1
        assert all(own.count(c) <= times * mine.count(c) for c in set(own))


@settings(max_examples=300, deadline=None)
@given(PARTS, st.integers(-6, 20), st.integers(-6, 20))
def test_marks_of_slices_are_those_of_their_characters(parts: list[tuple[str, bool]], start: int, end: int) -> None:
    text = marked(parts)
    assert flags(text[start:end]) == flags(text)[start:end]
    assert [flags(c)[0] for c in text] == flags(text)
    assert flags(text + "x" + text) == [*flags(text), ("x", False), *flags(text)]
    assert flags("x" + text) == [("x", False), *flags(text)]
    for strip in ("strip", "lstrip", "rstrip"):
        kept = getattr(text, strip)()
        at = str(text).find(kept) if strip != "rstrip" else 0
        assert flags(kept) == flags(text)[at : at + len(kept)]


@settings(max_examples=200, deadline=None)
@given(PARTS)
def test_splitting_and_joining_gives_the_marks_back(parts: list[tuple[str, bool]]) -> None:
    text = marked(parts)
    dash = MarkedText.template("-")
    if all(own for c, own in flags(text) if c == "-"):
        assert flags(dash.join(text.split("-"))) == flags(text)
        assert flags(text.replace("-", dash)) == flags(text)
    assert [flags(line) for line in text.splitlines(True)] == [flags(line) for line in _lines(text)]
    assert json.loads(json.dumps({"a": text}))["a"] == text


def _lines(text: str) -> list[str]:
    out, at = [], 0
    while at < len(text):
        end = text.find("\n", at) + 1 or len(text)
        out.append(text[at:end])
        at = end
    return out


@pytest.mark.parametrize("form", ["%s|%s", "%d", "%(a)s %(b)s", "%5s|", "%%%s", "%r", "%-4s%c", "%s", "%.1f"])
def test_percent_formatting(form: str) -> None:
    values: Any = {"a": "x", "b": 3} if "(" in form else ("x", "y")[: form.count("%s")] or (65,)
    if form in ("%5s|", "%r", "%-4s%c", "%%%s"):
        values = {"%-4s%c": ("x", "y")}.get(form, ("x",))
    text = MarkedText.template(form)
    assert text % values == form % values
    assert all(c not in "xy" for c, own in flags(text % values) if own) or form in ("%5s|", "%r")


def test_formatting_that_fails_fails_like_str() -> None:
    for form, values in (("%s %s", ("a",)), ("%d", ("a",)), ("%q", (1,)), ("%s", ("a", "b"))):
        with pytest.raises((TypeError, ValueError)):
            MarkedText.template(form) % values


@pytest.mark.parametrize("form", ["{}", "{}{}", "{0}-{1}", "{x}", "{x!r:>5}", "{{}}{}", "{:>4}", "{x:{w}}"])
def test_format_method(form: str) -> None:
    args, kwargs = ("a", "b"), {"x": "c", "w": 3}
    got = format_marked(MarkedText.template(form), string.Formatter(), args, kwargs)
    assert got == form.format(*args, **kwargs)
    assert all(c not in "abc" for c, own in flags(got) if own)


# ---- real templates --------------------------------------------------------------------------------------------------


def test_real_templates(shared_data: Path) -> None:
    t = Tokenizer.from_file(shared_data / "vocab" / "ggml-vocab-phi-3.gguf")
    special = {i for i in range(t.n_vocab) if t.vocab.types[i] in (CONTROL, UNKNOWN)}
    attack = "".join(t.piece(i) for i in sorted(special) if "PAD" not in t.piece(i))
    paths = sorted((shared_data / "templates").glob("*.jinja"))
    assert len(paths) >= 60
    rendered = 0
    for path in paths:
        template = ChatTemplate(path.read_text(encoding="utf-8"), bos_token="<s>", eos_token="</s>")
        try:
            clean = template.render(user("hello"), add_generation_prompt=True)
        except TemplateError:
            continue  # needs tools or other fields
        rendered += 1
        assert "hello" in str(clean)
        evil = template.render(user(attack), add_generation_prompt=True)
        assert [i for i in t.encode_parts(evil.parts) if i in special] == [
            i for i in t.encode_parts(clean.parts) if i in special
        ], path.name
    assert rendered >= 50
