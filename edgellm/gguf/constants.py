"""Numbers of the GGUF container and the limits that edgellm sets (formats/container.md gives the reason of each).

Source of the format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

MAGIC = b"GGUF"
VERSIONS = (2, 3)
HEADER_BYTES = 24  # magic u32, version u32, n_tensors u64, n_kv u64
DEFAULT_ALIGNMENT = 32

MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 16
MAX_KEY_BYTES = (1 << 16) - 1
MAX_NAME_BYTES = 63  # a tensor name with its final NUL fits ggml's 64 bytes
MAX_DIMS = 4
MAX_DIM = (1 << 31) - 1  # kernels and other readers take int32 sizes
MAX_BYTES = (1 << 63) - 1
MAX_ALIGNMENT = 1 << 20
MIN_ALIGNMENT = 8
MAX_ARRAY_ITEMS = 1 << 24
MAX_WALKED_ITEMS = 1 << 21  # strings and bools in all arrays of a file: checking them stays below a second
MAX_ALL_KEYS_BYTES = 1 << 24  # keys become Python strings of up to four times their bytes
MAX_EAGER_STRING = 1 << 16  # longer strings are decoded when they are asked for,
MAX_EAGER_BYTES = 1 << 23  # and all after this many bytes
MIN_KEY_ENTRY = 14  # key length 8, one byte of key, type 4, one byte of value
MIN_TENSOR_ENTRY = 33  # name length 8, one byte of name, n_dims 4, one dim 8, type 4, offset 8


class ValueType(IntEnum):
    """Type codes of metadata values."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


# scalar types: little-endian NumPy dtype
SCALARS: dict[ValueType, np.dtype] = {
    ValueType.UINT8: np.dtype("u1"),
    ValueType.INT8: np.dtype("i1"),
    ValueType.UINT16: np.dtype("<u2"),
    ValueType.INT16: np.dtype("<i2"),
    ValueType.UINT32: np.dtype("<u4"),
    ValueType.INT32: np.dtype("<i4"),
    ValueType.FLOAT32: np.dtype("<f4"),
    ValueType.BOOL: np.dtype("u1"),
    ValueType.UINT64: np.dtype("<u8"),
    ValueType.INT64: np.dtype("<i8"),
    ValueType.FLOAT64: np.dtype("<f8"),
}
FLOATS = frozenset({ValueType.FLOAT32, ValueType.FLOAT64})
INTEGERS = frozenset(SCALARS) - FLOATS - {ValueType.BOOL}

# element types that exist but are not read here: named in the error, so that a person knows what they have
OTHER_TYPES: dict[int, str] = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S",
    24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip
REMOVED_TYPES: dict[int, str] = {
    4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8",
    36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8",
}  # fmt: skip
