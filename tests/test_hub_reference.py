"""References to models of the hub: what is read, what is refused, and that nothing read can leave a folder."""

from __future__ import annotations

from pathlib import PurePosixPath, PureWindowsPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgellm.errors import ModelReferenceError
from edgellm.hub import Reference, is_reference, parse
from edgellm.hub.reference import is_safe_name, is_safe_revision

GOOD = {
    "hf:o/r": Reference("o/r"),
    "o/r": Reference("o/r"),
    "HF:Org-1/Some.Model_2-GGUF:q4_k_m": Reference("Org-1/Some.Model_2-GGUF", "q4_k_m"),
    "hf:o/r@v1.0": Reference("o/r", revision="v1.0"),
    "hf:o/r:Q8_0@refs/pr/3": Reference("o/r", "Q8_0", revision="refs/pr/3"),
    "hf:o/r@main:Q8_0": Reference("o/r", "Q8_0", revision="main"),
    "hf:o/r/a.gguf": Reference("o/r", file="a.gguf"),
    "hf:o/r/sub/a b.GGUF@main": Reference("o/r", file="sub/a b.GGUF", revision="main"),
    "hf:o/r/odd@name.gguf": Reference("o/r", file="odd@name.gguf"),
}
BAD = [
    "hf:", "hf:o", "hf:/r", "hf:o/", "hf:../r", "hf:o/..", "hf:o/r/../../x.gguf", "hf:o/r//x.gguf", "hf:o/r/x.bin",
    "hf:o/r/c:x.gguf", "hf:o/r/a\\b.gguf", "hf:o/r/a\nb.gguf", "hf:o/r/ .gguf/x.gguf", "hf:o/r:", "hf:o/r:..",
    "hf:o/r@", "hf:o/r@../../x", "hf:o/r@-x", "hf:o/r@/etc", "hf://o/r", "https://example.org/o/r", "hf:o/r:a:b",
    "hf:o--p/r", "hf:o/" + "r" * 2000,
]  # fmt: skip


@pytest.mark.parametrize("text", GOOD)
def test_good_ones(text: str) -> None:
    assert parse(text) == GOOD[text]
    assert parse(str(GOOD[text])) == GOOD[text]


@pytest.mark.parametrize("text", BAD)
def test_bad_ones(text: str) -> None:
    with pytest.raises(ModelReferenceError) as caught:
        parse(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1200


def test_options_add_and_contradict() -> None:
    assert parse("hf:o/r", quant="Q8_0", revision="v1") == Reference("o/r", "Q8_0", revision="v1")
    assert parse("hf:o/r:Q8_0", quant="q8_0") == Reference("o/r", "Q8_0")
    for bad in ({"quant": "Q4_0"}, {"revision": "x/.."}):
        with pytest.raises(ModelReferenceError):
            parse("hf:o/r:Q8_0", **bad)
    with pytest.raises(ModelReferenceError, match="not both"):
        parse("hf:o/r/a.gguf", quant="Q8_0")


def test_is_reference() -> None:
    assert is_reference("hf:x") and not is_reference("x.gguf") and not is_reference(None)


@given(st.text(max_size=60) | st.text("aZ0:/@.-_\\ ~\0\n", max_size=40).map("hf:a/b".__add__))
@example("hf:a/b/.gguf")
def test_whatever_is_read_stays_in_its_folder(text: str) -> None:
    try:
        found = parse(text)
    except ModelReferenceError:
        return
    assert parse(str(found)) == found
    for part in (found.repo, found.file, found.revision):
        if part is not None:
            for kind in (PurePosixPath, PureWindowsPath):
                path = kind("root") / part
                assert path.is_relative_to("root") and ".." not in path.parts and len(path.parts) > 1


@given(st.text("ab./\\:@ -\0é", max_size=30))
def test_names_of_a_listing_stay_below_their_folder(name: str) -> None:
    for check, text in ((is_safe_name, name + ".gguf"), (is_safe_revision, name)):
        if check(text):
            assert ".." not in PureWindowsPath(text).parts and not PureWindowsPath(text).anchor
            assert not PurePosixPath(text).is_absolute()
