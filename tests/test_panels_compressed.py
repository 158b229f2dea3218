"""Compressed panels: rows come back bit for bit, C and NumPy agree, products are those of the dense panels."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm import quants
from edgellm.blocks import TypeId
from edgellm.errors import InvalidArgumentError
from edgellm.quants.panels_compressed import (
    PAD,
    RECORD,
    check_compressed,
    index_bytes,
    pack_compressed,
    unpack_compressed,
)

try:
    from edgellm._native import ffi, lib
except ImportError:
    if os.environ.get("EDGELLM_REQUIRE_NATIVE") == "1":
        raise
    lib = None
needs_native = pytest.mark.skipif(lib is None, reason="the native library is not built")
KINDS = ["Q8_0", "Q4_0"]


def thin_rows(kind: str, rows: int, k: int, share: float, seed: int = 0, two_of_four: bool = False) -> np.ndarray:
    """Random blocks, uint8, in which a share of the weights is exactly 0 (or two of every four)."""
    rng = np.random.default_rng([seed, rows, k])
    blocks = np.zeros((rows, k // 32), dtype=quants.resolve_type(kind).dtype)
    blocks["d"] = rng.normal(size=blocks.shape).astype(np.float16) * np.float16(0.01)
    zero = rng.random((rows, k // 32, 32)) < share
    if two_of_four:
        order = rng.random((rows, k // 32, 8, 4)).argsort(axis=-1)
        zero = (order < 2).reshape(zero.shape)
    codes = rng.integers(0, 256 if kind == "Q8_0" else 16, size=zero.shape, dtype=np.uint8)
    codes[zero] = 0 if kind == "Q8_0" else 8
    blocks["qs"] = codes.view(np.int8) if kind == "Q8_0" else codes[..., :16] | codes[..., 16:] << 4
    return blocks.view(np.uint8).reshape(-1)


def pointer(a: np.ndarray) -> object:
    return ffi.cast("void *", a.ctypes.data)


def native_compressed(kind: str, data: np.ndarray, rows: int, k: int, step: int = 16) -> np.ndarray:
    """The C packer's bytes, a stretch of `step` rows at a time."""
    index = np.full(lib.el_compressed_index_bytes(TypeId[kind], rows, k), 0xA5, dtype=np.uint8)
    stretches = [(a, min(a + step, rows)) for a in range(0, rows, step)]
    for a, b in stretches:
        assert lib.el_compressed_scan(TypeId[kind], pointer(data), pointer(index), rows, k, a, b) == lib.EL_OK
    out = np.zeros(lib.el_compressed_place(TypeId[kind], pointer(index), rows, k), dtype=np.uint8)
    out[: index.size] = index
    for a, b in stretches:
        assert lib.el_pack_compressed(TypeId[kind], pointer(data), pointer(out), rows, k, a, b) == lib.EL_OK
    return out


def bound(kind: str, packed: np.ndarray, rows: int, k: int) -> np.ndarray | None:
    """What kernels read: the index with addresses; None where C refuses it."""
    index = np.zeros(lib.el_compressed_index_bytes(TypeId[kind], rows, k), dtype=np.uint8)
    status = lib.el_compressed_bind(TypeId[kind], pointer(packed), packed.size, rows, k, pointer(index))
    assert status in (lib.EL_OK, lib.EL_E_ARGUMENT)
    return index if status == lib.EL_OK else None


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 50), blocks=st.integers(1, 9), share=st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 2**31), pairs=st.booleans(),
)  # fmt: skip
def test_rows_come_back_and_both_packers_agree(
    kind: str, rows: int, blocks: int, share: float, seed: int, pairs: bool
) -> None:
    k = 32 * blocks
    data = thin_rows(kind, rows, k, share, seed, pairs)
    packed = pack_compressed(data, rows, k, kind)
    assert unpack_compressed(packed, rows, k, kind).tobytes() == data.tobytes()
    if lib is None:
        return
    assert native_compressed(kind, data, rows, k).tobytes() == packed.tobytes()
    index = bound(kind, packed, rows, k)
    assert index is not None
    dense = np.zeros(lib.el_panel_bytes(TypeId[kind], rows, k), dtype=np.uint8)
    assert lib.el_compressed_expand(TypeId[kind], pointer(index), rows, k, 0, rows, pointer(dense)) == lib.EL_OK
    assert quants.unpack_panels(dense, rows, k, kind).tobytes() == data.tobytes()
    want, row = quants.dequantize(data, kind, (rows, k)), np.zeros(k, dtype=np.float32)
    for r in {0, rows - 1, rows // 2}:
        target = ffi.cast("float *", row.ctypes.data)
        assert lib.el_compressed_row(TypeId[kind], pointer(index), rows, k, r, target) == lib.EL_OK
        assert (row == want[r]).all()


@pytest.mark.parametrize(("kind", "share", "least"), [("Q8_0", 0.5, 0.66), ("Q4_0", 0.5, 0.82), ("Q4_0", 0.7, 0.635)])
def test_half_of_the_weights_take_about_as_many_bytes_as_the_page_says(kind: str, share: float, least: float) -> None:
    data = thin_rows(kind, 64, 2048, share)
    assert pack_compressed(data, 64, 2048, kind).size < least * quants.panel_bytes(64, 2048, kind)


@needs_native
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_cols", [1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 40])
def test_products_are_those_of_dense_panels_to_the_bit(kind: str, n_cols: int) -> None:
    rows, k = 71, 352
    x = np.random.default_rng(n_cols).normal(size=(n_cols, k)).astype(np.float32)
    for share in (0.0, 0.5, 0.97, 1.0):
        data = thin_rows(kind, rows, k, share)
        y = [np.zeros((n_cols, rows), dtype=np.float32) for _ in range(2)]
        dense = quants.pack_panels(data, rows, k, kind)
        squeezed = pack_compressed(data, rows, k, kind)
        index = bound(kind, squeezed, rows, k)
        assert index is not None
        for layout, w, out in ((lib.EL_PANELS, dense, y[0]), (lib.EL_COMPRESSED, index, y[1])):
            source, target = (ffi.cast("float *", a.ctypes.data) for a in (x, out))
            args = (rows, k, 0, rows, source, n_cols, target, rows)
            assert lib.el_linear_test(TypeId[kind], layout, pointer(w), *args) == lib.EL_OK
        assert y[0].tobytes() == y[1].tobytes()


@needs_native
def test_a_sample_says_what_the_whole_matrix_would_take() -> None:
    data = thin_rows("Q8_0", 160, 256, 0.5)
    found = ffi.new("int64_t *")
    dense = lib.el_compressed_sample(TypeId.Q8_0, pointer(data), 160, 256, 3, found)
    assert dense == 3 * quants.panel_bytes(16, 256, "Q8_0")
    whole = pack_compressed(data, 160, 256, "Q8_0").size / quants.panel_bytes(160, 256, "Q8_0")
    assert abs(found[0] / dense - whole) < 0.06


def broken(field: str, group: int, value: int) -> np.ndarray:
    packed = pack_compressed(thin_rows("Q8_0", 40, 64, 0.5), 40, 64, "Q8_0")
    packed[: 3 * RECORD.itemsize].view(RECORD)[field][group] = value
    return packed


@pytest.mark.parametrize("value", [0, 1, 65, 2**32, 2**62, 2**63, 2**64 - 1])
@pytest.mark.parametrize(("field", "group"), [("offset", 0), ("offset", 2), ("bytes", 0), ("bytes", 1)])
def test_records_that_cannot_be_are_refused(field: str, group: int, value: int) -> None:
    packed = broken(field, group, value)
    with pytest.raises(InvalidArgumentError, match="compressed panels: group"):
        check_compressed(packed, 40, 64, "Q8_0")
    if lib is not None and value >= 2**32:
        assert bound("Q8_0", packed, 40, 64) is None


@pytest.mark.parametrize("cut", [1, 64, PAD, 10**6])
def test_missing_bytes_are_refused(cut: int) -> None:
    packed = pack_compressed(thin_rows("Q4_0", 40, 64, 0.5), 40, 64, "Q4_0")
    short = packed[: max(0, packed.size - cut)].copy()
    with pytest.raises(InvalidArgumentError, match="compressed panels"):
        check_compressed(short, 40, 64, "Q4_0")
    if lib is not None:
        assert bound("Q4_0", short, 40, 64) is None


@pytest.mark.parametrize("kind", KINDS)
def test_masks_that_ask_for_more_than_there_is(kind: str) -> None:
    """The twin refuses them; kernels read no further than the padding (tests/native/suite.c holds them to it)."""
    packed = pack_compressed(thin_rows(kind, 16, 64, 0.9), 16, 64, kind)
    start = index_bytes(16, 64, kind)
    packed[start + 64 : start + 192] = 0xFF
    with pytest.raises(InvalidArgumentError, match="goes on behind its stream"):
        unpack_compressed(packed, 16, 64, kind)


def test_types_without_an_exact_zero_code_have_no_compressed_form() -> None:
    with pytest.raises(InvalidArgumentError, match="Q4_K has no compressed panels"):
        pack_compressed(b"", 16, 256, "Q4_K")
    if lib is not None:
        assert lib.el_compressed_index_bytes(TypeId.Q4_K, 16, 256) == -1
