"""What all readers of checkpoints share: the description of a tensor, its element types, and their way to float32."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import ConvertError, one_line

# every element type that fills whole bytes, by its safetensors name -> bytes of one element
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
FLOATS = {"F16": np.dtype("<f2"), "BF16": np.dtype("<u2"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8")}


@dataclass(frozen=True)
class Entry:
    """One tensor: element type, shape (rows first), and its bytes from `offset` of the file on."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    n_bytes: int


def float_type(entry: Entry, path: str) -> np.dtype:
    """The NumPy type that holds the elements (bf16 as uint16). Raises ConvertError for types that are no floats."""
    if entry.dtype not in FLOATS:
        raise ConvertError(
            "weights of this element type cannot be converted; convert a float checkpoint",
            path=path, offset=entry.offset, field=f"tensor {one_line(entry.name)}, dtype", value=entry.dtype,
            limit=", ".join(FLOATS),
        )  # fmt: skip
    return FLOATS[entry.dtype]


def as_float32(raw: np.ndarray, dtype: str) -> np.ndarray:
    """A float32 copy in the same shape: f16, bf16 and f32 become float32 exactly, f64 is rounded."""
    if dtype == "BF16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):
        return raw.astype(np.float32)
