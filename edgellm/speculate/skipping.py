"""Leaving out parts of layers: a plan without them is a smaller model that shares weights and cache with the whole one.

A layer has two parts, attention and feed-forward, each of which adds something to the hidden states (the residual
stream), so that without it these go on as they are (SWIFT, Xia et al. 2024, arXiv:2410.06916).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgellm.errors import InvalidArgumentError, ModelFormatError
from edgellm.ops import Op
from edgellm.plan import Plan, Step

if TYPE_CHECKING:
    from edgellm.gguf import GGUFFile
    from edgellm.weights import Weights

PREFIX = "edgellm.draft."
_KEYS = {"attention": PREFIX + "skip_attention", "feed_forward": PREFIX + "skip_feed_forward"}
ACCEPTANCE = PREFIX + "acceptance"
_LABEL = re.compile(r"blk\.(\d+)\.(.+)")
_ENDS = {"attn_residual": "attention", "ffn_residual": "feed_forward"}  # the step that a part ends with


@dataclass(frozen=True)
class SkipSet:
    """Layers (by number, ascending) whose attention and whose feed-forward part a draft leaves out. `acceptance`: how
    often its most probable token was the model's, when that was measured."""

    attention: tuple[int, ...]
    feed_forward: tuple[int, ...]
    acceptance: float = 0.6

    @property
    def parts(self) -> frozenset[tuple[int, str]]:
        """{(layer, "attention" or "feed_forward")}"""
        return frozenset((i, part) for part in _KEYS for i in getattr(self, part))

    @classmethod
    def of(cls, parts: Set[tuple[int, str]], acceptance: float = 0.6) -> SkipSet:
        """The set of `parts`, as in the attribute."""
        attention, feed_forward = (tuple(sorted(i for i, part in parts if part == name)) for name in _KEYS)
        return cls(attention, feed_forward, acceptance)

    def metadata(self) -> dict[str, tuple[object, str]]:
        """{key: (value, type)} for the file."""
        arrays: dict[str, tuple[object, str]] = {key: (list(getattr(self, p)), "u32") for p, key in _KEYS.items()}
        return arrays | {ACCEPTANCE: (self.acceptance, "f32")}


def read_skip_set(file: GGUFFile, n_layers: int) -> SkipSet | None:
    """What the file says; None where it says nothing. Raises WrongKeyTypeError, ModelFormatError for numbers that are
    not those of layers, ascending."""
    if not any(key in file.metadata for key in _KEYS.values()):
        return None
    found = {part: _layers(file, key, n_layers) for part, key in _KEYS.items()}
    acceptance = file.get(ACCEPTANCE, float, 0.6)
    if not 0.0 <= acceptance <= 1.0:
        raise ModelFormatError("a share is not within 0 to 1", path=file.path, field=ACCEPTANCE, value=acceptance)
    return SkipSet(**found, acceptance=acceptance) if found["attention"] or found["feed_forward"] else None


def _layers(file: GGUFFile, key: str, n_layers: int) -> tuple[int, ...]:
    layers = tuple(file.get(key, list[int], []))
    good = len(layers) <= n_layers and all(0 <= i < n_layers for i in layers)
    if not good or list(layers) != sorted(set(layers)):
        raise ModelFormatError(
            "layers to leave out must be numbers of layers, ascending",
            path=file.path, field=key, value=str(layers[:16]), limit=n_layers,
        )  # fmt: skip
    return layers


def layer_parts(plan: Plan) -> dict[tuple[int, str], list[Step]]:
    """{(layer, part): its steps}. Raises InvalidArgumentError for a model whose parts cannot be left out."""
    parts: dict[tuple[int, str], list[Step]] = {}
    steps: list[Step] = []
    for step in plan.steps:
        found = _LABEL.fullmatch(step.label)
        if found is None:
            continue
        steps.append(step)
        if part := _ENDS.get(found[2]):
            parts[int(found[1]), part] = steps
            steps = []
    if plan.logits is None or len(parts) != 2 * plan.kv.n_layers or not all(map(_only_adds, parts.values())) or steps:
        raise InvalidArgumentError(f"drafts cannot leave out layers of this model ({plan.name}): it is built otherwise")
    return parts


def _only_adds(steps: list[Step]) -> bool:
    """Whether hidden states would go on as they are without these steps."""
    *rest, last = steps
    stream = last.outputs[0]
    return last.op is Op.ADD and last.inputs[0] == stream and all(stream not in step.outputs for step in rest)


def plan_without(plan: Plan, skip: SkipSet) -> Plan:
    """The plan without the parts of `skip`. Layers of the cache keep their numbers. Raises InvalidArgumentError."""
    parts = layer_parts(plan)
    gone = {id(step) for key in skip.parts for step in parts[key]}
    return replace(plan, steps=tuple(step for step in plan.steps if id(step) not in gone), partial=True)


def bytes_read(plan: Plan, weights: Weights) -> int:
    """Bytes of the matrices that a pass of one token multiplies with, all experts included."""
    names = {step.weights[0] for step in plan.steps if step.op is Op.LINEAR}
    names |= {name for step in plan.steps if step.op is Op.EXPERTS for name in step.weights}
    return sum(weights.span(name)[1] for name in names)


def costs_of(plan: Plan, weights: Weights) -> Mapping[tuple[int, str], float]:
    """{(layer, part): what leaving it out saves}, in passes of the whole plan, by the bytes that are not read."""
    whole = bytes_read(plan, weights)
    parts = layer_parts(plan)
    return {key: 1.0 - bytes_read(plan_without(plan, SkipSet.of({key})), weights) / whole for key in parts}
