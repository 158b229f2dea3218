"""Sparse panels in models: found at load, the same logits to the bit as rows and dense panels, refused when damaged."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_llama_gguf
from test_panels_sparse import KINDS, holes

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

from sparse_files import write_with_zeros

import edgellm
from edgellm import clib, quants
from edgellm.backends.sparse import sparse_index
from edgellm.blocks import BY_NAME
from edgellm.errors import ModelFormatError
from edgellm.gguf import GGUFFile, GGUFWriter, open_gguf
from edgellm.gguf.packed import DIGEST, SPARSE_BYTES, header_digest
from edgellm.pack import pack, unpack, verify
from edgellm.quants import check_sparse, pack_sparse
from edgellm.quants.panels_sparse import index_bytes

pytestmark = pytest.mark.skipif(not clib.available(), reason="the compiled library was not built")

IDS = [1, 300, 17, 5, 260, 99, 98, 41, 7, 7, 300, 12]
SPARSE = 2  # EL_SPARSE


def sizes(kind: str) -> dict[str, int]:
    """Rows that are no multiple of 16, and half tiles where the type has them."""
    wide = {"dim": 512, "ffn": 768, "n_heads": 8}
    return wide if kind.endswith("_K") else {"dim": 288, "ffn": 416, "n_heads": 6}


def zeros(folder: Path, kind: str, share: float = 0.5, head: bool = True, **options: object) -> Path:
    dense = tiny_llama_gguf(folder / f"{kind}.gguf", type=kind, **sizes(kind), **options)
    out = folder / f"{kind}-zeros.gguf"
    write_with_zeros(dense, out, share, head)
    return out


def layouts(model: edgellm.Model) -> set[int]:
    table = model._loaded.runner._table
    return {table.structs[i].layout for name, i in table.ids.items() if name.startswith("blk.") and "norm" not in name}


# ---- the C packer against the twin -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_the_packer_gives_the_twins_bytes(kind: str, share: float) -> None:
    ffi, lib = clib.library()
    for rows, n in ((16, 1), (40, 5), (33, 131), (1, 67)):
        k = n * BY_NAME[kind].block_size
        data, _ = holes(kind, rows, k, share, n)
        want = pack_sparse(data, rows, k, kind)
        index = np.full(lib.el_sparse_index_bytes(BY_NAME[kind].id, rows, k), 0xA5, np.uint8)
        assert index.size == index_bytes(rows, k, kind)
        source, target = ffi.from_buffer(data), ffi.from_buffer(index)
        for first in range(0, rows, 16):
            last = min(rows, first + 16)
            assert lib.el_sparse_scan(BY_NAME[kind].id, source, target, rows, k, first, last) == 0
        assert lib.el_sparse_place(BY_NAME[kind].id, target, rows, k) == want.size
        got = np.zeros(want.size, np.uint8)
        got[: index.size] = index
        assert lib.el_pack_sparse(BY_NAME[kind].id, source, ffi.from_buffer(got), rows, k, 0, rows) == 0
        assert np.array_equal(got, want)
        bound = np.zeros(index.size, np.uint8)
        panels, place = ffi.from_buffer(got), ffi.from_buffer(bound)
        assert lib.el_sparse_bind(BY_NAME[kind].id, panels, got.size, rows, k, place) == 0
        row = np.zeros(k, np.float32)
        floats = quants.dequantize(data, kind, (rows, k))
        for r in (0, rows - 1):
            assert lib.el_sparse_row(BY_NAME[kind].id, place, rows, k, r, ffi.from_buffer("float[]", row)) == 0
            assert np.array_equal(row.view(np.uint32), floats[r].view(np.uint32))


def test_a_bad_index_is_not_bound() -> None:
    ffi, lib = clib.library()
    data, _ = holes("Q8_0", 40, 320, 0.5)
    packed = pack_sparse(data, 40, 320, "Q8_0")
    records = check_sparse(packed, 40, 320, "Q8_0")
    bound, kind = np.zeros(index_bytes(40, 320, "Q8_0"), np.uint8), BY_NAME["Q8_0"].id

    def bind(panels: np.ndarray) -> int:
        return int(lib.el_sparse_bind(kind, ffi.from_buffer(panels), panels.size, 40, 320, ffi.from_buffer(bound)))

    assert bind(packed) == 0
    for field, value in (
        ("offset", 2**64 - 1), ("offset", 2**63), ("offset", packed.size), ("n", 9), ("form", 1), ("live", 2**63),
        ("live", 31),
    ):  # fmt: skip
        wrong, bad = records.copy(), packed.copy()
        wrong[field][2] = value
        bad[: wrong.nbytes] = wrong.view(np.uint8).reshape(-1)
        assert bind(bad) == lib.EL_E_ARGUMENT, (field, value)
    for size in (1, 64, packed.size - 1):
        assert bind(packed[:size].copy()) == lib.EL_E_ARGUMENT
    assert lib.el_sparse_index_bytes(BY_NAME["Q4_0"].id, 16, 48) == -1 == lib.el_sparse_index_bytes(0, 16, 64)


# ---- models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_rows(tmp_path: Path, kind: str) -> None:
    """Sparse panels against rows (nothing skipped), for every level, passes of 1, 8 and all tokens, 1 and 2 threads."""
    path = zeros(tmp_path, kind)
    with edgellm.load(path, n_ctx=64, threads=1, pack=False, exact=True) as model:
        want = model.logits(IDS)
    best = clib.isa()
    try:
        for level, state in clib.levels().items():
            if state != "usable":
                continue
            assert clib.library()[1].el_set_isa(level.encode()) == 0
            for threads in (1, 2):
                with edgellm.load(path, n_ctx=64, threads=threads, exact=True) as model:
                    assert layouts(model) == {SPARSE}
                    assert np.array_equal(model.logits(IDS), want), level
                    for n in (1, 8):
                        assert np.array_equal(model.logits(IDS[:n]), want[:n]), (level, n)
    finally:
        clib.library()[1].el_set_isa(best.encode())


def test_a_tied_embedding_with_zeros_is_looked_up_too(tmp_path: Path) -> None:
    dense = tiny_llama_gguf(tmp_path / "m.gguf", type="Q4_0", tied=True, **sizes("Q4_0"))
    out = tmp_path / "zeros.gguf"
    write_with_zeros(dense, out, 0.5)
    thin = tmp_path / "thin.gguf"
    with open_gguf(out) as file, GGUFWriter(thin, None, file.alignment) as writer:
        for key in file.metadata:
            writer.add_raw(key, file.metadata.raw(key))
        for t in file.tensors.values():
            writer.add_tensor_info(t.name, t.shape, t.type)
        for t in file.tensors.values():
            data = file.data(t.name)
            if t.name == "token_embd.weight":
                data = holes("Q4_0", *t.shape, 0.5)[0].reshape(-1)
            writer.write_tensor(t.name, data)
    got = []
    for in_panels in (True, False):
        with edgellm.load(thin, n_ctx=64, pack=in_panels, exact=True) as model:
            got.append(model.logits(IDS))
    assert np.array_equal(*got)


def test_a_dense_model_stays_as_it_is(tmp_path: Path) -> None:
    with edgellm.load(tiny_llama_gguf(tmp_path / "m.gguf", type="Q8_0", **sizes("Q8_0")), n_ctx=64) as model:
        assert layouts(model) == {1}
    few = zeros(tmp_path, "Q4_0", share=0.01)
    with edgellm.load(few, n_ctx=64) as model:
        assert layouts(model) == {1}


def test_zeros_take_no_memory(tmp_path: Path) -> None:
    path = zeros(tmp_path, "Q4_0", share=0.75)
    sizes_of = []
    for share in (0.0, 0.75):
        write_with_zeros(tmp_path / "Q4_0.gguf", path, share, head=True)
        with edgellm.load(path, n_ctx=64) as model:
            own = model._loaded.runner.weight_bytes()
            sizes_of.append(sum(n for name, n in own.items() if name.startswith("blk.") and "norm" not in name))
            assert model._loaded.runner.arena[1] >= sizes_of[-1]
    assert 0.2 < sizes_of[1] / sizes_of[0] < 0.35


def test_the_index_says_what_it_found() -> None:
    data, live = holes("Q8_0", 400, 640, 0.5)
    made = sparse_index(data.reshape(-1), BY_NAME["Q8_0"], 400, 640, 2)
    assert made is not None and made.n_bytes == pack_sparse(data, 400, 640, "Q8_0").size
    assert sparse_index(holes("Q8_0", 400, 640, 0.0)[0].reshape(-1), BY_NAME["Q8_0"], 400, 640, 2) is None
    assert live.any()


def test_nan_and_infinity_do_not_hide_behind_a_tile_that_is_not_read() -> None:
    ffi, lib = clib.library()
    kind, rows, k = BY_NAME["Q8_0"], 32, 256
    data, _ = holes("Q8_0", rows, k, 1.0)  # nothing is stored at all
    packed, bound = pack_sparse(data, rows, k, kind), np.zeros(index_bytes(rows, k, kind), np.uint8)
    panels, place = ffi.from_buffer(packed), ffi.from_buffer(bound)
    assert lib.el_sparse_bind(kind.id, panels, packed.size, rows, k, place) == 0
    x = np.ones((3, k), np.float32)
    x[1, 77], x[2, 200] = np.nan, np.inf
    y = np.full((3, rows), 7, np.float32)
    args = (ffi.from_buffer("float[]", x), 3, ffi.from_buffer("float[]", y), rows)
    assert lib.el_linear_test(kind.id, SPARSE, place, rows, k, 0, rows, *args) == 0
    assert not y[0].any() and np.isnan(y[1]).all() and np.isnan(y[2]).all()


# ---- packed files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_packed_files_hold_sparse_panels(tmp_path: Path, kind: str) -> None:
    path = zeros(tmp_path, kind)
    done = pack(path)
    with open_gguf(path) as file, open_gguf(done.path, strict=True) as packed:
        dense = sum(t.stored_bytes for t in packed.tensors.values() if t.sparse)
        assert dense and done.bytes_after < 0.8 * (done.bytes_before + 4096 * len(file.tensors))
        for t in packed.tensors.values():
            assert t.sparse == (t.name == "output.weight" or (t.name.startswith("blk.") and "norm" not in t.name))
            assert np.array_equal(packed.data(t.name), file.data(t.name))
            if t.sparse:
                want = pack_sparse(file.data(t.name), *t.shape, t.type)
                assert np.array_equal(packed.stored(t.name), want)
    with edgellm.load(path, n_ctx=64, pack=False, exact=True) as model:
        want = model.logits(IDS)
    for huge_pages in (False, True):
        with edgellm.load(done.path, n_ctx=64, exact=True, huge_pages=huge_pages) as model:
            assert layouts(model) == {SPARSE}
            assert np.array_equal(model.logits(IDS), want)
    assert verify(done.path) > 0
    assert unpack(done.path, tmp_path / "back.gguf").identical
    assert (tmp_path / "back.gguf").read_bytes() == path.read_bytes()


def repacked(path: Path, change: Callable[[bytearray, GGUFFile], None]) -> Path:
    """A copy with changed bytes, and the header's checksum made right again."""
    with open_gguf(path) as file:
        raw = bytearray(path.read_bytes())
        start = min(t.offset for t in file.tensors.values())
        change(raw, file)
    at = raw.index(DIGEST.encode()) + len(DIGEST) + 12
    raw[at : at + 64] = header_digest(bytes(raw[:start]), at).encode()
    out = path.with_name("changed.gguf")
    out.write_bytes(raw)
    return out


def test_hostile_packed_files_are_refused(tmp_path: Path) -> None:
    packed = Path(pack(zeros(tmp_path, "Q8_0")).path)

    def size(n: int) -> Callable[[bytearray, GGUFFile], None]:
        def change(raw: bytearray, file: GGUFFile) -> None:
            at = raw.index(SPARSE_BYTES.encode()) + len(SPARSE_BYTES) + 4 + 4 + 8
            struct.pack_into("<Q", raw, at, n)

        return change

    for n in (0, 1, 2**62, 2**64 - 1, 10**6):
        with pytest.raises(ModelFormatError) as error:
            open_gguf(repacked(packed, size(n))).close()
        assert error.value.rule in ("L9", "T10")

    def index(offset: int, value: int) -> Callable[[bytearray, GGUFFile], None]:
        def change(raw: bytearray, file: GGUFFile) -> None:
            struct.pack_into("<Q", raw, file.tensors["blk.0.ffn_up.weight"].offset + offset, value)

        return change

    for offset, value in ((0, 2**64 - 64), (0, 0), (8, 2**40), (16, 2**63), (16, 0)):
        bad = repacked(packed, index(offset, value))
        for options in ({}, {"huge_pages": True}, {"pack": False}, {"backend": "reference"}):
            with pytest.raises(ModelFormatError) as error:
                edgellm.load(bad, n_ctx=64, **options).close()
            assert error.value.rule == "L10"


def test_the_estimate_knows_that_zeros_take_no_room(tmp_path: Path) -> None:
    path = zeros(tmp_path, "Q4_0", share=0.75)
    packed = pack(path).path
    dense = edgellm.estimate(tmp_path / "Q4_0.gguf", n_ctx=64).panels
    with edgellm.load(path, n_ctx=64) as model:
        arena = model._loaded.runner.arena[1]
    told = edgellm.estimate(path, n_ctx=64)
    assert arena <= told.panels < 0.5 * dense
    assert edgellm.estimate(packed, n_ctx=64).mapped < 0.6 * dense
