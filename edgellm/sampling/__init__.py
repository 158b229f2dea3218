"""Sampling: how one token is chosen from a row of logits."""

from edgellm.sampling.constraint import Constraint, Processor
from edgellm.sampling.params import Sampling
from edgellm.sampling.sampler import Sampler

__all__ = ["Constraint", "Processor", "Sampler", "Sampling"]
