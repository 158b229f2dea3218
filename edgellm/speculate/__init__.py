"""Speculation: several tokens of an answer from one pass, where they could be guessed. It changes the speed, never the
answer (docs/speculation.md)."""

from collections.abc import Container, Mapping
from typing import Any

import numpy as np

from edgellm import clib
from edgellm.cache import Sequence
from edgellm.errors import InvalidArgumentError, one_line
from edgellm.sampling import Sampler
from edgellm.speculate.chain import Chain
from edgellm.speculate.control import Control
from edgellm.speculate.decoding import Decoding
from edgellm.speculate.drafts import Draft, Proposer
from edgellm.speculate.drawn import DraftMaker, DraftPasses, DrawnProposer
from edgellm.speculate.layers import LayerDrafts
from edgellm.speculate.skipping import SkipSet, read_skip_set
from edgellm.speculate.suffix import SuffixProposer

KINDS = ("auto", "off", "suffix", "self")

__all__ = [
    "KINDS", "Chain", "Control", "Decoding", "Draft", "DraftMaker", "DraftPasses", "DrawnProposer", "LayerDrafts",
    "Proposer", "SkipSet", "SuffixProposer", "checked_kind", "make_proposer", "read_skip_set",
]  # fmt: skip


def checked_kind(kind: Any) -> str:
    """The name of a way to speculate. Raises InvalidArgumentError."""
    if kind not in KINDS:
        raise InvalidArgumentError(f"speculate is '{one_line(kind)}'; choose {', '.join(KINDS)}")
    return str(kind)


def make_proposer(
    kind: str, seq: Sequence, cancel: np.ndarray | None, *, sampler: Sampler, control: Control,
    makers: Mapping[str, DraftMaker], stop_ids: Container[int] = (),
) -> Proposer | None:  # fmt: skip
    """What makes the drafts of the answer that goes to `seq`; None: nothing does.

    `makers` are the model's ways to make passes for drafts, by kind: "auto" takes all of them, and the suffix index.
    The index's twin in Python looks through the whole text for each token, so "auto" does without where nothing is
    compiled. Raises InvalidArgumentError for a kind that this model does not have.
    """
    proposers: list[Proposer] = []
    if kind == "suffix" or (kind == "auto" and clib.available()):
        proposers.append(SuffixProposer())
    elif kind not in ("auto", "off", *makers):
        raise InvalidArgumentError(_MISSING[kind])
    wanted = makers.values() if kind == "auto" else [makers[kind]] if kind in makers else []
    proposers += [DrawnProposer(make(seq, cancel), sampler, control, stop_ids) for make in wanted]
    return proposers[0] if len(proposers) == 1 else Chain(proposers, control) if proposers else None


_MISSING = {
    "self": "speculate is 'self', but the file does not say which layers drafts may leave out; find that with "
    "`edgellm draft MODEL`, or choose 'suffix'"
}
