"""Pruning: GGUF -> GGUF with weights that are zero, chosen by what the model's own activations say (`edgellm prune`).

`wish.py` what was asked for, checked; `masks.py` which weights go; `walk.py` the model layer by layer; `pruner.py` puts
these together; `report.py` what is told, and what the file's metadata say.
"""

from .pruner import prune
from .report import PruneReport, TensorReport

__all__ = ["PruneReport", "TensorReport", "prune"]
