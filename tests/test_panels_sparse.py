"""Sparse panels: nothing is lost, only zero tiles are left out, and a bad index is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm import quants
from edgellm.blocks import BY_NAME
from edgellm.errors import InvalidArgumentError
from edgellm.quants import check_sparse, pack_sparse, unpack_sparse
from edgellm.quants.panels_sparse import live_tiles, tiles_per_group, zero_blocks

KINDS = ["Q4_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]


def holes(kind: str, rows: int, k: int, share: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Blocks uint8 (rows, bytes) of random weights with zero tiles, and bool (groups, tiles): which are not zero."""
    rng, tile = np.random.default_rng(seed), max(64, BY_NAME[kind].block_size)
    live = rng.random((-(-rows // 16), -(-k // tile))) >= share
    w = rng.standard_normal((rows, k)).astype(np.float32)
    w[~live.repeat(16, axis=0)[:rows].repeat(tile, axis=1)[:, :k]] = 0
    return np.asarray(quants.quantize(w, kind)).view(np.uint8).reshape(rows, -1), live


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(KINDS), st.integers(1, 50), st.sampled_from([1, 2, 3, 4, 9, 67, 131]),
    st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]), st.integers(0, 2**32),
)  # fmt: skip
def test_rows_come_back_and_zero_tiles_take_no_room(kind: str, rows: int, n: int, share: float, seed: int) -> None:
    k = n * BY_NAME[kind].block_size
    data, live = holes(kind, rows, k, share, seed)
    packed = pack_sparse(data, rows, k, kind)
    records = check_sparse(packed, rows, k, kind)
    assert np.array_equal(live_tiles(records, tiles_per_group(k, BY_NAME[kind])), live)
    assert np.array_equal(unpack_sparse(packed, rows, k, kind), data)
    first = live.argmax()  # a stored tile is the dense panels' tile
    if live.any() and k % max(64, BY_NAME[kind].block_size) == 0:
        size, g = BY_NAME[kind].panel_tile, int(first) // live.shape[1]
        dense, at = quants.pack_panels(data, rows, k, kind), int(records["offset"][g]) + g * records.dtype.itemsize
        assert np.array_equal(packed[at : at + size], dense[first * size : (first + 1) * size])


@pytest.mark.parametrize("kind", KINDS)
def test_each_form_of_a_zero_block_comes_back(kind: str) -> None:
    """Also where one matrix has several: a group has one form, the others are stored."""
    per_tile = max(64, BY_NAME[kind].block_size) // BY_NAME[kind].block_size
    for a in zero_blocks(kind):
        assert not quants.dequantize(a, kind, (1, BY_NAME[kind].block_size)).any()
        for b in zero_blocks(kind):
            rows = [a * 2 * per_tile + b * per_tile] * 16 + [b * 3 * per_tile] * 3
            k = 3 * per_tile * BY_NAME[kind].block_size
            packed = pack_sparse(b"".join(rows), 19, k, kind)
            assert check_sparse(packed, 19, k, kind)["n"].tolist() == [0 if a == b else 1, 0]
            assert unpack_sparse(packed, 19, k, kind).tobytes() == b"".join(rows)


def test_a_scale_or_one_weight_is_enough_to_be_stored() -> None:
    data, _ = holes("Q8_0", 16, 128, 1.0)
    assert check_sparse(pack_sparse(data, 16, 128, "Q8_0"), 16, 128, "Q8_0")["n"][0] == 0
    for byte in (0, 2, 33):  # the scale, the first and the last code of a block
        changed = data.copy()
        changed[7, byte] = 1
        packed = pack_sparse(changed, 16, 128, "Q8_0")
        assert check_sparse(packed, 16, 128, "Q8_0")["live"][0, 0] == 1
        assert np.array_equal(unpack_sparse(packed, 16, 128, "Q8_0"), changed)


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        ("offset", 2**64 - 64, "offset"), ("offset", 64, "offset"), ("n", 7, "number"), ("form", 1, "zero block"),
        ("live", 2**63, "bits"), ("live", 0, "number"),
    ],
)  # fmt: skip
def test_a_bad_index_is_refused(field: str, value: int, what: str) -> None:
    data, _ = holes("Q8_0", 40, 320, 0.5)
    packed = pack_sparse(data, 40, 320, "Q8_0")
    records = check_sparse(packed, 40, 320, "Q8_0").copy()
    records[field][1] = value
    bad = packed.copy()
    bad[: records.nbytes] = records.view(np.uint8).reshape(-1)
    with pytest.raises(InvalidArgumentError, match=what):
        check_sparse(bad, 40, 320, "Q8_0")
    for size in (0, 10, 64, packed.size - 1):
        with pytest.raises(InvalidArgumentError):
            check_sparse(packed[:size], 40, 320, "Q8_0")
