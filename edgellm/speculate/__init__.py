"""Speculation: several tokens of an answer from one pass, where they could be guessed. It changes the speed, never the
answer (docs/speculation.md)."""

from typing import Any

from edgellm import clib
from edgellm.errors import InvalidArgumentError, one_line
from edgellm.speculate.control import Control
from edgellm.speculate.decoding import Decoding
from edgellm.speculate.drafts import Draft, Proposer
from edgellm.speculate.suffix import SuffixProposer

KINDS = ("auto", "off", "suffix")

__all__ = ["KINDS", "Control", "Decoding", "Draft", "Proposer", "SuffixProposer", "checked_kind", "make_proposer"]


def checked_kind(kind: Any) -> str:
    """The name of a way to speculate. Raises InvalidArgumentError."""
    if kind not in KINDS:
        raise InvalidArgumentError(f"speculate is '{one_line(kind)}'; choose {', '.join(KINDS)}")
    return str(kind)


def make_proposer(kind: str) -> Proposer | None:
    """What makes the drafts of one answer; None: nothing does. The index's twin in Python looks through the whole text
    for each token, so "auto" does without where nothing is compiled."""
    if kind == "off" or (kind == "auto" and not clib.available()):
        return None
    return SuffixProposer()
