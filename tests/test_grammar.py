"""Structured output: random answers under 30 schemas, what is refused, tokens, and the session afterwards."""

from __future__ import annotations

import gc
import json
import re
import signal
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("llguidance")
jsonschema = pytest.importorskip("jsonschema")

from grammar_random import random_schema  # noqa: E402
from grammar_schemas import ALL, BOUNDED, UNBOUNDED  # noqa: E402
from grammar_walk import byte_tokenizer, closing_bias, complete, parsed, walk  # noqa: E402
from tokenizer_helpers import small  # noqa: E402

import edgellm  # noqa: E402
from edgellm import cli  # noqa: E402
from edgellm.errors import GrammarError, InvalidArgumentError  # noqa: E402
from edgellm.grammar import check_form, compile_constraint  # noqa: E402
from edgellm.grammar.forms import schema_of  # noqa: E402
from edgellm.grammar.schema import ANNOTATIONS, KEYWORDS  # noqa: E402
from edgellm.grammar.vocabulary import GrammarVocabulary  # noqa: E402
from edgellm.tokenizers import Tokenizer  # noqa: E402
from edgellm.tokenizers.vocab import NORMAL  # noqa: E402

VOCABULARIES = Path(__file__).resolve().parent.parent.parent / "shared/data/vocab"
FORMATS = jsonschema.Draft202012Validator.FORMAT_CHECKER
PERSON = BOUNDED["person"]


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="module")
def model():
    with edgellm.load(n_ctx=512) as model:
        yield model


def check(schema, text):
    jsonschema.Draft202012Validator(schema, format_checker=FORMATS).validate(parsed(text))


# ---- random answers


@pytest.mark.parametrize("name", BOUNDED)
def test_bounded_answers_end_and_are_valid(tokenizer, name):
    make = compile_constraint(tokenizer, response_format=ALL[name])
    for seed in range(20):
        tokens, ended = walk(make(), tokenizer, np.random.default_rng(seed), 20_000)
        assert ended
        check(ALL[name], tokenizer.decode(tokens, skip_special=True))


@pytest.mark.parametrize("name", UNBOUNDED)
def test_answers_that_are_cut_off_are_valid_prefixes(tokenizer, name):
    """A valid text that begins with them is the proof; the validator knows nothing of grammars."""
    make = compile_constraint(tokenizer, response_format=ALL[name])
    for seed in range(20):
        rng = np.random.default_rng(seed)
        tokens, ended = walk(make(), tokenizer, rng, int(rng.integers(1, 120)))
        whole = tokens if ended else complete(make, tokenizer, tokens, rng)
        assert whole is not None and whole[: len(tokens)] == tokens
        check(ALL[name], tokenizer.decode(whole, skip_special=True))


def vocabularies():
    """All but BERT's, an encoder, which writes nothing."""
    found = sorted(path for path in VOCABULARIES.glob("*.gguf") if "bert" not in path.name)
    return found or [pytest.param(VOCABULARIES, marks=pytest.mark.skip(f"no {VOCABULARIES}"))]


@pytest.mark.parametrize("path", vocabularies(), ids=lambda path: path.stem.removeprefix("ggml-vocab-"))
def test_real_vocabularies(path):
    """What the decoder shows is what the grammar saw, at the start of a text and behind a template."""
    tokenizer = Tokenizer.from_file(path)
    for schema in (PERSON, ALL["article"], ALL["unicode"]):
        make = compile_constraint(tokenizer, response_format=schema)
        for seed, at_start in ((1, True), (2, False)):
            tokens, ended = walk(make(), tokenizer, np.random.default_rng(seed), 200, at_start)
            assert not set(tokens) & (tokenizer.control_ids | tokenizer.eog_ids)
            if ended:
                check(schema, tokenizer.decode(tokens, skip_special=True, at_start=at_start))


# ---- what is refused, and what is not


def test_random_schemas_are_refused_or_held_to(tokenizer):
    """Never a value that another validator refuses."""
    held = 0
    bias = closing_bias(tokenizer) / 15
    for seed in range(400):
        schema = random_schema(seed)
        try:
            make = compile_constraint(tokenizer, response_format=schema)
        except GrammarError:
            continue
        for i in range(4):
            try:
                tokens, ended = walk(make(), tokenizer, np.random.default_rng(i), 200, bias=bias if i else None)
            except GrammarError as error:  # nothing fits, which only the way there shows
                assert "no token of this model" in str(error)
                break
            if ended:
                check(schema, tokenizer.decode(tokens, skip_special=True))
                held += 1
    assert held > 500


@pytest.mark.parametrize(
    ("schema", "keyword", "pointer"),
    [({"items": {word: value}}, word, "#/items") for word, value in [
        ("uniqueItems", True), ("contains", {}), ("minContains", 1), ("maxContains", 1), ("not", {}), ("if", {}),
        ("then", {}), ("else", {}), ("dependentRequired", {}), ("dependentSchemas", {}), ("dependencies", {}),
        ("propertyNames", {}), ("unevaluatedItems", False), ("unevaluatedProperties", False), ("$anchor", "a"),
        ("$dynamicRef", "#a"), ("$id", "x"), ("nullable", True), ("minLenght", 3), ("x-guidance", {}),
        ("additionalItems", False), ("$ref", "http://example.com/x"), ("$ref", "#a"), ("items", [{}]),
    ]]
    + [
        ({"properties": {"a/b": {"not": {}}}}, "not", "#/properties/a~1b"),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"not": {}}}}, "not", "#/$defs/x"),
        ({"$ref": "#/$defs/y"}, "$ref", "#/$defs/y"),
        ({"$defs": {"x": {"$ref": "#/$defs/y"}, "y": {"$ref": "#/$defs/x"}}, "$ref": "#/$defs/x"}, "$ref", None),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "$ref": "#/$defs/x", "minLength": 1,
          "$defs": {"x": {}}}, "$ref", "#"),
        ({"$schema": "http://json-schema.org/draft-04/schema#"}, "$schema", "#"),
        ({"format": "iri"}, "format", "#/format"),
        ({"pattern": "(?=a)"}, "pattern", "#/pattern"),
        ({"patternProperties": {"\\bx": {}}}, "pattern", "#/patternProperties"),
        ({"type": "txt"}, "type", "#/type"),
        ({"minLength": -1}, "minLength", "#/minLength"),
        ({"maxItems": 1.5}, "maxItems", "#/maxItems"),
        ({"maxLength": 10**9}, "maxLength", "#/maxLength"),
        ({"minimum": 2**60}, "minimum", "#/minimum"),
        ({"minimum": float("nan")}, None, None),
        ({"multipleOf": 0}, "multipleOf", "#/multipleOf"),
        ({"multipleOf": 0.07}, "multipleOf", "#/multipleOf"),
        ({"enum": []}, "enum", "#/enum"),
        ({"enum": [1, 2**60]}, "enum", "#/enum/1"),
        ({"const": "\u0001"}, "const", "#/const"),
        ({"required": "a"}, "required", "#/required"),
        ({"properties": []}, "properties", "#/properties"),
        ({"anyOf": []}, "anyOf", "#/anyOf"),
        ({"items": 3}, None, "#/items"),
        ({"type": "object", "minProperties": 2}, "minProperties", "#"),
        (False, None, "#"),
    ],
)  # fmt: skip
def test_what_cannot_be_held_to_is_refused_with_its_place(tokenizer, schema, keyword, pointer):
    with pytest.raises(GrammarError) as caught:
        compile_constraint(tokenizer, response_format=schema)
    assert (caught.value.keyword, caught.value.pointer) == (keyword, pointer)


WORDS = st.sampled_from([*KEYWORDS, *sorted(ANNOTATIONS), "a"]) | st.text(max_size=3)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["object", "#"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_any_value_is_a_schema_or_refused(schema):
    try:
        check_form(response_format=schema)
    except GrammarError as error:
        assert str(error)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40) | st.text(alphabet='root:= "a[]()|*+?{1,}\\\n#-^', max_size=40))
def test_any_text_is_a_grammar_or_refused(text):
    for form in ({"grammar": text}, {"grammar": "root ::= " + text}, {"regex": text}, {"response_format": text}):
        try:
            check_form(**form)
        except GrammarError as error:
            assert str(error)


def nested(n):
    schema = {}
    for _ in range(n):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        nested(100),
        nested(5000),
        {"enum": ["x" * 1000] * 2000},
        {"properties": {str(i): {} for i in range(20_000)}},
        {"$defs": {str(i): {"anyOf": [{"$ref": f"#/$defs/{i + 1}"}] * 2} for i in range(60)} | {"60": {}},
         "$ref": "#/$defs/0"},
        {"allOf": [{"anyOf": [{"required": [f"{i}{j}"]} for j in range(6)]} for i in range(12)]},
        {"oneOf": [{"type": "string", "minLength": 1}, {"type": "string", "maxLength": 1}]},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"type": "string", "const": 1},
        {"minimum": 3, "maximum": 2, "type": "number"},
        '{"a": 1, "a": 2}',
        "{",
        "[" * 100_000,
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"schema": 5}},
        7,
        {1: 2},
        {"const": {1}},
    ],
    ids=range(18),
)  # fmt: skip
def test_hostile_schemas_are_refused(tokenizer, schema):
    with pytest.raises(GrammarError):
        compile_constraint(tokenizer, response_format=schema)


def test_a_large_schema_ends_in_an_answer_or_an_error(tokenizer):
    """llguidance counts its steps."""
    for schema in (
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(3000)}},
        {"type": "array", "minItems": 100_000, "items": {"type": "integer"}},
        {"type": "string", "maxLength": 1_000_000, "pattern": "(a|b|ab){900}"},
    ):
        try:
            compile_constraint(tokenizer, response_format=schema)().mask()
        except GrammarError as error:
            assert str(error)


class Model:
    @staticmethod
    def model_json_schema():
        return PERSON


@pytest.mark.parametrize(
    "form",
    [
        PERSON,
        json.dumps(PERSON),
        {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}},
        {"type": "json_schema", "name": "person", "schema": PERSON},
        {"type": "json_object", "schema": PERSON},
        Model,
    ],
)
def test_forms_of_a_schema(form):
    assert schema_of(form) == PERSON


def test_other_forms(tokenizer):
    assert schema_of("json") == schema_of({"type": "json_object"}) == {"type": "object"}
    assert schema_of({"type": "text"}) is None and compile_constraint(tokenizer) is None
    assert schema_of({"type": "string"}) == {"type": "string"}
    with pytest.raises(InvalidArgumentError):
        compile_constraint(tokenizer, response_format="json", regex="a")


NAMED = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("schema", "closed"),
    [
        (NAMED, True),
        (NAMED | {"required": ["a"]}, True),
        (NAMED | {"additionalProperties": True}, False),
        (NAMED | {"patternProperties": {"^b": True}}, False),
        (NAMED | {"required": ["b"]}, False),
        (NAMED | {"minProperties": 2, "required": ["a"]}, False),
        ({"type": "object"}, False),
        ({"anyOf": [NAMED, {"type": "null"}]}, True),
        ({"anyOf": [NAMED], "minProperties": 0}, False),
        ({"allOf": [NAMED, {"properties": {"b": True}}]}, False),
        ({"$defs": {"x": NAMED}, "$ref": "#/$defs/x"}, True),
        ({"$defs": {"x": NAMED}, "$ref": "#/$defs/x", "properties": {"b": True}}, False),
        ({"$defs": {"x": NAMED, "y": {"$ref": "#/$defs/x"}}, "allOf": [{"$ref": "#/$defs/y"}, {}]}, False),
        ({"oneOf": [NAMED, {"type": "string"}]}, True),
    ],
)
def test_objects_get_the_properties_that_they_name(tokenizer, schema, closed):
    """Stricter than the schema, and only where no other schema may add properties."""
    make = compile_constraint(tokenizer, response_format=schema)
    assert follows(tokenizer, make, '{"a":1}') or "required" in schema
    assert follows(tokenizer, make, '{"a":1,"b":2}') == (not closed)


def follows(tokenizer, make, text):
    """Whether the bytes of a text may be chosen one after the other."""
    constraint = make()
    constraint.begin(False)
    for byte in text.encode():
        token = tokenizer.id_of(f"<0x{byte:02X}>")
        if constraint.finished or not constraint.mask()[token]:
            return False
        constraint.accept(token)
    return True


# ---- tokens


def text_of(tokenizer, make, at_start, choose):
    """A text whose tokens `choose` picks out of (mask, tokens so far), as the decoder shows it."""
    constraint, tokens = make(), []
    constraint.begin(at_start)
    while not constraint.finished:
        token = choose(constraint.mask(), tokens)
        constraint.accept(token)
        if token in tokenizer.eog_ids:
            break
        tokens.append(token)
    return tokens, tokenizer.decode(tokens, skip_special=True, at_start=at_start)


def test_the_first_space_counts_as_the_decoder_shows_it(tokenizer):
    assert tokenizer.add_space_prefix
    spaced, plain, space = tokenizer.id_of("\u2581{"), tokenizer.id_of("{"), tokenizer.id_of("\u2581")
    make = compile_constraint(tokenizer, response_format="json")
    for at_start in (True, False):
        constraint = make()
        constraint.begin(at_start)
        mask = constraint.mask()
        assert mask[plain] and mask[spaced] == at_start and not mask[space]
    tokens, text = text_of(
        tokenizer, compile_constraint(tokenizer, regex=r"\{a"), True, lambda mask, t: int(np.flatnonzero(mask)[-1])
    )
    assert text == "{a" and tokens[0] == spaced
    make = compile_constraint(tokenizer, regex=" a")
    _, text = text_of(tokenizer, make, True, lambda mask, tokens: int(np.flatnonzero(mask)[0]))
    assert text == " a"  # through the byte, which keeps its space
    _, text = text_of(tokenizer, make, False, lambda mask, tokens: int(np.flatnonzero(mask)[-1]))
    assert text == " a"


def test_special_tokens_are_never_text(tokenizer):
    make = compile_constraint(tokenizer, regex=r"[\s\S]*")
    mask = make().mask()
    assert not mask[[0, 1, tokenizer.id_of("<|tool|>")]].any()
    assert set(np.flatnonzero(mask[list(tokenizer.eog_ids)])) == set(range(len(tokenizer.eog_ids)))
    assert mask[tokenizer.id_of('{"ok":')]  # a user-defined piece is text
    assert len(tokenizer.eog_ids) == 2


def test_end_tokens_only_where_the_text_may_end(tokenizer):
    constraint = compile_constraint(tokenizer, regex="ab?")()
    ends = list(tokenizer.eog_ids)
    assert not constraint.mask()[ends].any() and not constraint.finished
    constraint.accept(tokenizer.id_of("a"))
    assert constraint.mask()[ends].all() and not constraint.finished
    constraint.accept(ends[0])
    assert constraint.finished


def test_a_token_that_was_not_allowed(tokenizer):
    for token in (tokenizer.id_of("x"), 1, 2):
        constraint = compile_constraint(tokenizer, regex="ab")()
        constraint.mask()
        with pytest.raises(GrammarError, match="not allowed here"):
            constraint.accept(token)


def test_a_vocabulary_that_cannot_spell_it():
    tokenizer = small([("a", -1.0, NORMAL), ("b", -2.0, NORMAL)], eos_token_id=2)
    constraint = compile_constraint(tokenizer, regex="a[cd]")()
    constraint.begin(True)
    assert constraint.mask().tolist() == [False, False, False, True, False]
    constraint.accept(3)
    with pytest.raises(GrammarError, match="no token of this model"):
        constraint.mask()


def test_answers_do_not_share_anything(tokenizer):
    make = compile_constraint(tokenizer, regex="ab|cd")
    one, other = make(), make()
    one.mask()
    one.accept(tokenizer.id_of("a"))
    assert other.mask()[tokenizer.id_of("c")] and not one.mask()[tokenizer.id_of("d")]


def test_one_vocabulary_per_tokenizer():
    tokenizer = byte_tokenizer()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(GrammarVocabulary.of, [tokenizer] * 8))
    assert all(each is found[0] for each in found)
    gone = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert gone() is None


def test_what_to_do_without_the_package():
    code = (
        "import sys; sys.modules['llguidance'] = None\n"
        "import edgellm\nfrom edgellm.grammar import compile_constraint\n"
        "try:\n    compile_constraint(edgellm.load().tokenizer, regex='a')\n"
        "except edgellm.GrammarError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "pip install 'edgellm[grammar]'" in done.stdout, done.stderr


# ---- in a model


def test_an_answer_of_the_model(model):
    messages = [{"role": "user", "content": "Who are you?"}]
    result = model.chat(messages, response_format=PERSON, seed=1)
    check(PERSON, result.text)
    assert result.finish_reason == "stop"
    again = "".join(event.text for event in model.chat(messages, response_format=PERSON, seed=1, stream=True))
    assert again == result.text
    for seed in range(5):
        assert re.fullmatch(r"\d{4} (BC|AD)", model.generate("In the year", regex=r"\d{4} (BC|AD)", seed=seed).text)


def test_length_cuts_a_valid_prefix(model):
    make = compile_constraint(model.tokenizer, response_format=PERSON)
    for n in (1, 5, 20):
        result = model.generate("Once", response_format=PERSON, max_tokens=n, seed=n)
        assert result.finish_reason == "length" and len(result.token_ids) == n
        whole = complete(make, model.tokenizer, list(result.token_ids), np.random.default_rng(0), at_start=False)
        text = model.tokenizer.decode(whole, skip_special=True, at_start=False)
        check(PERSON, text)
        assert text.startswith(result.text)


def test_a_form_that_cannot_be_held_to_reaches_the_caller_before_the_call(model):
    with pytest.raises(GrammarError, match="uniqueItems"):
        model.generate("x", response_format={"uniqueItems": True})


def ask_and_compare(chat, fresh):
    """The session answers as one that has seen nothing else."""
    one, two = chat.send("And you?", max_tokens=12, seed=5), fresh.send("And you?", max_tokens=12, seed=5)
    assert one.token_ids == two.token_ids


def test_a_dead_end_leaves_the_session_usable(model):
    """The grammar wants a character after the number that no token can give: known only on the way."""
    with model.session(exact=True) as chat, model.session(exact=True) as fresh:
        with pytest.raises(GrammarError):
            chat.send("hi", grammar='start: "a" (NEVER | NEVER "b")\nNEVER: /b/ & /c/', max_tokens=10)
        assert chat.messages == []
        ask_and_compare(chat, fresh)


@pytest.mark.parametrize("keep", [True, False])
def test_stopping_in_the_middle_leaves_the_session_usable(model, keep):
    essay = {"type": "array", "items": {"type": "string", "minLength": 50}, "minItems": 50}
    with model.session(exact=True) as chat, model.session(exact=True) as fresh:
        stream = chat.send("hi", response_format=essay, stream=True, seed=1)
        text = next(iter(stream)).text
        stream.stop() if keep else stream.cancel()
        if keep:
            assert stream.result.finish_reason == "cancelled" and stream.result.text.startswith(text)
            assert len(chat.messages) == 2
            chat.undo()
        else:
            assert chat.messages == []
        ask_and_compare(chat, fresh)


def test_ctrl_c_in_the_middle_leaves_the_session_usable(model):
    essay = {"type": "array", "items": {"type": "string", "minLength": 50}, "minItems": 50}
    with model.session(exact=True) as chat, model.session(exact=True) as fresh:

        def interrupt(event, seen=[]):  # noqa: B006 (once: a second one would reach whatever comes next)
            if not seen:
                seen.append(event)
                signal.raise_signal(signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            chat.send("hi", response_format=essay, on_token=interrupt, seed=1)
        assert chat.messages == []
        ask_and_compare(chat, fresh)


# ---- the command


@pytest.fixture
def run(capsys):
    """`edgellm run` with the built-in model: (exit code, stdout, stderr)."""

    def run(*args):
        code = cli.execute(["run", *map(str, args), "-p", "Who are you?", "-s", "1"])
        return code, *capsys.readouterr()

    return run


def test_run_with_a_schema_a_grammar_and_an_expression(run, tmp_path):
    text = json.dumps(PERSON)
    (tmp_path / "person.json").write_text(text)
    (tmp_path / "answer.gbnf").write_text('root ::= "yes" | "no"')
    given = (("-j", text), ("-j", tmp_path / "person.json"), ("-jf", tmp_path / "person.json"))
    answers = {run(*args)[1] for args in given}
    assert len(answers) == 1
    check(PERSON, answers.pop())
    assert run("--grammar-file", tmp_path / "answer.gbnf")[1] in ("yes\n", "no\n")
    assert run("--grammar", 'root ::= "yes"')[1] == run("--regex", "yes")[1] == "yes\n"
    code, out, err = run("--format", "json", "-n", 3)
    assert code == 0 and out.startswith("{") and "cut off" in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("-j", '{"uniqueItems": true}'), "uniqueItems"),
        (("-j", '{"type":'), "not JSON"),
        (("-j", "missing.json"), "no such file"),
        (("--regex", "("), "cannot be held to"),
        (("--grammar", "x"), "neither GBNF"),
        (("--regex", "a", "--format", "json"), "give one form"),
    ],
)
def test_run_refuses_a_form_before_it_loads_a_model(run, monkeypatch, args, message):
    monkeypatch.setattr(edgellm, "load", None)
    code, out, err = run(*args)
    assert code == 2 and message in err and not out
