"""Every error is an EdgeLLMError with one clear line and the right exit code."""

from __future__ import annotations

import inspect
import pickle

import pytest

from edgellm import errors
from edgellm.errors import EdgeLLMError, ModelFormatError, one_line

EXAMPLES: dict[type[EdgeLLMError], EdgeLLMError] = {
    type(e): e
    for e in (
        EdgeLLMError("something failed"),
        ModelFormatError("bad magic", path="m.gguf", offset=0, field="magic", value=b"GGUX", limit=b"GGUF", rule="H2"),
        errors.MissingKeyError("no key", field="a.b"),
        errors.WrongKeyTypeError("wrong type", field="a.b"),
        errors.MissingTensorError("no tensor", field="a.b"),
        errors.UnsupportedArchitectureError("foo", ["llama"]),
        errors.UnsupportedQuantError("no Q4_K"),
        errors.UnsupportedFeatureError("no su scaling", field="rope"),
        errors.TokenizerError("no scores"),
        errors.TemplateError("line 3: unexpected end"),
        errors.GrammarError("cannot be enforced", keyword="not", pointer="/properties/a"),
        errors.ModelFileNotFoundError("m.gguf"),
        errors.ModelReferenceError("hf:o/r", "there are several", ["Q4_0", "Q8_0"]),
        errors.DownloadError("no answer", reference="hf:o/r", status=500, kept=12),
        errors.MissingPackageError("pull", "hub"),
        errors.ModelFileChanged("m.gguf"),
        errors.DraftModelError("d.gguf", "m.gguf", "token 7 is 'a' in one", token=7),
        errors.OutputError("disk full", path="o.gguf", needed=10, free=5),
        errors.ConvertError("no config.json", path="folder"),
        errors.NotEnoughMemoryError(3 << 30, 1 << 30, ["--n-ctx 2048"]),
        errors.QueueFullError(3, 3),
        errors.ContextOverflowError(300, 256),
        errors.NonFiniteError("blk.0.attn_q", "nan at row 3"),
        errors.BackendError("no kernel", 5),
        errors.Cancelled(),
        errors.ModelClosedError(),
        errors.InvalidArgumentError("temp must be >= 0"),
    )
}
EXIT_CODES = {
    2: {"ModelFileNotFoundError", "ModelReferenceError", "GrammarError", "InvalidArgumentError"},
    3: {"ModelFormatError", "MissingKeyError", "WrongKeyTypeError", "MissingTensorError", "UnsupportedQuantError",
        "UnsupportedArchitectureError", "UnsupportedFeatureError", "TokenizerError", "ConvertError",
        "SessionFileError", "DraftModelError"},
    4: {"NotEnoughMemoryError"},
}  # fmt: skip


def all_classes() -> list[type[EdgeLLMError]]:
    return [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, EdgeLLMError)]


@pytest.mark.parametrize("kind", all_classes(), ids=lambda c: c.__name__)
def test_each_error(kind: type[EdgeLLMError]) -> None:
    error = EXAMPLES.get(kind) or kind("something failed")
    assert isinstance(error, EdgeLLMError) and kind.__doc__
    assert str(error) and "\n" not in str(error)
    expected = next((code for code, names in EXIT_CODES.items() if kind.__name__ in names), 1)
    assert error.exit_code == expected


def test_standard_types_still_catch_them() -> None:
    assert isinstance(EXAMPLES[errors.ModelFileNotFoundError], FileNotFoundError)
    assert isinstance(EXAMPLES[errors.InvalidArgumentError], ValueError)


def test_a_format_error_says_what_and_where() -> None:
    error = EXAMPLES[ModelFormatError]
    text = "m.gguf: bad magic (rule H2, offset 0, field magic, value b'GGUX', limit b'GGUF')"
    assert str(error) == text
    assert (error.path, error.offset, error.field, error.rule) == ("m.gguf", 0, "magic", "H2")
    assert str(ModelFormatError("only a message")) == "only a message"
    assert str(EXAMPLES[errors.UnsupportedArchitectureError]).startswith("model family 'foo' is not supported")
    assert str(EXAMPLES[errors.NotEnoughMemoryError]).endswith("try: --n-ctx 2048")
    overflow = str(EXAMPLES[errors.ContextOverflowError])
    assert "300 tokens" in overflow and "256" in overflow


def test_hostile_names_and_values_stay_on_one_short_line() -> None:
    evil = "a\nb\r\x1b[31m\u2028\ud800\0" + "x" * 100000
    for error in (
        ModelFormatError("m\nm" + evil, path=evil, field=evil, value=evil, limit=evil, rule="K1"),
        errors.UnsupportedArchitectureError(evil, ["llama"], path=evil),
        errors.ModelFileNotFoundError(evil),
        errors.NonFiniteError(evil),
        errors.OutputError(evil, path=evil),
    ):
        text = str(error)
        assert text.isprintable() and len(text) < 4000
        text.encode("utf-8")


def test_one_line_keeps_ordinary_text() -> None:
    assert one_line("größe 日本 ok") == "größe 日本 ok"
    assert one_line(b"\xff") == "b'\\xff'" and one_line((1, 2)) == "(1, 2)"
    assert one_line("x" * 200) == "x" * 120 + "..."


def test_pickles_keep_the_message() -> None:
    """Errors cross process borders (worker pools) as pickles."""
    for error in EXAMPLES.values():
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error) and str(copy) == str(error)
        assert copy.__dict__ == error.__dict__ and copy.exit_code == error.exit_code
