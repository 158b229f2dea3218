"""Text of tokens as they come: whole characters, and stop strings that never show."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import tiny_vocab
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.errors import InvalidArgumentError
from edgellm.tokenizers import StopMatcher, StreamDecoder, Tokenizer
from edgellm.tokenizers.vocab import read_vocab


def _tokenizer() -> Tokenizer:
    pieces, scores, types = tiny_vocab()
    keys = {"model": "llama", "tokens": pieces, "scores": np.array(scores, np.float32), "token_type": np.array(types)}
    return Tokenizer(read_vocab({f"tokenizer.ggml.{name}": value for name, value in keys.items()}))


TOKENIZER = _tokenizer()
IDS = st.lists(st.one_of(st.integers(0, TOKENIZER.n_vocab - 1), st.integers(3, 258)), max_size=40)


@settings(max_examples=200, deadline=None)
@given(IDS, st.booleans(), st.booleans())
def test_pieces_joined_are_the_whole(ids: list[int], skip_special: bool, at_start: bool) -> None:
    stream = StreamDecoder(TOKENIZER, skip_special, at_start)
    pieces = [stream.push(i) for i in ids]
    pieces.append(stream.flush())
    assert "".join(pieces) == TOKENIZER.decode(ids, skip_special, at_start)
    for piece in pieces:
        piece.encode()  # no half of a surrogate pair


@pytest.mark.parametrize("text", ["é", "日", "🙂", "e\u0301", "👩\u200d👩\u200d👧", "\x00", "a🙂b"])
def test_a_character_comes_whole_with_its_last_byte(text: str) -> None:
    ids = [3 + b for b in text.encode()]  # byte tokens only
    stream = StreamDecoder(TOKENIZER)
    pieces = [stream.push(i) for i in ids]
    assert "".join(pieces) == text and stream.flush() == ""
    assert [p for p in pieces if p] == list(text)
    assert all("\ufffd" not in p for p in pieces)


def test_broken_characters_become_replacement_characters() -> None:
    stream = StreamDecoder(TOKENIZER)
    assert stream.push(3 + 0xF0) == "" == stream.push(3 + 0x9F)
    assert stream.push(3 + ord("a")) == "\ufffda"  # the letter shows that the character will not be completed
    assert stream.push(3 + 0xE6) == ""
    assert stream.flush() == "\ufffd"
    assert StreamDecoder(TOKENIZER).flush() == ""


def test_the_first_space_goes_with_the_start_only() -> None:
    hello = TOKENIZER.id_of("▁hello")
    assert StreamDecoder(TOKENIZER).push(hello) == "hello"
    stream = StreamDecoder(TOKENIZER, at_start=False)
    assert [stream.push(hello), stream.push(hello)] == [" hello", " hello"]
    stream = StreamDecoder(TOKENIZER, skip_special=True)
    assert [stream.push(1), stream.push(hello), stream.push(2), stream.push(hello)] == ["", "hello", "", " hello"]


def test_ids_outside_the_vocabulary_are_refused() -> None:
    for wrong in (-1, TOKENIZER.n_vocab, None):
        with pytest.raises(InvalidArgumentError):
            StreamDecoder(TOKENIZER).push(wrong)


# ---- stop strings ----------------------------------------------------------------------------------------------------


def _first_stop(text: str, stops: list[str]) -> tuple[str, str | None]:
    """What StopMatcher promises, said slowly: the text before the stop that is complete first, and that stop."""
    for end in range(len(text) + 1):
        done = [stop for stop in stops if text[:end].endswith(stop)]
        if done:
            stop = max(done, key=len)
            return text[: end - len(stop)], stop
    return text, None


STOPS = st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.text(alphabet="abc", max_size=5), max_size=8), STOPS)
def test_stops_do_not_depend_on_how_the_text_comes(chunks: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    shown = []
    for chunk in chunks:
        shown.append(matcher.push(chunk))
        assert not any(stop in "".join(shown) for stop in stops)
    shown.append(matcher.flush())
    assert ("".join(shown), matcher.stopped) == _first_stop("".join(chunks), stops)


def test_stop_strings_are_held_back_and_dropped() -> None:
    matcher = StopMatcher(["\nUser:"])
    assert matcher.push("hi\nUs") == "hi"
    assert matcher.push("ual") == "\nUsual"
    assert matcher.push("\n") == ""
    assert matcher.push("User: more") == "" and matcher.stopped == "\nUser:"
    assert matcher.push("later") == "" == matcher.flush()


def test_held_text_comes_at_the_end() -> None:
    matcher = StopMatcher(["stop"])
    assert matcher.push("a st") == "a "
    assert matcher.flush() == "st" and matcher.stopped is None
    assert StopMatcher().push("anything") == "anything"


@pytest.mark.parametrize("wrong", [[""], [3], [None], ["a", ""]])
def test_stop_strings_must_be_text(wrong: list[object]) -> None:
    with pytest.raises(InvalidArgumentError, match="stop strings"):
        StopMatcher(wrong)
