"""The C kernels, level by level: against NumPy, against the portable file bit for bit, and beside guard pages.

tests/native/suite.c checks what this file cannot reach (every op, every buffer beside a guard page).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import gguf
import numpy as np
import pytest

from edgellm import blocks, quants
from edgellm.blocks import TypeId
from edgellm.quants import panels

try:
    from edgellm._native import ffi, lib  # the one test that talks to the library directly
except ImportError:
    if os.environ.get("EDGELLM_REQUIRE_NATIVE") == "1":
        raise
    pytest.skip("the native library is not built", allow_module_level=True)

ROWS, PANELS = lib.EL_ROWS, lib.EL_PANELS
FLOATS = ["F32", "F16", "BF16"]
BLOCKS = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
CODEBOOKS = ["IQ4_NL", "MXFP4"]
K_BLOCKS = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "TQ1_0", "TQ2_0"]  # blocks of 256
PANEL_TYPES = [block.name for block in blocks.ALL if block.has_panel]
CASES = [(name, ROWS) for name in [*FLOATS, *BLOCKS, *CODEBOOKS, *K_BLOCKS]]
CASES += [(name, PANELS) for name in PANEL_TYPES]
ROW_COUNTS = [1, 15, 16, 17, 33]


def ks(name: str) -> list[int]:
    """Lengths of a row to try: odd ones where the format allows them."""
    if name in FLOATS:
        return [1, 7, 16, 33, 100]
    return [256, 512] if name in K_BLOCKS else [32, 64, 96, 160, 256]


def level_names() -> list[str]:
    assert lib.el_init(ffi.NULL) == lib.EL_OK
    names = range(lib.el_n_levels())
    return [ffi.string(lib.el_level_name(i)).decode() for i in names if lib.el_level_usable(i) == 1]


@pytest.fixture
def use_level() -> Iterator[Callable[[str], None]]:
    """A function that switches the kernel tables; the level of before comes back after the test."""
    before = lib.el_isa()

    def switch(name: str) -> None:
        assert lib.el_set_isa(name.encode()) == lib.EL_OK

    yield switch
    assert lib.el_set_isa(before) == lib.EL_OK


def make_weights(name: str, rows: int, k: int, seed: int = 0) -> np.ndarray:
    """Random blocks of a (rows, k) matrix as bytes. Codes take all values, -128 too; scales are small and finite."""
    rng = np.random.default_rng([seed, rows, k])
    kind = quants.resolve_type(name)
    if name in FLOATS:
        return (
            np.ascontiguousarray(quants.quantize(rng.normal(size=(rows, k)).astype(np.float32), name))
            .view(np.uint8)
            .ravel()
        )
    data = rng.integers(0, 256, size=rows * k // kind.block_size * kind.type_size, dtype=np.uint8).view(kind.dtype)
    for field in {"d", "m", "dmin"} & set(kind.dtype.names or ()):
        data[field] = rng.normal(size=data.shape).astype(np.float16) * np.float16(0.01)
    if "e" in (kind.dtype.names or ()):
        data["e"] = rng.integers(110, 125, size=data.shape)  # powers of two around 1e-3
    return data.view(np.uint8).ravel()


def to_layout(name: str, layout: int, weights: np.ndarray, rows: int, k: int) -> np.ndarray:
    if layout == ROWS:
        return weights
    out = np.full(lib.el_panel_bytes(TypeId[name], rows, k), 0xA5, dtype=np.uint8)
    status = lib.el_pack_panels(TypeId[name], pointer(weights), pointer(out), rows, k, 0, rows)
    assert status == lib.EL_OK
    return out


def pointer(a: np.ndarray) -> object:
    return ffi.cast("void *", a.ctypes.data)


def floats(a: np.ndarray) -> object:
    return ffi.cast("float *", a.ctypes.data)


def linear(
    name: str, layout: int, w: np.ndarray, rows: int, x: np.ndarray, row0: int = 0, row1: int | None = None
) -> np.ndarray:
    """x (n, k) @ w^T -> (n, row1 - row0); also checks that nothing is written beside the result."""
    row1 = rows if row1 is None else row1
    n, k = x.shape
    y = np.full((n, row1 - row0 + 2), np.float32(-7.5))
    status = lib.el_linear_test(
        TypeId[name], layout, pointer(w), rows, k, row0, row1, floats(x), n, floats(y), y.shape[1]
    )
    assert status == lib.EL_OK
    assert (y[:, row1 - row0 :] == -7.5).all()
    return y[:, : row1 - row0].copy()


def int8_activations(x: np.ndarray, block: int) -> np.ndarray:
    """x as its int8 form says it, the twin of quantize_q8_32 and quantize_q8_256 (formats/arithmetic.md)."""
    n, k = x.shape
    padded = np.zeros((n, -(-k // block) * block), dtype=np.float32)
    padded[:, :k] = x
    v = padded.reshape(n, -1, block)
    amax = np.abs(v).max(axis=2, keepdims=True)
    inverse = np.divide(np.float32(127), amax, out=np.zeros_like(amax), where=amax != 0)
    return (np.clip(np.rint(v * inverse), -127, 127) * (amax / np.float32(127)).astype(np.float64)).reshape(n, -1)[
        :, :k
    ]


@pytest.mark.parametrize("level", level_names())
@pytest.mark.parametrize(("name", "layout"), CASES)
def test_linear_equals_numpy_on_dequantised_weights(name, layout, level, use_level):
    use_level(level)
    for rows in ROW_COUNTS:
        for k in ks(name):
            weights = make_weights(name, rows, k)
            w = np.asarray(quants.dequantize(weights, name, (rows, k)), dtype=np.float64)
            x = np.random.default_rng(k).normal(size=(3, k)).astype(np.float32)
            seen = x.astype(np.float64) if name in FLOATS else int8_activations(x, 256 if name in K_BLOCKS else 32)
            y = linear(name, layout, to_layout(name, layout, weights, rows, k), rows, x)
            slack = 2e-6 * (np.abs(seen) @ np.abs(w).T) + 1e-7
            assert (np.abs(y - seen @ w.T) <= slack).all(), (rows, k)


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_levels_columns_and_row_ranges_give_the_same_bits(name, layout, use_level):
    for rows in ROW_COUNTS:
        for k in ks(name):
            w = to_layout(name, layout, make_weights(name, rows, k, seed=1), rows, k)
            x = np.random.default_rng(rows).normal(size=(9, k)).astype(np.float32)
            x[4] = np.where(np.arange(k) % 3 == 0, 1, -1)  # every activation at -127 or 127
            use_level("portable")
            expected = linear(name, layout, w, rows, x)
            for level in level_names():
                use_level(level)
                for n in range(1, 10):
                    got = linear(name, layout, w, rows, x[:n])
                    assert got.tobytes() == expected[:n].tobytes(), (level, rows, k, n)
                middle = rows // 32 * 16
                got = linear(name, layout, w, rows, x[:3], middle, rows)
                assert got.tobytes() == np.ascontiguousarray(expected[:3, middle:]).tobytes(), (level, rows, k)


@pytest.mark.parametrize("level", level_names())
def test_largest_integers_do_not_saturate(level, use_level):
    """-128 and the largest codes against activations at +-127, where 16-bit sums are at their limits."""
    use_level(level)
    for name, layout in CASES[3:]:
        kind = quants.resolve_type(name)
        k = 256 if name in K_BLOCKS else 64
        for fill in (0x00, 0x80, 0x7F, 0xFF):
            data = np.full(16 * k // kind.block_size * kind.type_size, fill, dtype=np.uint8).view(kind.dtype)
            for field in set(kind.dtype.names or ()) & {"d", "m", "dmin"}:
                data[field] = np.float16(1)
            if name == "MXFP4":
                data["e"] = 128  # codes count once
            weights = data.view(np.uint8).ravel()
            w = np.asarray(quants.dequantize(weights, name, (16, k)), dtype=np.float64)
            slack = 127 * np.abs(w).sum(axis=1) * 2e-7 if name in K_BLOCKS else 0  # totals above 2^24 are rounded
            for sign in (1.0, -1.0):
                x = np.full((1, k), sign * 127, dtype=np.float32)
                y = linear(name, layout, to_layout(name, layout, weights, 16, k), 16, x)
                assert (np.abs(y - x.astype(np.float64) @ w.T) <= slack).all(), (name, layout, fill)


@pytest.mark.parametrize("level", level_names())
def test_not_a_number_in_an_activation_reaches_the_result(level, use_level):
    use_level(level)
    for name, layout in CASES:
        k = 256
        w = to_layout(name, layout, make_weights(name, 17, k), 17, k)
        for bad in (np.nan, np.inf):
            x = np.ones((2, k), dtype=np.float32)
            x[1, 77] = bad
            y = linear(name, layout, w, 17, x)
            assert np.isfinite(y[0]).all()
            assert not np.isfinite(y[1]).any()


class GuardedBuffer:
    """Bytes that end where an unreadable page begins."""

    def __init__(self, data: np.ndarray) -> None:
        raw = data.view(np.uint8).ravel()
        size = -(-raw.size // mmap.PAGESIZE) * mmap.PAGESIZE
        self._map = mmap.mmap(-1, size + mmap.PAGESIZE)
        whole = np.frombuffer(self._map, dtype=np.uint8)
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mprotect(ctypes.c_void_p(whole.ctypes.data + size), mmap.PAGESIZE, 0) == 0
        self.bytes = whole[size - raw.size : size]
        self.bytes[:] = raw


@pytest.mark.skipif(sys.platform == "win32", reason="guard pages through mprotect")
@pytest.mark.parametrize("level", level_names())
@pytest.mark.parametrize(("name", "layout"), CASES)
def test_no_kernel_reads_past_its_buffers(name, layout, level, use_level):
    use_level(level)
    for rows in ROW_COUNTS:
        for k in ks(name):
            weights = to_layout(name, layout, make_weights(name, rows, k), rows, k)
            x = np.random.default_rng(k).normal(size=(5, k)).astype(np.float32)
            w, guarded_x = GuardedBuffer(weights), GuardedBuffer(x)
            near_the_edge = linear(name, layout, w.bytes, rows, guarded_x.bytes.view(np.float32).reshape(5, k))
            assert near_the_edge.tobytes() == linear(name, layout, weights, rows, x).tobytes()


@pytest.mark.parametrize("name", PANEL_TYPES)
def test_packing_equals_the_numpy_twin_and_can_run_in_ranges(name):
    for rows in [*ROW_COUNTS, 48]:
        for k in ks(name):
            weights = make_weights(name, rows, k)
            expected = panels.pack_panels(weights, rows, k, name)
            assert lib.el_panel_bytes(TypeId[name], rows, k) == expected.size
            assert to_layout(name, PANELS, weights, rows, k).tobytes() == expected.tobytes()
            pieces = np.zeros_like(expected)
            for row0 in range(0, rows, 16):
                status = lib.el_pack_panels(
                    TypeId[name], pointer(weights), pointer(pieces), rows, k, row0, min(row0 + 16, rows)
                )
                assert status == lib.EL_OK
            assert pieces.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", PANEL_TYPES)
def test_a_row_read_back_from_panels_is_the_dequantised_row(name):
    for rows, k in [(1, 256), (17, 512)] if name in K_BLOCKS else [(1, 32), (17, 96), (33, 64), (16, 160)]:
        weights = make_weights(name, rows, k)
        packed = to_layout(name, PANELS, weights, rows, k)
        expected = quants.dequantize(weights, name, (rows, k))
        for row in range(rows):
            out = np.zeros(k, dtype=np.float32)
            assert lib.el_panel_row(TypeId[name], pointer(packed), rows, k, row, floats(out)) == lib.EL_OK
            assert out.tobytes() == np.asarray(expected[row], dtype=np.float32).tobytes()


@pytest.mark.parametrize("name", ["F16", "BF16", *BLOCKS])
def test_quantised_bytes_equal_those_of_the_gguf_package(name):
    rng = np.random.default_rng(5)
    x = rng.normal(size=(64, 96)).astype(np.float32) * np.float32(10) ** rng.integers(-6, 5, size=(64, 1)).astype(
        np.float32
    )
    x[0] = 0
    x[1] = 1.5
    x[2, :32] = np.arange(32) - 16  # two values of the largest magnitude, of either sign
    x[3, :32] = np.linspace(-127, 127, 32) * 0.5
    expected = np.ascontiguousarray(gguf.quants.quantize(x, gguf.GGMLQuantizationType[name])).view(np.uint8)
    out = np.zeros(expected.size, dtype=np.uint8)
    assert lib.el_quantize(TypeId[name], floats(x), pointer(out), *x.shape) == lib.EL_OK
    assert out.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", [*FLOATS, *BLOCKS, *CODEBOOKS, *K_BLOCKS])
def test_dequantised_floats_equal_those_of_the_gguf_package(name):
    rows, k = 7, 512
    weights = make_weights(name, rows, k)
    kind = gguf.GGMLQuantizationType[name]
    expected = np.asarray(gguf.quants.dequantize(weights.reshape(rows, -1), kind), dtype=np.float32)
    out = np.zeros((rows, k), dtype=np.float32)
    assert lib.el_dequantize(TypeId[name], pointer(weights), floats(out), rows, k) == lib.EL_OK
    assert out.tobytes() == np.ascontiguousarray(expected).tobytes()


def test_half_floats_round_trip_for_every_bit_pattern():
    halves = np.arange(65536, dtype=np.uint32).astype(np.uint16)
    wide = np.zeros(65536, dtype=np.float32)
    assert lib.el_dequantize(TypeId.F16, pointer(halves), floats(wide), 1, 65536) == lib.EL_OK
    expected = halves.view(np.float16).astype(np.float32)
    numbers = ~np.isnan(expected)
    assert (wide.view(np.uint32) == expected.view(np.uint32))[numbers].all()
    assert np.isnan(wide[~numbers]).all()
    between = np.concatenate(
        [wide[numbers], np.nextafter(wide[numbers], np.float32(0)), wide[numbers] * np.float32(1.0004883)]
    )
    back = np.zeros(between.size, dtype=np.uint16)
    assert lib.el_quantize(TypeId.F16, floats(between), pointer(back), 1, between.size) == lib.EL_OK
    with np.errstate(over="ignore"):
        assert (back == between.astype(np.float16).view(np.uint16)).all()


def test_sizes_that_do_not_fit_are_refused():
    assert lib.el_row_bytes(TypeId.Q4_0, 33) == -1
    assert lib.el_row_bytes(TypeId.F32, 2**62) == -1
    assert lib.el_row_bytes(999, 32) == -1
    assert lib.el_row_bytes(-1, 32) == -1
    assert lib.el_row_bytes(TypeId.Q6_K, 512) == 420
    assert lib.el_panel_bytes(TypeId.Q4_0, 2**60, 4096) == -1
    assert lib.el_panel_bytes(TypeId.F16, 16, 64) == -1
    assert lib.el_panel_bytes(TypeId.Q8_0, 17, 96) == 2 * (1088 + 576)
    data = np.zeros(4096, dtype=np.uint8)
    assert lib.el_pack_panels(TypeId.Q4_0, pointer(data), pointer(data), 32, 64, 8, 32) == lib.EL_E_ARGUMENT
    assert lib.el_pack_panels(TypeId.Q4_0, pointer(data), pointer(data), 32, 64, 0, 40) == lib.EL_E_ARGUMENT
    assert lib.el_pack_panels(TypeId.Q4_0, pointer(data), pointer(data), 32, 64, 0, 17) == lib.EL_E_ARGUMENT
    assert lib.el_quantize(TypeId.Q8_0, floats(data), pointer(data), 2**40, 2**40) == lib.EL_E_ARGUMENT
    assert lib.el_quantize(TypeId.TQ1_0, floats(data), pointer(data), 1, 255) == lib.EL_E_ARGUMENT
    assert lib.el_dequantize(TypeId.Q8_0, pointer(data), floats(data), 1, 33) == lib.EL_E_ARGUMENT
    assert lib.el_panel_row(TypeId.Q8_0, pointer(data), 16, 32, 16, floats(data)) == lib.EL_E_ARGUMENT
    x = np.zeros(64, dtype=np.float32)
    for row0, row1, ldy in [(0, 17, 32), (4, 16, 32), (0, 16, 8), (-1, 16, 32)]:
        args = (pointer(data), 16, 64, row0, row1, floats(x), 1, floats(x), ldy)
        assert lib.el_linear_test(TypeId.Q4_0, PANELS, *args) == lib.EL_E_ARGUMENT


def test_levels_can_be_named_and_switched(use_level):
    names = level_names()
    assert names[0] == "portable"
    assert lib.el_set_isa(b"no such level") == lib.EL_E_ARGUMENT
    for name in names:
        use_level(name)
        assert ffi.string(lib.el_isa()).decode() == name
        assert ffi.string(lib.el_kernel_level(TypeId.Q4_0, PANELS)).decode() in names
    use_level("portable")
    assert ffi.string(lib.el_kernel_level(TypeId.F32, ROWS)) == b"portable"
    assert lib.el_kernel_level(TypeId.F32, PANELS) == ffi.NULL
    assert lib.el_kernel_level(64, ROWS) == ffi.NULL
    assert lib.el_level_name(-1) == ffi.NULL
    assert lib.el_level_usable(lib.el_n_levels()) == 0


@pytest.mark.parametrize("fault", [lib.EL_FAULT_RESULT, lib.EL_FAULT_ILLEGAL])
@pytest.mark.skipif(len(level_names()) == 1, reason="only the portable level runs on this machine")
def test_a_level_that_fails_its_self_test_is_not_used_and_doctor_says_so(fault, use_level):
    """One bit of one number, or one illegal instruction. An illegal one is not tried where nothing catches it."""
    from edgellm import clib, doctor

    level = level_names()[-1]
    x = np.random.default_rng(5).normal(size=(3, 64)).astype(np.float32)
    w = make_weights("Q4_0", 16, 64)
    use_level(level)
    expected = linear("Q4_0", ROWS, w, 16, x)
    assert "failed" not in doctor.as_text(doctor.examine())
    try:
        assert lib.el_break_level_test(level.encode(), fault) == lib.EL_OK
        assert clib.levels()[level] == "failed its self-test" and clib.isa() == level_names()[-1] != level
        assert lib.el_set_isa(level.encode()) == lib.EL_E_UNSUPPORTED
        facts = doctor.examine()
        text = doctor.as_text(facts, 1000)
        assert not facts["ok"] and doctor.exit_code(facts) == 1
        assert f"{level}: failed its self-test" in text and f"FAIL             {level} is not used" in text
        assert linear("Q4_0", ROWS, w, 16, x).tobytes() == expected.tobytes()
    finally:
        assert lib.el_break_level_test(level.encode(), lib.EL_FAULT_NONE) == lib.EL_OK
    assert clib.isa() == level
    assert lib.el_break_level_test(b"portable", fault) == lib.EL_E_ARGUMENT
    assert lib.el_break_level_test(ffi.NULL, fault) == lib.EL_E_ARGUMENT


def test_the_first_call_can_cap_the_level():
    """In a process of its own: the choice is made once. A name that no level has changes nothing."""
    code = (
        "from edgellm._native import ffi, lib\n"
        "assert lib.el_init(b'no such level') == lib.EL_E_ARGUMENT\n"
        "assert lib.el_init(b'portable') == lib.EL_OK and lib.el_init(ffi.NULL) == lib.EL_OK\n"
        "print(ffi.string(lib.el_isa()).decode())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "portable\n"
