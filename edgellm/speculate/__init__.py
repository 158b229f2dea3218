"""Speculation: several tokens of an answer from one pass, where they could be guessed. It changes the speed, never the
answer (docs/speculation.md)."""

from collections.abc import Container, Mapping

import numpy as np

from edgellm import clib
from edgellm.cache import Sequence
from edgellm.errors import InvalidArgumentError
from edgellm.sampling import Sampler
from edgellm.speculate.chain import Chain
from edgellm.speculate.choice import KINDS, checked_kind, resolve_speculation
from edgellm.speculate.control import Control
from edgellm.speculate.decoding import Decoding
from edgellm.speculate.draft_model import DraftModelPasses
from edgellm.speculate.drafts import Draft, Proposer
from edgellm.speculate.drawn import DraftMaker, DraftPasses, DrawnProposer
from edgellm.speculate.layers import LayerDrafts
from edgellm.speculate.skipping import SkipSet, read_skip_set
from edgellm.speculate.suffix import SuffixProposer

__all__ = [
    "KINDS", "Chain", "Control", "Decoding", "Draft", "DraftMaker", "DraftModelPasses", "DraftPasses", "DrawnProposer",
    "LayerDrafts", "Proposer", "SkipSet", "SuffixProposer", "checked_kind", "make_proposer", "read_skip_set",
    "resolve_speculation",
]  # fmt: skip


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
    "`edgellm draft MODEL`, or choose 'suffix'",
    "draft": "speculate is 'draft', but no draft model was loaded: edgellm.load(MODEL, speculate=DRAFT_MODEL)",
}
