"""The NumPy (de)quantisers: golden blocks, bit-equal to the gguf package, panels that lose nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm import quants
from edgellm.blocks import ALL, BY_NAME, BlockType
from edgellm.errors import InvalidArgumentError, UnsupportedQuantError
from edgellm.quants.pack import PACK
from edgellm.quants.pack_search import SEARCH

GOLDEN = Path(__file__).resolve().parent.parent / "formats" / "golden"
NAMES = [b.name for b in ALL]
SEARCHED = [n for n in SEARCH if n not in PACK]  # scales of their own choice, whatever the importance
SCALED = [b.name for b in ALL if "d" in b.dtype.names]
PACKED = [block.name for block in ALL if block.has_panel]


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal float32 bits; any NaN equals any NaN."""
    nan = np.isnan(a)
    return a.shape == b.shape and (nan == np.isnan(b)).all() and (a.view("u4")[~nan] == b.view("u4")[~nan]).all()


def peer_dequantize(raw: np.ndarray, kind: BlockType, shape: tuple[int, ...]) -> np.ndarray:
    import gguf

    with np.errstate(all="ignore"):
        out = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(kind.id))
    return np.ascontiguousarray(out, dtype=np.float32).reshape(shape)


@pytest.mark.parametrize("name", NAMES)
def test_golden_block(name: str) -> None:
    case = json.loads((GOLDEN / "blocks.json").read_text())["blocks"][name]
    want = np.array([int(w, 16) for w in case["weights"]], dtype=np.uint32).view(np.float32)
    got = quants.dequantize(bytes.fromhex(case["bytes"]), name, (1, BY_NAME[name].block_size))
    assert same_bits(got[0], want)


@pytest.mark.parametrize("name", NAMES)
def test_random_bytes_dequantise_as_the_gguf_package_does(name: str) -> None:
    kind, rng = BY_NAME[name], np.random.default_rng(1)
    raw = rng.integers(0, 256, (33, kind.row_bytes(512)), dtype=np.uint8)
    assert same_bits(quants.dequantize(raw, name, (33, 512)), peer_dequantize(raw, kind, (33, 512)))


@pytest.mark.parametrize("name", SCALED)
def test_every_scale_bit_pattern(name: str) -> None:
    """All 65,536 f16 patterns as the scale of a block, subnormals, infinities and NaNs included."""
    kind, rng = BY_NAME[name], np.random.default_rng(2)
    blocks = rng.integers(0, 256, ((1 << 16), kind.type_size), dtype=np.uint8).view(kind.dtype)[:, 0]
    for field in ("d", "m", "dmin"):
        if field in kind.dtype.names:
            blocks[field] = rng.permutation(1 << 16).astype(np.uint16).view(np.float16)
    raw, shape = blocks.view(np.uint8).reshape(1 << 16, -1), ((1 << 16), kind.block_size)
    assert same_bits(quants.dequantize(raw, name, shape), peer_dequantize(raw, kind, shape))


def test_every_16_bit_float() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    assert same_bits(quants.dequantize(bits, "F16", (1 << 16,)), bits.view(np.float16).astype(np.float32))
    assert same_bits(quants.dequantize(bits, "BF16", (1 << 16,)), (bits.astype(np.uint32) << 16).view(np.float32))


def inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    gauss = rng.standard_normal((8, 256)).astype(np.float32)
    one_block_out = gauss.copy()
    one_block_out[:, ::32] *= 50
    equal = np.repeat(rng.standard_normal((8, 8)).astype(np.float32), 32, axis=1)
    signs = np.where(rng.random((8, 256)) < 0.5, -1, 1).astype(np.float32)  # ties for the largest magnitude
    return {
        "gauss": gauss,
        "zeros": np.zeros((8, 256), np.float32),
        "negative zeros": -np.zeros((8, 256), np.float32),
        "tiny": gauss * np.float32(1e-30),
        "f16 subnormal scales": gauss * np.float32(1e-6),
        "huge": gauss * np.float32(1e30),
        "f16 overflow": gauss * np.float32(1e7),
        "ties": rng.integers(-127, 128, (8, 256)).astype(np.float32) / 2,
        "half steps": rng.integers(-15, 16, (8, 256)).astype(np.float32) / 2,
        "outliers": one_block_out,
        "constant blocks": equal,
        "signs": signs,
        "all positive": np.abs(gauss),
        "all negative": -np.abs(gauss),
    }


@pytest.mark.parametrize("name", [n for n in NAMES if n not in SEARCHED])
@pytest.mark.parametrize("what", list(inputs()))
def test_quantises_as_the_gguf_package_does(name: str, what: str) -> None:
    import gguf

    x, kind = inputs()[what], gguf.GGMLQuantizationType[name]
    with np.errstate(all="ignore"):
        want = np.ascontiguousarray(gguf.quants.quantize(x, kind)).view(np.uint8).reshape(8, -1)
    got = quants.quantize(x, name)
    assert got.dtype == np.uint8 and (got == want).all()


def test_bf16_rounds_to_nearest_even_and_keeps_nan() -> None:
    bits = np.array([0x3F800000, 0x3F808000, 0x3F818000, 0x3F808001, 0x7F800000, 0x7F7FFFFF, 0x7F800001, 0xFFC00001],
                    dtype=np.uint32)  # fmt: skip
    got = quants.quantize(bits.view(np.float32), "BF16").view(np.uint16)
    assert [hex(v) for v in got] == ["0x3f80", "0x3f80", "0x3f82", "0x3f81", "0x7f80", "0x7f80", "0x7fc0", "0xffc0"]


@pytest.mark.parametrize(
    ("name", "limit"),
    [("F32", 0), ("F16", 4e-4), ("BF16", 3e-3), ("Q8_0", 7e-3), ("Q6_K", 0.03), ("Q5_1", 0.05), ("Q5_0", 0.06),
     ("Q4_1", 0.1), ("Q4_0", 0.11)],
)  # fmt: skip
def test_round_trip_error_of_gaussian_weights(name: str, limit: float) -> None:
    x = np.random.default_rng(4).standard_normal((64, 512)).astype(np.float32)
    back = quants.dequantize(quants.quantize(x, name), name, x.shape)
    assert np.sqrt(np.mean((x - back) ** 2)) <= limit


@pytest.mark.parametrize("name", ["Q4_0", "Q5_0", "Q8_0", "Q6_K"])
def test_values_on_the_grid_come_back_exactly(name: str) -> None:
    """Codes times a power of two, with the extreme code in each group, survive without any error."""
    low, high = {"Q4_0": (-8, 7), "Q5_0": (-16, 15), "Q8_0": (-127, 127), "Q6_K": (-32, 31)}[name]
    codes = np.random.default_rng(5).integers(low, high + 1, (4, 512)).astype(np.float32)
    codes[:, ::16] = low
    x = codes * np.float32(0.125)
    assert (quants.dequantize(quants.quantize(x, name), name, x.shape) == x).all()


def test_scales_whose_inverse_overflows_give_finite_weights() -> None:
    x = np.full((2, 256), 1e-44, np.float32)
    for name in NAMES:
        back = quants.dequantize(quants.quantize(x, name), name, x.shape)
        assert np.isfinite(back).all() and np.abs(back).max() <= 1e-43


def test_chunks_leave_no_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(6).standard_normal((7, 512)).astype(np.float32)
    for name in NAMES:
        raw = quants.quantize(x, name)
        back = quants.dequantize(raw, name, x.shape)
        with monkeypatch.context() as m:
            m.setattr(quants.codecs, "_CHUNK", 768)
            assert (quants.quantize(x, name) == raw).all()
            assert (quants.dequantize(raw, name, x.shape) == back).all()


def test_shapes_and_buffers() -> None:
    x = np.random.default_rng(7).standard_normal((2, 3, 64)).astype(np.float32)
    raw = quants.quantize(x, "q4_0")
    assert raw.shape == (2, 3, 36)
    want = quants.dequantize(raw, 2, (2, 3, 64))
    assert want.shape == (2, 3, 64) and want.flags.c_contiguous
    for same in (raw.tobytes(), memoryview(raw.tobytes()), raw.reshape(-1), bytearray(raw.tobytes())):
        assert (quants.dequantize(same, "Q4_0", (6, 64)).reshape(2, 3, 64) == want).all()
    assert quants.quantize(x[:, :, ::2], "Q8_0").shape == (2, 3, 34)  # a strided view
    assert quants.can_quantize(64, "Q4_0") and not quants.can_quantize(64, "Q6_K") and not quants.can_quantize(0, "F32")


def test_misuse_is_refused() -> None:
    for shape, size in (((2, 33), 36), ((2, 64), 71), ((2, 64), 73), ((), 0), ((-1, 32), 18)):
        with pytest.raises(InvalidArgumentError):
            quants.dequantize(np.zeros(size, np.uint8), "Q4_0", shape)
    with pytest.raises(InvalidArgumentError):
        quants.quantize(np.zeros((2, 48), np.float32), "Q8_0")
    for unknown in ("IQ2_XXS", 16, "", -1):
        with pytest.raises(UnsupportedQuantError):
            quants.resolve_type(unknown)


# ---- panels ----------------------------------------------------------------------------------------------------------


def slow_panels(kind: BlockType, rows: list[bytes], k: int) -> bytes:
    """The text of formats/panels.md, byte by byte; `rows` are already a multiple of 16."""
    if kind.block_size == 256:
        tiles = [(g, b) for g in range(0, len(rows), 16) for b in range(0, len(rows[0]), kind.type_size)]
        return b"".join(slow_tile(kind, [rows[g + r][b : b + kind.type_size] for r in range(16)]) for g, b in tiles)

    def block(row: int, col: int) -> bytes:
        return rows[row][col // 32 * kind.type_size :][: kind.type_size]

    def code(row: int, col: int) -> int:
        qs, i = block(row, col)[2:], col % 32
        if kind.name == "Q8_0":
            return qs[i]
        return qs[i] & 15 if i < 16 else qs[i - 16] >> 4

    out = bytearray()
    for g in range(0, len(rows), 16):
        for t in range(0, k, 64):
            width = min(64, k - t)
            scales = b"".join(block(g + r, t + 32 * b)[:2] for b in range(width // 32) for r in range(16))
            out += scales.ljust(64, b"\0")
            for first in range(0, width if kind.name == "Q8_0" else width // 2, 4):
                for r in range(16):
                    for i in range(4):
                        byte = code(g + r, t + first + i)
                        if kind.name == "Q4_0":
                            byte |= code(g + r, t + width // 2 + first + i) << 4
                        out.append(byte)
    return bytes(out)


def slow_k_block(kind: BlockType, raw: bytes) -> tuple[list[int], list[int], list[int], bytes]:
    """Unsigned codes of the 256 weights, scales and minimums as stored, and the f16 bytes (formats/blocks.md)."""
    if kind.name == "Q6_K":
        ql, qh = raw[:128], raw[128:192]
        codes = []
        for k in range(256):
            half, g, i = k // 128, k % 128 // 32, k % 32
            low = ql[64 * half + 32 * (g % 2) + i] >> (4 * (g // 2)) & 15
            codes.append(low | (qh[32 * half + i] >> (2 * g) & 3) << 4)
        return codes, list(raw[192:208]), [], raw[208:]
    packed, qs = raw[4:16], raw[-128:]
    scales = [packed[g] & 63 if g < 4 else packed[g + 4] & 15 | packed[g - 4] >> 6 << 4 for g in range(8)]
    mins = [packed[g + 4] & 63 if g < 4 else packed[g + 4] >> 4 | packed[g] >> 6 << 4 for g in range(8)]
    codes = [qs[k // 64 * 32 + k % 32] >> (k // 32 % 2 * 4) & 15 for k in range(256)]
    if kind.name == "Q5_K":
        codes = [code | (raw[16 + k % 32] >> (k // 32) & 1) << 4 for k, code in enumerate(codes)]
    return codes, scales, mins, raw[:4]


def slow_tile(kind: BlockType, blocks: list[bytes]) -> bytes:
    """One tile of 256 k from the blocks of 16 rows."""
    rows = [slow_k_block(kind, block) for block in blocks]
    out = bytearray(b"".join(row[3][:2] for row in rows) + b"".join(row[3][2:] for row in rows)).ljust(64, b"\0")
    for table in (1, 2):
        for pair in range(0, len(rows[0][table]), 2):
            out += bytes(row[table][pair + i] for row in rows for i in range(2))
    bits = {"Q4_K": 0, "Q5_K": 1, "Q6_K": 2}[kind.name]
    for t in range(0, 256, 64):
        for line in range(2 * bits):
            quads = range(line * 8 // bits, (line + 1) * 8 // bits)
            for row in rows:
                for i in range(4):
                    out.append(sum(row[0][t + 4 * q + i] >> 4 << (n * bits) for n, q in enumerate(quads)))
        for j in range(8):
            for row in rows:
                out += bytes(row[0][t + 4 * j + i] & 15 | (row[0][t + 32 + 4 * j + i] & 15) << 4 for i in range(4))
    return bytes(out)


def test_golden_panels() -> None:
    files = [GOLDEN / "panels.json", GOLDEN / "panels_k.json"]
    cases = [case for file in files for case in json.loads(file.read_text())["panels"]]
    sizes = [("Q4_0", 64), ("Q4_0", 96), ("Q8_0", 64), ("Q8_0", 96), ("Q4_K", 256), ("Q5_K", 256), ("Q6_K", 256)]
    assert [(c["type"], c["k"]) for c in cases] == sizes
    for case in cases:
        rows = [bytes.fromhex(row) for row in case["blocks"]]
        want = bytes.fromhex("".join(case["panels"]))
        assert quants.pack_panels(b"".join(rows), case["rows"], case["k"], case["type"]).tobytes() == want
        assert quants.unpack_panels(want, case["rows"], case["k"], case["type"]).tobytes() == b"".join(rows)


@pytest.mark.parametrize("name", PACKED)
@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 40), blocks=st.integers(1, 7), seed=st.integers(0, 1 << 30))
def test_panels_lose_nothing(name: str, rows: int, blocks: int, seed: int) -> None:
    kind = BY_NAME[name]
    k = kind.block_size * (blocks if kind.block_size == 32 else 1 + blocks % 2)
    raw = np.random.default_rng(seed).integers(0, 256, (rows, kind.row_bytes(k)), dtype=np.uint8)
    panels = quants.pack_panels(raw, rows, k, name)
    assert panels.nbytes == quants.panel_bytes(rows, k, name) and panels.nbytes % 64 == 0
    assert (quants.unpack_panels(panels, rows, k, name) == raw).all()
    padded = [*raw, *[np.zeros(raw.shape[1], np.uint8)] * (-rows % 16)]
    assert panels.tobytes() == slow_panels(kind, [row.tobytes() for row in padded], k)


def test_panel_misuse_is_refused() -> None:
    data = np.zeros(18 * 2 * 16, np.uint8)
    for rows, k in ((0, 64), (16, 0), (16, 48), (16, -32), (15, 64), (16, 128)):
        with pytest.raises(InvalidArgumentError):
            quants.pack_panels(data, rows, k, "Q4_0")
    with pytest.raises(InvalidArgumentError, match="no panel layout"):
        quants.panel_bytes(16, 256, "Q2_K")
    with pytest.raises(InvalidArgumentError, match="multiple of 256"):
        quants.panel_bytes(16, 320, "Q6_K")
    with pytest.raises(InvalidArgumentError, match="576 bytes, got 577"):
        quants.unpack_panels(bytes(577), 16, 64, "Q4_0")
