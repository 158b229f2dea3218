"""NumPy (de)quantisers and panel packing: the slow, obvious twins of the C kernels, and the definition of every format.

`dequantize` and `quantize` define the block formats (pictures in formats/blocks.md), `pack_panels` and `unpack_panels`
the panel layout, `pack_sparse` and `unpack_sparse` panels without their zero tiles (formats/panels.md). The
sizes and field offsets come from `edgellm.blocks`.
"""

from __future__ import annotations

from .codecs import can_quantize, check_importance, dequantize, quantize, resolve_type
from .panels import pack_panels, panel_bytes, unpack_panels
from .panels_sparse import check_sparse, pack_sparse, unpack_sparse

__all__ = [
    "can_quantize",
    "check_importance",
    "check_sparse",
    "dequantize",
    "pack_panels",
    "pack_sparse",
    "panel_bytes",
    "quantize",
    "resolve_type",
    "unpack_panels",
    "unpack_sparse",
]
