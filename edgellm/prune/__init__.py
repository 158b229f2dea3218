"""Pruning: GGUF -> GGUF with weights that are zero, chosen by what the model's own activations say (`edgellm prune`).

`wish.py` what was asked for, checked; `walk.py` the model layer by layer, `streams.py` a text on its way through it;
`masks.py`, `sparsegpt.py`, `heads.py` what goes; `zeroing.py` and `dropping.py` the work on a file, `pruner.py` the
door to it; `report.py` what is told, and what the file's metadata say; `speed.py` both files beside each other.
"""

from .pruner import prune
from .report import PruneReport, TensorReport

__all__ = ["PruneReport", "TensorReport", "prune"]
