"""Which files of a repository are the model that a reference asks for."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..errors import ModelReferenceError
from .reference import Reference

# What is taken where a repository has several quantisations and none is asked for: the first of these that is there.
ORDER = (
    "Q4_K_M", "Q4_K_S", "Q4_0", "Q4_1", "IQ4_NL", "IQ4_XS", "Q5_K_M", "Q5_K_S", "Q5_0", "Q5_1", "Q6_K", "Q8_0",
    "F16", "BF16", "F32",
)  # fmt: skip
_SPLIT = re.compile(r"(?P<stem>.*)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.DOTALL | re.IGNORECASE)
_LABEL = re.compile(
    r"(?<![A-Z0-9])(?P<label>(?:UD-)?(?:I?Q[1-8]_(?:[01]|XXS|XS|NL|[SML]|K(?:_(?:XL|XS|[SML]))?)|TQ[12]_0|"
    r"MXFP4(?:_MOE)?|BF16|FP?16|FP?32))(?![A-Z0-9_])",
    re.IGNORECASE,
)
_ASIDE = re.compile(r"(^|/)(mmproj|imatrix)|[-_.](mmproj|imatrix)[-_.]", re.IGNORECASE)  # belong to a model, are none


def quant_label(name: str) -> str | None:
    """Name of the quantisation in a file's name, else in that of its folder: Q4_K_M, UD-Q2_K_XL, F16, ...; or None."""
    for part in reversed(name.split("/")):
        found = list(_LABEL.finditer(part))
        if found:
            label = found[-1]["label"].upper()
            return label.replace("FP", "F", 1) if label.startswith("FP") else label
    return None


def group_parts(names: Iterable[str]) -> dict[str, list[str]]:
    """First file -> all files of each model among `names`: a split model is its parts in order, if all are there."""
    there = sorted({name for name in names if name.lower().endswith(".gguf")})
    groups: dict[str, list[str]] = {}
    for name in there:
        part = _SPLIT.fullmatch(name)
        if part is None:
            groups[name] = [name]
        elif int(part["number"]) == 1:
            parts = part_names(name)
            if set(parts) <= set(there):
                groups[name] = parts
    return groups


def part_names(name: str) -> list[str]:
    """All parts of the model that `name` is one part of; a file that is no part stands alone."""
    part = _SPLIT.fullmatch(name)
    if part is None or not 0 < int(part["number"]) <= int(part["count"]) <= 512:
        return [name]
    ending = name[-len(".gguf") :]
    return [f"{part['stem']}-{i + 1:05d}-of-{part['count']}{ending}" for i in range(int(part["count"]))]


def choose(names: Iterable[str], ref: Reference) -> list[str]:
    """The files of the model that `ref` asks for, the first part first; `names`: all files of its repository.

    A file that is named is taken as it is. Else one model must have the quantisation (`quant`, in any case), or without
    one the first of `ORDER` that is there. Raises ModelReferenceError, which lists what there is.
    """
    names = list(names)
    groups = group_parts(names)
    if ref.file is not None:
        wanted = part_names(ref.file)
        missing = [n for n in wanted if n not in names]
        if missing:
            raise ModelReferenceError(ref, f"the repository has no file {missing[0]}; GGUF files there", groups)
        return wanted
    models, found = _models(groups), fitting(names, ref)
    if not models:
        raise ModelReferenceError(
            ref, "the repository has no GGUF files; look for one whose name ends in -GGUF, or use `edgellm convert`",
            sorted(groups),
        )  # fmt: skip
    if not found:
        raise ModelReferenceError(ref, "no file has that quantisation; there are", _labels(models))
    if len(found) > 1:
        raise ModelReferenceError(ref, "several files fit; name one, as hf:owner/repo/file.gguf", found)
    return models[found[0]]


def fitting(names: Iterable[str], ref: Reference) -> list[str]:
    """First files of the models that a reference without a file may mean: one is what it takes."""
    models = _models(group_parts(names))
    return _of_quant(models, ref.quant) if ref.quant is not None else _default(models)


def _models(groups: dict[str, list[str]]) -> dict[str, list[str]]:
    return {first: parts for first, parts in groups.items() if not _ASIDE.search(first)}


def _of_quant(models: dict[str, list[str]], quant: str) -> list[str]:
    """First files of the models with this label; without one, those whose name has the word between separators."""
    wanted = quant.upper()
    exact = [first for first in models if quant_label(first) == wanted]
    word = re.compile(rf"(?<![A-Za-z0-9_]){re.escape(quant)}(?![A-Za-z0-9_])", re.IGNORECASE)
    return exact or [first for first in models if word.search(first.rsplit(".", 1)[0])]


def _default(models: dict[str, list[str]]) -> list[str]:
    """First files of the models to choose from where no quantisation is asked for."""
    if len(models) == 1:
        return list(models)
    labels = {first: quant_label(first) for first in models}
    best = next((q for q in ORDER if q in labels.values()), None)
    return [first for first in models if labels[first] == best] if best is not None else list(models)


def _labels(models: dict[str, list[str]]) -> list[str]:
    return sorted({quant_label(first) or first for first in models})
