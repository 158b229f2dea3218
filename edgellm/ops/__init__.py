"""What plans are made of: the table of operations, the shapes they take, and `verify`, which holds a plan to both."""

from .shapes import ACTIVATIONS, MAX_EXPERTS, ROPE_STYLES, ROTATION, ROWS_BY
from .table import OPS, Op, OpSpec
from .verify import verify

__all__ = ["ACTIVATIONS", "MAX_EXPERTS", "OPS", "ROPE_STYLES", "ROTATION", "ROWS_BY", "Op", "OpSpec", "verify"]
