"""Which file of a repository a reference means."""

from __future__ import annotations

import random
import re

import pytest

from edgellm.errors import ModelReferenceError
from edgellm.hub import Reference
from edgellm.hub.choice import ORDER, choose, group_parts, part_names, quant_label

REPO = [
    "README.md", ".gitattributes", "model-Q2_K.gguf", "model-Q4_K_M.gguf", "model-Q4_K_S.gguf", "model-Q8_0.gguf",
    "model-f16.gguf", "mmproj-model-f16.gguf", "model-UD-Q4_K_M.gguf", "imatrix.gguf",
]  # fmt: skip
SPLIT = [f"big/Q8_0/big-Q8_0-{i:05d}-of-00003.gguf" for i in (1, 2, 3)]


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("a-Q4_K_M.gguf", "Q4_K_M"), ("a.q4_k_m.gguf", "Q4_K_M"), ("a-IQ2_XXS.gguf", "IQ2_XXS"), ("a-fp16.gguf", "F16"),
        ("a-UD-Q2_K_XL.gguf", "UD-Q2_K_XL"), ("Q6_K/part.gguf", "Q6_K"), ("a-BF16.gguf", "BF16"), ("a.gguf", None),
        ("a-MXFP4_MOE.gguf", "MXFP4_MOE"), ("a-mxfp4.gguf", "MXFP4"), ("a-TQ1_0.gguf", "TQ1_0"), ("Q4_K_MX.gguf", None),
        ("f16-to-Q4_0.gguf", "Q4_0"), (SPLIT[1], "Q8_0"), ("a-Q4_K.gguf", "Q4_K"), ("aQ4_0.gguf", None),
    ],
)  # fmt: skip
def test_labels(name: str, label: str | None) -> None:
    assert quant_label(name) == label


@pytest.mark.parametrize(
    ("quant", "file"),
    [
        ("Q4_K_M", "model-Q4_K_M.gguf"), ("q8_0", "model-Q8_0.gguf"), ("F16", "model-f16.gguf"),
        ("UD-Q4_K_M", "model-UD-Q4_K_M.gguf"), ("ud-q4_k_m", "model-UD-Q4_K_M.gguf"), (None, "model-Q4_K_M.gguf"),
    ],
)  # fmt: skip
def test_one_quantisation_of_several(quant: str | None, file: str) -> None:
    assert choose(REPO, Reference("o/r", quant)) == [file]


def test_without_a_quantisation_the_order_decides() -> None:
    """Whatever the repository lacks, the first of ORDER that it has is taken."""
    numbers = random.Random(0)
    for _ in range(50):
        there = numbers.sample(ORDER, 4)
        best = min(there, key=ORDER.index)
        assert choose([f"m-{q}.gguf" for q in there], Reference("o/r")) == [f"m-{best}.gguf"]
    assert choose(["only-Q2_K.gguf", "mmproj-F16.gguf"], Reference("o/r")) == ["only-Q2_K.gguf"]


def test_a_name_that_is_no_label_is_found_as_a_word() -> None:
    assert choose(["m-special.gguf", "m-specials.gguf"], Reference("o/r", "special")) == ["m-special.gguf"]


def test_a_file_is_taken_as_it_is() -> None:
    assert choose(REPO, Reference("o/r", file="mmproj-model-f16.gguf")) == ["mmproj-model-f16.gguf"]
    assert choose(SPLIT, Reference("o/r", file=SPLIT[1])) == SPLIT


def test_split_models_are_all_their_parts() -> None:
    assert choose([*REPO[:4], *SPLIT], Reference("o/r", "Q8_0")) == SPLIT
    assert group_parts([*SPLIT[:2], "x.gguf"]) == {"x.gguf": ["x.gguf"]}  # a part is missing: there is no such model
    assert part_names(SPLIT[2]) == SPLIT
    assert part_names("a-00001-of-99999.gguf") == ["a-00001-of-99999.gguf"]


@pytest.mark.parametrize(
    ("names", "ref", "said"),
    [
        (REPO, Reference("o/r", "Q5_K_M"), r"there are: F16, Q2_K, Q4_K_M, Q4_K_S, Q8_0, UD-Q4_K_M$"),
        (REPO, Reference("o/r", file="x.gguf"), r"no file x\.gguf; GGUF files there: imatrix\.gguf"),
        (["a-Q4_0.gguf", "b-Q4_0.gguf"], Reference("o/r"), r"several files fit.*a-Q4_0\.gguf, b-Q4_0\.gguf"),
        (["a-Q4_0.gguf", "b-Q4_0.gguf"], Reference("o/r", "Q4_0"), r"several files fit"),
        (["a.gguf", "b.gguf"], Reference("o/r"), r"several files fit"),
        (["model.safetensors", "mmproj.gguf"], Reference("o/r"), r"no GGUF files.*: mmproj\.gguf"),
        (SPLIT[:2], Reference("o/r", file=SPLIT[0]), r"no file .*00003-of-00003"),
    ],
)
def test_what_is_not_there_or_not_one(names: list[str], ref: Reference, said: str) -> None:
    with pytest.raises(ModelReferenceError) as caught:
        choose(names, ref)
    assert re.search(said, str(caught.value)) and caught.value.exit_code == 2
